"""What filters are made of: the message they judge, the limits they go by, and the two registries."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from twllm.synth.config import FilterConfig
from twllm.synth.prompts import Prompts, is_in

FENCED = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n]*\n.*?^[ \t]*\1[ \t]*$", re.S | re.M)
INLINE = re.compile(r"`[^`\n]+`")
URL = re.compile(r"https?://[!-~]+")


@dataclass(frozen=True)
class Message:
    """A message to judge: who says it, after what, and (translations) what it was translated from."""

    role: str
    text: str
    finish_reason: str = "stop"
    refusal: str = ""
    topic: str = ""
    before: tuple[dict[str, str], ...] = ()
    source: str = ""
    language: str = ""  # of the source: en or zh-CN


@dataclass(frozen=True)
class Rules:
    """Limits and word patterns."""

    config: FilterConfig
    prompts: Prompts

    def allows(self, rule: str, topic: str) -> bool:
        """Whether the prompts file lets this topic do what `rule` names."""
        return bool(topic) and is_in(topic, getattr(self.prompts.topics, rule))


@dataclass(frozen=True)
class Fault:
    """Why a row is dropped: the filter's name and what it saw."""

    reason: str
    detail: str


Filter: TypeAlias = Callable[[Message, Rules], str | None]
MESSAGE_FILTERS: dict[str, Filter] = {}
TRANSLATION_FILTERS: dict[str, Filter] = {}


def message_filter(reason: str) -> Callable[[Filter], Filter]:
    """Register a filter of self-play messages."""

    def register(function: Filter) -> Filter:
        MESSAGE_FILTERS[reason] = function
        return function

    return register


def translation_filter(reason: str) -> Callable[[Filter], Filter]:
    """Register a filter of translated messages."""

    def register(function: Filter) -> Filter:
        TRANSLATION_FILTERS[reason] = function
        return function

    return register


def prose(text: str) -> str:
    """The text without code and addresses.

    >>> prose("用 `print` 印出：\\n```\\nx = 1\\n```\\n看 https://a.tw/b 就好").split()
    ['用', '印出：', '看', '就好']
    """
    return URL.sub(" ", INLINE.sub(" ", FENCED.sub(" ", text)))
