"""A chat that is longer than the context: refused, or its oldest turns left out, always whole.

A turn is what a user says and everything up to the next user message: answers, tool calls and their results. The system text and
the last turn always stay. Each attempt renders the template anew, so that nothing is ever cut; the number of turns to drop
is found by bisection (a chat of 1,000 turns: ten renderings).
Not covered: a summary of what was left out.
"""

from collections.abc import Callable, Sequence
from typing import Any

from twllm.serve.engines.interface import ContextLengthError, require_room
from twllm.serve.errors import ApiError

ROOM = 4  # a quarter of the context is kept for the answer, less where max_tokens is less; chosen
Messages = Sequence[dict[str, Any]]
Encode = Callable[[list[dict[str, Any]]], list[int]]


def fit(
    messages: Messages, encode: Encode, context: int | None, max_tokens: int | None, *, drop: bool
) -> tuple[list[int], int]:
    """(prompt ids, number of turns left out); with `drop` False nothing is left out.

    Raises:
        ApiError: 400 context_length_exceeded.
    """
    ids = encode(list(messages))
    if context is None:
        return ids, 0
    if drop:
        limit = context - min(max_tokens or context, context // ROOM)
        if len(ids) > limit:
            ids, dropped = _drop(messages, encode, limit)
            _require(ids, context)
            return ids, dropped
    _require(ids, context)
    return ids, 0


def _drop(messages: Messages, encode: Encode, limit: int) -> tuple[list[int], int]:
    """The fewest turns dropped with which the chat fits, or all but the last."""
    starts = [i for i, message in enumerate(messages) if message["role"] == "user"]
    first = next((i for i, message in enumerate(messages) if message["role"] != "system"), 0)
    system = list(messages[:first])

    def without(count: int) -> list[int]:
        return encode([*system, *messages[starts[count] if count else first :]])

    low, high = 0, max(0, len(starts) - 1)  # dropping `low` is known to be too few, `high` all there is
    while high - low > 1:
        middle = (low + high) // 2
        if len(without(middle)) > limit:
            low = middle
        else:
            high = middle
    return without(high), high


def _require(ids: list[int], context: int) -> None:
    try:
        require_room(ids, context)
    except ContextLengthError as error:
        raise ApiError(f"{error.what}；{error.fix}", param="messages", code="context_length_exceeded") from error
