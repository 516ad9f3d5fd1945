"""The measure on known cases, and the shipped data: no benchmark question stands in what we train on."""

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from twllm import data
from twllm.evaluate.contamination import (
    TRAINING_DATA,
    contamination_summary,
    longest_run,
    nearest_training_wording,
    shipped_training_texts,
    trigrams,
    wording_key,
)
from twllm.evaluate.keywords import is_correct, normalise, read_questions

BENCHMARKS = ("culture", "culture_dev")
FOLDERS = (*BENCHMARKS, *TRAINING_DATA)


def rows(folder: str) -> list[dict[str, object]]:
    files = sorted((data.ROOT / folder).rglob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def test_finds_a_hidden_copy_and_measures_the_rest() -> None:
    texts = ["請問，臺灣最高的山是哪一座？", "珍珠奶茶源自哪裡？", "前文。台灣最長的河，應是濁水溪？後文。"]
    copy, near, far = nearest_training_wording(["台灣最高的山 是哪一座", "台灣最長的河是？", "ㄅㄆㄇ"], texts)
    assert copy.contained
    assert (copy.run, copy.wording) == ("台灣最高的山是哪一座", texts[0])
    assert not near.contained
    assert (near.run, near.run_chars, near.wording) == ("台灣最長的河", 6, texts[2])
    assert (far.contained, far.run_chars, far.similarity, far.wording) == (False, 0, 0.0, "")


def test_a_run_may_not_cross_texts_and_similarity_is_jaccard() -> None:
    assert longest_run("玉山很高", "玉山\n很高") == "玉山"
    (row,) = nearest_training_wording(["玉山很高"], ["玉山。", "很高！"])
    assert (row.run_chars, row.contained) == (2, False)
    (row,) = nearest_training_wording(["甲乙丙丁"], ["甲乙丙戊", "乙丙丁"])
    assert row.similarity == pytest.approx(1 / 2)  # {甲乙丙, 乙丙丁} and {乙丙丁}
    assert trigrams("甲") == {"甲"}
    assert trigrams("") == set()


def test_summary_counts() -> None:
    summary = contamination_summary(["玉山多高？", "首都？"], ["玉山多高", "別的"])
    assert (summary["contained"], summary["longest_run_chars"], summary["highest_similarity"]) == (1, 4, 1.0)
    assert summary["nearest"][0]["question"] == "玉山多高？"


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_no_shipped_question_is_in_the_training_data(benchmark: str) -> None:
    questions = [question.question for question in read_questions(f"twllm:{benchmark}")]
    texts = shipped_training_texts()
    assert len(texts) > 4000
    found = nearest_training_wording(questions, texts)
    assert [row.question for row in found if row.contained] == []
    keys = [wording_key(question) for question in questions]
    assert not set(keys) & {wording_key(text) for text in texts}
    assert len(set(keys)) == len(keys)
    assert max(row.similarity for row in found) < 0.5  # measured 0.41 on 2026-11-23; a rise is a reworded training row


def test_the_two_question_sets_share_no_fact() -> None:
    facts = [{row["fact"] for row in rows(name) if "fact" in row} for name in BENCHMARKS]
    assert not facts[0] & facts[1]


@pytest.mark.parametrize("benchmark", ["culture/taught", "culture_dev"])
def test_each_fact_answers_its_question(benchmark: str) -> None:
    facts = {str(row["id"]): str(row["answer"]) for row in rows("taiwan_facts")}
    by_id = {str(row["id"]): str(row["fact"]) for row in rows(benchmark)}
    for question in read_questions(f"twllm:{benchmark}"):
        assert is_correct(facts[by_id[question.id]], question.accept, question.reject), question.id
        text = normalise(question.question)
        assert not [key for key in question.accept if normalise(key) in text], question.id


def test_ids_licences_and_references() -> None:
    everything = [row for folder in FOLDERS for row in rows(folder)]
    assert [id for id, times in Counter(row["id"] for row in everything).items() if times > 1] == []
    assert [row["id"] for row in everything if row["license"] != "CC-BY-4.0"] == []
    knowledge = {row["id"] for row in rows("knowledge")}
    assert [row["id"] for row in rows("taiwan_facts") if row["knowledge"] not in knowledge] == []


@cache
def converters() -> tuple[Any, Any]:
    from opencc import OpenCC

    return OpenCC("s2t"), OpenCC("t2s")


def simplified(text: str) -> set[str]:
    """Characters that only Simplified writing has: OpenCC changes them to Traditional, and Big5 lacks them or has them as
    rare characters that nobody means."""
    to_traditional, to_simplified = converters()
    rare_in_big5 = "体机听叶广厂万与号礼声医网虫胜"

    def only_simplified(char: str) -> bool:
        try:
            char.encode("cp950")
            plain = char in rare_in_big5
        except UnicodeEncodeError:
            plain = True
        return plain and to_simplified.convert(char) == char and to_traditional.convert(char) != char

    return {char for char in set(text) if "\u4e00" <= char <= "\u9fff" and only_simplified(char)}


def test_shipped_data_is_traditional() -> None:
    assert simplified("台湾的学习与质量") == set("湾学习与质")
    assert simplified("台灣的學習與品質，皇后後里干面鬥") == set()
    found = {}
    for folder in FOLDERS:
        for file in sorted((data.ROOT / folder).rglob("*.jsonl")):
            found[f"{folder}/{file.name}"] = simplified(file.read_text(encoding="utf-8"))
    assert {name: chars for name, chars in found.items() if chars} == {}


def test_shipped_files_exist() -> None:
    assert [name for name in FOLDERS if not list((Path(data.ROOT) / name).rglob("*.jsonl"))] == []


def test_the_data_has_the_size_and_forms_it_promises() -> None:
    conversations, culture = rows("taiwan_instruction"), rows("culture")
    turns = Counter(len(row["messages"]) // 2 for row in conversations)  # type: ignore[arg-type]
    assert sum(turns.values()) >= 1200
    assert sum(count for number, count in turns.items() if 2 <= number <= 6) >= 300
    assert max(turns) <= 6
    paragraphs = [str(row["text"]) for row in rows("knowledge")]
    assert len(paragraphs) >= 1000
    assert all(80 <= len(text) <= 300 for text in paragraphs)
    forms = Counter(row.get("form", "open") for row in culture)
    assert sum(forms.values()) >= 300
    assert set(forms) == {"open", "choice", "trap"}
    assert min(forms.values()) >= 50
    letters = Counter(row["answer"] for row in culture if row.get("form") == "choice")
    assert set(letters) == set("ABCD")
    assert max(letters.values()) <= 0.4 * sum(letters.values())  # nobody scores by always answering one letter


def test_topics_are_in_the_published_tree() -> None:
    import tomllib

    tree = tomllib.loads((data.ROOT / "topics.toml").read_text(encoding="utf-8"))
    known = {f"{group}/{name}" for part in tree.values() for group, names in part.items() for name in names}
    assert [row["id"] for folder in FOLDERS for row in rows(folder) if row["topic"] not in known] == []
    assert {row["topic"] for row in rows("knowledge")} >= {
        f"{group}/{name}" for group, names in tree["subjects"].items() for name in names
    }
    assert {str(row["topic"]).split("/")[0] for row in rows("taiwan_instruction")} == {
        group for part in tree.values() for group in part
    }


@pytest.mark.parametrize("folder", ["knowledge", "taiwan_instruction", "culture"])
def test_no_row_repeats_another(folder: str) -> None:
    from twllm.corpus.similar import SimilarTexts

    index = SimilarTexts()
    for row in rows(folder):
        messages: Any = row.get("messages", ())
        text = "".join(message["content"] for message in messages) or str(row.get("text") or row["question"])
        score, _ = index.most_similar(text, at_least=0.4)
        assert score == 0, row["id"]
        index.add(text)
