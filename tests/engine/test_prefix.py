"""Runs of different lengths share their beginning: what is taken over, what is not, and that no bit depends on it."""

from __future__ import annotations

import pytest
import torch

from tests.engine.test_loop import Killed, run
from tests.tasks.conftest import ALL, build
from vtp.engine.checkpoint import Prefix
from vtp.engine.optim import set_rate
from vtp.tasks.base import Task

SECTION = {
    "pretrain": "pretrain",
    "variational": "pretrain",
    "aligned": "pretrain",
    "decoder": "finetune_decoder",
    "dit": "dit",
    "metric": "evaluate.metric_network",
}


def of_length(kind: str, steps: int) -> Task:
    """The small task at another length; every optimizer cools down over its last 2 steps."""
    return build(kind, f"{SECTION[kind]}.steps={steps}")


@pytest.mark.parametrize("kind", ALL)
def test_a_longer_run_goes_on_from_a_shorter_one_and_ends_in_the_bits_of_one_run(kind, tmp_path):
    unbroken = of_length(kind, 9)
    history = run(unbroken, tmp_path / "unbroken", log_every=4)
    run(of_length(kind, 5), tmp_path / "short", log_every=4, prefix=Prefix(tmp_path / "shared", 3))
    assert [path.name for path in (tmp_path / "shared").glob("step-*")] == ["step-00000003"]
    longer, steps = of_length(kind, 9), []

    def counted(start: int, stop: int):
        from tests.tasks.conftest import batch_of

        for step in range(start, stop):
            steps.append(step)
            yield batch_of(step)

    assert run(longer, tmp_path / "long", made=counted, log_every=4, prefix=Prefix(tmp_path / "shared", 7)) == history
    assert steps == [3, 4, 5, 6, 7, 8]
    for name, tensor in unbroken.models.state_dict().items():
        assert torch.equal(tensor, longer.models.state_dict()[name]), name
    assert sorted(path.name for path in (tmp_path / "shared").glob("step-*")) == ["step-00000003", "step-00000007"]


def test_nothing_is_taken_from_beyond_the_cool_down_of_a_shorter_run(tmp_path):
    run(of_length("dit", 9), tmp_path / "long", prefix=Prefix(tmp_path / "shared", 7))
    short = of_length("dit", 5)
    history = run(short, tmp_path / "short", prefix=Prefix(tmp_path / "shared", 3))
    assert history == run(of_length("dit", 5), tmp_path / "unbroken")


def test_a_run_that_is_ahead_of_what_is_shared_keeps_its_own(tmp_path):
    run(of_length("dit", 5), tmp_path / "short", prefix=Prefix(tmp_path / "shared", 3))
    with pytest.raises(Killed):
        run(of_length("dit", 9), tmp_path / "long", killed_at=7)
    assert not [p for p in (tmp_path / "long").glob("step-*") if p.name == "step-00000003"]
    assert run(of_length("dit", 9), tmp_path / "long", prefix=Prefix(tmp_path / "shared", 7)) == run(
        of_length("dit", 9), tmp_path / "unbroken"
    )


def test_a_broken_shared_checkpoint_is_passed_over(tmp_path, caplog):
    run(of_length("dit", 5), tmp_path / "short", prefix=Prefix(tmp_path / "shared", 3))
    (tmp_path / "shared" / "step-00000003" / "models.safetensors").write_bytes(b"cut")
    history = run(of_length("dit", 9), tmp_path / "long", prefix=Prefix(tmp_path / "shared", 7))
    assert "broken shared checkpoint" in caplog.text
    assert history == run(of_length("dit", 9), tmp_path / "unbroken")


def test_a_fresh_run_leaves_a_checkpoint_and_takes_none(tmp_path, caplog):
    caplog.set_level("INFO")
    run(of_length("dit", 5), tmp_path / "short", prefix=Prefix(tmp_path / "shared", 3))
    run(of_length("dit", 9), tmp_path / "long", prefix=Prefix(tmp_path / "shared", 7, taken=False))
    assert "earlier run" not in caplog.text
    assert (tmp_path / "shared" / "step-00000007").is_dir()


def test_before_the_cool_down_the_rate_does_not_know_the_length():
    phase = of_length("dit", 9).phases[0]
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)])

    def rates(steps: int) -> list[float]:
        found = []
        for step in range(steps):
            set_rate(optimizer, phase, step, steps)
            found.append(optimizer.param_groups[0]["lr"])
        return found

    assert rates(9)[:3] == rates(5)[:3]
    assert rates(9)[3] != rates(5)[3]
