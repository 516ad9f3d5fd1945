"""Checked conversion: OpenCC's known failures, native text untouched, idempotent, nothing broken silently."""

import json
from pathlib import Path
from typing import Any

import opencc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twllm import data
from twllm.corpus.check import check_text
from twllm.corpus.config import CorpusConfig
from twllm.corpus.convert import convert_text
from twllm.corpus.document import Document
from twllm.corpus.steps import make_step

FAILURES = [
    line.split("\t")
    for line in (Path(__file__).parent / "opencc_failures.tsv").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]
BOTH_FORMS = str.maketrans({"臺": "台", "菸": "煙", "慾": "欲", "摺": "折", "鋪": "舖"})


@pytest.mark.parametrize(("simplified", "taiwan", "how"), FAILURES)
def test_what_opencc_gets_wrong(simplified: str, taiwan: str, how: str) -> None:
    """Each one is right, or flagged where the doubt is."""
    found = convert_text(simplified)
    assert opencc.OpenCC("s2twp").convert(simplified).translate(BOTH_FORMS) != taiwan.translate(BOTH_FORMS)
    if how == "right":
        assert found.text.translate(BOTH_FORMS) == taiwan.translate(BOTH_FORMS)
    else:
        assert found.flags
    assert convert_text(found.text).text == found.text


def test_there_are_39_of_them() -> None:
    assert len(FAILURES) >= 39
    assert sum(how == "right" for *_, how in FAILURES) >= 39


@pytest.mark.parametrize(
    ("simplified", "taiwan"),
    [
        ("被发明了，头发干了，干部干活，干面条，不干我的事", "被發明了，頭髮乾了，幹部幹活，乾麵條，不干我的事"),
        ("皇后在后面，里长在家里，三里外，这里面条很好吃", "皇后在後面，里長在家裡，三里外，這裡麵條很好吃"),
        ("他发现了如何解决，一目了然", "他發現了如何解決，一目瞭然"),
        ("这只猫只有三只脚，余先生有余钱，钟先生敲钟", "這隻貓只有三隻腳，余先生有餘錢，鍾先生敲鐘"),
        ("他们用软件看视频，打印机坏了", "他們用軟體看影片，印表機壞了"),
        ("复印件、回复、反复、复查、颠覆", "複印件、回覆、反覆、複查、顛覆"),
        ("松树下放松，谷物与山谷，党参和共产党", "松樹下放鬆，穀物與山谷，黨參和共產黨"),
        ("周三这一周，皇后杯，茶几上有几个杯子，斗争与北斗", "週三這一週，皇后杯，茶几上有幾個杯子，鬥爭與北斗"),
    ],
)
def test_ambiguous_characters(simplified: str, taiwan: str) -> None:
    assert convert_text(simplified).text == taiwan


def test_doubtful_places_are_flagged_with_their_options() -> None:
    found = convert_text("这些文件说他干。")
    flags = {flag.text: flag for flag in found.flags}
    assert flags["文件"].options == ("文件", "檔案")
    assert flags["文件"].kind == "wording"
    assert set(flags["幹"].options) >= {"幹", "乾", "干"}
    for flag in found.flags:
        assert found.text[flag.start : flag.start + len(flag.text)] == flag.text


def test_flags_move_with_replaced_words() -> None:
    found = convert_text("打印机和软件以及数据库，他说干。")
    assert found.text.startswith("印表機和軟體以及資料庫")
    (flag,) = [flag for flag in found.flags if flag.kind == "character"]
    assert found.text[flag.start] == flag.text == "幹"


def test_a_traditional_sentence_keeps_everything_but_its_simplified_characters() -> None:
    text = "里長說皇后面前的干擾，這个很准，台灣的文件。"
    assert convert_text(text).text == "里長說皇后面前的干擾，這個很准，台灣的文件。"


def test_sentences_are_judged_one_by_one() -> None:
    text = "臺灣的里長在后里上班。\n他说里面有人。\n后来呢？"
    assert convert_text(text).text == "臺灣的里長在后里上班。\n他說裡面有人。\n後來呢？"


def test_native_text_passes_byte_for_byte() -> None:
    """All that was written for the package but what quotes Simplified script on purpose."""
    changed = []
    for folder in ("knowledge", "taiwan_facts", "taiwan_instruction", "taiwan_feedback", "culture", "culture_dev"):
        for file in sorted((data.ROOT / folder).rglob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                for text in strings(row):
                    if convert_text(text).text != text and not check_text(text).simplified:
                        changed.append((row["id"], text))
    assert changed == []


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inner for text in strings(item)]


def test_neutral_text_only_when_told() -> None:
    assert not convert_text("不干了。").changed
    assert convert_text("不干了。", assume_simplified=True).text == "不幹了。"


han = st.text(
    st.sampled_from(
        "这那个里后发干面只系统复几台云松谷丑范了着过的软件视频打印机文件程序臺灣裡髮後面麵，。！？「」ab12 \n"
    ),
    max_size=40,
)


@given(han)
def test_converting_twice_changes_nothing(text: str) -> None:
    once = convert_text(text)
    assert convert_text(once.text).text == once.text
    assert once.changed == (once.text != text)


@given(st.text(max_size=40))
def test_any_text_passes(text: str) -> None:
    convert_text(text)
    check_text(text)


@pytest.mark.shared_data
def test_real_taiwan_text_passes_and_comes_back(shared_data: Path) -> None:
    """Statutes and transcripts: untouched as they are; turned into Simplified and back, fewer errors than OpenCC's own way."""
    import gzip

    to_simplified, peer = opencc.OpenCC("tw2s"), opencc.OpenCC("s2tw")
    ours = theirs = 0
    for name in ("moj-law", "audreyt-transcript"):
        with gzip.open(shared_data / "prose" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            texts = [json.loads(line)["text"][:3000] for _, line in zip(range(120), lines, strict=False)]
        for text in texts:
            assert convert_text(text).text == text or check_text(text).simplified
            simplified = to_simplified.convert(text)
            back, other = convert_text(simplified), peer.convert(simplified)
            if len(back.text) == len(text) == len(other):
                flagged = {flag.start for flag in back.flags}
                ours += sum(a != b and at not in flagged for at, (a, b) in enumerate(zip(text, back.text, strict=True)))
                theirs += sum(a != b for a, b in zip(text, other, strict=True))
    assert ours < 0.7 * theirs


# -- corpus steps -------------------------------------------------------------------------------------------------


def test_convert_step_marks_what_it_converted() -> None:
    step = make_step("convert", CorpusConfig())
    native, simplified = Document("1", "臺灣的文件。"), Document("2", "这些文件。", metadata={"a": 1})
    first, second = step([native, simplified])
    assert (first.text, first.metadata, first.history) == (native.text, {}, ("convert",))  # type: ignore[union-attr]
    assert second.text == "這些文件。"  # type: ignore[union-attr]
    assert second.metadata["converted"] == "Simplified → zh-TW"  # type: ignore[union-attr]
    assert second.metadata["converted_flags"] == 1  # type: ignore[union-attr]
    assert second.metadata["a"] == 1  # type: ignore[union-attr]


def test_taiwan_step_drops_with_reasons() -> None:
    step = make_step("taiwan", CorpusConfig())
    texts = (
        "臺灣的軟體品質很好，網路也快。",
        "这个软件的质量很好。",
        "佢哋話唔使咁早返嚟。",
        "這個軟件的視頻很好，" + "臺灣的網路品質很好，" * 5,
    )
    found = list(step(Document(str(number), text) for number, text in enumerate(texts)))
    assert [getattr(item, "reason", "") for item in found] == ["", "variety_zh-CN", "variety_yue", "leak_rate"]
