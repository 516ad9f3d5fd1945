"""The whole stage on small sources: counts, parts, samples, reports, the same bytes twice, no torch."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.corpus.conftest import GOOD
from twllm.corpus.build import build_corpus, held_out_place
from twllm.corpus.config import CorpusConfig, CorpusSource
from twllm.corpus.document import Document
from twllm.corpus.report import funnel_markdown, funnel_table
from twllm.corpus.store import open_writer, read_document_file, read_documents, source_weights
from twllm.errors import UserError

DISHES = ["蚵仔煎", "臭豆腐", "滷肉飯", "牛肉麵", "珍珠奶茶", "大腸包小腸"]
BAD = [
    "太短",
    "这个软件的界面很好用，建议大家下载最新版本来试试看吧。",
    "首頁 最新消息 關於我們 產品介紹 聯絡資訊 常見問題",
]


def write_rows(path: Path, texts: list[str], **more: str) -> None:
    lines = [json.dumps({"text": text, **more}, ensure_ascii=False) + "\n" for text in texts]
    path.write_text("".join(lines), encoding="utf-8")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def config(tmp_path: Path) -> CorpusConfig:
    """Two sources: 200 good texts with a copy of the first, 90 bad ones and a broken line; one good text of its own licence."""
    good = [
        f"{number} 號攤位的{DISHES[number % 6]}要排隊二十分鐘，老闆說：「慢慢來，比較快！」" for number in range(200)
    ]
    write_rows(tmp_path / "夜市.jsonl", [*good, "\ufeff" + good[0], *BAD * 30])
    with (tmp_path / "夜市.jsonl").open("a", encoding="utf-8") as lines:
        lines.write("{broken\n")
    write_rows(tmp_path / "other.jsonl", [GOOD], license="MIT", id="good")
    sources = (
        CorpusSource(path=str(tmp_path / "夜市.jsonl"), license="CC0-1.0", weight=2),
        CorpusSource(path=str(tmp_path / "other.jsonl")),
    )
    steps = ("normalize", "quality", "script", "dedup")  # the stalls are near duplicates
    return CorpusConfig(sources=sources, steps=steps, on_broken="skip", held_out=0.1, samples_per_reason=5)


def build(config: CorpusConfig, out: Path) -> dict[str, Any]:
    out.mkdir()
    return build_corpus(config, out)


def test_counts(config: CorpusConfig, tmp_path: Path) -> None:
    counts = build(config, tmp_path / "out")
    held = counts["held_out"]["documents"]
    assert counts["documents"] + held == 201
    assert 8 <= held <= 35  # a tenth of 201
    assert counts["dropped"] == {
        "too_short": 30,
        "simplified": 30,
        "no_sentence_end": 30,
        "duplicate": 1,
        "broken_line": 1,
    }
    assert counts["licenses"] == {"CC0-1.0": 200, "MIT": 1}
    market = counts["sources"]["夜市"]
    assert (market["read_documents"], market["kept_documents"], market["weight"]) == (291, 200, 2.0)
    assert list(counts["seconds"]) == ["read", *config.steps]
    kept = list(read_documents(tmp_path / "out"))
    assert sum(len(document.text) for document in kept) == counts["chars"]
    assert {document.history for document in kept} == {config.steps}
    ids = [d.id for d in kept] + [d.id for d in read_documents(tmp_path / "out", "held_out")]
    assert len(set(ids)) == 201
    assert source_weights(tmp_path / "out") == {"夜市": 2.0, "other": 1.0}


def test_the_folder_holds_what_it_says_and_no_more(config: CorpusConfig, tmp_path: Path) -> None:
    build(config, tmp_path / "out")
    names = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file())
    reasons = ["broken_line", "duplicate", "no_sentence_end", "simplified", "too_short"]
    drops = [f"drops/{reason}.jsonl" for reason in reasons]
    assert names == [
        "documents.jsonl.zst", *drops, "funnel.html", "funnel.json", "funnel.md", "funnel.png", "held_out.jsonl.zst",
    ]  # fmt: skip
    assert (tmp_path / "out" / "funnel.png").read_bytes().startswith(b"\x89PNG")
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text(encoding="utf-8"))
    left = {stage["stage"]: stage["documents"] for stage in funnel["stages"]}
    assert left == {"read": 292, "normalize": 292, "quality": 232, "script": 202, "dedup": 201}
    simplified = rows(tmp_path / "out/drops/simplified.jsonl")
    assert len(simplified) == 5
    assert simplified[0] | {"id": ""} == {
        "id": "", "source": "夜市", "url": "", "step": "script", "reason": "simplified",
        "detail": simplified[0]["detail"], "chars": len(BAD[1]), "excerpt": BAD[1],
    }  # fmt: skip
    [broken] = rows(tmp_path / "out/drops/broken_line.jsonl")
    assert broken["id"].endswith("夜市.jsonl:292")
    assert broken["excerpt"] == "{broken\n"


def test_the_funnel_tells_sources_reasons_and_tokens(config: CorpusConfig, tmp_path: Path) -> None:
    build(config, tmp_path / "out")
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text(encoding="utf-8"))
    read, *_, last = funnel["stages"]
    assert {name: count["documents"] for name, count in read["sources"].items()} == {"夜市": 291, "other": 1}
    assert last["tokens"] == sum(count["tokens"] for count in last["sources"].values())
    texts = [d.text for part in ("documents", "held_out") for d in read_documents(tmp_path / "out", part)]
    assert last["tokens"] == sum(round(len(text.encode()) / 4.5) for text in texts)
    quality = next(stage for stage in funnel["stages"] if stage["stage"] == "quality")
    assert quality["drops"]["too_short"]["sources"]["夜市"]["documents"] == 30
    assert quality["drops"]["too_short"]["tokens"] == 30 * round(len("太短".encode()) / 4.5)
    for stage, after in zip(funnel["stages"], funnel["stages"][1:], strict=False):
        for key in ("documents", "chars", "tokens"):
            lost = sum(count[key] for count in after["drops"].values())
            assert stage[key] - lost == after[key] or after["stage"] == "normalize"
    page = (tmp_path / "out" / "funnel.html").read_text(encoding="utf-8")
    assert BAD[1] in page and "簡體字 simplified（5）" in page


def test_tokens_are_counted_by_a_tokenizer(config: CorpusConfig, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # a token a character
    (tmp_path / "tokenizer").mkdir()
    pieces.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    counts = build(config.model_copy(update={"count_tokens": str(tmp_path / "tokenizer")}), tmp_path / "out")
    assert counts["sources"]["other"]["kept_tokens"] == len(GOOD)
    assert counts["tokens_counted_by"] == str(tmp_path / "tokenizer")


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_input_same_bytes(config: CorpusConfig, tmp_path: Path) -> None:
    build(config, tmp_path / "one")
    build(config, tmp_path / "two")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    build(config.model_copy(update={"seed": 2}), tmp_path / "three")
    changed = {n for n, digest in digests(tmp_path / "three").items() if digest != digests(tmp_path / "one")[n]}
    assert {"held_out.jsonl.zst", "drops/too_short.jsonl"} <= changed


def held_ids(folder: Path) -> set[str]:
    return {document.id for document in read_documents(folder, "held_out")}


def test_held_out_depends_on_the_id_alone(config: CorpusConfig, tmp_path: Path) -> None:
    build(config, tmp_path / "both")
    build(config.model_copy(update={"sources": config.sources[:1]}), tmp_path / "one")
    assert held_ids(tmp_path / "one") == {name for name in held_ids(tmp_path / "both") if name.startswith("夜市/")}
    assert all(held_out_place(name, config.seed) < 0.1 for name in held_ids(tmp_path / "both"))


def test_held_out_limits(config: CorpusConfig, tmp_path: Path) -> None:
    build(config, tmp_path / "all")
    counts = build(config.model_copy(update={"max_held_out": 5}), tmp_path / "five")
    assert (counts["documents"], counts["held_out"]["documents"]) == (196, 5)
    order = sorted(held_ids(tmp_path / "all"), key=lambda name: held_out_place(name, config.seed))
    assert held_ids(tmp_path / "five") == set(order[:5])
    nearly_all = config.model_copy(update={"held_out": 0.999})
    assert build(nearly_all, tmp_path / "half")["held_out"]["documents"] == 100
    none = config.model_copy(update={"held_out": 0.0})
    assert build(none, tmp_path / "none")["held_out"] == {"documents": 0, "chars": 0}
    assert list(read_documents(tmp_path / "none", "held_out")) == []


def test_a_corpus_is_a_source(config: CorpusConfig, tmp_path: Path) -> None:
    first = build(config, tmp_path / "out")
    again = CorpusConfig(sources=(CorpusSource(path=str(tmp_path / "out")),), steps=(), held_out=0)
    assert build(again, tmp_path / "again")["documents"] == first["documents"]


def test_nothing_left_tells_the_reasons(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", BAD)
    source = CorpusSource(path=str(tmp_path / "a.jsonl"), license="MIT")
    with pytest.raises(UserError, match="no documents left") as error:
        build(CorpusConfig(sources=(source,)), tmp_path / "out")
    for told in ("讀入 3 份", "too_short 1", "simplified 1", "no_sentence_end 1"):
        assert told in error.value.fix
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="no documents left") as error:
        build(CorpusConfig(sources=(CorpusSource(path=str(tmp_path / "empty.jsonl")),)), tmp_path / "out2")
    assert "來源是空的" in error.value.fix
    with pytest.raises(UserError, match="no corpus sources"):
        build(CorpusConfig(), tmp_path / "out3")


def test_broken_input_stops_by_default(config: CorpusConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        build(config.model_copy(update={"on_broken": "stop"}), tmp_path / "out")
    assert error.value.where.endswith("夜市.jsonl:292")


def test_report(config: CorpusConfig, tmp_path: Path) -> None:
    from rich.console import Console

    build(config, tmp_path / "out")
    console = Console(width=140, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(funnel_table(tmp_path / "out"))
    console.file.close()
    shown = console.export_text()
    markdown = funnel_markdown(tmp_path / "out")
    for text in (shown, markdown):
        for told in ("no_sentence_end 30、too_short 30", "來源 夜市 × 2", "保留驗證", "79.5 %"):
            assert told in text
    assert {line.count("|") for line in markdown.splitlines()} == {7}
    for function in (funnel_table, funnel_markdown, read_documents):
        with pytest.raises(UserError, match="not a corpus folder"):
            function(tmp_path)


def test_lone_surrogates_survive_as_escapes(tmp_path: Path) -> None:
    with open_writer(tmp_path / "a.jsonl.zst") as writer:
        writer.write(Document("孤", "\ud83d 台灣", "測試"))
    assert [d.text for d in read_document_file(tmp_path / "a.jsonl.zst")] == ["\ud83d 台灣"]


def test_progress_only_on_a_terminal(config: CorpusConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    silent, terminal = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stderr", silent)
    build(config, tmp_path / "a")
    monkeypatch.setattr(sys, "stderr", terminal)
    build(config, tmp_path / "b")
    assert silent.getvalue() == ""
    assert "201 份" in terminal.getvalue()


def test_no_torch_and_light_imports() -> None:
    code = (
        "import sys, twllm.corpus, twllm.corpus.build, twllm.corpus.report, twllm.corpus.warc\n"
        "from twllm.corpus.config import CorpusConfig\n"
        "CorpusConfig()\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'matplotlib', 'opencc', 'numpy', 'warcio', 'datatrove', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from twllm.corpus.steps import make_step\n"
        "from twllm.corpus.document import Document\n"
        "for name in CorpusConfig().steps: list(make_step(name, CorpusConfig())([Document('a', '台灣')]))\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_picture_without_a_chinese_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from twllm.corpus import funnel_files

    stages = [{"stage": "read", "documents": 3, "chars": 9, "drops": {"too_short": {"documents": 1, "chars": 1}}}]
    monkeypatch.setattr(funnel_files, "CJK_FONTS", ())
    funnel_files.draw(stages, tmp_path / "latin.png")  # a missing glyph would be a warning, so an error here
    assert (tmp_path / "latin.png").read_bytes().startswith(b"\x89PNG")
