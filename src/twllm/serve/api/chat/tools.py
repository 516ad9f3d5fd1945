"""Tool calls in an answer: which form a template's model writes them in, what forces a call, and text to `tool_calls` as it comes.

`auto`: the answer is read; what is not a call is content. `required` and a named tool: the answer is bound by a grammar, so
that it always parses; a named tool's (and a single required tool's) call is begun for the model and only its arguments are written.
A stream and a whole answer go through the same reader. In free answers a call is told once it is complete and valid JSON; in
bound ones arguments are told as they are written.
Not covered: calls of tools that were not offered (they stay content), checks of free arguments against the schema.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from twllm.serve.api.chat.tool_text import CLOSE, OPEN, dumps
from twllm.serve.engines.decoding.text import answer_lead
from twllm.serve.engines.interface import Grammar
from twllm.serve.errors import ApiError
from twllm.tokens.template import knows_tools
from twllm.tokens.tokenizer import ChatTokenizer

HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([A-Za-z0-9_.-]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*')
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
Form = Literal["tags", "json"]
Delta = dict[str, Any]  # of a chat completion chunk: {"content": …} or {"tool_calls": […]}


def form_of(tokenizer: ChatTokenizer) -> Form:
    """How the model of this template writes calls: in tags (ours, Hermes, Qwen) or as JSON alone (Llama 3, Mistral).

    Raises:
        ApiError: in a third way, which we do not read.
    """
    template = tokenizer.template
    if not knows_tools(template):
        return "tags"
    if "<function=" in template:
        raise ApiError(
            "這個模型用 XML 寫工具呼叫，還不支援 (not supported)", param="tools", code="unsupported_parameter"
        )
    return "tags" if OPEN in template and OPEN not in tokenizer.controls else "json"


@dataclass(frozen=True)
class Forced:
    """A call that must come: the answer begins with `begin` (in the prompt) and goes on as `grammar` says."""

    begin: str
    grammar: Grammar
    name: str | None  # the tool, where only its arguments are written


def force(tokenizer: ChatTokenizer, functions: Sequence[Mapping[str, Any]], *, several: bool) -> Forced:
    """One of `functions` must be called; `several`: at least one, in a list."""
    tags = form_of(tokenizer) == "tags"
    key = "arguments" if tags or "parameters" not in tokenizer.template else "parameters"
    begin = answer_lead(tokenizer) + (OPEN + "\n" if tags else "")
    if len(functions) == 1 and not several:
        name = functions[0]["name"]
        return Forced(
            f'{begin}{{"name": {dumps(name)}, "{key}": ', Grammar("json_schema", _arguments(functions[0])), name
        )
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, key: _arguments(function)},
            "required": ["name", key],
            "additionalProperties": False,
        }
        for function in functions
    ]
    schema = {"anyOf": calls} if len(calls) > 1 else calls[0]
    if several:
        return Forced(
            answer_lead(tokenizer), Grammar("json_schema", {"type": "array", "minItems": 1, "items": schema}), None
        )
    return Forced(begin, Grammar("json_schema", schema), None)


def _arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments: always an object."""
    schema = function.get("parameters") or {"properties": {}, "additionalProperties": False}
    return {"type": "object", **schema}


class CallWriter:
    """Numbers calls and writes their deltas: first id, type and name, then arguments."""

    def __init__(self) -> None:
        self.count = 0

    def begin(self, name: str) -> Delta:
        """A new call."""
        function = {"name": name, "arguments": ""}
        call = {"index": self.count, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
        self.count += 1
        return {"tool_calls": [call]}

    def more(self, arguments: str) -> Delta:
        """A piece of the last call's arguments."""
        return {"tool_calls": [{"index": self.count - 1, "function": {"arguments": arguments}}]}


class Reader:
    """An answer without tools: all of it is content."""

    def __init__(self) -> None:
        self.calls = CallWriter()

    def push(self, text: str) -> list[Delta]:
        """What this piece of the answer settles."""
        return [{"content": text}] if text else []

    def finish(self) -> list[Delta]:
        """What was held back, at the end of the answer."""
        return []


class ArgumentsReader(Reader):
    """The whole answer is one tool's arguments; what follows the JSON value is left out."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name, self._json = name, _Json()

    def push(self, text: str) -> list[Delta]:
        deltas = [] if self.calls.count else [self.calls.begin(self._name)]
        taken = self._json.take(text)
        return [*deltas, *([self.calls.more(taken)] if taken else [])]

    def finish(self) -> list[Delta]:
        return [] if self.calls.count else [self.calls.begin(self._name)]


class ObjectsReader(Reader):
    """Calls as JSON objects, one or a list; bound by a grammar, so that names and order of keys are known."""

    def __init__(self) -> None:
        super().__init__()
        self._text = ""
        self._json: _Json | None = None

    def push(self, text: str) -> list[Delta]:
        self._text += text
        deltas: list[Delta] = []
        while self._text:
            if self._json is None:
                self._text = self._text.lstrip("[],} \t\r\n" if self.calls.count else "[ \t\r\n")
                head = HEAD.match(self._text)
                if not head or head.end() == len(self._text):  # more space may follow
                    return deltas
                deltas.append(self.calls.begin(head[1]))
                self._text, self._json = self._text[head.end() :], _Json()
            taken = self._json.take(self._text)
            if taken:
                deltas.append(self.calls.more(taken))
            self._text = self._text[len(taken) :]
            if self._json.ended:
                self._json = None
            elif not taken:
                return deltas
        return deltas

    def finish(self) -> list[Delta]:
        rest, self._text = self._text.strip("[],} \t\r\n"), ""
        return [{"content": rest}] if rest and not self.calls.count else []


class TagsReader(Reader):
    """Content with calls in `<tool_call>` tags; what stands in tags and is no call of an offered tool stays content."""

    def __init__(self, names: Sequence[str], *, one: bool = False) -> None:
        super().__init__()
        self._names, self._one = frozenset(names), one
        self._held = ""
        self._space = ""  # white space after a call: content only when content follows

    def push(self, text: str) -> list[Delta]:
        self._held += text
        deltas: list[Delta] = []
        while self._held:
            at = self._held.find(OPEN)
            if at < 0:
                keep = _overlap(self._held, OPEN)
                deltas += self._content(self._held[: len(self._held) - keep])
                self._held = self._held[len(self._held) - keep :]
                break
            deltas += self._content(self._held[:at])
            self._held = self._held[at:]
            end = self._held.find(CLOSE)
            if end < 0:
                break
            deltas += self._block(self._held[: end + len(CLOSE)], self._held[len(OPEN) : end])
            self._held = self._held[end + len(CLOSE) :]
        return deltas

    def finish(self) -> list[Delta]:
        held, self._held = self._held, ""
        block = held.startswith(OPEN)  # the end token in place of the closing tag
        deltas = self._block(held, held.removeprefix(OPEN)) if block else self._content(held)
        space = "" if self.calls.count else self._space
        return [*deltas, {"content": space}] if space else deltas

    def _block(self, text: str, inside: str) -> list[Delta]:
        found = read_calls(inside, self._names)
        if len(found) != 1 or (self._one and self.calls.count):
            return self._content(text)
        self._space = ""
        return [self.calls.begin(found[0][0]), self.calls.more(found[0][1])]

    def _content(self, text: str) -> list[Delta]:
        text, self._space = self._space + text, ""
        stripped = text.rstrip()
        self._space = text[len(stripped) :]
        return [{"content": stripped}] if stripped else []


class JsonReader(Reader):
    """An answer that is content, or, where it begins with a brace, may be calls as JSON; then it waits for its end."""

    def __init__(self, names: Sequence[str], *, one: bool = False) -> None:
        super().__init__()
        self._names, self._one = frozenset(names), one
        self._held, self._open = "", False

    def push(self, text: str) -> list[Delta]:
        self._held += text
        if not self._open and self._held.lstrip()[:1] in ("", "{", "["):
            return []
        self._open = True
        held, self._held = self._held, ""
        return [{"content": held}] if held else []

    def finish(self) -> list[Delta]:
        held, self._held = self._held, ""
        found = [] if self._open else read_calls(held, self._names)
        if not found or (self._one and len(found) > 1):
            return [{"content": held}] if held else []
        return [delta for name, text in found for delta in (self.calls.begin(name), self.calls.more(text))]


def read_calls(text: str, names: frozenset[str]) -> list[tuple[str, str]]:
    """(name, arguments as JSON text) of one call or a list of them; [] where the text is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    found = []
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, dict) or call.get("name") not in names:
            return []
        arguments = call.get("arguments", call.get("parameters", {}))
        if not isinstance(arguments, dict):
            return []
        found.append((str(call["name"]), dumps(arguments)))
    return found


class _Json:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self.ended = False
        self._depth, self._quoted, self._escaped = 0, False, False

    def take(self, text: str) -> str:
        """The part of `text` that belongs to the object."""
        for i, letter in enumerate(text):
            if self.ended:
                return text[:i]
            if self._quoted:
                self._quoted = self._escaped or letter != '"'
                self._escaped = letter == "\\" and not self._escaped
            elif letter == '"':
                self._quoted = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                self.ended = self._depth <= 0
        return text


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-n:])), 0)
