"""The answers to one chat request: token events to deltas, deltas to chunks of a stream or to one object.

Whole and streamed answers are made of the same deltas, so they are equal. Log-probabilities name tokens as `TokenText` does, with
their bytes, of the model's raw distribution; the end token has none. A token's stand in the chunk whose text it completes.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from twllm.serve.api.chat.tools import Delta, Reader
from twllm.serve.engines.decoding.tokens import TokenText
from twllm.serve.engines.interface import FLOOR, TokenEvent
from twllm.serve.operation.service import Model


@dataclass
class Choice:
    """One answer in the making."""

    index: int
    reader: Reader
    content: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    waiting: list[dict[str, Any]] = field(default_factory=list)  # log-probabilities of tokens whose text is not out yet
    finish_reason: str | None = None

    def add(self, delta: Delta) -> None:
        """Take in a delta."""
        self.content += delta.get("content", "")
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(self.tool_calls):
                shown = {key: call[key] for key in ("id", "type")}
                self.tool_calls.append({**shown, "function": dict(call["function"])})
            else:
                self.tool_calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]

    def message(self) -> dict[str, Any]:
        """The message of a whole answer."""
        content = None if self.tool_calls and not self.content else self.content
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        return {**message, "tool_calls": self.tool_calls} if self.tool_calls else message


class Chat:
    """One request's answers and what all its chunks share."""

    def __init__(
        self,
        model: Model,
        prompt_tokens: int,
        readers: list[Reader],
        *,
        logprobs: bool = False,
        dropped_turns: int = 0,
        on_text: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.choices = [Choice(index, reader) for index, reader in enumerate(readers)]
        self.prompt_tokens, self.completion_tokens = prompt_tokens, 0
        self._texts: TokenText | None = model.texts if logprobs else None
        self._ends = model.engine.end_ids
        self._on_text = on_text
        self._shared = {
            "id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model.name,
            "system_fingerprint": model.engine.model_fingerprint,
        }  # fmt: skip
        if dropped_turns:
            self._shared["dropped_turns"] = dropped_turns

    def push(self, index: int, event: TokenEvent) -> Iterator[dict[str, Any]]:
        """One more token of answer `index`; the choices of chunks that it makes."""
        choice = self.choices[index]
        self.completion_tokens += 1
        if self._texts and not (event.id in self._ends and event.finish_reason == "stop"):
            choice.waiting.append(_logprob(self._texts, event))
        deltas = choice.reader.push(event.text)
        if event.finish_reason:
            deltas += choice.reader.finish()
        for delta in deltas:
            choice.add(delta)
            yield self._piece(choice, delta, None)
        if event.finish_reason:
            called = event.finish_reason == "stop" and choice.tool_calls
            choice.finish_reason = "tool_calls" if called else event.finish_reason
            yield self._piece(choice, {}, choice.finish_reason)
            if choice.content:
                self._on_text(choice.content)

    def _piece(self, choice: Choice, delta: Delta, finish_reason: str | None) -> dict[str, Any]:
        logprobs = None
        if self._texts:
            logprobs = {"content": choice.waiting, "refusal": None}
            choice.logprobs += choice.waiting
            choice.waiting = []
        return {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

    def usage(self) -> dict[str, int]:
        """Token counts; a prompt counts once however many answers it gets, the end token counts as generated."""
        total = self.prompt_tokens + self.completion_tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens, "total_tokens": total}

    def roles(self) -> Iterator[dict[str, Any]]:
        """The choices of the first chunks."""
        for choice in self.choices:
            delta = {"role": "assistant", "content": ""}
            yield {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """A chunk of the stream."""
        return {**self._shared, "object": "chat.completion.chunk", "choices": choices, **more}

    def whole(self) -> dict[str, Any]:
        """The answers in one piece."""
        choices = [
            {
                "index": choice.index,
                "message": choice.message(),
                "logprobs": {"content": choice.logprobs, "refusal": None} if self._texts else None,
                "finish_reason": choice.finish_reason,
            }
            for choice in self.choices
        ]
        return {**self._shared, "object": "chat.completion", "choices": choices, "usage": self.usage()}


def _logprob(texts: TokenText, event: TokenEvent) -> dict[str, Any]:
    top = [_entry(texts, id, logprob) for id, logprob in event.top]
    return {**_entry(texts, event.id, event.logprob), "top_logprobs": top}


def _entry(texts: TokenText, id: int, logprob: float | None) -> dict[str, Any]:
    value = FLOOR if logprob is None else max(logprob, FLOOR)  # JSON has no minus infinity
    return {"token": texts.name(id), "bytes": list(texts.bytes_of(id)), "logprob": value}
