"""Plans of studies: what they expand into, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vtp.config import ROOT, ConfigError
from vtp.study import plan

SMALL = {
    "recipe": "demo",
    "set": {"pretrain.optimizer.cooldown": 4},
    "grid": {"objective": ["ae", "clip+ae"], "pretrain_steps": [10, 30]},
}


def planned(folder: Path, *overrides: str, only: tuple[str, ...] = (), **changes: object) -> plan.Study:
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL | changes))
    return plan.read(file, overrides, only)


def test_a_grid_becomes_cells_that_differ_where_it_says(tmp_path):
    study = planned(tmp_path)
    assert [cell.name for cell in study.cells] == ["ae_10", "ae_30", "clip+ae_10", "clip+ae_30"]
    assert study.name == "small"
    last = study.cells[-1]
    assert last.axes == {
        "objective": "clip+ae",
        "pretrain_steps": 30,
        "data_fraction": 1.0,
        "dit_steps": last.tree["dit"]["steps"],
        "seed": 0,
        "encoder": "small",
        "decoder": "small",
    }
    assert last.tree["pretrain"]["steps"] == 30
    assert last.tree["pretrain"]["objective"] == "clip+ae"
    assert len({cell.key for cell in study.cells}) == 4


def test_products_are_joined_and_a_cell_of_two_of_them_is_one(tmp_path):
    grid = [
        {"objective": ["ae"], "pretrain_steps": [10, 440]},
        {"objective": ["ae"], "encoder": ["small", "base"], "seed": [0, 1]},
        {"objective": ["ae"], "decoder": ["large"], "data_fraction": [0.5], "dit_steps": [300]},
    ]
    names = [cell.name for cell in planned(tmp_path, grid=grid).cells]
    assert names == [
        "ae_10",
        "ae_440",
        "ae_440_seed-1",
        "ae_440_encoder-base",
        "ae_440_seed-1_encoder-base",
        "ae_440_data-0.5_dit-300_decoder-large",
    ]


def test_a_size_replaces_one_part_of_the_row_in_use(tmp_path):
    cell = planned(tmp_path, grid={"encoder": ["base"], "decoder": ["large"]}).cells[0]
    sizes = cell.tree["model"]["sizes"]
    plain = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text())["model"]["sizes"]
    assert sizes["small"] == {
        "encoder": plain["base"]["encoder"],
        "decoder": plain["large"]["decoder"],
        "text": plain["small"]["text"],
    }


def test_everything_but_the_axes_is_the_same_in_every_cell(tmp_path):
    trees = [cell.tree for cell in planned(tmp_path, "dit.width=96").cells]
    for tree in trees:
        assert tree["dit"]["width"] == 96
        del tree["pretrain"]["objective"], tree["pretrain"]["steps"]
    assert all(tree == trees[0] for tree in trees)


def test_where_files_lie_is_no_part_of_what_is_done(tmp_path):
    source = ("data.source=parquet", "data.train_samples=null", "data.validation_samples=null")
    here, there = (planned(tmp_path, *source, f"data.path=/{folder}/photographs").cells[0] for folder in ("a", "b"))
    assert here.key == there.key
    assert here.key != planned(tmp_path).cells[0].key


def test_samples_are_drawn_with_and_without_guidance(tmp_path):
    assert planned(tmp_path).cells[0].tree["sample"]["unguided"] is True
    assert planned(tmp_path, "sample.guidance_scale=1").cells[0].tree["sample"]["unguided"] is False


def test_only_some_objectives(tmp_path):
    assert [cell.name for cell in planned(tmp_path, only=("clip+ae",)).cells] == ["clip+ae_10", "clip+ae_30"]
    with pytest.raises(ConfigError, match="no objective ssl\\+ae; it has ae, clip\\+ae"):
        planned(tmp_path, only=("ssl+ae",))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grids": []}, "a study has the keys about, recipe, set, grid, teacher; look at grids"),
        ({"grid": None}, "grid must be a table of lists"),
        ({"grid": {"objectiv": ["ae"]}}, "grid.objectiv is not an axis; axes are objective, pretrain_steps"),
        ({"grid": {"objective": "ae"}}, "grid.objective must be a list of values, not 'ae'"),
        ({"grid": {"objective": []}}, "grid.objective must be a list"),
        ({"grid": {}}, "grid must be a table of lists"),
        ({"set": {"dit.stepz": 3}}, "set: dit.stepz is not a parameter"),
        ({"recipe": "huge"}, "there is no recipe huge; recipes are"),
        (
            {"grid": {"objective": ["gan"]}},
            "the cell objective=gan cannot be: objective=gan is neither one of ae, .* nor a recipe",
        ),
        ({"grid": {"encoder": ["huge"]}}, "encoder=huge is no row of model.sizes, which has small, base, large"),
        ({"grid": {"seed": [-1]}}, "the cell seed=-1 cannot be: seed=-1 is too small"),
        ({"grid": {"pretrain_steps": ["many"]}}, "pretrain.steps must be a whole number, not 'many'"),
        ({"grid": {"data_fraction": [0]}}, "pretrain.data_fraction=0.* is too small; it must be above 0"),
        ({"grid": {"pretrain_steps": [4]}}, "pretrain.steps=4 is no longer than its cool-down of 4 steps"),
    ],
)
def test_what_cannot_be_is_refused_at_once(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        planned(tmp_path, **changes)


def test_what_is_no_plan_is_named(tmp_path):
    for content, words in (
        (b"\x89PNG", "is no text"),
        (b"grid: [1", "cannot be read as YAML"),
        (b"grid: {}\nset: 3", "set must be"),
    ):
        file = tmp_path / "plan.yaml"
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=f"plan.yaml.*{words}"):
            plan.read(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml does not exist"):
        plan.read(tmp_path / "none.yaml")


@pytest.mark.parametrize("file", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_studies_that_come_along_can_be(file):
    study = plan.read(file)
    assert len({cell.name for cell in study.cells}) == len(study.cells) > 1


TAUGHT = {"grid": {"objective": ["ae", "vavae", "frozen"], "pretrain_steps": [10]}}


def test_a_teacher_is_named_where_one_is_needed_and_nowhere_else(tmp_path):
    study = planned(tmp_path, **TAUGHT, teacher={"objective": "ssl+ae", "pretrain_steps": 30})
    plain, vavae, frozen = (cell.tree["pretrain"] for cell in study.cells)
    assert (vavae["objective"], vavae["align"]["teacher"], vavae["init_from"]) == ("ae+align", plan.TEACHER, None)
    assert (frozen["objective"], frozen["frozen"], frozen["init_from"]) == ("ae", True, plan.TEACHER)
    assert (plain["init_from"], plain["align"]["teacher"]) == (None, None)
    assert study.teacher is not None
    assert study.teacher.name == "ssl+ae_30"
    other = planned(tmp_path, **TAUGHT, teacher={"objective": "ssl+ae", "pretrain_steps": 40})
    assert [a.key == b.key for a, b in zip(study.cells, other.cells, strict=True)] == [True, False, False]


def test_a_teacher_may_be_a_folder(tmp_path):
    study = planned(tmp_path, **TAUGHT, teacher="/a/tokenizer")
    assert study.teacher is None
    assert study.cells[1].tree["pretrain"]["align"]["teacher"] == "/a/tokenizer"


def test_without_a_teacher_the_cell_that_needs_one_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"the cell objective=vavae, .* cannot be: pretrain.align.teacher=null"):
        planned(tmp_path, **TAUGHT)


def test_the_classic_autoencoder_is_a_cell_and_has_no_size_of_transformers(tmp_path):
    cell = planned(tmp_path, grid={"objective": ["kl-vae"], "pretrain_steps": [10]}).cells[0]
    assert (cell.tree["tokenizer"]["network"], cell.tree["pretrain"]["objective"]) == ("convolutional", "ae+kl")
    assert cell.axes["objective"] == "kl-vae"
    with pytest.raises(ConfigError, match=r"the cell encoder=base, objective=kl-vae, .* encoder=base is a size of transformers"):
        planned(tmp_path, grid={"objective": ["ae", "kl-vae"], "pretrain_steps": [10], "encoder": ["base"]})
    with pytest.raises(ConfigError, match=r"the cell objective=ae\+kl, .* cannot be: .*the recipe kl-vae"):
        planned(tmp_path, grid={"objective": ["ae+kl"], "pretrain_steps": [10]})
