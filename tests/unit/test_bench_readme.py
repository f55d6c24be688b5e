"""The table of figures goes between its marks in README.md, and is compared in the right direction."""

from __future__ import annotations

from pathlib import Path

from tests.bench import readme
from tests.bench.rows import Scale


def test_only_what_is_between_the_marks_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{readme.BEGIN}old\n{readme.END}after\n")
    readme.write("new\n", path)
    assert path.read_text() == f"before\n{readme.BEGIN}new\n{readme.END}after\n"


def test_the_marks_are_there() -> None:
    text = readme.README.read_text()
    assert text.count(readme.BEGIN) == text.count(readme.END) == 1


def test_ahead_means_faster_or_cheaper() -> None:
    rate, time_s = {"fusefs": [20.0, 40.0, 30.0], "moosefs": [15.0]}, {"fusefs": [2.0], "moosefs": [3.0]}
    one: readme.Table = {"rate": rate, "time": time_s}
    text = readme.render(one, {}, {"rate": "op/s", "time": "s"}, Scale(), 3)
    assert "| rate | op/s |  |  | 30 | 15 | 2.00 |  |  |  |" in text
    assert "| time | s |  |  | 2 | 3 | 1.50 |  |  |  |" in text
