"""From the engine's threads to asyncio: the answers of one request as one stream of events, waked up in batches.

An engine calls back once per token. Waking the event loop each time would cost more than the token's text: events of all
requests go into one mailbox per loop, and the loop is waked only when it has not yet been. Several answers of a request
(n, several prompts, best_of) come mixed, with their number.
Not covered: fairness between requests (the engine's queue decides), limits (see the service's settings).
"""

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from starlette.requests import Request

from twllm.serve.engines.interface import Engine, Sampling, TokenEvent
from twllm.serve.errors import ApiError

CONCURRENT = 32  # answers of one request asked of the engine at once; chosen
Item = TokenEvent | Exception | None
Job = tuple[list[int], Sampling]


class Mailbox:
    """Events on their way into one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._lock = threading.Lock()
        self._posted: list[tuple[Callable[[Item], None], Item]] = []
        self._awake = False

    def post(self, receive: Callable[[Item], None], item: Item) -> None:
        """From any thread: have the loop call `receive(item)` soon."""
        with self._lock:
            self._posted.append((receive, item))
            if self._awake:
                return
            self._awake = True
        loop = self._loop()
        if loop is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # closed since: nobody is left to tell
                return

    def _deliver(self) -> None:
        with self._lock:
            posted, self._posted, self._awake = self._posted, [], False
        for receive, item in posted:
            receive(item)


_mailboxes: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox]" = weakref.WeakKeyDictionary()


def _mailbox() -> Mailbox:
    loop = asyncio.get_running_loop()
    return _mailboxes.setdefault(loop, Mailbox(loop))


class Answers:
    """The answers to `jobs` (prompt ids and settings each), as they are written: `async for number, event in answers`.

    Use it as an async context manager: entering submits (and raises what is wrong with the request), leaving cancels what is
    still running. A number's last event has a finish_reason, or the number was cancelled by `drop`.

    Raises (while iterating):
        ApiError: 503, the engine was closed.
    """

    def __init__(self, engine: Engine, jobs: Sequence[Job]) -> None:
        self._engine = engine
        self._jobs = deque(enumerate(jobs))
        self._running: dict[int, Callable[[], None]] = {}
        self._finished: set[int] = set()
        self._dropped: set[int] = set()
        self._events: deque[tuple[int, TokenEvent | Exception]] = deque()
        self._wake = asyncio.Event()
        self._mailbox = _mailbox()

    async def begin(self) -> None:
        """Submit now, so that what is wrong with the request is said before its first event."""
        try:
            while self._jobs and len(self._running) < CONCURRENT:
                await self._next()
        except BaseException:
            self.close()
            raise

    async def __aenter__(self) -> "Answers":
        await self.begin()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel everything."""
        self._jobs.clear()
        self._events.clear()
        for number in list(self._running):
            self.drop(number)

    def drop(self, number: int) -> None:
        """This answer is not wanted any further; its later events are not told."""
        self._finished.add(number)
        self._dropped.add(number)
        if cancel := self._running.pop(number, None):
            cancel()

    async def _next(self) -> None:
        number, (ids, sampling) = self._jobs.popleft()
        mailbox, receive = self._mailbox, lambda item: self._receive(number, item)

        def submit() -> Callable[[], None]:
            return self._engine.submit(ids, sampling, lambda item: mailbox.post(receive, item))

        # a grammar is compiled first, which may take a second; the loop must go on
        cancel = await _in_thread(submit) if sampling.grammar else submit()
        if number in self._finished:  # it ended while we were waiting
            return
        self._running[number] = cancel

    def _receive(self, number: int, item: Item) -> None:
        if number in self._finished:
            return
        if item is None:
            item = ApiError("伺服器正在關閉 (server is shutting down)", 503, type="server_error")
        if isinstance(item, Exception) or item.finish_reason:
            self._finished.add(number)
            self._running.pop(number, None)
        self._events.append((number, item))
        self._wake.set()

    def __aiter__(self) -> AsyncIterator[tuple[int, TokenEvent]]:
        return self

    async def __anext__(self) -> tuple[int, TokenEvent]:
        while True:
            while self._events:
                number, item = self._events.popleft()
                if number in self._dropped:
                    continue
                if isinstance(item, Exception):
                    raise item
                return number, item
            while self._jobs and len(self._running) < CONCURRENT:
                await self._next()
            if self._events:
                continue
            if not self._running:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()


async def _in_thread(submit: Callable[[], Callable[[], None]]) -> Callable[[], None]:
    """`submit` in a thread; given up meanwhile, its request is cancelled as soon as it is there."""
    task = asyncio.ensure_future(asyncio.to_thread(submit))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(lambda done: done.exception() or done.result()())
        raise


async def finished(work: Coroutine[Any, Any, None], request: Request) -> bool:
    """Whether the work was finished before the client went away; if not, it is given up. Its errors are raised."""

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leave())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
