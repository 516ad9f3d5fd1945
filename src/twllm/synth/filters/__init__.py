"""Filters: each looks at one message and says what is wrong with it, or None. The first that finds something is the reason.

A new one is a function under `@message_filter("reason")` (self-play), `@translation_filter("reason")`, or both. Order is that
of registration: what says most about the cause comes first. All are pure, so a replay drops what the run dropped.
"""

from twllm.synth.filters import answer, language, translation
from twllm.synth.filters.base import MESSAGE_FILTERS, TRANSLATION_FILTERS, Fault, Message, Rules, prose

__all__ = ["Fault", "Message", "Rules", "answer", "first_fault", "language", "prose", "translation"]


def first_fault(message: Message, rules: Rules) -> Fault | None:
    """What is wrong with the message, by the first filter that says so."""
    filters = TRANSLATION_FILTERS if message.source else MESSAGE_FILTERS
    for reason, check in filters.items():
        if reason not in rules.config.off and (detail := check(message, rules)) is not None:
            return Fault(reason, detail[:200])
    return None
