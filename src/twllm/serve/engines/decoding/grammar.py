"""Constrained answers: JSON, JSON schema, regular expression or a choice, as masks over the vocabulary.

llguidance does it: no dependencies, a 3 MB wheel, no table built before the first token (numbers in dev/LOG.md; xgrammar brings triton,
outlines-core builds an automaton over the vocabulary). Masks follow the bytes of tokens, so a Chinese character spelled in
several byte tokens is allowed and never left half. White space between JSON parts is bounded: a weak model
would write nothing else. Every answer that ends with "stop" satisfies its grammar; one cut by `max_tokens` does not.
Not covered: schema keywords that llguidance does not know (refused, not ignored), remote `$ref`.
"""

import json
import threading
from collections import OrderedDict
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from twllm.errors import UserError
from twllm.serve.engines.interface import Grammar
from twllm.tokens.tokenizer import ChatTokenizer

WHERE = "response_format"
MOST_BYTES = 1 << 18  # of a schema or expression; chosen: OpenAI allows 15,000 to 120,000 characters
MOST_DEPTH = 64  # llguidance compiles recursively
KEPT = 64  # compiled grammars; chosen
SPACE = r"[ \n\t]{0,16}"
ANY_OBJECT = {"type": "object"}


class Constraint:
    """The state of one answer's grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allowed(self, vocab: int) -> NDArray[np.bool_]:
        """Which ids may come next (V,).

        Raises:
            UserError: the grammar became too complex to follow.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[:vocab].astype(np.bool_)
        if self._matcher.is_error() or not allowed.any():
            raise _refusal(self._matcher.get_error() or "no token can follow")
        return allowed if len(allowed) == vocab else np.pad(allowed, (0, vocab - len(allowed)))

    def accept(self, id: int) -> None:
        """Go on with the id that was drawn."""
        if not self._matcher.consume_token(id):
            raise _refusal(self._matcher.get_error())

    @property
    def ended(self) -> bool:
        """Whether the answer is complete and nothing can follow."""
        return bool(self._matcher.is_stopped())


class Grammars:
    """Compiles grammars for one tokenizer; any thread may ask."""

    def __init__(self, tokenizer: ChatTokenizer, end_ids: frozenset[int]) -> None:
        self._tokenizer, self._ends = tokenizer, sorted(end_ids)
        self._lock = threading.Lock()
        self._backend: Any = None
        self._kept: OrderedDict[str, Any] = OrderedDict()

    def constraint(self, grammar: Grammar) -> Constraint:
        """A fresh state of the grammar.

        Raises:
            UserError: it is not valid, not supported, impossible or too big; or llguidance is not installed.
        """
        if _depth(grammar.value) > MOST_DEPTH:
            raise _refusal(f"nested deeper than {MOST_DEPTH}")
        key = json.dumps([grammar.kind, grammar.value], ensure_ascii=False, default=str)
        if len(key.encode("utf-8", "surrogatepass")) > MOST_BYTES:
            raise _refusal(f"more than {MOST_BYTES} bytes")
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._compile(grammar)
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return Constraint(self._kept[key].deep_copy())

    def _compile(self, grammar: Grammar) -> Any:
        llguidance = _library()
        if self._backend is None:
            size = max(self._tokenizer.vocab_size, max(self._ends) + 1)
            self._backend = llguidance.LLTokenizer(self._tokenizer.backend.to_str(), n_vocab=size, eos_token=self._ends)
        matcher = llguidance.LLMatcher(self._backend, source(grammar), log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # some faults show only here
        if matcher.is_error():
            raise _refusal(matcher.get_error())
        matcher.reset()
        return matcher


def source(grammar: Grammar) -> str:
    """The grammar in llguidance's form.

    Raises:
        UserError: its value is not of its kind.
    """
    matcher = _library().LLMatcher
    if grammar.kind in ("json_object", "json_schema"):
        schema = ANY_OBJECT if grammar.kind == "json_object" else grammar.value
        if not isinstance(schema, dict | bool):
            raise _refusal("a JSON schema is an object")
        options = {"whitespace_pattern": SPACE, "lenient": False}
        return str(matcher.grammar_from_json_schema(json.dumps(_quoted(schema)), overrides=options))
    if grammar.kind == "regex":
        if not isinstance(grammar.value, str):
            raise _refusal("a regular expression is a string")
        return str(matcher.grammar_from_regex(grammar.value))
    choices = grammar.value
    if not isinstance(choices, list | tuple) or not choices or not all(isinstance(c, str) and c for c in choices):
        raise _refusal("choices are a list of strings that are not empty")
    return str(matcher.grammar_from_lark("start: " + " | ".join(json.dumps(c, ensure_ascii=False) for c in choices)))


def _quoted(schema: Any) -> Any:
    """The schema with `$ref` as the URIs they should be: Chinese names are percent-encoded."""
    if isinstance(schema, list):
        return [_quoted(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: quote(part, safe="#/%:?&=+~.,;@!$'()*") if key == "$ref" and isinstance(part, str) else _quoted(part)
        for key, part in schema.items()
    }


def _depth(value: Any) -> int:
    """How deep lists and objects are nested, without recursion."""
    deepest, open_ones = 0, [(value, 1)]
    while open_ones:
        one, depth = open_ones.pop()
        if isinstance(one, dict | list):
            deepest = max(deepest, depth)
            open_ones += [(part, depth + 1) for part in (one.values() if isinstance(one, dict) else one)]
    return deepest


def _refusal(reason: str) -> UserError:
    return UserError(
        f"答案格式用不了 (this answer format cannot be used): {reason[:500]}",
        WHERE,
        "簡化或修正 JSON schema、正規表示式或選項",
    )


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise UserError(
            "要限定答案格式，得先安裝 llguidance (constrained answers need llguidance)", WHERE, "pip install llguidance"
        ) from error
    return llguidance
