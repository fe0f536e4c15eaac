"""The driver of the benchmarks: sections, passes within a time, and the status."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import bench.__main__ as driver
from bench import added_latency, section, table

VOID = {
    "repeat": 0,
    "scenario": "paced",
    "subject": table.OURS,
    "void": True,
    "figures": {},
    "result": {"errors": {"cut": 1}},
}


def options(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """The options of a section with this command line."""
    monkeypatch.setattr("sys.argv", ["section", *arguments])
    return section.parser("test", None, repeats=5).parse_args()


@pytest.mark.parametrize(
    ("arguments", "passes"),
    [
        ((), 5),
        (("--repeats", "2"), 2),
        (("--quick",), 1),
        (("--minutes", "0.1"), 1),  # shorter than a pass
        (("--minutes", "3.5"), 3),
    ],
)
def test_pass_begins_only_if_it_fits_into_the_minutes(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], passes: int
) -> None:
    clock = [0.0]
    monkeypatch.setattr(section.time, "monotonic", lambda: clock[0])
    begun = []
    for number in section.passes(options(monkeypatch, *arguments)):
        begun.append(number)
        clock[0] += 60
    assert begun == list(range(passes))


def test_each_pass_begins_with_another_subject_and_has_all() -> None:
    orders = [section.in_turn("abc", repeat) for repeat in range(4)]
    assert list(map("".join, orders)) == ["abc", "bca", "cab", "abc"]


def test_section_that_fails_ends_no_other_and_is_in_the_status(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "bench").mkdir()
    for name, code in (("bad", "raise SystemExit('broken')"), ("good", "print('a table')")):
        (tmp_path / "bench" / f"{name}.py").write_text(code)
    monkeypatch.setattr(driver, "ROOT", tmp_path)
    monkeypatch.setattr(driver, "FOLDER", tmp_path)
    monkeypatch.setattr(
        driver, "SECTIONS", tuple(driver.Section(name, "a test", 1) for name in ("bad", "good"))
    )
    monkeypatch.setattr("sys.argv", ["bench"])
    assert driver.main() == 1
    shown = capfd.readouterr()
    assert "a table" in shown.out
    assert (tmp_path / "good.txt").read_text() == "a table\n"
    assert re.search(r"^bad +NOT COMPLETE", shown.err, re.MULTILINE)
    assert re.search(r"^good +measured", shown.err, re.MULTILINE)
    monkeypatch.setattr("sys.argv", ["bench", "--only", "good"])
    assert driver.main() == 0


def test_void_run_is_printed_and_ends_a_section_with_status_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    section.end(table.faults(table.Results([VOID | {"void": False}])))
    with pytest.raises(SystemExit) as ended:
        section.end(table.faults(table.Results([VOID])))
    assert ended.value.code == 1
    assert 'void: paced, isthmus, repeat 0: {"cut": 1}' in capsys.readouterr().out


def test_added_latency_is_the_median_of_the_rounds_differences() -> None:
    rounds = [
        {"direct": [1.0, 1.0, 9.0], "gateway": [3.0, 2.0, 4.0]},
        {"direct": [5.0, 5.0, 5.0], "gateway": [6.0, 6.0, 60.0]},
        {"direct": [1.0, 2.0, 3.0], "gateway": [6.0, 6.0, 6.0]},
    ]
    found = added_latency.verdict(rounds)
    assert (found["direct_ms"], found["gateway_ms"], found["added_ms"]) == (2.0, 6.0, 2.0)
    assert (found["added_lower_ms"], found["added_upper_ms"]) == (1.5, 3.0)
