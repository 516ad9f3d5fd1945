"""McNemar's test between two results: its numbers by hand, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from twllm.cli import app
from twllm.errors import UserError
from twllm.evaluate.pairs import compare_results, mcnemar


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [(0, 0, 1.0), (3, 3, 1.0), (1, 5, 2 * (1 + 6) / 2**6), (0, 6, 2 / 2**6), (10, 14, 0.5412561893)],
)
def test_exact_form(first: int, second: int, p: float) -> None:
    assert mcnemar(first, second)[0] == pytest.approx(p, abs=1e-9)
    assert mcnemar(first, second) == mcnemar(second, first)
    assert "exact" in mcnemar(first, second)[1]


def test_chi_square_form() -> None:
    """(|20 - 40| - 1)^2 / 60 = 6.0167; one degree of freedom."""
    p, test = mcnemar(20, 40)
    assert p == pytest.approx(0.014171, abs=1e-5)
    assert "chi-square" in test
    exact = 2 * sum(math.comb(60, k) for k in range(21)) / 2**60
    assert p == pytest.approx(exact, abs=0.002)


def write(file: Path, right: str, **change: Any) -> Path:
    """A result whose suite has these marks."""
    items = [{"id": str(i), "correct": mark == "1"} for i, mark in enumerate(right)]
    block = {
        "score": right.count("1") / len(right),
        "n": len(right),
        "prompt_hash": "p",
        "gold_hash": "g",
        "items": items,
    }
    file.write_text(json.dumps({"meta": {}, "ttqa": {**block, **change}}), encoding="utf-8")
    return file


def test_pairs_are_counted(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.json", "1110000"), write(tmp_path / "b.json", "1001110")
    row = compare_results(a, b)["suites"]["ttqa"]
    assert (row["both"], row["only_first"], row["only_second"], row["neither"], row["n"]) == (1, 2, 3, 1, 7)
    assert row["p"] == 1.0
    out = tmp_path / "c.json"
    shown = CliRunner().invoke(app, ["eval", "compare", str(a), str(b), "--out", str(out)])
    assert shown.exit_code == 0
    assert "| ttqa | 7 | 0.4286 | 0.5714 | 2 | 3 | 1 |" in shown.output
    assert json.loads(out.read_text(encoding="utf-8"))["suites"]["ttqa"] == row


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt_hash": "other"}, "prompts differ"), ({"gold_hash": "other"}, "gold differs"),
        ({"prompt_hash": None}, "prompts differ"), ({"by": "likelihood"}, "asked in different ways"),
        ({"items": [{"id": "9", "correct": True}, {"id": "1", "correct": True}]}, "items differ"),
    ],
)  # fmt: skip
def test_different_questions_are_not_compared(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    a, b = write(tmp_path / "a.json", "10"), write(tmp_path / "b.json", "10", **change)
    with pytest.raises(UserError, match=says):
        compare_results(a, b)


def test_other_files_and_marks(tmp_path: Path) -> None:
    a = write(tmp_path / "a.json", "10")
    with pytest.raises(UserError, match="找不到"):
        compare_results(a, tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("[1", encoding="utf-8")
    with pytest.raises(UserError, match="結果"):
        compare_results(a, tmp_path / "bad.json")
    (tmp_path / "other.json").write_text('{"meta": {}}', encoding="utf-8")
    with pytest.raises(UserError, match="no suite in common"):
        compare_results(a, tmp_path / "other.json")
    rouge = write(tmp_path / "rouge.json", "10", items=[{"id": "0", "correct": False, "mark": 0.4}])
    assert compare_results(rouge, rouge) == {
        "first": str(rouge),
        "second": str(rouge),
        "suites": {},
        "left_out": {"ttqa": "得分不是對或錯 (marks are not right or wrong)"},
    }
