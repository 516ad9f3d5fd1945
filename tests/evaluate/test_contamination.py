"""The measure on known cases, and the shipped data: no benchmark question stands in what we train on."""

import gzip
import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from twllm import data
from twllm.corpus.document import Document
from twllm.corpus.overlap import Passage
from twllm.corpus.passages import read_passages
from twllm.corpus.store import open_writer
from twllm.errors import UserError
from twllm.evaluate.clean_score import flag_items
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
from twllm.evaluate.score import wilson
from twllm.evaluate.suite_overlap import find_overlap
from twllm.evaluate.suite_passages import read_suites
from twllm.tokens.config import DatasetConfig

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


# -- whole suites against training data ---------------------------------------------------------------------------------

PLANTED = "標高多少公尺的山頂上，立著一座于右任的銅像，後來被誰鋸斷丟進了山谷裡？"


def suites(*questions: str) -> dict[str, list[Passage]]:
    return {"題": [Passage(f"題/{n}", "question", question) for n, question in enumerate(questions, 1)]}


def corpus_folder(folder: Path, *texts: str) -> str:
    """A corpus folder as `twllm corpus build` leaves it, with a held-out part that nobody trains on."""
    folder.mkdir()
    for name, part in (("documents", texts), ("held_out", (PLANTED,))):
        with open_writer(folder / f"{name}.jsonl.zst") as writer:
            for number, text in enumerate(part):
                writer.write(Document(f"頁/{number}", text, "山誌", license="CC0-1.0"))
    return str(folder)


def write_rows(file: Path, *rows: object) -> str:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_an_item_is_found_with_document_source_and_excerpt(tmp_path: Path) -> None:
    path = corpus_folder(tmp_path / "corpus", "前文。", f"前文。{PLANTED}後文。", f"又一次，{PLANTED}")
    found = find_overlap(suites(PLANTED, "山下的市場裡，賣的是哪一種只有春天才採得到的野菜？"), [path])
    first, second = found.items
    assert (first["flagged"], first["share"], first["run"], first["texts"]) == (True, 1.0, 32, 2)
    assert (first["document"], first["source"], first["against"]) == ("頁/1", "山誌", path)
    assert first["excerpt"] == PLANTED[:-1]
    assert (second["flagged"], second["share"], second["document"]) == (False, 0.0, "")
    assert found.flagged("題") == {"題/1"}
    summary = found.summary()
    assert summary["suites"]["題"] == {
        "n": 2,
        "flagged": 1,
        "by": {"question": 1},
        "some_share": 1,
        "not_searchable": 0,
    }
    assert summary["against"][path] == {"texts": 3, "chars": len(PLANTED) * 2 + 13}


def test_the_held_out_part_is_not_training_data(tmp_path: Path) -> None:
    assert find_overlap(suites(PLANTED), [corpus_folder(tmp_path / "corpus", "別的文字。")]).flagged("題") == set()


@pytest.mark.parametrize(
    "kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "txt", "md", "chat", "csv", "folder", "dataset"]
)
def test_every_kind_of_training_data_is_read(tmp_path: Path, kind: str) -> None:
    text = f"前文。{PLANTED}後文。"
    chat = {"messages": [{"role": "user", "content": PLANTED}, {"role": "assistant", "content": "不知道。"}]}
    path: Any = str(tmp_path / f"x.{kind}")
    content = json.dumps({"text": text, "license": "CC0-1.0"}).encode() + b"\n"
    if kind.startswith("jsonl"):
        packed = {"jsonl": content, "jsonl.gz": gzip.compress(content), "jsonl.zst": zstandard.compress(content)}
        Path(path).write_bytes(packed[kind])
    elif kind == "parquet":
        pq.write_table(pa.table({"text": ["別的", text]}), path)
    elif kind in ("txt", "md"):
        Path(path).write_text(text, encoding="utf-8")
    elif kind == "csv":
        Path(path).write_text(f"question,answer\n{PLANTED},不知道\n", encoding="utf-8")
    elif kind == "dataset":  # a format that must be named, as a recipe names it
        rows = f"<rows><row><Q>{PLANTED}</Q><A>不知道</A></row></rows>"
        (tmp_path / "x.xml").write_text(rows, encoding="utf-8")
        path = DatasetConfig(path=str(tmp_path / "x.xml"), format="xml", question_key="Q", answer_key="A")
    else:
        path = write_rows(tmp_path / "chat.jsonl", chat) if kind == "chat" else str(tmp_path)
        write_rows(tmp_path / "a.jsonl", {"text": "別的", "license": "x"})
        write_rows(tmp_path / "chat.jsonl", chat)
    assert find_overlap(suites(PLANTED), [path]).flagged("題") == {"題/1"}


def test_missing_and_broken_training_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such training data"):
        find_overlap(suites(PLANTED), [str(tmp_path / "沒有")])
    (tmp_path / "x.jsonl").write_text('{"text": "好"}\n{', encoding="utf-8")
    with pytest.raises(UserError, match="broken JSON") as caught:
        find_overlap(suites(PLANTED), [str(tmp_path / "x.jsonl")])
    assert caught.value.where == f"{tmp_path / 'x.jsonl'}:2"


def test_every_part_of_a_task_is_looked_for(tceval: Path) -> None:
    found, left_out = read_suites(["tceval", "culture"], tceval)
    assert {"drcd", "ttqa", "tmmlu", "penguins", "culture"} <= set(found)
    assert {p.part for p in found["drcd"]} == {"question", "context"}
    assert all(why for why in left_out.values())
    (asked, *_) = [p for p in found["ttqa"] if p.part == "question"]
    assert asked.answers == ("雞肉飯",)  # the letter stands for the choice
    with pytest.raises(UserError, match="unknown suite"):
        read_suites(["tcevel"], tceval)


def row(id: str, correct: bool, **more: Any) -> dict[str, Any]:
    return {"id": id, "correct": correct, **more}


def test_the_clean_score_leaves_flagged_items_out() -> None:
    block = {
        "score": 0.5,
        "n": 4,
        "average": "mean of items",
        "items": [row("1", True), row("2", True), row("3", False), row("4", False)],
    }
    flag_items(block, "題", {"題/1", "題/3", "別的/4"})
    assert [item["flagged"] for item in block["items"]] == [True, False, True, False]  # type: ignore[attr-defined]
    assert block["flagged"] == 2
    assert block["clean"] == {"score": 0.5, "n": 2, "interval": [round(x, 6) for x in wilson(1, 2)]}
    everything = {**block, "items": [row("1", True)], "score": 1.0}
    flag_items(everything, "題", {"題/1"})
    assert everything["clean"] == {"score": None, "n": 0, "interval": [None, None]}


def test_the_clean_score_averages_as_the_block_does() -> None:
    items = [row("1", True, topic="甲/子"), row("2", False, topic="甲/丑"), row("3", True, topic="乙")]
    block = {"score": 0.75, "average": "mean of 2 topics", "items": items}
    flag_items(block, "題", {"題/2"})
    assert block["clean"]["score"] == 1.0  # type: ignore[index]
    marks = [row(str(n), False, mark=mark) for n, mark in enumerate((0.2, 0.4, 0.9))]
    rouge = {"score": 0.5, "average": "mean of items", "items": marks}
    flag_items(rouge, "題", {"題/2"})
    assert rouge["clean"]["score"] == pytest.approx(0.3)  # type: ignore[index]
    bits = {
        "score": 2.0,
        "average": "all bits / all characters",
        "items": [{"id": "1", "score": 1.0, "chars": 30}, {"id": "2", "score": 5.0, "chars": 10}],
    }
    flag_items(bits, "題", {"題/2"})
    assert bits["clean"] == {"score": 1.0, "n": 1, "interval": [None, None]}


def test_the_clean_score_of_a_judge_is_made_of_its_verdicts_and_ratings() -> None:
    rows = [{"id": str(n), "outcome": outcome} for n, outcome in enumerate(("win", "loss", "tie", "failed"))]
    pair: dict[str, Any] = {"score": 0.5, "average": "…", "items": rows}
    flag_items(pair, "題", {"題/1"})
    assert (pair["flagged"], pair["clean"]["score"], pair["clean"]["n"]) == (1, 0.75, 2)
    turns = [{"id": f"8/{turn}", "turn": turn, "rating": rating} for turn, rating in ((1, 8.0), (2, 4.0))]
    turns += [{"id": f"9/{turn}", "turn": turn, "rating": rating} for turn, rating in ((1, 9.0), (2, None))]
    single: dict[str, Any] = {"score": 7.0, "average": "…", "items": turns}
    flag_items(single, "題", {"題/9"})
    assert (single["flagged"], single["clean"]["score"], single["clean"]["n"]) == (2, 6.0, 2)


def test_no_clean_score_is_guessed() -> None:
    """A kind with a score of its own: marked, but not averaged anew."""
    block = {"score": 0.9, "average": "Elo", "items": [row("1", True), row("2", False)]}
    flag_items(block, "題", {"題/2"})
    assert block["flagged"] == 1
    assert block["clean"] is None
    assert "no mean" in str(block["clean_why"])


def test_a_run_tells_which_answers_were_trained_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The real runner on a real model: flags in the rows, both scores in result and report."""
    from twllm.evaluate.runner import evaluate_model

    asked = write_rows(
        tmp_path / "q.jsonl",
        {"id": "a", "question": PLANTED, "accept": ["不知道"]},
        {"id": "b", "question": "溪邊的溫泉池旁，石頭上曬著哪一種動物？", "accept": ["猴子"]},
    )
    trained = write_rows(
        tmp_path / "train.jsonl",
        {"messages": [{"role": "user", "content": PLANTED}, {"role": "assistant", "content": "好"}]},
    )
    out = tmp_path / "r.json"
    result = evaluate_model(
        str(tiny_checkpoint), suites=["culture"], questions=asked, out=out, max_new_tokens=4, contamination=[trained]
    )
    block = result["culture"]
    assert {item["id"]: item["flagged"] for item in block["items"]} == {"a": True, "b": False}
    assert (block["flagged"], block["clean"]["n"]) == (1, 1)
    assert result["meta"]["contamination"]["suites"]["culture"]["flagged"] == 1
    assert "不含汙染題" in out.with_suffix(".md").read_text(encoding="utf-8")
    plain = evaluate_model(str(tiny_checkpoint), suites=["culture"], questions=asked, out=out, max_new_tokens=4)
    assert "flagged" not in plain["culture"]
    with pytest.raises(UserError, match="no such training data"):  # told before the model is looked for
        evaluate_model("沒有", suites=["culture"], questions=asked, out=out, contamination=[str(tmp_path / "沒有")])


def test_the_commands(tceval: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from twllm.evaluate.commands import app

    texts, out = tmp_path / "texts.jsonl", tmp_path / "new" / "c.json"
    trained = write_rows(
        tmp_path / "t.jsonl",
        {"text": "前文。玉山主峰標高 {3952} 公尺。後文。", "license": "x"},
        {"text": PLANTED, "license": "x"},
    )
    own = write_rows(tmp_path / "own.jsonl", {"id": 7, "question": PLANTED})
    runner = CliRunner()
    said = runner.invoke(
        app, ["contamination", "drcd", own, "--data", str(tceval), "--against", trained, "--out", str(out)]
    )
    assert said.exit_code == 0, said.output
    rows = json.loads(out.read_text(encoding="utf-8"))["items"]
    assert {row["item"]: (row["part"], row["how"]) for row in rows if row["flagged"]} == {
        "drcd/0": ("context", "whole"), "drcd/1": ("context", "whole"), "own/7": ("question", "share"),
    }  # fmt: skip
    page = out.with_suffix(".md").read_text(encoding="utf-8")
    assert "| own | 1 | 1 | 題目 1 | 1 | 0 |" in page
    assert "own/7" in page
    said = runner.invoke(app, ["texts", "drcd", "--data", str(tceval), "--out", str(texts)])
    assert said.exit_code == 0, said.output
    assert {p.item for p in read_passages(str(texts))} == {"drcd/0", "drcd/1"}
    assert list(read_passages(str(texts))) == read_suites(["drcd"], tceval)[0]["drcd"]
    bad = runner.invoke(app, ["contamination", own, "--against", trained, "--threshold", "0"])
    assert isinstance(bad.exception, UserError)
    assert "out of range" in bad.exception.what
