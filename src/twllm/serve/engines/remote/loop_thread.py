"""One event loop in one thread, for engines whose answers come from elsewhere."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
END_S = 10.0


class LoopThread:
    """Runs coroutines for other threads until it is closed."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run and wait."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def spawn(self, work: Coroutine[Any, Any, None]) -> Callable[[], None]:
        """Start and go on; gives what cancels it. It is begun in any case, so that its `finally` runs."""
        started: list[asyncio.Task[None]] = []

        def start() -> None:
            task = self._loop.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            started.append(task)

        def stop() -> None:
            self._loop.call_soon(started[0].cancel)  # after the task's first step, which is already queued

        def cancel() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the task with it
                self._loop.call_soon_threadsafe(stop)

        self._loop.call_soon_threadsafe(start)
        return cancel

    def close(self) -> None:
        """Cancel what still runs and end the thread."""
        with contextlib.suppress(Exception):
            self.call(self._end(), END_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        await asyncio.sleep(0)
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
