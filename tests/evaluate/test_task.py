"""Task files and suite names."""

from pathlib import Path

import pytest

from twllm.errors import UserError
from twllm.evaluate.scorers import SCORERS
from twllm.evaluate.task import find_tasks, load_tasks, make_item, tasks


def test_groups_and_order() -> None:
    assert [task.name for task in find_tasks(["tceval"])] == ["drcd", "penguins", "tmmlu", "ttqa"]
    assert [task.name for task in find_tasks(["ttqa", "culture", "tceval"])] == [
        "ttqa",
        "culture",
        "drcd",
        "penguins",
        "tmmlu",
    ]


@pytest.mark.parametrize("suites", [["cultur"], ["culture", "tmlu"], []])
def test_unknown_suite(suites: list[str]) -> None:
    with pytest.raises(UserError) as error:
        find_tasks(suites)
    assert "culture" in error.value.fix or "tmmlu" in error.value.fix


def test_every_task_has_version_source_and_scorer() -> None:
    for task in tasks().values():
        assert task.version >= 1
        assert task.source
        assert task.scorer in SCORERS


def test_prompts_of_the_four_benchmarks() -> None:
    """Query texts as in TC-Eval's inference/tasks.py and scenarios.py, with 答案： at the end of the question."""
    known = tasks()
    item = make_item(known["ttqa"], "0", "名產？", ["A"], choices=["雞肉飯", "肉圓"])
    assert item.prompt == "問題: 名產？ \n\n請從以下選項中選擇並回答: (A) 雞肉飯;(B) 肉圓\n\n答案："
    item = make_item(known["drcd"], "0", "多高？", ["3952"], context="玉山 {3952} 公尺")
    assert item.prompt.startswith(
        "請根據以下內容回答問題，且答案需盡可能簡短。注意：答案必須為內容的子字串。\n\n玉山 {3952} 公尺\n\n"
    )
    assert item.prompt.endswith("問題：多高？\n\n答案：")
    item = make_item(known["penguins"], "0", "誰老？回答：", ["A"], choices=["甲"])
    assert item.prompt == "誰老？ \n請從以下選項中選擇並回答: (A) 甲\n\n答案："
    assert item.question == "誰老？回答："
    assert make_item(known["culture"], "0", "誰？{x}", ["甲"]).prompt == "誰？{x}"


@pytest.mark.parametrize("text", ["version = ", 'version = 1\ntitle = "t"\nscorer = "none"', "versio = 1"])
def test_broken_task_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_tasks(file)
    assert error.value.where == str(file)
