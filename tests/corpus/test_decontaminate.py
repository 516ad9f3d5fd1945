"""The corpus step: planted items go, are cut out or told; what reads the texts to look for; false positives on real statutes."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.corpus.conftest import GOOD
from twllm.corpus import overlap as module
from twllm.corpus.build import build_corpus, input_hashes
from twllm.corpus.config import CorpusConfig, CorpusSource
from twllm.corpus.document import Document, Dropped, Noted
from twllm.corpus.overlap import OverlapIndex, Passage
from twllm.corpus.passages import read_passages
from twllm.corpus.steps import make_step
from twllm.errors import UserError

ASKED = "這條步道的入口處立著一塊石碑，碑上刻的是哪一年由誰題的字？"
OTHER = "冬天的時候，湖邊的旅店會替每一位住客準備哪兩樣東西禦寒？"


@pytest.fixture
def asked(tmp_path: Path) -> str:
    """Two questions as `twllm eval texts` writes them, and their choices, which are not looked for."""
    rows = [
        {"suite": "步道", "item": "步道/1", "part": "question", "text": ASKED, "answers": ["1923 年，林氏"]},
        {"suite": "步道", "item": "步道/2", "part": "question", "text": OTHER, "answers": []},
        {"suite": "步道", "item": "步道/2", "part": "choices", "text": GOOD, "answers": []},
    ]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def run(asked: str, *texts: str, **settings: Any) -> list[Document | Dropped]:
    config = CorpusConfig(steps=("decontaminate",), decontaminate_against=(asked,), **settings)
    return list(make_step("decontaminate", config)([Document(f"d{n}", text, "山") for n, text in enumerate(texts)]))


def test_a_document_with_an_item_is_dropped_with_reason_and_place(asked: str) -> None:
    kept, drop, last = run(asked, GOOD, f"{GOOD}\n題目：{ASKED}\n{GOOD}", GOOD + OTHER[:12])
    assert isinstance(drop, Dropped)
    assert not isinstance(drop, Noted)
    assert (drop.document.id, drop.step, drop.reason) == ("d1", "decontaminate", "evaluation_question")
    assert drop.detail == f"步道/1: share 1.00, run 27: {ASKED[:-1]}"
    assert [item.history for item in (kept, last) if isinstance(item, Document)] == [("decontaminate",)] * 2


def test_cut_takes_the_lines_and_tells_them(asked: str) -> None:
    text = f"{GOOD}\n題目：{ASKED}\n{GOOD}\n{OTHER}尾\n完。"
    note, kept = run(asked, text, decontaminate="cut")
    assert isinstance(note, Noted)
    assert (note.reason, note.document.text) == ("cut_evaluation_question", f"題目：{ASKED}\n{OTHER}尾\n")
    assert isinstance(kept, Document)
    assert kept.text == f"{GOOD}\n{GOOD}\n完。"
    assert kept.metadata["evaluation_items"] == ["步道/1", "步道/2"]
    (drop,) = run(asked, f"{ASKED}\n{OTHER}", decontaminate="cut")
    assert isinstance(drop, Dropped)
    assert not isinstance(drop, Noted)


def test_cut_works_on_text_that_is_not_normalised(asked: str) -> None:
    _, kept = run(asked, f"cafe\u0301\n{ASKED}\nrésumé", decontaminate="cut")
    assert isinstance(kept, Document)
    assert kept.text == "café\nrésumé"


def test_report_changes_nothing_but_the_mark(asked: str) -> None:
    note, kept = run(asked, GOOD + ASKED, decontaminate="report")
    assert isinstance(note, Noted)
    assert note.reason == "has_evaluation_question"
    assert isinstance(kept, Document)
    assert (kept.text, kept.metadata) == (GOOD + ASKED, {"evaluation_items": ["步道/1"]})


def test_documents_come_out_in_order_whatever_the_batch(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [GOOD, ASKED, GOOD * 3, OTHER, GOOD]
    whole = run(asked, *texts)
    for size in (1, 50, 120):
        monkeypatch.setattr(module, "BATCH_CHARS", size)
        assert run(asked, *texts) == whole


@pytest.mark.parametrize("how", ["drop", "cut", "report"])
def test_the_funnel_counts_and_samples_it(asked: str, tmp_path: Path, how: str) -> None:
    rows = [{"id": n, "text": f"{GOOD}\n第 {n} 頁。" + (f"\n{ASKED}" if n % 3 == 0 else "")} for n in range(6)]
    source = tmp_path / "pages.jsonl"
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    config = CorpusConfig(
        sources=(CorpusSource(path=str(source), license="CC0-1.0"),), steps=("normalize", "decontaminate"), held_out=0,
        decontaminate=how, decontaminate_against=(asked,),
    )  # fmt: skip
    out = tmp_path / "corpus"
    out.mkdir()
    facts = build_corpus(config, out)
    assert facts["documents"] == (4 if how == "drop" else 6)
    stage = json.loads((out / "funnel.json").read_text(encoding="utf-8"))["stages"][-1]
    reason = {"drop": "evaluation_question", "cut": "cut_evaluation_question", "report": "has_evaluation_question"}[how]
    assert stage["notes" if how != "drop" else "drops"][reason]["documents"] == 2
    samples = (out / "drops" / f"{reason}.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in samples] == ["pages/0", "pages/3"]
    assert all("步道/1" in json.loads(line)["detail"] for line in samples)


def test_what_is_looked_for_is_an_input_of_the_stage(asked: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(GOOD, encoding="utf-8")
    source = CorpusSource(path=str(tmp_path / "a.txt"), license="CC0-1.0")
    config = CorpusConfig(sources=(source,), steps=("decontaminate",), decontaminate_against=(asked,))
    before = input_hashes(config)
    assert set(before) == {source.path, asked}
    with Path(asked).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"text": "新的一段。"}) + "\n")
    assert input_hashes(config)[asked] != before[asked]


def test_step_and_texts_belong_together() -> None:
    with pytest.raises(ValidationError, match="belong together"):
        CorpusConfig(steps=("decontaminate",))
    with pytest.raises(ValidationError, match="belong together"):
        CorpusConfig(decontaminate_against=("twllm:culture",))


def test_shipped_questions_are_read_directly() -> None:
    passages = list(read_passages("twllm:culture"))
    assert len({passage.item for passage in passages}) == 340
    choice = next(p for p in passages if "/c-" in p.item and p.part == "question")
    assert all(len(answer) > 1 for answer in choice.answers)  # the choice's text, not its letter


def test_rows_of_many_shapes(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "question": "哪一個？", "context": "一段短文。", "choices": ["甲乙", "丙丁"], "answer": "B"},
        {"question_id": 81, "turns": ["第一問", "第二問"], "reference": ["很長的參考答案。" * 8]},
        {"text": "一段文字"},
    ]
    file = tmp_path / "題.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert list(read_passages(str(file))) == [
        Passage("題/a", "question", "哪一個？", ("丙丁",)),
        Passage("題/a", "context", "一段短文。"),
        Passage("題/2", "question", "第一問", ("很長的參考答案。" * 8,)),
        Passage("題/2", "reference", "很長的參考答案。" * 8),
        Passage("題/2", "question", "第二問", ("很長的參考答案。" * 8,)),
        Passage("題/2", "reference", "很長的參考答案。" * 8),
        Passage("題/3", "text", "一段文字"),
    ]
    (tmp_path / "句.txt").write_text("第一句\n\n第二句\n", encoding="utf-8")
    assert [p.text for p in read_passages(str(tmp_path / "句.txt"))] == ["第一句", "第二句"]


@pytest.mark.parametrize(("line", "match"), [("{", "broken JSON"), ('{"answer": "甲"}', "no question, no text")])
def test_broken_texts_are_told_with_their_place(tmp_path: Path, line: str, match: str) -> None:
    file = tmp_path / "題.jsonl"
    file.write_text('{"text": "好"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=match) as caught:
        list(read_passages(str(file)))
    assert caught.value.where == f"{file}:2"


@pytest.mark.shared_data
def test_false_positives_and_recall_on_real_text(shared_data: Path) -> None:
    """32 M characters of statutes hold one of 3,343 TMMLU questions (its choices are the statute's sentences): measured 1. Put there
    in Simplified characters with other punctuation, 99 % are found."""
    from opencc import OpenCC

    from twllm.evaluate.sources import read_items
    from twllm.evaluate.task import tasks

    items = read_items(tasks()["tmmlu"], "", shared_data / "tceval" / "data-as-published")
    index = OverlapIndex(Passage(item.id, "question", item.question) for item in items)
    assert index.searchable.mean() > 0.99
    with gzip.open(shared_data / "prose" / "moj-law.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    found: set[str] = set()
    for start in range(0, len(texts), 64):
        found |= {item for match in index.find(texts[start : start + 64]) for item in match.items}
    assert len(found) <= 1
    convert = OpenCC("tw2s").convert
    copies = [convert(item.question).replace("，", " , ").replace("。", "\n") for item in items]
    planted = [f"{texts[n % 99][:200]}\n{copy}\n{texts[n % 99][200:400]}" for n, copy in enumerate(copies)]
    hit = {(match.text, item) for match in index.find(planted) for item in match.items}
    recall = sum((n, item.id) in hit for n, item in enumerate(items)) / len(items)
    assert recall > 0.985
