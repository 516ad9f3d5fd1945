"""The part of Go's text/template that Ollama's chat templates use, so that a Modelfile can be rendered and compared here.

Text, actions, trim marks, comments, if / else if / else, range with and without variables, with, variables, fields, pipelines,
parentheses, and the functions and, or, not, eq, ne, lt, le, gt, ge, len, index, slice, json, print. Zero values are false, a missing field
is "". Not covered, refused by name: define / template / block, break, continue, printf and methods.
"""

import json
import re
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twllm.errors import UserError

ACTION = re.compile(r"\{\{(-(?=\s))?(.*?)((?<=\s)-)?\}\}", re.DOTALL)
TOKEN = re.compile(
    r'\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>-?\d+)|(?P<name>\$?\w*(?:\.\w+)+|\$\w*|\w+|\.)|(?P<sign>:=|[()|,=]))',
    re.DOTALL,
)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "not": lambda value: not truth(value),
    "eq": lambda value, *others: any(value == other for other in others),
    "ne": lambda one, other: one != other,
    "lt": lambda one, other: one < other,
    "le": lambda one, other: one <= other,
    "gt": lambda one, other: one > other,
    "ge": lambda one, other: one >= other,
    "len": len,
    "index": lambda value, *keys: _index(value, keys),
    "slice": lambda value, start=None, end=None: value[start:end],
    "json": lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")),
    "print": lambda *values: "".join(map(_text, values)),
}


@dataclass
class Block:
    """`if`, `range` or `with`: what is tested, its body, what stands after `else`."""

    kind: str
    names: tuple[str, ...]
    words: list[tuple[str, str]]
    body: list[Any] = field(default_factory=list)
    other: list[Any] = field(default_factory=list)


def render_go(source: str, values: Mapping[str, Any]) -> str:
    """The text of a template with these values at its top (`.System`, `.Messages` …).

    >>> render_go("{{ range $i, $m := .Messages }}{{ if $i }} {{ end }}{{ $m.Content }}{{ end }}", {"Messages": [{"Content": "a"}, {"Content": "b"}]})
    'a b'

    Raises:
        UserError: a broken template, or something that is not covered.
    """
    nodes = _parse(source)
    try:
        return "".join(_run(nodes, values, ChainMap({"$": values})))
    except (TypeError, IndexError, KeyError, AttributeError, ValueError) as error:
        raise _broken(f"{type(error).__name__}: {error}") from error


def names_in(source: str) -> set[str]:
    """Fields and variables' fields that the template reads, as Ollama looks for `messages`."""
    found: set[str] = set()
    for match in ACTION.finditer(source):
        if not _is_comment(match[2]):
            found |= {part for kind, word in _words(match[2]) if kind == "name" for part in word.split(".")[1:]}
    return found


def truth(value: Any) -> bool:
    """Go's: empty and zero are false."""
    return bool(value)


# -- parsing ------------------------------------------------------------------------------------------------------


def _parse(source: str) -> list[Any]:
    """Texts, actions (lists of words) and blocks."""
    root: list[Any] = []
    here, open_blocks = root, []
    end, trim = 0, False
    for match in ACTION.finditer(source):
        text = source[end : match.start()]
        text = text.lstrip() if trim else text
        here.append(text.rstrip() if match[1] else text)
        end, trim = match.end(), bool(match[3])
        if _is_comment(match[2]):
            continue
        words = _words(match[2])
        first = words[0][1] if words else ""
        if first in ("if", "range", "with"):
            block = _block(first, words[1:])
            here.append(block)
            open_blocks.append((here, block, False))
            here = block.body
        elif first == "else":
            if not open_blocks:
                raise _broken("else")
            _outer, block, nested = open_blocks[-1]
            here = block.other
            if len(words) > 1:  # else if: a block in the else part that the same `end` closes
                inner = _block(words[1][1], words[2:])
                here.append(inner)
                open_blocks.append((here, inner, True))
                here = inner.body
        elif first == "end":
            while open_blocks:
                here, _, nested = open_blocks.pop()
                if not nested:
                    break
            else:
                raise _broken("end")
        elif first in ("define", "template", "block", "break", "continue"):
            raise _broken(first)
        elif words:
            here.append(words)
    if open_blocks:
        raise _broken(f"{open_blocks[-1][1].kind} 沒有 end")
    text = source[end:]
    here.append(text.lstrip() if trim else text)
    return root


def _is_comment(inner: str) -> bool:
    return inner.strip().startswith("/*")


def _block(kind: str, words: list[tuple[str, str]]) -> Block:
    if ("sign", ":=") not in words:
        return Block(kind, (), words)
    at = words.index(("sign", ":="))
    return Block(kind, tuple(word for sort, word in words[:at] if sort == "name"), words[at + 1 :])


def _words(inner: str) -> list[tuple[str, str]]:
    words, at = [], 0
    inner = inner.rstrip()
    while at < len(inner):
        match = TOKEN.match(inner, at)
        if match is None:
            raise _broken(inner[at : at + 20])
        words.append((str(match.lastgroup), match[str(match.lastgroup)]))
        at = match.end()
    return words


# -- running ------------------------------------------------------------------------------------------------------


def _run(nodes: Sequence[Any], dot: Any, names: ChainMap[str, Any]) -> list[str]:
    out: list[str] = []
    for node in nodes:
        if isinstance(node, str):
            out.append(node)
        elif isinstance(node, Block):
            out += _run_block(node, dot, names)
        elif len(node) > 2 and node[1][1] in (":=", "="):
            name, sign = node[0][1], node[1][1]
            scope = names.maps[0] if sign == ":=" else next((each for each in names.maps if name in each), None)
            if scope is None:
                raise _broken(name)
            scope[name] = _pipeline(node[2:], dot, names)
        else:
            out.append(_text(_pipeline(node, dot, names)))
    return out


def _run_block(block: Block, dot: Any, names: ChainMap[str, Any]) -> list[str]:
    value = _pipeline(block.words, dot, names)
    if block.kind == "range":
        out: list[str] = []
        for number, each in enumerate(value or ()):
            inner = names.new_child(dict(zip(block.names[::-1], (each, number), strict=False)))
            out += _run(block.body, each, inner)
        return out if value else _run(block.other, dot, names.new_child())
    inner = names.new_child(dict.fromkeys(block.names, value))
    if truth(value):
        return _run(block.body, value if block.kind == "with" else dot, inner)
    return _run(block.other, dot, inner)


def _pipeline(words: Sequence[tuple[str, str]], dot: Any, names: Mapping[str, Any]) -> Any:
    """`a b | c`: the value of each command is the last argument of the next."""
    commands: list[list[Any]] = [[]]
    depth, start = 0, 0
    for at, (kind, word) in enumerate(words):
        if kind == "sign" and word == "(":
            start = at + 1 if depth == 0 else start
            depth += 1
        elif kind == "sign" and word == ")":
            depth -= 1
            if depth == 0:
                commands[-1].append(("value", _pipeline(words[start:at], dot, names)))
        elif depth:
            continue
        elif word == "|" and kind == "sign":
            commands.append([])
        else:
            commands[-1].append((kind, word))
    if depth:
        raise _broken("(")
    value: Any = None
    for number, command in enumerate(commands):
        value = _command(command, [value] if number else [], dot, names)
    return value


def _command(command: list[tuple[str, Any]], last: list[Any], dot: Any, names: Mapping[str, Any]) -> Any:
    if not command:
        raise _broken("|")
    kind, first = command[0]
    if kind == "name" and first in ("and", "or"):
        for argument in [*command[1:]]:
            value = _value(argument, dot, names)
            if truth(value) == (first == "or"):
                return value
        return last[0] if last else value
    if kind == "name" and first[0] not in ".$" and first not in ("true", "false", "nil"):
        if first not in FUNCTIONS:
            raise _broken(first)
        return FUNCTIONS[first](*(_value(argument, dot, names) for argument in command[1:]), *last)
    if len(command) > 1 or last:
        raise _broken(str(first))
    return _value(command[0], dot, names)


def _value(argument: tuple[str, Any], dot: Any, names: Mapping[str, Any]) -> Any:
    kind, word = argument
    if kind == "value":
        return word
    if kind == "string":
        return word[1:-1] if word[0] == "`" else json.loads(word.replace("\n", "\\n"))
    if kind == "number":
        return int(word)
    if word in ("true", "false", "nil"):
        return {"true": True, "false": False, "nil": None}[word]
    if word[0] not in ".$":
        raise _broken(word)
    root, *fields = word.split(".")
    if root and root not in names:
        raise _broken(word)
    value = names[root] if root else dot
    for name in filter(None, fields):
        value = value.get(name, "") if isinstance(value, Mapping) else ""
    return value


def _index(value: Any, keys: Sequence[Any]) -> Any:
    for key in keys:
        value = value[key]
    return value


def _text(value: Any) -> str:
    if value is None:
        return ""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _broken(what: str) -> UserError:
    return UserError(
        f"看不懂的 Go 範本 (Go template): {what}", "TEMPLATE", "只用 if、range、with 與 Ollama 文件裡的函式"
    )
