"""Numbers and report."""

from pathlib import Path
from typing import Any

import pytest

from twllm.evaluate import report, report_pictures
from twllm.evaluate.report import markdown, write_report
from twllm.evaluate.report_table import comparable, published
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
    block = score_task(task, items, {"q1": "是玉山。", "q2": "高雄|吧\n嗯", "q3": ""})
    return {"culture": {**block, "leak_rate": 0.0}}


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
        monkeypatch.setattr(report_pictures, "cjk_font", lambda: None)
    result = culture_result()
    result |= dict.fromkeys(("drcd", "ttqa"), result["culture"])  # three suites: the radar
    write_report(result, tmp_path / "new")
    assert (tmp_path / "new/report.md").read_text(encoding="utf-8").startswith("# 評測報告")
    assert (tmp_path / "new/report.png").read_bytes().startswith(b"\x89PNG")


def test_a_long_cell_keeps_both_ends() -> None:
    text = report._cell("頭" + "中" * 200 + "尾")
    assert (len(text), text[0], text[-1]) == (60, "頭", "尾")


def tceval_block(label: str, score: float, n: int = 100, **more: Any) -> dict[str, Any]:
    task = tasks()[label]
    return {
        "score": score, "correct": round(score * n), "n": n, "interval": list(wilson(score * n, n)), "too_long": 0,
        "task": {"name": task.name, "version": task.version, "title": task.title, "scorer": task.scorer},
        "topics": {}, "items": [], "prompt_hash": "h", **more,
    }  # fmt: skip


def test_table_has_the_papers_shape_and_marked_published_rows() -> None:
    """Averages over the same columns in every row; the numbers are those of published_scores.md."""
    result = {"meta": {"model": "甲|乙"}, "drcd": tceval_block("drcd", 0.5), "ttqa": tceval_block("ttqa", 0.75)}
    lines = markdown(result).split("\n")
    assert "| 模型 model | DRCD (EM) | TTQA (Acc) | 平均 average |" in lines
    (own,) = [line for line in lines if line.startswith("| **甲｜乙**")]
    assert own.endswith("| 50.00 | 75.00 | 62.50 |")
    (reference,) = [line for line in lines if line.startswith("| *Taiwan-LLaMa v1.0* †")]
    assert reference.endswith("| 72.46 | 53.40 | 62.93 |")
    assert sum("†" in line and line.startswith("| *") for line in lines) == len(published()[1]) == 5
    assert "| *Taiwan-LLM 13B* †4 | — | — | 53.99 ‡ |" in lines  # of the paper only averages were at hand
    assert any(line.startswith("* ‡") for line in lines)
    assert any("MR-Models" in line and "mediatek" in line for line in lines)


def test_each_protocol_is_a_row_and_another_one_is_called_so() -> None:
    result = {
        "meta": {"model": "甲"},
        "drcd": tceval_block("drcd", 0.5),
        "drcd@strict": tceval_block("drcd@strict", 0.4),
    }
    text = markdown(result)
    assert "| **甲**（mediatek） | 50.00 | 50.00 |" in text
    assert "| **甲**（strict） | 40.00 | 40.00 |" in text
    assert "drcd@strict：評法與公布的不同" in text
    assert "drcd：評法與公布的不同" not in text


def test_rouge_column_shows_what_was_published() -> None:
    block = tceval_block("xsum", 0.9, scores={"rouge1": 0.3, "rouge2": 0.0625, "rougeL": 0.2})
    text = markdown({"meta": {"model": "甲"}, "xsum": block})
    assert "XSum-TC (R-2)" in text
    assert "| 6.25 | 6.25 |" in text
    assert "4,423" in text


def test_tmmlu_of_other_subjects_is_not_called_comparable() -> None:
    fifty = tceval_block("tmmlu", 0.3, topics={f"科{i}": {"score": 0.3, "correct": 3, "n": 10} for i in range(50)})
    whole = fifty | {"topics": {**fifty["topics"], **{f"目{i}": fifty["topics"]["科0"] for i in range(3)}}}
    row = published()[1][0]
    assert comparable("tmmlu", fifty, row) is None
    assert comparable("tmmlu", whole, row) == pytest.approx(0.304581)
    assert comparable("drcd@strict", tceval_block("drcd@strict", 0.4), row) is None
    assert comparable("culture", culture_result()["culture"], row) is None
    assert "這次 50 科，公布的是 53 科" in markdown({"tmmlu": fifty})
    assert "公布的是 53 科" not in markdown({"tmmlu": whole})


def test_radar_shows_published_models_where_they_compare() -> None:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot(projection="polar")
    names = ("drcd", "ttqa", "penguins")
    report_pictures.radar(axes, {**culture_result(), **{name: tceval_block(name, 0.5) for name in names}})
    own, *lines = axes.get_lines()
    assert len(own.get_ydata()) == 5  # four suites and back
    assert [line.get_label() for line in lines] == [
        f"{row['model']} (published)" for row in published()[1] if row["scores"]
    ]
    values = lines[0].get_ydata()
    assert values[0] != values[0]  # nothing was published for culture: a gap
    assert values[1:4] == pytest.approx([0.724592, 0.533981, 0.221477])


def test_flagged_items_have_their_columns() -> None:
    result = culture_result()
    assert "flagged" not in markdown(result)
    clean = {"score": 0.5, "correct": 1, "n": 2, "interval": [0.094529, 0.905471]}
    result["culture"] |= {"flagged": 1, "clean": clean}
    result["ttqa"] = tceval_block("ttqa", 0.5)
    text = markdown(result)
    assert "| 1 | 0.5000（0.095–0.905，n = 2） |" in text
    (row,) = [line for line in text.split("\n") if line.startswith("| ttqa ")]
    assert row.endswith("| — | — |")
    result["culture"] |= {"flagged": 3, "clean": {"score": 0, "n": 0}}
    assert "| 3 | — |" in markdown(result)


@pytest.mark.shared_data
def test_published_scores_are_those_of_the_shared_page(shared_data: Path) -> None:
    """Every number of published.toml stands in published_scores.md, in the column of its model."""
    lines = (shared_data / "tceval/published_scores.md").read_text(encoding="utf-8").split("\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    names = {"Taiwan-LLaMa v1.0": "tw_llama_v1.0", "Model 7-C (chat)": "model_7c_chat", "GPT-3.5": "gpt3.5"}
    for row in published()[1]:
        if not row["scores"]:
            continue
        column = cells[0].index(names[row["model"]])
        for name, value in row["scores"].items():
            metric = "rouge2" if name.startswith("XSum") else None
            wanted = "TMMLU_Avg" if name == "TMMLU" else name
            (found,) = [c[column] for c in cells if c[1] == wanted and metric in (None, c[2])]
            assert float(found) == value, (row["model"], name)
