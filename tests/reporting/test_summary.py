from __future__ import annotations

from vtp.reporting.summary import console_table

SUMMARY = {
    "zero_shot_top1": 0.4321,
    "num_classes": 48,
    "psnr": 24.314,
    "psnr_before_gan": 25.02,
    "lpips": None,
    "gfd": 28.8,
    "gfd_gaussian": None,
    "seconds": 12.34567,
}


def line(key: str) -> list[str]:
    return next(line for line in console_table(SUMMARY).splitlines() if line.strip().startswith(key)).split()


def test_numbers_stand_beside_what_they_are_held_against() -> None:
    assert line("Zero-shot, class")[2:] == ["43.2", "%", "higher", "chance", "2.1", "%"]
    assert line("PSNR")[1:] == ["24.31", "dB", "higher", "before", "GAN", "25.02", "dB"]


def test_null_is_a_dash_and_never_a_comparison() -> None:
    assert line("LPIPS")[1:] == ["—", "lower"]
    assert line("gFD")[1:] == ["28.8", "lower"]


def test_unknown_keys_are_shown_and_absent_ones_are_not() -> None:
    table = console_table(SUMMARY)
    assert line("seconds") == ["seconds", "12.35"]
    assert "Recall" not in table
    assert "Linear probe" not in table


def test_columns_are_aligned() -> None:
    rows = [line for line in console_table(SUMMARY).splitlines() if " higher" in line or " lower" in line]
    assert len({max(line.find(" higher"), line.find(" lower")) for line in rows}) == 1
    assert all(line == line.rstrip() for line in console_table(SUMMARY).splitlines())


def test_an_empty_summary_has_a_table() -> None:
    assert console_table({}).strip() == "better"
