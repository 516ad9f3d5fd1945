"""A bounded queue for places at the engines: at most N requests run, at most M wait, and callers share fairly.

A free place goes to the waiting caller with the fewest running requests, among equals to the one served longest ago. When the
queue is full, a caller who has nothing in it takes the last place of the caller who has most (two or more), so that one
busy caller cannot keep the others out. Used from one event loop, therefore without locks.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager


class Full(Exception):
    """No place and no room to wait for one."""


class Places:
    """`running` places and room for `waiting` more; `per_client` places for one caller (0: as many as there are)."""

    def __init__(self, running: int, waiting: int, per_client: int = 0) -> None:
        self.max_running, self.max_waiting, self.per_client = running, waiting, per_client
        self.running: Counter[str] = Counter()
        self.waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self.num_running = self.num_waiting = 0
        self._turn = 0
        self._served: dict[str, int] = {}  # when a caller who is here got the last place
        self._mean_s = 1.0  # how long a place is held, smoothed

    def try_take(self, client: str) -> bool:
        """Take a place if one is free and nobody waits.

        Raises:
            Full: the caller has as many as it may have.
        """
        if self.per_client and self.running[client] + len(self.waiting.get(client, ())) >= self.per_client:
            raise Full
        if self.num_waiting or self.num_running >= self.max_running:
            return False
        self._enter(client)
        return True

    async def wait(self, client: str, timeout_s: float) -> None:
        """Wait for a place; a cancelled wait leaves nothing behind.

        Raises:
            Full: no room to wait, or the room was given to a caller who had none.
            TimeoutError: no place came free in time.
        """
        if self.num_waiting >= self.max_waiting:
            self._make_room(client)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.setdefault(client, deque()).append(place)
        self.num_waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                await place
        except BaseException:
            if place.done() and not place.cancelled() and place.exception() is None:
                self._leave(client)  # it was given in the moment in which the wait ended
            else:
                self._forget(client, place)
            raise

    @contextmanager
    def held(self, client: str) -> Iterator[None]:
        """The time in which a taken place is used; it is given back at the end."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._mean_s += 0.1 * (time.perf_counter() - started - self._mean_s)
            self._leave(client)

    def give_back(self, client: str) -> None:
        """Give back a place that was not used."""
        self._leave(client)

    def retry_after_s(self) -> int:
        """When a place is likely to be free, from how long places were held lately: 1 to 60 seconds."""
        return int(min(60, max(1, self._mean_s * (self.num_waiting + 1) / self.max_running)))

    def _enter(self, client: str) -> None:
        self.running[client] += 1
        self.num_running += 1
        self._turn += 1
        self._served[client] = self._turn

    def _leave(self, client: str) -> None:
        self.running[client] -= 1
        self.num_running -= 1
        if not self.running[client]:
            del self.running[client]
            if client not in self.waiting:
                self._served.pop(client, None)
        while self.num_running < self.max_running and self.num_waiting:
            poorest = min(self.waiting, key=lambda name: (self.running[name], self._served.get(name, 0)))
            place = self.waiting[poorest][0]
            self._forget(poorest, place)
            self._enter(poorest)
            place.set_result(None)

    def _make_room(self, client: str) -> None:
        if client not in self.waiting and self.waiting:
            greediest = max(self.waiting, key=lambda name: len(self.waiting[name]))
            if len(self.waiting[greediest]) > 1:
                place = self.waiting[greediest][-1]
                self._forget(greediest, place)
                place.set_exception(Full())
                return
        raise Full

    def _forget(self, client: str, place: "asyncio.Future[None]") -> None:
        if place in self.waiting.get(client, ()):
            self.waiting[client].remove(place)
            self.num_waiting -= 1
            if not self.waiting[client]:
                del self.waiting[client]
                if not self.running[client]:
                    self._served.pop(client, None)
