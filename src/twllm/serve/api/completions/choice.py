"""One answer of a completions request: token events to pieces of text with their log-probabilities."""

from typing import Any, NamedTuple

from twllm.serve.engines.decoding.text import AnswerText
from twllm.serve.engines.decoding.tokens import Offsets
from twllm.serve.engines.interface import FLOOR, PromptScores, TokenEvent
from twllm.serve.operation.service import Model

LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
Logprobs = dict[str, list[Any]]


class Piece(NamedTuple):
    """A part of a choice; its fields are those of the API."""

    text: str
    logprobs: Logprobs | None
    finish_reason: str | None


class Choice:
    """One answer in the making: `prompt` ids, `echo` the text shown before it, then what the model wrote."""

    def __init__(
        self, index: int, prompt: list[int], echo: str, model: Model, stops: tuple[str, ...], *, logprobs: int | None
    ) -> None:
        self.index, self.prompt, self.echo = index, prompt, echo
        self.num_ids = 0
        self.text = ""  # without echo
        self.finish_reason: str | None = None
        self._texts, self._ends = model.texts, model.engine.end_ids
        self._decoder = AnswerText(model.engine.tokenizer, "", stops)
        self._offsets = Offsets(model.texts)
        self._shown = ""
        self._waiting: list[TokenEvent] = []  # tokens whose text is not settled yet
        self._logprobs: Logprobs | None = None if logprobs is None else {name: [] for name in LISTS}

    def echoed(self, scores: PromptScores | None) -> Piece:
        """The prompt as the first piece, with its log-probabilities if they were asked for."""
        self._shown += self.echo
        rows: Logprobs | None = None
        if scores is not None:
            given = [None, *(max(FLOOR, number) for number in scores.given)]
            best = [None, *scores.best[:-1]]
            # OpenAI lists as many of the best as were asked for, and the token that stands there
            rows = {
                "tokens": [self._texts.name(id) for id in self.prompt],
                "token_logprobs": given,
                "top_logprobs": [
                    None if row is None or number is None else self._names((*row, (id, number)))
                    for id, number, row in zip(self.prompt, given, best, strict=True)
                ],
                "text_offset": [self._offsets.next(id, self._shown) for id in self.prompt],
            }
        return self._piece(self.echo, rows, None)

    def end(self, piece: Piece) -> Piece:
        """`piece` as the last one: nothing is to be written."""
        self.finish_reason = "length"
        return piece._replace(finish_reason="length")

    def push(self, event: TokenEvent) -> Piece:
        """One more token and the text that it settles. An id that ends the answer is no text."""
        self.num_ids += 1
        end = event.finish_reason == "stop" and event.id in self._ends
        text = "" if end else self._decoder.push(event.id)
        if event.finish_reason:
            text += self._decoder.finish()
        self.finish_reason = "stop" if self._decoder.stopped else event.finish_reason
        self.text += text
        rows = None
        if self._logprobs is not None:
            self._shown += text
            self._waiting.append(event)
            rows = self._settled() if text or self.finish_reason else None
        return self._piece(text, rows, self.finish_reason)

    def _settled(self) -> Logprobs:
        rows: Logprobs = {name: [] for name in LISTS}
        for event in self._waiting:
            number = max(FLOOR, FLOOR if event.logprob is None else event.logprob)
            rows["tokens"].append(self._texts.name(event.id))
            rows["token_logprobs"].append(number)
            rows["top_logprobs"].append(self._names((*event.top, (event.id, number))))
            rows["text_offset"].append(self._offsets.next(event.id, self._shown))
        self._waiting = []
        return rows

    def _names(self, scored: tuple[tuple[int, float], ...]) -> dict[str, float]:
        return self._texts.names((id, max(FLOOR, number)) for id, number in scored)

    def _piece(self, text: str, rows: Logprobs | None, finish_reason: str | None) -> Piece:
        if rows is not None and self._logprobs is not None:
            for name in LISTS:
                self._logprobs[name] += rows[name]
        return Piece(text, rows, finish_reason)

    def whole(self) -> dict[str, Any]:
        """The choice in one piece."""
        piece = Piece(self.echo + self.text, self._logprobs, self.finish_reason)
        return {"index": self.index, **piece._asdict()}
