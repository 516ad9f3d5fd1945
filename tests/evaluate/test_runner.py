"""The runner on a real tiny model: the result's shape, resuming, batch sizes, errors before anything is asked."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from twllm.errors import UserError
from twllm.evaluate.keywords import is_correct
from twllm.evaluate.kinds.generate import answer_items
from twllm.evaluate.model import Messages
from twllm.evaluate.responses import ResponseFile
from twllm.evaluate.rows import write_items
from twllm.evaluate.runner import evaluate_model
from twllm.evaluate.score import wilson
from twllm.evaluate.sources import read_items
from twllm.evaluate.task import Response, tasks

QUESTIONS: list[dict[str, Any]] = [
    {"id": "q1", "question": "台灣最高的山是哪座？", "accept": ["玉山"], "topic": "地理/山岳"},
    {"id": "q2", "question": "首都？", "accept": ["台北"], "reject": [], "topic": "地理/都市"},
    {
        "id": "q3",
        "question": "「拍謝」是什麼意思，請用一句話說明給小學生聽好嗎？",
        "accept": ["不好意思"],
        "topic": "語言",
    },
]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "題目.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in QUESTIONS), encoding="utf-8")
    return file


def run(model: Path, out: Path, **change: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"suites": ["culture"], "max_new_tokens": 6, "batch_size": 2}
    return evaluate_model(str(model), out=out, **{**settings, **change})


def test_result_has_the_contracts_shape(tiny_checkpoint: Path, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "culture.json"
    result = run(tiny_checkpoint, out, questions=str(questions))
    block = result["culture"]
    assert [item["id"] for item in block["items"]] == ["q1", "q2", "q3"]
    assert [item["question"] for item in block["items"]] == [row["question"] for row in QUESTIONS]
    marks = [is_correct(item["answer"], row["accept"]) for item, row in zip(block["items"], QUESTIONS, strict=True)]
    assert [item["correct"] for item in block["items"]] == marks
    assert (block["correct"], block["n"], block["score"]) == (sum(marks), 3, sum(marks) / 3)
    assert block["interval"] == pytest.approx(wilson(sum(marks), 3), abs=1e-6)
    assert {name: topic["n"] for name, topic in block["topics"].items()} == {"地理": 2, "語言": 1}
    assert len(result["meta"]["model_fingerprint"]) == len(result["meta"]["template_fingerprint"]) == 16
    assert json.loads(out.read_text(encoding="utf-8")) == result
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "culture.items.parquet", "culture.json", "culture.md", "culture.png", "culture.responses.jsonl",
    ]  # fmt: skip
    assert block["template_fingerprint"] == result["meta"]["template_fingerprint"]
    assert "Wilson" in block["interval_by"]


def test_rows_are_a_table_too(tiny_checkpoint: Path, tceval: Path, tmp_path: Path) -> None:
    """Every row of every suite, with the values of the JSON."""
    pq = pytest.importorskip("pyarrow.parquet")
    result = run(tiny_checkpoint, tmp_path / "r.json", suites=["ttqa", "tmmlu"], data=tceval)
    table = pq.read_table(tmp_path / "r.items.parquet")
    rows = table.to_pylist()
    expected = [(suite, row) for suite in ("ttqa", "tmmlu") for row in result[suite]["items"]]
    assert [
        (row["suite"], row["id"], row["answer"], row["correct"], row["expected"], row["topic"]) for row in rows
    ] == [(suite, row["id"], row["answer"], row["correct"], row["expected"], row["topic"]) for suite, row in expected]
    assert json.loads(table.schema.metadata[b"twllm"])["model_fingerprint"] == result["meta"]["model_fingerprint"]


def test_rows_of_other_kinds_have_their_place(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    row = {"id": 3, "mark": 0.5, "correct": False, "scores": {"rouge1": 0.5}, "answer": None, "blocks": [1.0]}
    write_items({"meta": {}, "xsum": {"items": [row]}, "drcd": {"items": []}}, tmp_path / "x.parquet")
    (found,) = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert (found["id"], found["mark"], found["answer"], found["too_long"]) == ("3", 0.5, None, False)
    assert json.loads(found["more"]) == {"scores": {"rouge1": 0.5}, "blocks": [1.0]}


def test_right_answers_count(tiny_checkpoint: Path, questions: Path, tmp_path: Path) -> None:
    """Accept what the model says: the same answer is right then."""
    first = run(tiny_checkpoint, tmp_path / "a.json", questions=str(questions))
    said = first["culture"]["items"][1]["answer"]
    assert said
    rows = [*QUESTIONS[:1], {**QUESTIONS[1], "accept": [said]}, {**QUESTIONS[2], "id": "q9"}]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    second = run(tiny_checkpoint, tmp_path / "a.json", questions=str(questions))
    assert [item["correct"] for item in second["culture"]["items"]] == [False, True, False]
    assert second["culture"]["correct"] == 1
    assert second["meta"]["reused_answers"] == 2  # keywords do not touch answers; q9 is a new question
    assert second["culture"]["gold_hash"] != first["culture"]["gold_hash"]


def test_batch_size_changes_nothing(tiny_checkpoint: Path, tceval: Path, tmp_path: Path) -> None:
    results = [
        run(tiny_checkpoint, tmp_path / f"{size}.json", suites=["tceval"], data=tceval, batch_size=size)
        for size in (1, 2, 32)
    ]
    blocks = [{name: block for name, block in result.items() if name != "meta"} for result in results]
    assert blocks[0] == blocks[1] == blocks[2]
    assert {name: block["n"] for name, block in blocks[0].items()} == {"drcd": 2, "penguins": 1, "tmmlu": 3, "ttqa": 2}


class Counting:
    """Answers with the length of the question; breaks after `budget` answers."""

    fingerprint, template_fingerprint = "m", "t"

    def __init__(self, budget: int = 1000) -> None:
        self.budget, self.asked = budget, 0

    def __call__(self, chats: Sequence[Messages]) -> list[str | None]:
        if self.asked + len(chats) > self.budget:
            raise KeyboardInterrupt
        self.asked += len(chats)
        return [str(len(chat[0]["content"])) for chat in chats]


def test_interrupted_and_resumed_is_uninterrupted(tceval: Path, tmp_path: Path) -> None:
    items = read_items(tasks()["tmmlu"], "", tceval) + read_items(tasks()["ttqa"], "", tceval)
    whole, reused = answer_items(Counting(), items, ResponseFile(tmp_path / "whole.jsonl"), 8, 2)
    assert reused == 0
    path = tmp_path / "cut.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer_items(Counting(budget=3), items, ResponseFile(path), 8, 1)
    path.write_bytes(path.read_bytes() + '{"task": "ttqa", "id": "半'.encode()[:-1])  # cut inside a character
    model = Counting()
    resumed, reused = answer_items(model, items, ResponseFile(path), 8, 2)
    assert (reused, model.asked) == (3, len(items) - 3)
    assert resumed == whole
    again = Counting()
    assert answer_items(again, items, ResponseFile(path), 8, 2) == (whole, len(items))
    assert again.asked == 0


@pytest.mark.parametrize("change", ["model", "template", "tokens", "prompt"])
def test_answers_are_not_reused_when_anything_changed(tceval: Path, tmp_path: Path, change: str) -> None:
    items = read_items(tasks()["ttqa"], "", tceval)
    file = ResponseFile(tmp_path / "r.jsonl")
    answer_items(Counting(), items, file, 8, 2)
    model = Counting()
    if change == "model":
        model.fingerprint = "m2"
    if change == "template":
        model.template_fingerprint = "t2"
    if change == "prompt":
        items = [item.model_copy(update={"prompt": item.prompt + "！"}) for item in items]
    _, reused = answer_items(model, items, file, 9 if change == "tokens" else 8, 2)
    assert (reused, model.asked) == (0, 2)


def test_prompt_that_does_not_fit_is_wrong_and_told(tiny_checkpoint: Path, tceval: Path, tmp_path: Path) -> None:
    file = tceval / "TMMLU/subjects/國際法/data.csv"
    file.write_text(",content.A,content.Q\n0,A," + "很長的題目。" * 200 + "\n", encoding="utf-8")
    result = run(tiny_checkpoint, tmp_path / "r.json", suites=["tmmlu"], data=tceval)
    assert result["tmmlu"]["too_long"] == 1
    (row,) = [item for item in result["tmmlu"]["items"] if item["id"] == "國際法/0"]
    assert row["too_long"]
    assert not row["correct"]
    assert "放不下" in (tmp_path / "r.md").read_text(encoding="utf-8")


def test_limit_is_spread_over_the_task(tiny_checkpoint: Path, tceval: Path, tmp_path: Path) -> None:
    with (tceval / "TMMLU/subjects/會計學/data.csv").open("a", encoding="utf-8") as stream:
        stream.write("2,A,3. 成本？\n")
    result = run(tiny_checkpoint, tmp_path / "r.json", suites=["tmmlu", "ttqa"], data=tceval, limit=2)
    assert [item["id"] for item in result["tmmlu"]["items"]] == ["國際法/0", "會計學/1"]
    assert result["ttqa"]["n"] == 2


def test_mistakes_are_told_before_the_model_is_loaded(tmp_path: Path, tceval: Path) -> None:
    """The model does not exist: whoever reaches it gets another message."""
    with pytest.raises(UserError, match="題組"):
        run(tmp_path / "沒有", tmp_path / "r.json", suites=["cultur"])
    with pytest.raises(UserError, match="ttqa"):
        run(tmp_path / "沒有", tmp_path / "r.json", suites=["ttqa"])
    with pytest.raises(UserError, match="找不到資料"):
        run(tmp_path / "沒有", tmp_path / "r.json", questions=str(tmp_path / "沒有.jsonl"))
    assert list(tmp_path.glob("r.*")) == []


def test_responses_file_keeps_order_and_own_rows(tmp_path: Path) -> None:
    file = ResponseFile(tmp_path / "r.jsonl")
    rows = [Response(task="t", id=str(i), output="好\u2028的") for i in range(3)]
    file.append(rows[::-1])
    file.keep(rows)
    lines = file.path.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["id"] for line in lines if line] == ["0", "1", "2"]
    assert [json.loads(line)["output"] for line in lines if line] == ["好\u2028的"] * 3
    item = read_items(tasks()["culture"], "twllm:culture", None)[0].model_copy(update={"task": "t", "id": "1"})
    assert ResponseFile(file.path).find(item, "") == rows[1]
