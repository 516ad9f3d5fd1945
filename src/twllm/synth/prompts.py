"""Prompts, personas and word patterns: data in `twllm/data/synth.toml`, or the user's own file laid over it."""

import re
import tomllib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from twllm import data
from twllm.artifact import fingerprint
from twllm.config import Config
from twllm.errors import UserError, did_you_mean, require_file

SHIPPED = data.ROOT / "synth.toml"
TOPICS = data.ROOT / "topics.toml"


class SelfplayPrompts(Config):
    """`user` is filled with {persona} and {topic}; `opening` asks the user's role for its first message."""

    user: str
    opening: str
    assistant: str


class TranslatePrompts(Config):
    """`system` is filled with {language}, `text` with the {text} to translate."""

    system: str
    text: str
    languages: dict[str, str]


class TopicRules(Config):
    """Topics, as 「大類」 or 「大類/小類」, in which something is right that is wrong elsewhere."""

    skip: tuple[str, ...] = ()
    may_refuse: tuple[str, ...] = ()
    may_tell_identity: tuple[str, ...] = ()
    may_quote: tuple[str, ...] = ()
    may_be_foreign: tuple[str, ...] = ()
    may_paste: tuple[str, ...] = ()


class Personas(Config):
    """Who asks."""

    names: tuple[str, ...]


class Prompts(Config):
    """All of it."""

    version: int
    selfplay: SelfplayPrompts
    translate: TranslatePrompts
    topics: TopicRules
    personas: Personas
    patterns: dict[str, tuple[str, ...]]

    @property
    def fingerprint(self) -> str:
        """Changes with every word of the prompts file."""
        return fingerprint(self.model_dump(mode="json"))

    @cached_property
    def _compiled(self) -> dict[str, re.Pattern[str]]:
        return {name: re.compile("|".join(given), re.I | re.M | re.A) for name, given in self.patterns.items() if given}

    def find(self, pattern: str, text: str) -> str | None:
        """What of `text` a named group of patterns matches first; None for nothing. \\b is where ASCII letters end."""
        compiled = self._compiled.get(pattern)
        found = compiled.search(text) if compiled else None
        return found.group(0) if found else None


def is_in(topic: str, rule: Sequence[str]) -> bool:
    """Whether a 「大類/小類」 is named by a rule, itself or by its 大類."""
    return topic in rule or topic.split("/")[0] in rule


def load_prompts(path: Path | None = None) -> Prompts:
    """The shipped prompts, with the tables and keys of `path` laid over them.

    Raises:
        UserError: no such file, broken TOML, an unknown key, a pattern that is none, or a place to fill that is missing.
    """
    tree = tomllib.loads(SHIPPED.read_text(encoding="utf-8"))
    where: Path = SHIPPED if path is None else require_file(path)
    if path is not None:
        try:
            _lay_over(tree, tomllib.loads(path.read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"TOML 寫錯了 (broken TOML)：{error}", where, "修正這個檔案") from error
    try:
        prompts = Prompts.model_validate(_tuples(tree))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        fix = f"{name}：對照 {SHIPPED} 修正"
        if first["type"] == "extra_forbidden":
            fix = did_you_mean(name.split(".")[-1], _keys(Prompts))
        raise UserError(f"提示檔不對 (bad prompts file)：{first['msg']}", f"{where} {name}", fix) from error
    _check(prompts, where)
    return prompts


def _lay_over(tree: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _lay_over(tree[key], value)
        else:
            tree[key] = value


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value.strip() if isinstance(value, str) else value


def _keys(model: type[Config]) -> set[str]:
    parts = (SelfplayPrompts, TranslatePrompts, TopicRules, Personas)
    return set(model.model_fields).union(*(part.model_fields for part in parts))


def _check(prompts: Prompts, where: Path) -> None:
    """Places to fill are there, patterns are regular expressions, somebody is there to ask."""
    needed = (
        ("selfplay.user", prompts.selfplay.user, ("{persona}", "{topic}")),
        ("translate.text", prompts.translate.text, ("{text}",)),
        ("translate.system", prompts.translate.system, ("{language}",)),
    )
    for name, text, places in needed:
        for place in places:
            if place not in text:
                raise UserError(f"提示裡少了 {place} (place to fill missing)", f"{where} {name}", f"加上 {place}")
    if not prompts.personas.names:
        raise UserError("沒有任何角色 (no personas)", f"{where} personas.names", "至少一個")
    for name, given in prompts.patterns.items():
        for pattern in given:
            try:
                re.compile(pattern)
            except re.error as error:
                what = f"不是正規表達式 (bad pattern)：{error}"
                raise UserError(what, f"{where} patterns.{name}: {pattern}", "修正它") from error


def topic_leaves(wanted: Sequence[str], skip: Sequence[str]) -> list[str]:
    """The tree's 「大類/小類」, in file order: those asked for, or all but the skipped.

    Raises:
        UserError: a topic that the tree does not have.
    """
    tables = tomllib.loads(TOPICS.read_text(encoding="utf-8"))
    leaves = [f"{name}/{leaf}" for table in tables.values() for name, below in table.items() for leaf in below]
    known = {*leaves, *(leaf.split("/")[0] for leaf in leaves)}
    for topic in wanted:
        if topic not in known:
            raise UserError("話題樹裡沒有這個話題 (no such topic)", topic, did_you_mean(topic, known))
    return [leaf for leaf in leaves if (is_in(leaf, wanted) if wanted else not is_in(leaf, skip))]
