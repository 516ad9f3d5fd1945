"""Steps as such: dedup, the registry, history, datatrove's executors."""

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from tests.corpus.conftest import GOOD
from twllm.corpus.config import DEFAULT_STEPS, CorpusConfig, CorpusSource
from twllm.corpus.document import Document, Dropped
from twllm.corpus.steps import as_datatrove, make_step, names
from twllm.errors import UserError


def test_dedup_keeps_the_first_and_looks_past_white_space(reasons: Callable[..., list[str]]) -> None:
    texts = [GOOD, "另一篇。", GOOD, GOOD.replace("。", "。\n　 "), GOOD.replace("台灣", "臺灣")]
    assert reasons("dedup", *texts) == ["", "", "duplicate", "duplicate", ""]


def test_a_step_is_fresh_each_time(reasons: Callable[..., list[str]]) -> None:
    assert reasons("dedup", GOOD) == reasons("dedup", GOOD) == [""]


def test_steps_are_lazy() -> None:
    endless = (Document(str(n), GOOD) for n in iter(int, 1))
    assert isinstance(next(make_step("quality", CorpusConfig())(endless)), Document)


def test_history_names_the_steps_passed() -> None:
    document = Document("a", "\ufeff" + GOOD, "夜市", "https://example.tw/", "CC0-1.0", {"title": "夜市"}, ("read",))
    for name in DEFAULT_STEPS:
        [item] = make_step(name, CorpusConfig())([document])
        assert isinstance(item, Document)
        document = item
    assert document.history == ("read", *DEFAULT_STEPS)
    assert (document.text, document.metadata["title"]) == (GOOD, "夜市")
    assert Document.from_row(document.to_row()) == document


def test_a_drop_keeps_the_document_as_it_was() -> None:
    [drop] = make_step("quality", CorpusConfig())([Document("a", "短")])
    assert isinstance(drop, Dropped)
    assert (drop.document, drop.step, drop.reason) == (Document("a", "短"), "quality", "too_short")
    assert drop.detail == "1 < 20 chars"


def test_unknown_step_gets_a_suggestion() -> None:
    assert set(DEFAULT_STEPS) <= set(names())
    with pytest.raises(ValidationError, match="did you mean 'normalize'"):
        CorpusConfig(steps=("normalise", "quality"))
    with pytest.raises(ValidationError, match="twice"):
        CorpusConfig(steps=("dedup", "dedup"))
    with pytest.raises(UserError, match="unknown step"):
        make_step("dedupe", CorpusConfig())


def test_sources_have_distinct_names() -> None:
    paths = ["twllm:knowledge", "prose/moj-law.jsonl.gz", "web/", "a/**/*.txt", "*.md"]
    assert [CorpusSource(path=path).label for path in paths] == ["knowledge", "moj-law", "web", "a", "*.md"]
    with pytest.raises(ValidationError, match="two sources of one name"):
        CorpusConfig(sources=(CorpusSource(path="a/x.txt"), CorpusSource(path="b/x.txt")))
    CorpusConfig(sources=(CorpusSource(path="a/x.txt"), CorpusSource(path="b/x.txt", name="x2")))


def test_datatrove_runs_a_step() -> None:
    trove = pytest.importorskip("datatrove.data")
    run = as_datatrove(make_step("quality", CorpusConfig()))
    given = [
        trove.Document(text=text, id=text[:1], metadata={"source": "夜市", "title": "題"}) for text in (GOOD, "短")
    ]
    [kept] = run(iter(given), rank=0, world_size=1)
    assert (kept.id, kept.text) == ("「", GOOD)
    assert kept.metadata["source"] == "夜市"
    assert kept.metadata["title"] == "題"
    assert kept.metadata["history"] == ["quality"]
