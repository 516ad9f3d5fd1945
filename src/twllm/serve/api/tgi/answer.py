"""One answer as TGI tells it: token by token, with the stop string kept and found only where a token ends.

`text` of a token is what it completes: '' while a character is unfinished, then the whole character. The answer's text is the
tokens' that are not special, joined, so a stream adds up to it. Half a character at the very end is U+FFFD, and nothing
where the end token follows it. Log-probabilities are those after penalties, grammar, temperature and cuts, as TGI's are.
"""

from typing import Any

from twllm.serve.engines.interface import FLOOR, TokenEvent
from twllm.serve.operation.service import Model

TAIL = 300  # characters in which a stop string is looked for; TGI's
CONTEXT = 5  # ids of the prompt that decide whether the answer begins with a space; TGI's


class TgiAnswer:
    """One answer in the making."""

    def __init__(self, model: Model, prompt: list[int], limit: int, stops: list[str], seed: int | None) -> None:
        self._texts, self._ends = model.texts, model.engine.end_ids
        tokenizer = model.engine.tokenizer
        context = prompt[-CONTEXT:]
        whole = not tokenizer.decode(context).endswith("\ufffd")
        self._decoder = tokenizer.stream(context if whole else ())
        self._limit, self._stops, self.seed = limit, [stop for stop in stops if stop], seed
        self._tail = ""
        self.text = ""
        self.tokens: list[dict[str, Any]] = []
        self.top_tokens: list[list[dict[str, Any]]] = []
        self.finish_reason: str | None = None

    def push(self, event: TokenEvent) -> dict[str, Any]:
        """One more token; what is told of it. Sets `finish_reason` if it is the last."""
        text, special = self._decoder.push(event.id), self._texts.is_control(event.id)
        if special:
            text = self._name(event.id)
        self._tail = (self._tail + text)[-TAIL:]
        self.finish_reason = self._reason(event, len(self.tokens) + 1)
        if self.finish_reason and not special:
            text += self._decoder.finish()
        if not special:
            self.text += text
        token = {"id": event.id, "text": text, "logprob": _number(event.logprob), "special": special}
        self.tokens.append(token)
        if event.top:
            self.top_tokens.append([self._other(id, number) for id, number in event.top])
        return token

    def _reason(self, event: TokenEvent, count: int) -> str | None:
        if count >= self._limit or event.finish_reason == "length":
            return "length"
        if event.id in self._ends or event.finish_reason == "stop":
            return "eos_token"
        return "stop_sequence" if any(self._tail.endswith(stop) for stop in self._stops) else None

    def _name(self, id: int) -> str:
        return self._texts.bytes_of(id).decode("utf-8", "replace")

    def _other(self, id: int, number: float) -> dict[str, Any]:
        special = self._texts.is_control(id)
        return {"id": id, "text": self._name(id), "logprob": _number(number), "special": special}

    def mean_logprob(self) -> float:
        """What best_of goes by."""
        return sum(token["logprob"] or 0.0 for token in self.tokens) / max(1, len(self.tokens))

    def details(self, prefill: list[dict[str, Any]]) -> dict[str, Any]:
        """Everything about the finished answer."""
        found = {
            "finish_reason": self.finish_reason, "generated_tokens": len(self.tokens), "seed": self.seed,
            "prefill": prefill, "tokens": self.tokens,
        }  # fmt: skip
        return {**found, "top_tokens": self.top_tokens} if self.top_tokens else found


def _number(logprob: float | None) -> float | None:
    return None if logprob is None else max(FLOOR, logprob)
