"""Numbers and report."""

from pathlib import Path
from typing import Any

import pytest

from twllm.evaluate import report
from twllm.evaluate.report import markdown, write_report
from twllm.evaluate.score import mean_interval, score_task, wilson
from twllm.evaluate.task import make_item, tasks


def test_wilson_known_values() -> None:
    """Against Newcombe (Stat. Med. 17:857, 1998), table I: 81/263 and 1/29, 0/20."""
    assert [round(x, 4) for x in wilson(81, 263)] == [0.2553, 0.3662]
    assert [round(x, 4) for x in wilson(0, 20)] == [0.0, 0.1611]
    assert [round(x, 4) for x in wilson(1, 29)] == [0.0061, 0.1718]
    assert wilson(0, 0) == (0.0, 1.0)


def test_mean_interval_is_narrower_with_more_groups() -> None:
    one, many = mean_interval([(5, 10)]), mean_interval([(5, 10)] * 25)
    assert one[0] < many[0] < 0.5 < many[1] < one[1]
    low, high = mean_interval([(3, 3), (3, 3)])
    assert low < high == 1.0


def culture_result() -> dict[str, Any]:
    task = tasks()["culture"]
    items = [
        make_item(task, "q1", "台灣最高的山？", ["玉山"], topic="地理/山岳"),
        make_item(task, "q2", "首都？|換行\n？", ["台北"], topic="地理/都市"),
        make_item(task, "q3", "「拍謝」？", ["不好意思"], topic="台語🍵"),
    ]
    return {"culture": score_task(task, items, {"q1": "是玉山。", "q2": "高雄|吧\n嗯", "q3": ""})}


def test_markdown_has_scores_topics_and_examples() -> None:
    text = markdown(culture_result(), "圖.png")
    assert "| culture | 2 | 0.3333 | 1 | 3 | 0.061–0.792 | 0.00% |" in text
    assert "| 1 | 地理 | 1 | 2 | 0.5000 |" in text
    assert "| q1 | 台灣最高的山？ | 是玉山。 | 玉山 |" in text
    assert "| q2 | 首都？｜換行 ？ | 高雄｜吧 嗯 | 台北 |" in text  # a cell stays a cell
    assert text.index("答對的例子") < text.index("q1 |") < text.index("答錯的例子") < text.index("q2 |")


@pytest.mark.parametrize("font", ["found", None])
def test_pictures_with_and_without_a_chinese_font(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, font: str | None
) -> None:
    """Warnings are errors here: without a font no Chinese label may be drawn."""
    if font is None:
        monkeypatch.setattr(report, "cjk_font", lambda: None)
    result = culture_result()
    result |= dict.fromkeys(("drcd", "ttqa"), result["culture"])  # three suites: the radar
    write_report(result, tmp_path / "new")
    assert (tmp_path / "new/report.md").read_text(encoding="utf-8").startswith("# 評測報告")
    assert (tmp_path / "new/report.png").read_bytes().startswith(b"\x89PNG")


def test_a_long_cell_keeps_both_ends() -> None:
    text = report._cell("頭" + "中" * 200 + "尾")
    assert (len(text), text[0], text[-1]) == (60, "頭", "尾")
