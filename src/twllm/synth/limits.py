"""What holds a request back: the endpoint's rate limit, the budget, and the wish to stop.

Rate limits as their headers tell them: `Retry-After` (seconds or a date), `x-ratelimit-remaining-requests`/`-tokens` with
`x-ratelimit-reset-…` (OpenAI: "6m0s", "17ms"; others: seconds, Unix time or a date). Between two answers we count down
ourselves, so that eight requests at a time do not all take the last one that remains.
"""

import asyncio
import re
import time
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime

from twllm.synth.config import BudgetConfig

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
MILLION = 1_000_000


class Stopped(Exception):
    """The run is ending: no further request may be sent."""


class Stop:
    """Says once, to all, that no further request may be sent, and why (`interrupt`, `budget`, `rate`, `error`, `offline`)."""

    def __init__(self) -> None:
        self.reason = ""
        self.detail = ""
        self._event = asyncio.Event()

    def set(self, reason: str, detail: str = "") -> None:
        """The first reason stays."""
        if not self.reason:
            self.reason, self.detail = reason, detail
        self._event.set()

    def check(self) -> None:
        """Raise Stopped if the run is ending."""
        if self.reason:
            raise Stopped

    async def sleep(self, seconds: float) -> None:
        """Sleep, but wake up and raise Stopped when the run ends."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except TimeoutError:
            return
        raise Stopped


def seconds_of(text: str, now: float | None = None) -> float | None:
    """Seconds from now that a header value means; None when it means nothing.

    >>> seconds_of("6m0s"), seconds_of("17ms"), seconds_of("2.5"), seconds_of("soon")
    (360.0, 0.017, 2.5, None)
    """
    text, now = text.strip(), time.time() if now is None else now
    if DURATION.fullmatch(text):
        return sum(float(value) * UNITS[unit] for value, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text))
    try:
        value = float(text)
        return max(0.0, value - now if value > 1e9 else value)  # more than 30 years is a Unix time
    except ValueError:
        pass
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            return max(0.0, parse(text).timestamp() - now)
        except ValueError:
            continue
    return None


class RateLimit:
    """What the endpoint still allows: what its last answers said, less what is under way and it may not have counted yet."""

    def __init__(self) -> None:
        self._blocked_until = 0.0
        self._left: dict[str, tuple[float, float]] = {}  # requests|tokens → (what remains, until when that holds)
        self._under_way = {"requests": 0, "tokens": 0}

    def block(self, seconds: float) -> None:
        """Nothing may be sent for so long (Retry-After)."""
        self._blocked_until = max(self._blocked_until, time.monotonic() + seconds)

    def update(self, headers: Mapping[str, str]) -> None:
        """Learn from the headers of an answer whose request has been given back."""
        now = time.monotonic()
        for kind, under_way in self._under_way.items():
            told = _number(headers.get(f"x-ratelimit-remaining-{kind}"))
            wait = seconds_of(headers.get(f"x-ratelimit-reset-{kind}", ""))
            if told is None or wait is None:
                continue
            left, until = self._left.get(kind, (told, now))
            told -= under_way
            self._left[kind] = (min(left, told) if now < until else told, now + wait)

    def wait_s(self, tokens: int) -> float:
        """Seconds until a request of about so many tokens may be sent; 0: now."""
        now = time.monotonic()
        waits = [self._blocked_until - now]
        for kind, need in (("requests", 1), ("tokens", tokens)):
            left, until = self._left.get(kind, (float("inf"), 0.0))
            if left < need:
                waits.append(until - now)
        return max(0.0, *waits)

    def take(self, tokens: int) -> None:
        """A request is about to be sent."""
        now = time.monotonic()
        for kind, need in (("requests", 1), ("tokens", tokens)):
            self._under_way[kind] += need
            if kind in self._left:
                left, until = self._left[kind]
                if now < until:
                    self._left[kind] = (left - need, until)
                else:
                    del self._left[kind]

    def give_back(self, tokens: int) -> None:
        """That request has its answer, or never will."""
        self._under_way["requests"] -= 1
        self._under_way["tokens"] -= tokens


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


class Budget:
    """Tokens paid for so far, those under way at their worst, and the limit on both."""

    def __init__(self, config: BudgetConfig, tokens_in: int, tokens_out: int) -> None:
        self.config, self.tokens_in, self.tokens_out = config, tokens_in, tokens_out
        self.num_under_way = 0
        self._worst_in = self._worst_out = 0
        self._turn = asyncio.Lock()  # first come, first served: a row that was begun does not wait for later ones
        self._changed = asyncio.Condition()

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return self.config.max_tokens_total is not None or self.config.max_cost is not None

    def cost(self, tokens_in: int, tokens_out: int) -> float | None:
        """In the prices' currency; None without prices."""
        if self.config.price_in is None and self.config.price_out is None:
            return None
        return (tokens_in * (self.config.price_in or 0) + tokens_out * (self.config.price_out or 0)) / MILLION

    def _fits(self, tokens_in: int, tokens_out: int) -> bool:
        tokens_in += self.tokens_in + self._worst_in
        tokens_out += self.tokens_out + self._worst_out
        limit, cost = self.config.max_tokens_total, self.cost(tokens_in, tokens_out)
        too_many = limit is not None and tokens_in + tokens_out > limit
        return not too_many and not (self.config.max_cost is not None and (cost or 0) > self.config.max_cost)

    async def reserve(self, tokens_in: int, tokens_out: int, stop: Stop) -> None:
        """Take room for a request at its worst; wait for requests under way to turn out cheaper if need be.

        Raises:
            Stopped: there is no room, nor will there be.
        """
        async with self._turn, self._changed:
            while not self._fits(tokens_in, tokens_out):
                if not self.num_under_way:
                    stop.set("budget")
                stop.check()
                await self._changed.wait()
            stop.check()
            self.num_under_way += 1
            self._worst_in += tokens_in
            self._worst_out += tokens_out

    async def settle(self, worst: tuple[int, int], tokens_in: int, tokens_out: int) -> None:
        """A request cost this much; its room is free again."""
        async with self._changed:
            self.num_under_way -= 1
            self._worst_in -= worst[0]
            self._worst_out -= worst[1]
            self.tokens_in += tokens_in
            self.tokens_out += tokens_out
            self._changed.notify_all()
