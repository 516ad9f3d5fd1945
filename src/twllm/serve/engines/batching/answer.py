"""One answer in the making: the ids so far, where they stand in the slots, and what each new id means to its reader."""

import itertools
from typing import NamedTuple

from twllm.serve.engines.batching.runner import Logits
from twllm.serve.engines.batching.slots import Slot
from twllm.serve.engines.decoding.grammar import Constraint
from twllm.serve.engines.decoding.sampler import Drawer
from twllm.serve.engines.decoding.text import AnswerText
from twllm.serve.engines.interface import OnEvent, Sampling, TokenEvent

_numbers = itertools.count()


class Ending(NamedTuple):
    """When an answer ends: at one of these ids, or when prompt and answer are this long."""

    ids: frozenset[int]
    length: int


class Answer:
    """Only the scheduler's thread touches it, apart from `cancelled`."""

    def __init__(
        self, prompt_ids: list[int], sampling: Sampling, ending: Ending, text: AnswerText,
        constraint: Constraint | None, on_event: OnEvent,
    ) -> None:  # fmt: skip
        self.number = next(_numbers)  # older answers have lower ones
        self.ids = list(prompt_ids)  # prompt, then answer
        self._prompt = prompt_ids  # holds its pictures
        self.slot: Slot | None = None
        self.cancelled = False
        self._on_event = on_event
        self._text, self._ending, self._constraint = text, ending, constraint
        self._ignores_end = sampling.ignore_eos
        self._drawer = Drawer(sampling, getattr(prompt_ids, "plain", prompt_ids), constraint)

    @property
    def left(self) -> int:
        """How many ids the slot does not hold yet: 1 while answering, more while the prompt is read."""
        return len(self.ids) - (self.slot.length if self.slot else 0)

    def take(self, logits: Logits) -> bool:
        """Draw the next id and tell the reader; whether the answer goes on."""
        id, logprob, top = self._drawer.draw(logits)
        self.ids.append(id)
        if self._constraint is not None:
            self._constraint.accept(id)
        piece, reason = self._meaning(id)
        self.tell(TokenEvent(id, piece, reason, logprob, top, self._text.matched))
        return reason is None

    def _meaning(self, id: int) -> tuple[str, str | None]:
        """The text that the id completes, and why the answer ends with it."""
        if id in self._ending.ids and (not self._ignores_end or self._constraint is not None):
            return self._text.finish(), "stop"
        piece = self._text.push(id)
        if self._text.stopped:
            return piece, "stop"
        complete = self._constraint is not None and self._constraint.ended
        if complete or len(self.ids) >= self._ending.length:
            piece += self._text.finish()
            return piece, "stop" if complete or self._text.stopped else "length"
        return piece, None

    def tell(self, event: TokenEvent | Exception | None) -> None:
        """Hand over an event; a reader that fails is one that left."""
        try:
            self._on_event(event)
        except Exception:  # the reader's fault (its loop is closed, say); nobody is left to hear of it
            self.cancelled = True
