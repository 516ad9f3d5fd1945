"""What the Taiwan pipeline says of native and foreign text, source by source, as Markdown tables for docs/region.md.

    python benchmarks/region_quality.py DATA          DATA: a folder with prose/, filter/ and sft/

Recall is the share of a source's texts that Taiwan wrote and the pipeline keeps; for a foreign source, `caught` is the share that it
drops. Precision of a foreign source: of what is kept of it and of all native text of the same kind, the share that is native.
Simplified sources are converted with four OpenCC configurations. MB/s is UTF-8 over processor time of one core.
The words of the mainland and Hong Kong were counted in statutes, transcripts, gazette, taiwan-md, tpe-faq and cons-judicial (one that
stands there often is left out); false alarms of rust-book-tw, react-docs zh-hant and tpe-faq were read and a dozen words removed for
them. A few technical and conversion words were added after reading what react-docs s2twp, prompts and chatterbot let through: these three are
not clean test sets. False alarms of GSD were read while the limits were set.
"""

import gzip
import html
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import opencc
import yaml

from twllm.corpus.classify import classify

CONFIGS = ("s2t", "s2tw", "s2twp", "s2hk")
HAN = re.compile("[\u4e00-\u9fff]")
GAZETTE_CHARS = 300_000


class Source(NamedTuple):
    """Texts of one kind; `native` are what Taiwan wrote."""

    name: str
    kind: str  # sources of one kind are compared with each other
    native: bool
    texts: list[str]


def prose(data: Path, name: str, every: int = 1) -> list[str]:
    with gzip.open(data / "prose" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"][:GAZETTE_CHARS] for number, line in enumerate(lines) if number % every == 0]


def sentences(data: Path, folder: str) -> list[str]:
    files = sorted((data / "filter/ud" / folder).glob("*.conllu"))
    lines = (line for file in files for line in file.read_text(encoding="utf-8").splitlines())
    return [line.removeprefix("# text =").strip() for line in lines if line.startswith("# text =")]


def pages(data: Path, language: str) -> list[str]:
    files = sorted((data / "filter/react-docs" / language / "content").rglob("*.md"))
    return [text for file in files if len(HAN.findall(text := file.read_text(encoding="utf-8"))) >= 200]


def dialogs(data: Path, language: str) -> list[str]:
    files = sorted((data / "sft/chatterbot-corpus/chatterbot_corpus/data" / language).glob("*.yml"))
    turns = (turns for file in files for turns in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"])
    return ["\n".join(map(str, each)) for each in turns]


def questions(data: Path) -> list[str]:
    text = next((data / "sft/tpe-faq").glob("*.xml")).read_text(encoding="utf-8")
    found = re.findall("<news_content>(.*?)</news_content>", text, re.S)
    plain = (re.sub("<[^>]+>", "", html.unescape(part)).strip() for part in found)
    return [text for text in plain if len(HAN.findall(text)) >= 20]


def prompts(data: Path, name: str) -> list[str]:
    return [row["prompt"] for row in json.loads((data / "sft/prompts-zh-tw" / name).read_text(encoding="utf-8"))]


def sources(data: Path) -> Iterator[Source]:
    for name, every in (("moj-law", 4), ("audreyt-transcript", 4), ("ly-gazette-raw", 6), ("taiwan-md", 1)):
        yield Source(name, "document", True, prose(data, name, every))
    for name in ("cons-judicial", "rust-book-tw"):
        yield Source(f"{name}", "document", True, prose(data, name))
    yield Source("tpe-faq", "document", True, questions(data))
    yield Source("react-docs zh-hant", "page", True, pages(data, "zh-hant"))
    yield Source("UD GSD", "sentence", True, sentences(data, "UD_Chinese-GSD"))
    yield Source("prompts zh-TW", "prompt", True, prompts(data, "prompts-zh-TW.json"))
    yield Source("chatterbot zh-TW", "dialog", True, dialogs(data, "traditionalchinese"))
    for name, kind, texts in (
        ("react-docs zh-hans", "page", pages(data, "zh-hans")),
        ("prompts zh-CN", "prompt", prompts(data, "prompts-zh.json")),
        ("chatterbot zh-CN", "dialog", dialogs(data, "chinese")),
        ("UD GSDSimp", "sentence", sentences(data, "UD_Chinese-GSDSimp")),
    ):
        yield Source(name, kind, False, texts)
        for config in (
            CONFIGS if name != "UD GSDSimp" else ()
        ):  # GSDSimp is GSD's wording: back in Traditional it is GSD
            converter = opencc.OpenCC(config)
            yield Source(f"{name} → {config}", kind, False, [converter.convert(text) for text in texts])
    yield Source("react-docs ja", "page", False, pages(data, "ja"))
    yield Source("UD Cantonese-HK", "sentence", False, sentences(data, "UD_Cantonese-HK"))


def main() -> None:
    data = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("TWLLM_SHARED_DATA", "../shared/data"))
    if not (data / "filter").is_dir():
        print(f"skipped: no {data}/filter")
        return
    classify("暖身")  # the word lists are loaded here, not in the first source's time
    native: dict[str, tuple[int, int]] = {}
    foreign: list[tuple[Source, int]] = []
    print("| source | texts | kept | cut | dropped for | MB/s |\n|---|---|---|---|---|---|")
    for source in sources(data):
        reasons: Counter[str] = Counter()
        start, kept, cut = time.process_time(), 0, 0
        for text in source.texts:
            label = classify(text)
            kept, cut = kept + label.keep, cut + bool(label.cut)
            reasons[label.reason] += not label.keep
        speed = sum(len(text.encode()) for text in source.texts) / 1e6 / (time.process_time() - start)
        told = "、".join(f"{reason} {n}" for reason, n in reasons.most_common(6) if reason)
        size = len(source.texts)
        print(f"| {source.name} | {size:,} | {kept / size:.4f} | {cut} | {told} | {speed:.1f} |", flush=True)
        if source.native:
            before = native.get(source.kind, (0, 0))
            native[source.kind] = (before[0] + kept, before[1] + size)
        else:
            foreign.append((source, kept))
    print("\n| foreign source | against native | caught | precision | recall of native |\n|---|---|---|---|---|")
    for source, kept in foreign:
        good, size = native[source.kind]
        caught = 1 - kept / len(source.texts)
        print(
            f"| {source.name} | {source.kind} | {caught:.4f} | {good / max(good + kept, 1):.4f} | {good / size:.4f} |"
        )


if __name__ == "__main__":
    main()
