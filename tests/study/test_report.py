"""Figures, findings and texts from records alone."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vtp.config import ROOT
from vtp.reporting.pictures import save_png
from vtp.study import figures, report
from vtp.study.curves import common_transformer, comparable, correlation, curve, objectives, partial_correlation, reached
from vtp.study.findings import findings
from vtp.study.records import Record, Records

FLOPS = {"ae": 1.0, "clip+ssl+ae": 3.0, "vavae": 1.5}


def made(objective: str, steps: int = 100, *, gfd: float = 10.0, **changes: object) -> Record:
    values: dict = {
        "study": "s",
        "cell": "_".join([objective, str(steps), *(f"{name}-{value}" for name, value in changes.items() if name != "message")]),
        "key": "k",
        "status": "done",
        "message": "",
        "dataset": "scenes",
        "objective": objective,
        "pretrain_steps": steps,
        "pretrain_flops": FLOPS[objective] * steps * 1e12,
        "encoder": "small",
        "decoder": "small",
        "data_fraction": 1.0,
        "dit_steps": 400,
        "seed": 0,
        "rfd_before_gan": 2.5 * 100 / steps,
        "rfd": 2.0 * 100 / steps,
        "gfd": gfd,
        "gfd_guided": gfd / 2,
        "linear_probe_top1": 0.5 - gfd / 50,
        "linear_probe_bottleneck_top1": 0.1,
        "zero_shot_top1": None,
        "psnr": 23.0,
        "metric_network": "a" * 64,
        "seconds": 60.0,
    }
    return Record(**(values | changes))


RECORDS = [
    made("ae", 100, gfd=15.0),
    made("ae", 300, gfd=15.5),
    made("clip+ssl+ae", 100, gfd=12.0),
    made("clip+ssl+ae", 300, gfd=7.0),
    made("clip+ssl+ae", 300, gfd=9.0, seed=1),
    made("clip+ssl+ae", 300, gfd=6.0, encoder="base", pretrain_flops=2e15),
    made("clip+ssl+ae", 300, gfd=11.0, dit_steps=100),
    made("vavae", 300, gfd=10.0),
    made("vavae", 300, gfd=14.0, dit_steps=100),
    made("ae", 900, gfd=1.0, status="diverged", message="l1 is nan.", rfd=None),
]


def test_a_target_is_reached_where_the_curve_first_is_below_it():
    """Curves of few runs rise now and then."""
    line = curve([made("ae", dit_steps=x, gfd=y) for x, y in ((100, 5.0), (200, 7.0), (300, 4.0))], "ae", "dit_steps")
    assert reached(line, "gfd", 6.0) == 100
    assert reached(line, "gfd", 4.5) == pytest.approx(200 * 1.5 ** (np.log(7 / 4.5) / np.log(7 / 4)))
    assert reached(line, "gfd", 3.0) is None


def test_a_curve_moves_along_one_axis_and_averages_seeds():
    line = curve(RECORDS, "clip+ssl+ae", "pretrain_steps")
    assert [point.x for point in line.points] == [100, 300]
    assert line.means("gfd") == [12.0, 8.0]
    assert line.points[1].spread("gfd") == pytest.approx(2**0.5)
    assert line.points[0].spread("gfd") == 0
    assert [point.x for point in curve(RECORDS, "clip+ssl+ae", "encoder").points] == ["small", "base"]
    assert [point.x for point in curve(RECORDS, "ae", "pretrain_steps").points] == [100, 300]  # what diverged is no point
    assert objectives(RECORDS) == ["ae", "clip+ssl+ae", "vavae"]


def test_of_equally_long_curves_the_one_under_the_usual_transformer_is_taken():
    runs = [made("vavae", 300, gfd=14.0, dit_steps=100), made("vavae", 300, gfd=10.0)]
    runs += [made("ae", steps, gfd=9.0) for steps in (100, 300)]
    for records in (runs, runs[::-1]):
        assert curve(records, "vavae", "pretrain_steps").means("gfd") == [10.0]
        assert curve(records, "vavae", "dit_steps").means("gfd") == [14.0, 10.0]


def test_correlation_is_over_runs_that_have_both_and_the_usual_transformer():
    assert {record.dit_steps for record in comparable(RECORDS)} == {400}
    assert correlation(RECORDS, "linear_probe_top1", "gfd") == pytest.approx(-1)
    assert correlation(RECORDS[:2], "linear_probe_top1", "gfd") is None
    assert correlation(RECORDS, "zero_shot_top1", "gfd") is None
    assert correlation([made("ae"), made("vavae"), made("clip+ssl+ae")], "linear_probe_top1", "gfd") is None


def test_partial_correlation_is_that_of_what_straight_lines_leave():
    draw = np.random.default_rng(0)
    rebuilt = draw.uniform(1, 10, 12)
    probe = 0.1 * rebuilt + draw.normal(size=12)
    distance = 2 * rebuilt - probe + draw.normal(size=12)
    runs = [made("ae", gfd=g, rfd=r, linear_probe_top1=p) for r, p, g in zip(rebuilt, probe, distance, strict=True)]
    line = np.stack([np.ones(12), rebuilt], axis=1)
    left = [value - line @ np.linalg.lstsq(line, value, rcond=None)[0] for value in (probe, distance)]
    found = partial_correlation([*runs, made("ae", rfd=None)], "linear_probe_top1", "gfd", "rfd")
    assert found == pytest.approx(np.corrcoef(*left)[0, 1])
    assert partial_correlation(runs[:3], "linear_probe_top1", "gfd", "rfd") is None
    assert partial_correlation([made("ae", gfd=g, rfd=3 * g) for g in (1, 2, 5, 3)], "linear_probe_top1", "gfd", "rfd") is None


def test_where_a_falling_curve_comes_down_to_a_level():
    line = curve([made("ae", gfd=g, dit_steps=s) for s, g in ((100, 20.0), (200, 10.0), (400, 8.0))], "ae", "dit_steps")
    assert reached(line, "gfd", 200**0.5) == pytest.approx(100 * 2**0.5)  # half the way of both, in factors
    assert reached(line, "gfd", 8.0) == pytest.approx(400)
    assert reached(line, "gfd", 30.0) == 100
    assert reached(line, "gfd", 7.0) is None


def test_findings_say_whether_sign_and_shape_agree():
    joint, ae, wins, probe, faster, levels = findings(RECORDS)
    assert (joint.agrees, joint.here) == (True, "gFD 12 to 8: +33.3% improvement")
    assert ae.agrees is True
    assert "rFD 2 to 0.6667, gFD 15 to 15.5 (-3.3% improvement)" in ae.here
    assert wins.here == "8 against 15: 0.53 x"
    assert probe.here.startswith("r = -1.00 between probe and gFD, over all runs of one DiT; 0.53 between rFD and gFD; -1.00")
    assert faster.agrees is True
    assert "vavae at 400 steps: reached at 151, 2.6 x" in faster.here
    assert levels.agrees is None


def test_a_joint_tokenizer_has_to_win_under_longer_transformers_too():
    longer = [made("ae", 100, gfd=4.0, dit_steps=800), made("ae", 300, gfd=2.0, dit_steps=800)]
    for gfd, ratio, agrees in ((1.0, 0.5, True), (3.0, 1.5, False)):
        wins = findings([*RECORDS, *longer, made("clip+ssl+ae", 300, gfd=gfd, dit_steps=800)])[2]
        assert wins.here == f"8 against 15: 0.53 x; {gfd:g} against 2: {ratio:.2f} x, with transformers of 800 steps"
        assert wins.agrees is agrees


def test_the_sheet_shows_the_longest_transformer_that_every_objective_has():
    both = [made(name, dit_steps=steps) for name in ("ae", "vavae") for steps in (100, 400)]
    assert common_transformer([*both, made("ae", dit_steps=900)]) == 400
    assert common_transformer([*both[:3], made("vavae", dit_steps=800, status="failed")]) == 100
    assert common_transformer([made("ae", dit_steps=100), made("ae", 300, dit_steps=100), made("vavae", dit_steps=400)]) == 100
    assert common_transformer([]) == 0


def test_findings_are_negative_where_the_records_are():
    worse = [made("ae", 100, gfd=15.0), made("ae", 300, gfd=9.0), made("clip+ssl+ae", 100, gfd=10.0)]
    worse += [made("clip+ssl+ae", 300, gfd=11.0), made("vavae", 300, gfd=3.0), made("clip+ssl+ae", 300, gfd=14.0, dit_steps=90)]
    assert [finding.agrees for finding in findings(worse)] == [False, False, False, True, False, None]


def test_a_weak_correlation_is_no_agreement():
    runs = [made("ae", gfd=g, linear_probe_top1=p) for g, p in ((10, 0.2), (12, 0.2), (11, 0.1), (10.5, 0.25), (12.2, 0.15))]
    r = correlation(runs, "linear_probe_top1", "gfd")
    assert r is not None
    assert -0.5 < r < 0
    assert findings(runs)[3].agrees is False


def test_nothing_is_claimed_of_what_was_not_measured():
    assert [finding.agrees for finding in findings([])] == [None] * 6
    assert {finding.here for finding in findings([])} == {"not measured"}


@pytest.fixture
def written(tmp_path) -> Path:
    kept = Records(tmp_path / "study" / "s")
    for record in RECORDS:
        kept.save(record)
        save_png(kept.picture(record.cell), np.zeros((30, 60, 3), dtype=np.uint8))
    report.write(tmp_path / "study", tmp_path / "study.md")
    return tmp_path


def test_the_report_has_every_figure_run_and_failure(written):
    text = (written / "study.md").read_text()
    for name in ("compute", "probe", "sizes", "convergence", "sheet"):
        assert f"(study/s/figures/{name}.png)" in text
        assert min(Image.open(written / "study" / "s" / "figures" / f"{name}.png").size) > 50
    for record in RECORDS:
        assert record.cell in text
    assert "diverged. l1 is nan." in text
    page = (written / "study" / "s" / "index.html").read_text()
    assert "http" not in page
    for link in re.findall(r'src="([^"]+)"', page):
        assert (written / "study" / "s" / link).is_file()


def test_runs_that_were_measured_with_another_network_are_told_apart(written):
    assert "do not compare" not in (written / "study.md").read_text()
    Records(written / "study" / "s").save(made("ae", 700, metric_network="b" * 64))
    report.write(written / "study", written / "study.md")
    for text in (written / "study.md", written / "study" / "s" / "index.html"):
        assert "do not compare" in text.read_text()
        assert "b" * 16 + ": ae_700_metric_network-" in text.read_text()


def test_the_same_records_give_the_same_bytes(written):
    before = {path: path.read_bytes() for path in written.rglob("*") if path.is_file()}
    report.write(written / "study", written / "study.md")
    assert {path: path.read_bytes() for path in before} == before


def test_sizes_are_compared_along_curves_only(tmp_path):
    """A run of another compute beside them would be taken for one of the same."""
    runs = [made("ae", gfd=12.0), made("ae", gfd=10.0, encoder="base", pretrain_flops=2e15), made("vavae", 300, gfd=11.0)]
    runs += [made("ae", 300, gfd=9.0)]
    figures.draw(runs, tmp_path)

    def shows(figure: str, objective: str) -> bool:
        pixels = np.array(Image.open(tmp_path / figure).convert("RGB")).reshape(-1, 3)
        colour = [int(figures.COLOURS[objective][i : i + 2], 16) for i in (1, 3, 5)]
        return bool((pixels == colour).all(1).any())

    assert shows("sizes.png", "ae")
    assert shows("compute.png", "vavae")
    assert not shows("sizes.png", "vavae")


def test_figures_need_points(tmp_path):
    assert figures.draw([made("ae")], tmp_path) == []
    assert figures.sheet([made("ae")], Records(tmp_path), tmp_path / "sheet.png") is None


def test_a_folder_without_records_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no records; `python -m vtp study run FILE` makes them"):
        report.write(tmp_path, tmp_path / "study.md")


@pytest.mark.skipif(not (ROOT / "docs" / "study").exists(), reason="no study was run")
def test_the_committed_text_is_what_the_committed_records_say(tmp_path):
    import shutil

    shutil.copytree(ROOT / "docs" / "study", tmp_path / "study")
    report.write(tmp_path / "study", tmp_path / "study.md")
    assert (tmp_path / "study.md").read_text() == (ROOT / "docs" / "study.md").read_text()
