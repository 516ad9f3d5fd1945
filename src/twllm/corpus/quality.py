"""What makes a Chinese page poor, measured in one pass: Gopher's, C4's and FineWeb's ideas for text without spaces between words.

`judge(text, look)` gives the first rule that a text breaks, or None. The rules, each one reason:
- `adult`, `gambling`, `loan`: different words of such advertising (words/quality.toml), and how dense they stand. One word in a
  newspaper story or a statute on gambling says nothing; five kinds of them in a thousand characters do.
- `navigation`: most lines are menu entries; `cookies`: a page that is little more than a notice; `link_farm`: web addresses.
- `short_lines`, `ellipsis_lines`, `bullet_lines`: Gopher's line rules (arXiv 2112.11446), limits for lines of Chinese.
- `repeated_grams`: characters that stand in a run of ten seen before (Gopher: n-grams of words), `repeated_sentence`: one
  sentence over and over.
- `few_characters`: hardly any different characters for the length; `translated`: phrases of bad machine translation.
- `no_sentences`: of a long text, hardly any character stands in a line that ends a sentence (C4, FineWeb; counted by characters).
Drop rates of real prose: docs/region.md. About 20 MB/s a core. Not covered: irony, advertising without these words, verse.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from twllm.corpus.codes import Code, Counts
from twllm.corpus.steps.characters import code_points

SPAM = {"adult": (3, 2.0), "gambling": (4, 3.0), "loan": (4, 3.0)}  # kind → (different words, hits per 1,000 Han)
NAVIGATION_SHARE, NAVIGATION_LINES = 0.5, 5
COOKIE_MAX_HAN = 400
TRANSLATED = (3, 4.0)  # different phrases, hits per 1,000 Han
URL = re.compile(r"https?://|www\.")
MAX_URLS_PER_1000 = 15.0
SHORT_LINE, MAX_SHORT_SHARE, MIN_LINES = 8, 0.9, 12
MAX_ELLIPSIS_SHARE = 0.3
MAX_BULLET_SHARE = 0.95
GRAM, MAX_REPEATED_GRAMS, GRAM_FROM = 10, 0.75, 300
MAX_SAME_SENTENCE, SENTENCE_FROM = 0.2, 8
MIN_DIFFERENT, DIFFERENT_FROM = 0.03, 200  # different characters, of the first 1,000
MIN_SENTENCE_SHARE, SENTENCES_FROM = 0.05, 400
ENDS = tuple("。！？!?…」』）)”；;：:.")
BULLETS = tuple("-*•·●○■□◆◇▪‧>|#")
SENTENCE = re.compile("[^。！？\n]{12,}[。！？]")
LINES_READ = 4000


class Fault(NamedTuple):
    """A rule that a text breaks: `reason` is counted, `detail` shown."""

    reason: str
    detail: str


def judge(text: str, counts: Counts, found: Mapping[str, Mapping[str, int]]) -> Fault | None:
    """The first rule that the text breaks; `found` are the words of region.look."""
    return _words(text, counts, found) or _lines(text, counts, found) or _repetition(text, counts)


def _words(text: str, counts: Counts, found: Mapping[str, Mapping[str, int]]) -> Fault | None:
    thousands = max(counts.han, 100) / 1000
    for kind, (different, density) in SPAM.items():
        words = found.get(kind, {})
        if len(words) >= different and sum(words.values()) / thousands >= density:
            return Fault(kind, "、".join(list(words)[:8]))
    words = found.get("cookies", {})
    if words and counts.han < COOKIE_MAX_HAN and 40 * sum(words.values()) > counts.han:
        return Fault("cookies", "、".join(words))
    words = found.get("translated", {})
    if len(words) >= TRANSLATED[0] and sum(words.values()) / thousands >= TRANSLATED[1]:
        return Fault("translated", "、".join(list(words)[:8]))
    if counts[Code.LATIN] * 4 > counts.visible:
        urls = len(URL.findall(text))
        if urls >= 10 and urls > MAX_URLS_PER_1000 * max(counts.visible, 200) / 1000:
            return Fault("link_farm", f"{urls} URLs in {counts.visible} characters")
    return None


def _lines(text: str, counts: Counts, found: Mapping[str, Mapping[str, int]]) -> Fault | None:
    lines = [line for line in text.split("\n", LINES_READ)[:LINES_READ] if line and not line.isspace()]
    total = len(lines)
    menu = found.get("navigation", {})
    entries, chars = sum(menu.values()), sum(len(word) * times for word, times in menu.items())
    if entries >= NAVIGATION_LINES and chars > NAVIGATION_SHARE * counts.han and counts[Code.STOP] < entries:
        return Fault("navigation", f"{chars} of {counts.han} Han: {'、'.join(list(menu)[:8])}")
    if total < MIN_LINES:
        return None
    if counts[Code.STOP] * 50 < counts.han or counts[Code.STOP] * 2 < total:
        short = sum(len(line) < SHORT_LINE for line in lines)
        if short > MAX_SHORT_SHARE * total:
            return Fault("short_lines", f"{short} of {total} lines")
    cut = sum(line.endswith(("…", "...")) for line in lines)
    if cut > MAX_ELLIPSIS_SHARE * total:
        return Fault("ellipsis_lines", f"{cut} of {total} lines")
    bullets = sum(line.lstrip().startswith(BULLETS) for line in lines)
    if bullets > MAX_BULLET_SHARE * total and counts[Code.STOP] * 4 < total:
        return Fault("bullet_lines", f"{bullets} of {total} lines")
    if counts.han >= SENTENCES_FROM and counts[Code.STOP] * 200 < counts.han:
        good = sum(len(line) for line in lines if line.rstrip().endswith(ENDS))
        size = sum(map(len, lines))
        if good < MIN_SENTENCE_SHARE * size:
            return Fault("no_sentences", f"{good} of {size} characters")
    return None


def _repetition(text: str, counts: Counts) -> Fault | None:
    if counts.han >= DIFFERENT_FROM:
        head = text[:1000]
        different = len(set(head)) / len(head)
        if different < MIN_DIFFERENT:
            return Fault("few_characters", f"{different:.3f} < {MIN_DIFFERENT}")
    if counts.visible >= GRAM_FROM:
        share = repeated_grams(text[:20_000])
        if share > MAX_REPEATED_GRAMS:
            return Fault("repeated_grams", f"{share:.2f} > {MAX_REPEATED_GRAMS}")
    if counts[Code.STOP] >= SENTENCE_FROM:
        sentences = SENTENCE.findall(text[:20_000])
        if len(sentences) >= SENTENCE_FROM:
            most = max(_counter(sentences).values())
            if most >= 4 and most > MAX_SAME_SENTENCE * len(sentences):
                return Fault("repeated_sentence", f"{most} of {len(sentences)} sentences")
    return None


def _counter(parts: list[str]) -> dict[str, int]:
    times: dict[str, int] = {}
    for part in parts:
        times[part] = times.get(part, 0) + 1
    return times


def repeated_grams(text: str) -> float:
    """Share of the places at which a run of ten characters begins that stood in the text before.

    >>> repeated_grams("今天天氣很好，我們去爬山。" * 10) > 0.8
    True
    """
    import numpy as np

    codes = code_points(text).astype(np.uint64)
    size = len(codes) - GRAM + 1
    if size < GRAM:
        return 0.0
    hashes = np.zeros(size, np.uint64)
    for at, factor in enumerate(_factors()):
        hashes += codes[at : at + size] * factor
    hashes.sort()
    return float((hashes[1:] == hashes[:-1]).mean())


@cache
def _factors() -> Any:
    import numpy as np

    odd = np.uint64(0x9E3779B97F4A7C15)
    factors = [odd]
    with np.errstate(over="ignore"):
        for _ in range(GRAM - 1):
            factors.append(factors[-1] * odd + np.uint64(2))
    return tuple(factors)
