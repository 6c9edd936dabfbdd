"""What a study knows of each cell: a small JSON, and a strip of pictures beside it. Figures are drawn from these alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vtp.artifacts import load_json, save_json
from vtp.study.plan import Cell, Study
from vtp.typed import ConfigError, build

Status = Literal["done", "diverged", "failed"]


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        status: done; diverged (a loss was not finite, which no repetition changes); failed (anything else; tried again).
        message: what went wrong, one line; empty when done.
        key: fingerprint of the parameters it was made with; another one means that the plan has changed since.
        pretrain_flops: of all of pre-training, forwards and backwards.
        encoder, decoder: rows of the tokenizer's ladder.
        rfd, gfd: Frechet distance of reconstructions, and of samples without guidance; `gfd_guided` with it.
        rfd_before_gan: of reconstructions by the decoder as pre-training left it.
        linear_probe_top1: of a linear classifier on what the trunk pools; `linear_probe_bottleneck_top1` on the mean latent.
        metric_network: sha256 of the network in whose features they are taken; None where that is not known. Distances in the
            features of different ones do not compare.
        seconds: from its start to its end; what came from a cache counts nothing, what it waited for beside other cells does.
    """

    study: str
    cell: str
    key: str
    status: Status
    message: str
    dataset: str
    objective: str
    pretrain_steps: int
    pretrain_flops: float | None
    encoder: str
    decoder: str
    data_fraction: float
    dit_steps: int
    seed: int
    rfd_before_gan: float | None
    rfd: float | None
    gfd: float | None
    gfd_guided: float | None
    linear_probe_top1: float | None
    linear_probe_bottleneck_top1: float | None
    zero_shot_top1: float | None
    psnr: float | None
    metric_network: str | None
    seconds: float


MEASURED = (
    "pretrain_flops",
    "rfd_before_gan",
    "rfd",
    "linear_probe_top1",
    "linear_probe_bottleneck_top1",
    "zero_shot_top1",
    "psnr",
    "metric_network",
)


def record(study: Study, cell: Cell, status: Status, *, message: str = "", numbers: Mapping[str, Any], seconds: float) -> Record:
    """The record of a run; `numbers` are those of its reports that there are, by the names they have in reports/summary.json."""
    data = cell.tree["data"]
    guided = cell.tree["sample"]["guidance_scale"] != 1
    measured: dict[str, Any] = {name: numbers.get(name) for name in MEASURED}
    return Record(
        study=study.name,
        cell=cell.name,
        key=cell.key,
        status=status,
        message=message,
        dataset=data["source"] if data["path"] is None else Path(data["path"]).name,
        seconds=round(seconds, 1),
        gfd=numbers.get("gfd_unguided") if guided else numbers.get("gfd"),
        gfd_guided=numbers.get("gfd") if guided else None,
        **cell.axes,
        **measured,
    )


class Records:
    """The records of a study in a folder: `<cell>.json`, and `<cell>.png` where there are pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, made: Record) -> None:
        """Keep a record, in place of an older one of its cell."""
        save_json(self.folder / f"{made.cell}.json", dataclasses.asdict(made))

    def find(self, cell: Cell) -> Record | None:
        """The record of a cell under the parameters it has now, or None."""
        file = self.folder / f"{cell.name}.json"
        found = self._load(file) if file.exists() else None
        return found if found is not None and found.key == cell.key else None

    def all(self) -> list[Record]:
        """Every record there is, by cell.

        Raises:
            ConfigError: a file that is no record.
        """
        return [self._load(file) for file in sorted(self.folder.glob("*.json"))]

    def picture(self, cell: str) -> Path:
        """Where the pictures of a cell are, or would be: originals, reconstructions, samples."""
        return self.folder / f"{cell}.png"

    def _load(self, file: Path) -> Record:
        try:
            return build(Record, load_json(file))
        except ConfigError as error:
            raise ConfigError(
                f"{file} is no record of a study: {error} Delete it, and `python -m vtp study run` makes it anew."
            ) from None
