"""Steps by name. A step is `step(documents) -> documents | Dropped`; a new one is one file here and one test.

`@filter_step("name")` marks a function that takes the config and returns a rule `document -> Keep | Drop`;
`@map_step("name")` one that returns a rewriting `text -> text`, `@change_step("name")` one that returns a change
`document -> document`, `@step("name")` one that returns a whole step, `@global_step("name")` one that looks at the whole
corpus (global_step.py). The files of this folder register themselves. The engine builds a step once a process and runs
it on one part after the other: what a step that is no global one remembers of its documents would depend on the number
of workers, so it must remember nothing. `as_datatrove` makes a step a datatrove pipeline step for pipelines of one's own.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from twllm.corpus.document import Document, Drop, Dropped, Keep
from twllm.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from twllm.corpus.config import CorpusConfig
    from twllm.corpus.global_step import GlobalStep

Step = Callable[[Iterable[Document]], Iterator[Document | Dropped]]
Rule = Callable[[Document], Keep | Drop]
Rewrite = Callable[[str], str]
Change = Callable[[Document], Document]
One = TypeVar("One")

_MAKERS: dict[str, "Callable[[CorpusConfig], Step]"] = {}
_GLOBAL: dict[str, "Callable[[CorpusConfig], GlobalStep]"] = {}


def step(name: str) -> "Callable[[Callable[[CorpusConfig], Step]], Callable[[CorpusConfig], Step]]":
    """Register a maker of whole steps as the step `name`: for what looks at several documents at once."""

    def register(make: "Callable[[CorpusConfig], Step]") -> "Callable[[CorpusConfig], Step]":
        _MAKERS[name] = make
        return make

    return register


def _each(
    name: str, apply: Callable[[One, Document], Document | Dropped]
) -> "Callable[[Callable[[CorpusConfig], One]], Callable[[CorpusConfig], One]]":
    """Register makers of `one` (a rule, a rewriting, a change) as the step that yields `apply(one, document)`."""

    def register(make_one: "Callable[[CorpusConfig], One]") -> "Callable[[CorpusConfig], One]":
        def make(config: "CorpusConfig") -> Step:
            one = make_one(config)

            def step(documents: Iterable[Document]) -> Iterator[Document | Dropped]:
                for document in documents:
                    yield apply(one, document)

            return step

        _MAKERS[name] = make
        return make_one

    return register


def filter_step(name: str) -> "Callable[[Callable[[CorpusConfig], Rule]], Callable[[CorpusConfig], Rule]]":
    """Register a maker of rules as the step `name`."""

    def apply(rule: Rule, document: Document) -> Document | Dropped:
        verdict = rule(document)
        if isinstance(verdict, Drop):
            return Dropped(document, name, verdict.reason, verdict.detail)
        return document.passed(name)

    return _each(name, apply)


def map_step(name: str) -> "Callable[[Callable[[CorpusConfig], Rewrite]], Callable[[CorpusConfig], Rewrite]]":
    """Register a maker of text rewritings as the step `name`."""
    return _each(name, lambda rewrite, document: document.passed(name, rewrite(document.text)))


def change_step(name: str) -> "Callable[[Callable[[CorpusConfig], Change]], Callable[[CorpusConfig], Change]]":
    """Register a maker of changes to documents (text and metadata) as the step `name`."""
    return _each(name, lambda change, document: change(document).passed(name))


Maker = TypeVar("Maker", bound="Callable[[CorpusConfig], GlobalStep]")


def global_step(name: str) -> Callable[[Maker], Maker]:
    """Register a maker of global steps as what the engine runs under `name`."""

    def register(make: Maker) -> Maker:
        _GLOBAL[name] = make
        return make

    return register


def is_global(name: str) -> bool:
    """Whether the engine runs this step over the whole corpus."""
    return name in names() and name in _GLOBAL


def make_global(name: str, config: "CorpusConfig") -> "GlobalStep":
    """The global step of that name with the config's limits."""
    return _GLOBAL[name](config)


@cache
def names() -> tuple[str, ...]:
    """Names of all steps."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return tuple(sorted({*_MAKERS, *_GLOBAL}))


def make_step(name: str, config: "CorpusConfig") -> Step:
    """A fresh step with the config's limits (dedup starts with nothing seen).

    Raises:
        UserError: no step of that name.
    """
    if name not in names():
        raise UserError("沒有這個步驟 (unknown step)", f"corpus.steps: {name}", did_you_mean(name, names()))
    return _MAKERS[name](config)


def as_datatrove(step: Step) -> Callable[..., Iterator[Any]]:
    """A step as `run(data, rank, world_size)` over datatrove documents, for its executors; drops are left out."""

    def run(data: Iterable[Any], rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        from datatrove.data import Document as Trove  # type: ignore[import-untyped,import-not-found,unused-ignore]

        ours = (Document.from_row({"metadata": d.metadata, **d.metadata, "id": d.id, "text": d.text}) for d in data)
        for document in step(ours):
            if isinstance(document, Document):
                row = document.to_row()
                yield Trove(text=row.pop("text"), id=row.pop("id"), metadata=row.pop("metadata", {}) | row)

    return run
