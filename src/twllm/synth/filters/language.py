"""Is it Taiwan Mandarin? The checker's verdict on the prose, with care for short texts and for texts that are mostly code."""

import re

from twllm.corpus.check import check_text
from twllm.synth.filters.base import Message, Rules, message_filter, prose, translation_filter

LATIN = re.compile(r"[A-Za-zÀ-ɏ]+")
FOREIGN = {"zh-CN", "zh-HK", "yue", "nan"}


@message_filter("language")
def language(message: Message, rules: Rules) -> str | None:
    """Another language or variety, or Simplified or mainland forms in it."""
    if rules.allows("may_be_foreign", message.topic):
        return _script(message.text)
    return judge(message.text, rules, quotes=rules.allows("may_quote", message.topic))


@translation_filter("language")
def language_of_translation(message: Message, rules: Rules) -> str | None:
    """The same for a translation; a source without words (a number, a name, code) asks for none."""
    words = [word for word in prose(message.source).split() if word.isalpha() and word.islower()]
    if message.language == "en" and len(words) < 3:
        return _script(message.text)
    return judge(message.text, rules, quotes=check_text(prose(message.source)).verdict == "nan")


def judge(text: str, rules: Rules, quotes: bool = False) -> str | None:
    """What makes the text not Taiwan Mandarin; None also when there is too little to tell.

    quotes: the topic is words, so other regions' words and Taigi are no fault.
    """
    text = prose(text)
    check = check_text(text)
    leaks = [span.text for span in (*check.simplified, *check.vocabulary)]
    if quotes and (fault := _script(text)):
        return fault
    if not quotes and len(leaks) > rules.config.max_leaks:
        return f"{check.verdict}: {'、'.join(dict.fromkeys(leaks[:8]))}"
    letters = sum(map(str.isalpha, text))
    kana = sum("\u3041" <= char <= "\u30fa" for char in text)
    others = (
        letters - check.n_han - sum(map(len, LATIN.findall(text))) + len(LATIN.findall(text))
    )  # a word counts as one
    if letters >= 20 and check.n_han < rules.config.min_han_share * (check.n_han + others):
        return f"{check.n_han} Han, {others} other words"
    if check.n_han < rules.config.min_checked_han:
        return None
    if check.verdict in (("yue",) if quotes else FOREIGN) or kana * (3 if quotes else 12) > check.n_han:
        return f"{check.verdict}: {'、'.join(check.reasons[:2])}"
    return None


def _script(text: str) -> str | None:
    """Simplified script as a whole, where other languages are allowed but not that."""
    check = check_text(prose(text))
    simplified = sum(len(span.text) for span in check.simplified)
    return f"Simplified {simplified} of {check.n_han}" if simplified >= 3 and simplified * 10 > check.n_han else None
