"""Bits per character: against a count by hand, whatever the windows; texts from everywhere; a server is refused; no harm."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from twllm.cli import app
from twllm.errors import UserError
from twllm.evaluate.bits import TextBits, Windows, engine_of, interval, text_bits, token_bits, units_of
from twllm.evaluate.no_harm import compare_blocks, parse_texts, read_result
from twllm.evaluate.runner import evaluate_model
from twllm.evaluate.texts import read_texts
from twllm.serve.engines.torch.engine import TorchEngine

TEXT = "玉山是臺灣最高的山，標高三千九百五十二公尺。\n山友常在清晨出發。" * 6


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> TorchEngine:
    return TorchEngine(tiny_checkpoint, threads=1, precision="fp32")


def by_hand(engine: TorchEngine, ids: list[int], position: int, start: int) -> float:
    """Bits of one token after ids[start:position]: one forward a token, the whole row of probabilities."""
    import torch

    with torch.inference_mode():
        row = engine.model(input_ids=torch.tensor([ids[start:position]])).logits[0, -1].double()
    return -math.log2(torch.softmax(row, -1)[ids[position]].item())


@pytest.mark.parametrize(("window", "stride"), [(256, 256), (16, 16), (16, 4), (7, 3), (5, 1)])
def test_every_token_once_with_the_context_it_should_have(engine: TorchEngine, window: int, stride: int) -> None:
    """A token sees its window and nothing else: what stands before the window is another sum."""
    ids = [engine.tokenizer.bos_id or 0, *engine.tokenizer.encode(TEXT)[:40]]
    found = token_bits(engine.model, ids, Windows(window, stride))
    assert len(found) == 40
    starts = [max(0, math.ceil((p - window) / stride)) * stride for p in range(1, 41)]
    expected = [by_hand(engine, ids, p, start) for p, start in enumerate(starts, 1)]
    assert found == pytest.approx(expected, abs=1e-4)


def test_begin_token_stands_before_the_text_and_is_not_counted(engine: TorchEngine) -> None:
    found = text_bits(engine, "玉山", Windows(64, 32))
    ids = [engine.tokenizer.bos_id or 0, *engine.tokenizer.encode("玉山")]
    assert (found.tokens, found.chars) == (len(ids) - 1, 2)
    assert found.bits == pytest.approx(sum(by_hand(engine, ids, p, 0) for p in range(1, len(ids))), abs=1e-4)


def test_blocks_hold_all_bits_and_all_characters(engine: TorchEngine) -> None:
    found = text_bits(engine, TEXT, Windows(64, 32))
    ids = [engine.tokenizer.bos_id or 0, *engine.tokenizer.encode(TEXT)]
    assert found.bits == pytest.approx(sum(token_bits(engine.model, ids, Windows(64, 32))), abs=1e-6)
    assert [chars for _, chars in found.units()] == [100, len(TEXT) - 100]
    head = text_bits(engine, TEXT[:100], Windows(64, 32))
    assert found.blocks[0] == pytest.approx(head.bits, rel=0.03)  # but for a token across the border


def test_window_never_exceeds_the_context() -> None:
    assert Windows(2048, 1024).within(256) == (256, 128)
    assert Windows(64, 64).within(None) == (64, 64)
    assert Windows(64, 100).within(64) == (64, 64)


def test_interval_is_the_spread_of_the_units() -> None:
    even, wide = [(200.0, 100)] * 20, [(100.0, 100), (300.0, 100)] * 10
    assert interval(even) == (2.0, 2.0)
    low, high = interval(wide) or (0, 0)
    assert (low, high) == pytest.approx((2 - 1.96 / 20**0.5, 2 + 1.96 / 20**0.5), abs=0.06)
    assert interval(even[:1]) is None
    documents = [TextBits(1, 150, [1.0, 2.0])] * 30
    assert units_of(documents[:29]) == ([(1.0, 100), (2.0, 50)] * 29, "blocks of 100 characters")
    assert units_of(documents) == ([(3.0, 150)] * 30, "documents")


def run(model: Path | str, out: Path, suite: str = "bits_per_char", **more: Any) -> dict[str, Any]:
    return evaluate_model(str(model), suites=[suite], out=out, **more)


def test_suite_measures_and_resumes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "文.jsonl"
    text.write_text("".join(json.dumps({"id": i, "text": TEXT[i:]}) + "\n" for i in range(3)), encoding="utf-8")
    first = run(tiny_checkpoint, tmp_path / "r.json", text=text)
    block = first["bits_per_char"]
    assert (block["n"], block["better"], block["chars"]) == (3, "lower", 3 * len(TEXT) - 3)
    assert block["score"] == pytest.approx(sum(sum(row["blocks"]) for row in block["items"]) / block["chars"], rel=1e-5)
    low, high = block["interval"]
    assert low < block["score"] < high
    again = run(tiny_checkpoint, tmp_path / "r.json", text=text)
    assert (again["meta"]["reused_answers"], again["bits_per_char"]) == (3, block)
    report = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert f"{block['score']:.4f} bits/char ↓" in report
    assert (tmp_path / "r.png").exists()


def test_what_ships_is_read_without_a_text(tiny_checkpoint: Path, tmp_path: Path) -> None:
    page = run(tiny_checkpoint, tmp_path / "a.json")["bits_per_char"]
    harm = run(tiny_checkpoint, tmp_path / "b.json", "no_harm")["no_harm"]
    assert list(page["topics"]) == ["zh-TW"]
    assert sorted(harm["topics"]) == ["en", "zh-CN", "zh-TW"]
    assert page["windows"] == {"window": 256, "stride": 128}  # the model's context
    assert page["topics"]["zh-TW"] == harm["topics"]["zh-TW"]
    assert harm["score"] == pytest.approx(sum(topic["score"] for topic in harm["topics"].values()) / 3)


def test_no_harm_command(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The same model on both sides: no change anywhere; a stored result does as well as a model."""
    text = tmp_path / "文.txt"
    text.write_text(TEXT, encoding="utf-8")
    out = tmp_path / "h.json"
    arguments = [
        "eval",
        "no-harm",
        str(tiny_checkpoint),
        str(tiny_checkpoint),
        "--text",
        f"en={text}",
        "--out",
        str(out),
    ]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    (row,) = json.loads(out.read_text(encoding="utf-8"))["changes"]
    assert (row["group"], row["chars"], row["change"], row["excludes_0"]) == ("en", len(TEXT), 0, False)
    assert "看不出變化" in (tmp_path / "h.md").read_text(encoding="utf-8")
    stored = str(tmp_path / "h.before.json")
    again = CliRunner().invoke(app, ["eval", "no-harm", stored, stored, "--out", str(tmp_path / "i.json")])
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "i.json").read_text(encoding="utf-8"))["changes"] == [row]


@pytest.mark.parametrize("pairs", [["en"], ["=x"], ["en=沒有.txt"], ["en=a.txt", "en=a.txt"]])
def test_texts_of_no_harm_are_checked(pairs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("字", encoding="utf-8")
    with pytest.raises(UserError):
        parse_texts(pairs)


def test_texts_are_read_from_a_file_a_folder_or_what_a_corpus_held_out(tmp_path: Path) -> None:
    from twllm.corpus.document import Document
    from twllm.corpus.store import HELD_OUT, open_writer

    (tmp_path / "a.txt").write_text("一篇。\n\n兩段。", encoding="utf-8")
    (tmp_path / "b.md").write_text("二", encoding="utf-8")
    assert [text.text for text in read_texts(tmp_path / "a.txt")] == ["一篇。\n\n兩段。"]
    assert [text.text for text in read_texts(tmp_path)] == ["一篇。\n\n兩段。", "二"]
    for name, text in (("documents.jsonl.zst", "學過"), (HELD_OUT, "沒學過")):
        with open_writer(tmp_path / name) as writer:
            writer.write(Document("1", text, "s", license="CC0"))
    assert [text.text for text in read_texts(tmp_path)] == ["沒學過"]
    assert {text.group for text in read_texts("twllm:no_harm")} == {"zh-TW", "zh-CN", "en"}
    (tmp_path / "空.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(UserError, match="沒有文字"):
        read_texts(tmp_path / "空.txt")


def test_a_server_is_refused_with_reason() -> None:
    class Server:
        fingerprint = template_fingerprint = ""

    with pytest.raises(UserError, match="伺服器"):
        engine_of(Server(), "http://127.0.0.1:1")


def blocks_of(shift: float) -> dict[str, Any]:
    """Two languages of ten blocks; the second language's bits are `shift` a character more."""
    rows = [
        {
            "id": f"{lang}-{i}",
            "topic": lang,
            "chars": 100,
            "blocks": [100.0 + 7 * i + (shift if lang == "en" else 0) * 100],
        }
        for lang in ("zh-TW", "en")
        for i in range(10)
    ]
    return {"items": rows, "prompt_hash": "p"}


def test_change_is_paired_place_by_place() -> None:
    """The texts differ by 63 bits between blocks, the models by 2 in each: pairing sees it."""
    changes = {row["group"]: row for row in compare_blocks(blocks_of(0), blocks_of(0.02))}
    assert (changes["zh-TW"]["change"], changes["zh-TW"]["excludes_0"]) == (0, False)
    assert changes["en"]["change"] == pytest.approx(0.02)
    assert changes["en"]["interval"] == pytest.approx([0.02, 0.02])
    assert changes["en"]["excludes_0"]
    noisy = blocks_of(0)
    for i, row in enumerate(noisy["items"]):
        row["blocks"][0] += 30 * (-1) ** i
    assert not {row["group"]: row for row in compare_blocks(blocks_of(0), noisy)}["en"]["excludes_0"]


def test_other_texts_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="不是同一批文字"):
        compare_blocks(blocks_of(0), blocks_of(0) | {"prompt_hash": "q"})


def test_a_file_that_is_no_result_is_told(tmp_path: Path) -> None:
    for name, content in (("a.json", "{"), ("b.json", '{"culture": {}}'), ("c.json", '{"no_harm": {"items": 1}}')):
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match="no_harm"):
            read_result(tmp_path / name)
