"""Did the translation keep what must be kept? Numbers, code, addresses, the whole text, and nothing around it."""

import re
from collections import Counter

from twllm.corpus.similar import wording_key
from twllm.synth.filters.base import FENCED, INLINE, URL, Message, Rules, prose, translation_filter
from twllm.synth.filters.numbers import changed_number

QUOTED = re.compile(r"「[^」\n]*」|“[^”\n]*”|\"[^\"\n]*\"|『[^』\n]*』")
HAN, NOTHING = re.compile("[\u3400-\u9fff]+"), re.compile(r"(?!)")
TRAILING = ".,;:!?)]}>\"'*_"


@translation_filter("preamble")
def preamble(message: Message, rules: Rules) -> str | None:
    """The translator speaks: 「以下是翻譯：」."""
    said = rules.prompts.find("preamble", message.text)
    return said if said and not rules.prompts.find("preamble", message.source) else None


@translation_filter("untranslated")
def untranslated(message: Message, rules: Rules) -> str | None:
    """The English source again, or a run of English outside quotation marks that is not in a Chinese source."""
    english = message.language == "en"
    if english and wording_key(message.text) == wording_key(message.source) and _words(message.source) >= 3:
        return "same as the source"
    count = rules.config.max_english_run + 1
    run = re.compile(rf"(?:[A-Za-z][A-Za-z'’-]*[ ,]+){{{count - 1},}}[A-Za-z][A-Za-z'’-]*")
    for found in run.finditer(QUOTED.sub("，", prose(message.text))):
        kept = not english and found.group(0) in message.source
        if not kept and sum(word.islower() for word in re.split(r"[ ,]+", found.group(0))) * 2 >= count:
            return found.group(0)[:60]
    return None


def _words(text: str) -> int:
    return sum(word.islower() for word in re.findall(r"[A-Za-z]+", prose(text)))


@translation_filter("code_changed")
def code_changed(message: Message, rules: Rules) -> str | None:
    """Code blocks must be the same, inline code must still be there; Han in code of a Chinese source may be converted."""
    spared = HAN if message.language != "en" else NOTHING
    ours, theirs = _blocks(message.source, spared), _blocks(message.text, spared)
    if ours != theirs:
        return f"{sum(ours.values())} blocks → {sum(theirs.values())}, {sum((ours & theirs).values())} the same"
    text = spared.sub("", message.text)
    inline = INLINE.findall(FENCED.sub("", message.source))
    missing = [code for code in inline if spared.sub("", code.strip("`")) not in text]
    return missing[0] if missing else None


def _blocks(text: str, spared: re.Pattern[str]) -> Counter[str]:
    blocks = (spared.sub("", found.group(0)).strip().split("\n")[1:-1] for found in FENCED.finditer(text))
    return Counter("\n".join(line.rstrip() for line in block) for block in blocks)


@translation_filter("url_changed")
def url_changed(message: Message, rules: Rules) -> str | None:
    """Addresses must be the same."""
    ours, theirs = (Counter(url.rstrip(TRAILING) for url in URL.findall(t)) for t in (message.source, message.text))
    changed = list((ours - theirs) | (theirs - ours))
    return changed[0] if changed else None


@translation_filter("number_changed")
def number_changed(message: Message, rules: Rules) -> str | None:
    """A number of one side that the other lacks."""
    return changed_number(prose(message.source), prose(message.text))


@translation_filter("length_ratio")
def length_ratio(message: Message, rules: Rules) -> str | None:
    """Much shorter or longer than translations are: something was left out, or answered instead of translated."""
    source, text = len(prose(message.source).strip()), len(prose(message.text).strip())
    config, english = rules.config, message.language == "en"
    low, high = (config.min_ratio_en, config.max_ratio_en) if english else (config.min_ratio_zh, config.max_ratio_zh)
    if source < 40:  # short ones vary more
        low, high = (
            (0.0, 4.0 * max(source, 10) / max(source, 1)) if english or source < 12 else (0.8 * low, 1.25 * high)
        )
    ratio = text / max(source, 1)
    return None if low <= ratio <= high else f"{ratio:.2f} of the source's length"
