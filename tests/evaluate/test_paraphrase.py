"""Paraphrase search: it finds rewordings (counted on facts with ten wordings), and no held-out question has one."""

import json
from typing import Any

from twllm import data
from twllm.evaluate.contamination import TRAINING_DATA
from twllm.evaluate.keywords import Question, read_questions
from twllm.evaluate.paraphrase import SUSPECT, Exchange, ParaphraseSearch, exchanges_of


def rows(folder: str) -> list[dict[str, Any]]:
    files = sorted((data.ROOT / folder).rglob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def test_needs_a_similar_question_and_the_answer() -> None:
    search = ParaphraseSearch(
        [
            Exchange("臺灣最高的山是哪一座？", "玉山。"),
            Exchange("臺灣最長的河是哪一條？", "濁水溪。"),
            Exchange("早安", "玉山早安"),
        ]
    )
    found = search.nearest(Question("q", "台灣最高的山叫什麼名字？", ("玉山",)))
    assert (found.question, found.suspect) == ("臺灣最高的山是哪一座？", True)
    assert not search.nearest(Question("q", "台灣最高的山叫什麼名字？", ("雪山",))).suspect  # nobody gives that answer
    assert search.nearest(Question("q", "完全無關的事", ("玉山",))).similarity == 0
    choice = Question("q", "臺灣最高的山是？", ("B",), (), "", "choice", ("雪山", "玉山"))
    assert search.nearest(choice).reply == "玉山。"


def test_recall_on_facts_with_many_wordings() -> None:
    """The first wording of each fact, searched among all the others and the conversations."""
    facts = rows("taiwan_facts")
    others = [{**fact, "questions": fact["questions"][1:]} for fact in facts]
    search = ParaphraseSearch(exchanges_of([*others, *rows("taiwan_instruction")]))
    found = [search.nearest(Question(fact["id"], fact["questions"][0], (fact["answer"],))).suspect for fact in facts]
    assert sum(found) >= 0.95 * len(found)


def test_no_held_out_question_is_asked_in_training() -> None:
    held_out = {row["id"] for row in rows("culture") if row.get("held_out")}
    assert len(held_out) >= 100
    search = ParaphraseSearch(exchanges_of([row for name in TRAINING_DATA for row in rows(name)]))
    suspects = [search.nearest(question) for question in read_questions("twllm:culture") if question.id in held_out]
    assert [
        (found.question_id, found.similarity, found.question) for found in suspects if found.similarity >= SUSPECT
    ] == []


def test_held_out_facts_stand_in_knowledge() -> None:
    knowledge = {row["id"]: row for row in rows("knowledge")}
    taught = {fact["knowledge"] for fact in rows("taiwan_facts")}
    for row in rows("culture"):
        if row.get("held_out"):
            assert row["knowledge"] in knowledge, row["id"]
            assert row["knowledge"] not in taught, row["id"]
