"""Task files and suite names."""

from pathlib import Path

import pytest

from twllm.errors import UserError
from twllm.evaluate.scorers import SCORERS
from twllm.evaluate.task import find_tasks, load_tasks, make_item, tasks

TCEVAL = ["drcd", "fgc", "imdb", "penguins", "tmmlu", "ttqa", "xsum"]


def test_groups_and_order() -> None:
    assert [task.name for task in find_tasks(["tceval"])] == TCEVAL
    named = [task.name for task in find_tasks(["ttqa", "culture", "tceval"])]
    assert named == ["ttqa", "culture", *(name for name in TCEVAL if name != "ttqa")]


def test_three_protocols_of_all_seven_tasks() -> None:
    """The plain names mean MediaTek's protocol; the other two have labels of their own."""
    assert {task.protocol for task in find_tasks(["tceval"])} == {"mediatek"}
    assert find_tasks(["tceval-mediatek"]) == find_tasks(["tceval"], "mediatek") == find_tasks(["tceval"])
    for protocol in ("twllm", "strict"):
        labels = [f"{name}@{protocol}" for name in TCEVAL]
        assert [task.label for task in find_tasks([f"tceval-{protocol}"])] == labels
        assert [task.label for task in find_tasks(["tceval"], protocol)] == labels
    items = [make_item(task, "0", "？", ["A"]) for task in find_tasks(["ttqa", "ttqa@twllm"])]
    assert [item.task for item in items] == ["ttqa", "ttqa@twllm"]


@pytest.mark.parametrize("suites", [["cultur"], ["culture", "tmlu"], []])
def test_unknown_suite(suites: list[str]) -> None:
    with pytest.raises(UserError) as error:
        find_tasks(suites)
    assert "culture" in error.value.fix or "tmmlu" in error.value.fix


def test_every_task_has_version_source_and_scorer() -> None:
    for task in tasks().values():
        assert task.version >= 1
        assert task.source
        assert task.scorer in SCORERS or task.scorer in ("judge", "none")  # marked by their kind


ASKED = {"question": "名產？", "choices": ["雞肉飯", "肉圓"], "context": "玉山 {3952}\n公尺"}
LISTED = "請從以下選項中選擇並回答: (A) 雞肉飯;(B) 肉圓"
QA = "請根據以下內容回答問題，且答案需盡可能簡短。注意：答案必須為內容的子字串。\n\n玉山 {3952}\n公尺\n\n問題：名產？"
IMDB = "評論：玉山 {3952}\n公尺"


@pytest.mark.parametrize(
    ("label", "prompt", "prefix"),
    [  # MediaTek's inference/tasks.py, scenarios.py and configs; the vLLM branch of Taiwan-LLM's run_tceval.py
        ("drcd", QA + "\n\n", " 答案： "),
        ("drcd@twllm", QA, ""),
        ("fgc", QA + "\n\n", " 答案： "),
        ("fgc@twllm", QA, ""),
        ("ttqa", f"問題: 名產？ \n\n{LISTED}\n", " 答案： "),
        ("ttqa@twllm", f"問題: 名產？ \n\n{LISTED}", " ("),
        ("penguins", f"名產？ \n{LISTED}\n", " 答案： "),
        ("penguins@twllm", f"名產？ \n{LISTED}", " ("),
        ("tmmlu", "名產？", ""),
        ("tmmlu@twllm", "名產？", " ("),
        ("xsum", "\n\n 玉山 {3952} 公尺 \n\n 根據上述文章以一句話來總結\n\n", ""),
        ("xsum@twllm", "玉山 {3952}\n公尺\n\n根據上述文章以一句話來總結", ""),
        (
            "imdb",
            f"請閱讀以下評論，並回答此評論是正面還是負面，如果是正面，請回答'正面';，如果是負面，請回答'負面'：\n\n{IMDB}\n\n",
            "",
        ),
        (
            "imdb@twllm",
            f"{IMDB}\n\n請閱讀以上評論，並回答此評論是正面還是負面，如果是正面，請回答'(1)';，如果是負面，請回答'(0)'",
            " (",
        ),
    ],
)
def test_published_prompts(label: str, prompt: str, prefix: str) -> None:
    item = make_item(tasks()[label], "0", ASKED["question"], ["A"], choices=ASKED["choices"], context=ASKED["context"])
    assert item.prompt == prompt
    begun = [{"role": "assistant", "content": prefix}] if prefix else []
    assert item.messages == [{"role": "user", "content": prompt}, *begun]
    assert (item.wording == item.prompt) == (not prefix)


def test_context_is_cut_where_it_is_published_so() -> None:
    item = make_item(tasks()["xsum"], "0", "", ["要"], context="字\n" * 600)
    assert "字 " * 512 + " \n\n 根據" in item.prompt
    assert make_item(tasks()["xsum@strict"], "0", "", ["要"], context="字\n" * 600).prompt.count("字") == 600


@pytest.mark.parametrize(
    ("question", "mediatek", "twllm", "strict"),
    [
        ("誰老？回答：", "誰老？", "誰老？", "誰老？"),
        ("誰該回答？回答：", "誰該回答？", "誰該回答？", "誰該回答？"),
        ("誰不回答：回答：", "誰不", "誰不", "誰不回答："),  # str.rstrip takes characters off, not an ending
        ("誰該回答", "誰該回答", "誰該", "誰該回答"),
    ],
)
def test_ending_of_a_question(question: str, mediatek: str, twllm: str, strict: str) -> None:
    known = tasks()
    for label, asked in (("penguins", mediatek), ("penguins@twllm", twllm), ("penguins@strict", strict)):
        item = make_item(known[label], "0", question, ["A"], choices=["甲"])
        assert item.prompt.split(" \n")[0].split("\n")[0] == asked
        assert item.question == question


def test_clean_up_that_cleans() -> None:
    known = tasks()
    for label in ("fgc", "fgc@twllm", "fgc@strict"):
        item = make_item(known[label], "0", "03.Wikipedia 取自 10.5 個字？", ["甲"], context="文")
        assert ("03.W" in item.prompt) == (label != "fgc@strict")
        assert "10.5" in item.prompt


def test_braces_of_a_question_are_text() -> None:
    assert make_item(tasks()["culture"], "0", "誰？{x}", ["甲"]).prompt == "誰？{x}"


@pytest.mark.parametrize("text", ["version = ", 'version = 1\ntitle = "t"\nscorer = "none"', "versio = 1"])
def test_broken_task_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_tasks(file)
    assert error.value.where == str(file)
