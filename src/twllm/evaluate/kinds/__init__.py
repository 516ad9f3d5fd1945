"""How a task is run: a kind takes (task, session) and returns the task's block of the result.

One module a kind; `@kind("name")` registers it and `Task.kind` names it. A block has at least `score`, `n`, `interval` and
`task`; what else it has is the kind's business, and the report shows what it knows.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from twllm.errors import UserError, did_you_mean
from twllm.evaluate.model import Model
from twllm.evaluate.responses import ResponseFile
from twllm.evaluate.task import Item, Task


@dataclass(frozen=True)
class Options:
    """What a run is told beside model and suites."""

    questions: str = "twllm:culture"
    data: Path | None = None
    limit: int | None = None
    max_new_tokens: int = 64
    batch_size: int = 32
    protocol: str = ""
    more: dict[str, Any] = field(default_factory=dict)  # judge endpoint and the like


@dataclass
class Session:
    """One run: the model, the answers stored so far, and the options. `reused` counts answers taken from the file."""

    model: Model
    file: ResponseFile
    options: Options
    reused: int = 0
    kept: list[Any] = field(default_factory=list)  # responses the finished result rests on


Kind = Callable[[Task, list[Item], Session], dict[str, Any]]
Check = Callable[[Task, list[Item], Options], None]
_KINDS: dict[str, Kind] = {}
_CHECKS: dict[str, Check] = {}


def kind(name: str) -> Callable[[Kind], Kind]:
    """Register a kind."""

    def register(run: Kind) -> Kind:
        _KINDS[name] = run
        return run

    return register


def check(name: str) -> Callable[[Check], Check]:
    """Register what tells a kind's mistakes in the options before any model is opened."""

    def register(run: Check) -> Check:
        _CHECKS[name] = run
        return run

    return register


def check_options(task: Task, items: list[Item], options: Options) -> None:
    """Raise UserError where the options lack what the task's kind needs."""
    _load()
    if task.kind in _CHECKS:
        _CHECKS[task.kind](task, items, options)


@cache
def _load() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def find_kind(name: str) -> Kind:
    """The kind of that name.

    Raises:
        UserError: there is none.
    """
    _load()
    if name not in _KINDS:
        raise UserError("沒有這種題型 (unknown kind of task)", name, did_you_mean(name, _KINDS))
    return _KINDS[name]
