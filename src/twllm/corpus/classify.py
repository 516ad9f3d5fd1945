"""One text through the default Taiwan pipeline: language, script, region, quality, and the paragraphs worth keeping of a mixed page.

`classify(text, url)` is pure and remembers nothing. The order: too short or garbled, language, script, region, quality; the
reason is the first that a text fails, "" when it is kept. A page in which foreign paragraphs stand beside good ones
(Simplified, Cantonese, another region's words, another language) is cut: `text` holds what is left, and the page is kept
if at least half of its Han is. Labels and reasons: docs/region.md. Price: 10–40 MB/s a core, mixed pages twice that.
Not covered: foreign sentences inside one paragraph.
"""

from dataclasses import dataclass
from typing import Any

from twllm.corpus.codes import Code
from twllm.corpus.region import KEEP_FROM, Look, look, look_at, page_fault
from twllm.corpus.region_words import CN, HK, TW

MIN_CHARS = 2  # Han; a chat turn is short
MANDARIN = ("zh", "lzh")
MIN_KEPT_SHARE = 0.5
AT_HOME = ("nan", "hak", "und")  # a page of Taiwan may hold such a paragraph, and English or code anyway
PARAGRAPH_HAN = 12  # a paragraph shorter than that goes the way of its page
SUSPECT = 3.0  # foreign weight from which a Taiwan page is looked at paragraph by paragraph
MAX_GARBLED = 0.01
MAX_PARAGRAPHS = 2000


@dataclass(frozen=True, slots=True)
class Limits:
    """What is asked of a text; the settings of [corpus.region]."""

    min_score: float = KEEP_FROM
    languages: tuple[str, ...] = MANDARIN
    page_rules: bool = True


DEFAULT = Limits()


@dataclass(frozen=True, slots=True)
class Label:
    """What the pipeline says of a text."""

    keep: bool
    reason: str
    lang: str
    script: str
    region: str
    score: float
    reasons: tuple[str, ...]
    text: str
    cut: int = 0  # paragraphs that were cut out

    def to_row(self) -> dict[str, Any]:
        """The fields that `twllm corpus classify` adds to a document."""
        row: dict[str, Any] = {
            "keep": self.keep, "reason": self.reason, "lang": self.lang, "script": self.script,
            "region": self.region, "score": round(self.score, 4), "reasons": list(self.reasons),
        }  # fmt: skip
        return row | ({"cut_paragraphs": self.cut} if self.cut else {})


def classify(text: str, url: str = "", limits: Limits = DEFAULT) -> Label:
    """Keep or drop, why, and what the text is.

    >>> found = classify("這支影片的畫質很好，請用新版的軟體播放。")
    >>> found.keep, found.lang, found.script, found.region
    (True, 'zh', 'Hant', 'TW')
    >>> classify("這個視頻的質量很好，請用新版的軟件播放。").region
    'CN'
    """
    seen = look(text, url)
    if seen.language.lang in ("zh", "lzh", "yue", "nan", "und", "en", "ja") and _is_suspect(seen, text, limits):
        cut = _cut(text, url, limits)
        if cut is not None:
            return cut
    return _label(seen, text, url, limits)


def _is_suspect(seen: Look, text: str, limits: Limits) -> bool:
    """Whether a page may hold both good and foreign paragraphs."""
    if "\n" not in text or seen.counts.han < 2 * PARAGRAPH_HAN:
        return False
    counts, foreign = seen.counts, max(seen.weights[CN], seen.weights[HK])
    if seen.language.lang not in limits.languages:
        return counts.traditional > 20
    if counts.simplified >= max(3, 0.005 * counts.han):
        return counts.traditional > 0.4 * counts.simplified  # else less than half would be left
    if counts[Code.KANA] + counts[Code.HANGUL] > 20 or counts[Code.YUE] > 3:
        return True
    return foreign >= SUSPECT and seen.weights[TW] >= 1 and foreign > 0.25 * seen.weights[TW]


def _cut(text: str, url: str, limits: Limits) -> Label | None:
    """The label of what is left without the foreign paragraphs; None when there are none, or nothing else."""
    parts = text.split("\n", MAX_PARAGRAPHS)
    kept, away, han = list[str](), 0, [0, 0]
    for part in parts:
        if part.isascii():  # English, code, a blank line: Taiwan writes that, too
            kept.append(part)
            continue
        seen = look_at(part)
        foreign = seen.counts.letters >= PARAGRAPH_HAN and _is_foreign(seen, limits)
        han[foreign] += seen.counts.han if seen.counts.han else seen.counts.letters // 3
        away += foreign
        if not foreign:
            kept.append(part)
    if not away or not han[0]:
        return None
    left = "\n".join(kept).strip("\n")
    label = _label(look(left, url), left, url, limits)
    if not label.keep or han[0] < MIN_KEPT_SHARE * sum(han):
        return None
    told = f"cut {away} of {len(parts)} paragraphs"
    return Label(True, "", label.lang, label.script, label.region, label.score, (told, *label.reasons), left, away)


def _is_foreign(seen: Look, limits: Limits) -> bool:
    """Whether a paragraph of a mixed page goes: its language or script is another one, or its words plainly say so."""
    fault = _fault_of_language(seen, limits)
    if fault is None or seen.language.script == "Latn" or seen.language.lang in AT_HOME:
        return False
    return not fault.startswith("region_") or max(seen.weights[CN], seen.weights[HK]) >= 2 * SUSPECT


def _fault_of_language(seen: Look, limits: Limits) -> str | None:
    lang, script = seen.language.lang, seen.language.script
    if lang not in limits.languages:
        return f"language_{lang}"
    if script in ("Hans", "Mixed"):
        return "simplified" if script == "Hans" else "mixed_script"
    if lang in MANDARIN and (seen.region != TW or seen.score < limits.min_score):
        return f"region_{seen.region if seen.region != TW else 'unsure'}"
    return None


def _label(seen: Look, text: str, url: str, limits: Limits) -> Label:
    reason, told = _reason(seen, text, url, limits)
    language = seen.language
    why = tuple(seen.reasons if not told else (told, *seen.reasons))
    return Label(not reason, reason, language.lang, language.script, seen.region, seen.score, why, text)


def _reason(seen: Look, text: str, url: str, limits: Limits) -> tuple[str, str]:
    counts = seen.counts
    if counts.visible < MIN_CHARS:
        return "too_short", f"{counts.visible} characters"
    if counts[Code.GARBLED] > MAX_GARBLED * counts.visible:
        return "garbled", f"{counts[Code.GARBLED]} garbled characters"
    if fault := _fault_of_language(seen, limits):
        return fault, ""
    if limits.page_rules and (found := page_fault(text, url)):
        return found.reason, found.detail
    return "", ""
