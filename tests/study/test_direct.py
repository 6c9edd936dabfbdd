"""Stages without DVC, on a small pipeline of two stages: shared ones run once, and how one can end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.study.test_plan import planned
from vtp.config import ROOT
from vtp.study import direct, shelf
from vtp.study.direct import Workshop
from vtp.study.process import Failure, Stopped

STAGE = """
import json, sys, pathlib, yaml, zlib
params = yaml.safe_load(pathlib.Path("params.yaml").read_text())
{body}
out = pathlib.Path("data/{name}")
out.mkdir(parents=True)
inputs = [json.loads(pathlib.Path("data", need, "manifest.json").read_text()) for need in {needs}]
made = json.dumps(params["{section}"] | {{"inputs": inputs}})
(out / "manifest.json").write_text(made)
pathlib.Path("reports").mkdir(exist_ok=True)
numbers = {{"{name}_steps": params["{section}"]["steps"], "rfd": float(zlib.crc32(made.encode()))}}
pathlib.Path("reports/{name}.json").write_text(json.dumps(numbers))
with open("{ran}", "a") as file:
    file.write("{name} ")
"""


def lay(folder: Path, graph: dict[str, tuple[str, list[str]]]) -> Path:
    """A checkout with a stage for each name: the section of its parameters, and the stages it needs. `<name>.body` runs in it."""
    checkout, stages = folder / "checkout", {}
    for name, (section, needs) in graph.items():
        body = folder / f"{name}.body"
        body.write_text("")
        script = checkout / "stages" / f"{name}.py"
        script.parent.mkdir(parents=True, exist_ok=True)
        reads = f"exec(pathlib.Path({body.as_posix()!r}).read_text())"
        script.write_text(STAGE.format(name=name, section=section, needs=needs, body=reads, ran=folder / "ran"))
        stages[name] = {
            "cmd": f"python -m stages.{name}",
            "deps": [f"stages/{name}.py", *(f"data/{other}" for other in needs)],
            "params": [section],
            "outs": [f"data/{name}"],
            "metrics": [f"reports/{name}.json"],
        }
    (checkout / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (checkout / "vtp").mkdir()
    (checkout / "data" / "inputs").mkdir(parents=True)
    (folder / "ran").write_text("")
    return checkout


@pytest.fixture
def shop(tmp_path, monkeypatch) -> Workshop:
    """A checkout with the stages `last`, which needs `first`, and `report`."""
    checkout = lay(tmp_path, {"last": ("dit", ["first"]), "first": ("pretrain", []), "report": ("dit", ["last"])})
    monkeypatch.setattr(direct, "ROOT", checkout)
    monkeypatch.setattr(direct, "IMPORTS", ())
    made = Workshop(checkout, planned(tmp_path))
    made.open()
    return made


def ran(tmp_path: Path) -> str:
    return (tmp_path / "ran").read_text().strip()


def test_stages_run_in_the_order_of_what_they_need(shop, tmp_path):
    outcome = shop.run(planned(tmp_path).cells[0])
    assert ran(tmp_path) == "first last"
    assert outcome.numbers["first_steps"] == 10
    assert json.loads((outcome.outs["last"] / "manifest.json").read_text())["steps"] == outcome.numbers["last_steps"]


def test_what_variants_share_runs_once(shop, tmp_path):
    cells = planned(tmp_path, grid={"objective": ["ae"], "pretrain_steps": [10], "dit_steps": [300, 400]}).cells
    numbers = [shop.run(cell).numbers for cell in (*cells, cells[0])]
    assert ran(tmp_path) == "first last last"
    assert [found["last_steps"] for found in numbers] == [300, 400, 300]


def test_an_edit_of_code_runs_what_it_can_change(shop, tmp_path):
    cell = planned(tmp_path).cells[0]
    shop.run(cell)
    script = direct.ROOT / "stages" / "last.py"
    script.write_text(script.read_text() + "# says more\n")
    shop.open()
    shop.run(cell)
    assert ran(tmp_path) == "first last last"


def test_a_stage_that_fails_says_so_in_its_last_words_and_what_came_before_is_kept(shop, tmp_path):
    cell = planned(tmp_path).cells[0]
    (tmp_path / "last.body").write_text("print('fine'); sys.exit('last: the disk is full.')")
    with pytest.raises(Failure, match=r"^last: the disk is full\.$") as caught:
        shop.run(cell)
    assert not caught.value.diverged
    (tmp_path / "last.body").write_text("")
    shop.run(cell)
    assert ran(tmp_path) == "first last"


@pytest.mark.parametrize(("status", "kind"), [(65, Failure), (75, Stopped)])
def test_divergence_and_a_stop_are_told_by_the_exit_status(shop, tmp_path, status, kind):
    (tmp_path / "last.body").write_text(f"sys.exit({status})")
    with pytest.raises(kind) as caught:
        shop.run(planned(tmp_path).cells[0])
    assert getattr(caught.value, "diverged", True)


def test_variants_do_not_stop_at_each_others_unfinished_work(shop, tmp_path):
    cell = planned(tmp_path).cells[0]
    shop.run(cell)
    how = yaml.safe_load((shop.benches[0].copy / "params.yaml").read_text())["run"]
    assert how["alongside"] is True
    assert how["name"] == "small-ae_10"


def test_of_this_pipeline_every_stage_but_the_report_is_run():
    order = direct.order(ROOT)
    assert order[0] == "prepare"
    assert "report" not in order
    assert order.index("pretrain") < order.index("extract_latents") < order.index("train_dit") < order.index("sample")
    assert set(order) | {"report"} == set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])


def test_a_teacher_is_trained_first_and_once_and_its_folder_is_pinned(shop, tmp_path, monkeypatch):
    made = direct.ROOT / "stages" / "first.py"
    text = made.read_text().replace("first", "pretrain")
    (tmp_path / "pretrain.body").write_text("")
    (direct.ROOT / "stages" / "pretrain.py").write_text(
        text + 'for name in ("config.json", "model.safetensors"):\n    (out / name).write_text("x")\n'
    )
    (direct.ROOT / "stages" / "prepare.py").write_text(made.read_text().replace("first", "prepare"))
    (tmp_path / "prepare.body").write_text("")
    stages = yaml.safe_load((direct.ROOT / "dvc.yaml").read_text())["stages"]
    for name in ("pretrain", "prepare"):
        stages[name] = json.loads(json.dumps(stages["first"]).replace("first", name).replace('"pretrain"]', '"pretrain"]'))
    stages["prepare"]["params"] = ["seed"]
    del stages["first"], stages["last"]
    (direct.ROOT / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    study = planned(
        tmp_path,
        grid={"objective": ["vavae", "frozen"], "pretrain_steps": [10]},
        teacher={"objective": "ssl+ae", "pretrain_steps": [30][0]},
    )
    taught = Workshop(direct.ROOT, study)
    taught.open()
    for cell in study.cells:
        taught.run(cell)
        params = yaml.safe_load((taught.benches[0].copy / "params.yaml").read_text())["pretrain"]
        folder = params["align"]["teacher"] or params["init_from"]
        assert folder.endswith("/data/pretrain")
        pinned = json.loads((taught.benches[0].copy / "data" / "inputs" / "tokenizer.json").read_text())
        assert pinned["path"] == folder
    assert ran(tmp_path) == "prepare pretrain pretrain pretrain"


def test_of_bulky_outs_only_the_newest_are_kept(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(shelf, "BULKY", ("last",))
    cells = planned(tmp_path).cells
    for cell in cells[:2]:
        shop.run(cell)
    assert [len(list((shop.shelf.folder / name).iterdir())) for name in ("first", "last")] == [2, 1]
