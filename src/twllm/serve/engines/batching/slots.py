"""Which slot holds which tokens: shared beginnings are found here, and room is made here.

A slot stays filled after its answer ended, so that the next turn of the chat, a request with the same system prompt or the other
answers of `n` begin with what is already computed. A beginning is taken over (the slot goes on) when it is nearly all the slot
holds, copied otherwise. The oldest idle slot is emptied when its place or its tokens are needed.
Not covered: one copy of shared tokens for several slots (a paged cache); a copy costs memory, not computation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from twllm.serve.engines.batching.prefix_tree import common_length
from twllm.serve.engines.batching.runner import Runner

MIN_SHARED = 8  # tokens worth a copy: chosen, a template's first words
TAKEN_OVER = 0.95  # an idle slot of which this share goes on being used is continued, not copied; chosen


@dataclass
class Slot:
    """Tokens of one sequence in the runner: the first `length` of `ids`."""

    number: int
    ids: list[int] = field(default_factory=list)
    length: int = 0
    busy: bool = False
    used: int = 0  # when, by the table's clock


class SlotTable:
    """All slots of a runner; only the scheduler's thread uses it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._clock = count(1)
        self.slots = [Slot(number) for number in range(runner.slots)]

    def tokens(self, *, busy_only: bool = False) -> int:
        """How many tokens are held."""
        return sum(slot.length for slot in self.slots if slot.busy or not busy_only)

    def shared(self, ids: Sequence[int]) -> tuple[int, Slot | None]:
        """The longest computed beginning of `ids` (never all of them: the last one has to be asked) and who holds it."""
        best, holder = MIN_SHARED - 1, None
        for slot in self.slots:
            if slot.length <= best:
                continue
            length = min(common_length(slot.ids, ids), slot.length, len(ids) - 1)
            if length > best or (length == best and holder is not None and holder.busy and not slot.busy):
                best, holder = length, slot
        return (best, holder) if holder else (0, None)

    def open(self, ids: list[int]) -> Slot | None:
        """A slot for `ids` with as much as possible of their beginning in it (`length`), None while all are busy."""
        idle = [slot for slot in self.slots if not slot.busy]
        if not idle:
            return None
        length, source = self.shared(ids)
        oldest = min(idle, key=lambda slot: (slot.length > 0, slot.used))
        if source is not None and not source.busy and (source is oldest or length >= TAKEN_OVER * source.length):
            slot = source
        else:
            others = [slot for slot in idle if slot is not source]
            slot = min(others, key=lambda slot: (slot.length > 0, slot.used)) if others else idle[0]
        if slot is source:
            self.cut(slot, length)
        else:
            self.cut(slot, 0)
            if source is not None and self._fits(length) and self._runner.copy(source.number, slot.number, length):
                slot.length = length
            elif source is not None and not source.busy:  # not to be copied: taken over after all
                slot = source
                self.cut(slot, length)
        slot.ids, slot.busy, slot.used = ids, True, next(self._clock)
        return slot

    def release(self, slot: Slot) -> None:
        """The answer has ended; what was computed stays until its room is needed."""
        slot.ids = slot.ids[: slot.length]
        slot.busy, slot.used = False, next(self._clock)

    def cut(self, slot: Slot, length: int) -> None:
        """Keep the first `length` tokens."""
        if length < slot.length:
            self._runner.trim(slot.number, length)
            slot.length = length
        if not slot.busy:
            slot.ids = slot.ids[:length]

    def room(self, tokens: int) -> bool:
        """Empty idle slots, the oldest first, until `tokens` more fit; whether they do."""
        while not self._fits(tokens):
            idle = [slot for slot in self.slots if not slot.busy and slot.length]
            if not idle:
                return False
            self.cut(min(idle, key=lambda slot: slot.used), 0)
        return True

    def _fits(self, tokens: int) -> bool:
        return self._runner.capacity is None or self.tokens() + tokens <= self._runner.capacity
