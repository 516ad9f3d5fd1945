"""The next step's batches are read and packed in a thread while this step is computed. Order and content stay those of the step number."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """`self(step)` is `make(step)`, mostly made before it is asked for; `make` must depend on the step alone.

    What `make` raises is raised to whoever asks for that step, not before.
    """

    def __init__(self, make: Callable[[int], T], steps: int) -> None:
        """`steps`: nothing is prepared from this step on."""
        self.make, self.steps = make, steps
        self._step, self._found, self._error = -1, list[T](), list[BaseException]()
        self._thread: threading.Thread | None = None

    def __call__(self, step: int) -> T:
        thread, self._thread = self._thread, None
        if thread:
            thread.join()
        found, errors = self._found, self._error
        if not thread or self._step != step:
            found, errors = [self.make(step)], []
        if errors:
            raise errors[0]
        if step + 1 < self.steps:
            self._start(step + 1)
        return found[0]

    def _start(self, step: int) -> None:
        found, errors = list[T](), list[BaseException]()

        def work() -> None:
            try:
                found.append(self.make(step))
            except BaseException as error:
                errors.append(error)

        self._step, self._found, self._error = step, found, errors
        self._thread = threading.Thread(target=work, name="prefetch", daemon=True)
        self._thread.start()
