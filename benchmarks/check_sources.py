"""What `twllm check` says of native and foreign text, source by source, as Markdown tables for docs/check.md.

    python benchmarks/check_sources.py DATA            DATA: a folder with prose/ and filter/ (see docs/check.md)

Two questions: how near 0 is the leak rate of text that Taiwan wrote, and is foreign text caught (verdict other than
zh-TW)? And for the converter: Taiwan's text → Simplified by OpenCC (tw2s) → back; what differs from the original is an
error. OpenCC's s2tw goes over the same text beside it.
"""

import gzip
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import opencc

from twllm.corpus.check import check_text, marked_characters
from twllm.corpus.convert import convert_text

NATIVE = ("audreyt-transcript", "moj-law", "cons-judicial", "rust-book-tw", "taiwan-md", "react-docs zh-hant", "UD GSD")
BOTH_FORMS = dict(  # both forms are written in Taiwan: no error either way
    zip("臺祕菸污泄癡週佔瞭份註溼劃佈鑒唸儘樑釐僱歎鉅迴昇陞揹舖凈綫蒐覈檯慾艷裏兇峯鈎卹託誌着製併", "台秘煙汙洩痴周占了分注濕畫布鑑念盡梁厘雇嘆巨回升升背鋪淨線搜核台欲豔裡凶峰鉤恤托志著制並", strict=True)
)  # fmt: skip
MAX_CHARS = 4000


def jsonl(file: Path) -> list[str]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def conllu(folder: Path) -> list[str]:
    lines = (line for file in sorted(folder.glob("*.conllu")) for line in file.read_text(encoding="utf-8").splitlines())
    return [line.removeprefix("# text =").strip() for line in lines if line.startswith("# text =")]


def sources(data: Path) -> Iterator[tuple[str, str, list[str]]]:
    """(name, expected verdict, texts)."""
    for name in NATIVE[:5]:
        yield name, "zh-TW", jsonl(data / "prose" / f"{name}.jsonl.gz")
    for language, expected in (("zh-hant", "zh-TW"), ("zh-hans", "zh-CN"), ("ja", "other")):
        files = sorted((data / "filter/react-docs" / language / "content").rglob("*.md"))
        texts = [file.read_text(encoding="utf-8") for file in files]
        texts = [
            text for text in texts if language == "ja" or marked_characters(text).han > 500
        ]  # others are not translated
        yield f"react-docs {language}", expected, texts
        if language == "zh-hans":
            converter = opencc.OpenCC("s2tw")
            yield "react-docs zh-hans → s2tw", "zh-CN or mixed", [converter.convert(text) for text in texts]
    for folder, expected in (("UD_Chinese-GSD", "zh-TW"), ("UD_Chinese-GSDSimp", "zh-CN"), ("UD_Cantonese-HK", "yue")):
        name = folder.replace("_Chinese", "").replace("_", " ").replace("UD-", "UD ")
        yield name, expected, conllu(data / "filter/ud" / folder)


def check_table(data: Path) -> None:
    print(
        "| source | texts | characters | leak rate | words /M | zh-TW | other verdicts | M chars/s |\n|---|---|---|---|---|---|---|---|"
    )
    verdicts: dict[str, Counter[str]] = {}
    for name, expected, texts in sources(data):
        began, found, leaked, han, words = time.perf_counter(), Counter[str](), 0.0, 0, 0
        for text in texts:
            check = check_text(text)
            found[check.verdict] += 1
            leaked, han, words = (
                leaked + check.leak_rate * check.n_han,
                han + check.n_han,
                words + len(check.vocabulary),
            )
        verdicts[name] = found
        size, seconds = sum(map(len, texts)), time.perf_counter() - began
        others = "、".join(f"{verdict} {count}" for verdict, count in found.most_common() if verdict != "zh-TW")
        print(f"| {name} ({expected}) | {len(texts):,} | {size:,} | {leaked / han:.6f} | {words / size * 1e6:.0f} "
              f"| {found['zh-TW'] / len(texts):.4f} | {others} | {size / seconds / 1e6:.1f} |", flush=True)  # fmt: skip
    print("\n| foreign source | against | precision | recall |\n|---|---|---|---|")
    for foreign, native in (
        ("react-docs zh-hans", "react-docs zh-hant"), ("react-docs ja", "react-docs zh-hant"), ("react-docs zh-hans → s2tw", "react-docs zh-hant"),
        ("UD GSDSimp", "UD GSD"), ("UD Cantonese-HK", "UD GSD"),
    ):  # fmt: skip
        caught = verdicts[foreign].total() - verdicts[foreign]["zh-TW"]
        false = verdicts[native].total() - verdicts[native]["zh-TW"]
        recall, precision = caught / verdicts[foreign].total(), caught / max(caught + false, 1)
        print(f"| {foreign} | {native} | {precision:.4f} | {recall:.4f} |")


def differences(original: str, converted: str) -> Iterator[int]:
    """Places where two texts of one length differ in more than a form that Taiwan has both of."""
    for at, (a, b) in enumerate(zip(original, converted, strict=True)):
        if BOTH_FORMS.get(a, a) != BOTH_FORMS.get(b, b):
            yield at


def round_trip_table(data: Path, documents: int = 400) -> None:
    print(
        "\n| source | Han | wrong and not flagged /M | wrong, flagged /M | flags /M | OpenCC s2tw wrong /M |\n|---|---|---|---|---|---|"
    )
    to_simplified, peer = opencc.OpenCC("tw2s"), opencc.OpenCC("s2tw")
    for name, _, texts in sources(data):
        if name not in NATIVE or name == "react-docs zh-hant":
            continue
        silent = flagged = flags = peer_wrong = han = 0
        for text in sample(texts, documents):
            simplified = to_simplified.convert(text)
            back = convert_text(simplified)
            other = peer.convert(simplified)
            if len(simplified) != len(text) or len(back.text) != len(text) or len(other) != len(text):
                continue  # a word was replaced: the places cannot be compared one by one
            doubtful = {flag.start for flag in back.flags if flag.kind == "character"}
            wrong = set(differences(text, back.text))
            silent, flagged = silent + len(wrong - doubtful), flagged + len(wrong & doubtful)
            flags, han = flags + len(doubtful), han + sum("\u4e00" <= char <= "\u9fff" for char in text)
            peer_wrong += len(list(differences(text, other)))
        row = (count / han * 1e6 for count in (silent, flagged, flags, peer_wrong))
        print(f"| {name} | {han:,} | " + " | ".join(f"{value:.0f}" for value in row) + " |", flush=True)


def sample(texts: list[str], count: int) -> Iterable[str]:
    chosen = texts if len(texts) <= count else random.Random(0).sample(texts, count)
    return (text[:MAX_CHARS] for text in chosen)


if __name__ == "__main__":
    check_table(Path(sys.argv[1]))
    round_trip_table(Path(sys.argv[1]))
