"""The record that flows through the corpus steps, and what a filter says about it.

A step takes documents and yields documents, or `Dropped` in place of one that goes no further: so a drop is seen,
counted and sampled by whoever runs the step, and a step needs no side channel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it came from. `source` is the source's name in the recipe; `history` the steps passed."""

    id: str
    text: str
    source: str = ""
    url: str = ""
    license: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    history: tuple[str, ...] = ()

    def passed(self, step: str, text: str | None = None) -> "Document":
        """The same document with `step` in its history, and a new text where one is given."""
        text = self.text if text is None else text
        history = (*self.history, step)
        return Document(self.id, text, self.source, self.url, self.license, self.metadata, history)

    def to_row(self) -> dict[str, Any]:
        """A JSON object; empty url and metadata are left out."""
        row: dict[str, Any] = {"id": self.id, "text": self.text, "source": self.source, "license": self.license}
        if self.url:
            row["url"] = self.url
        if self.metadata:
            row["metadata"] = self.metadata
        return row | {"history": list(self.history)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Document":
        """The inverse of `to_row`.

        Raises:
            KeyError: no `id` or no `text`.
        """
        keys = ("source", "url", "license")
        plain = {key: str(row.get(key) or "") for key in keys}
        history = tuple(row.get("history") or ())
        return cls(str(row["id"]), row["text"], metadata=dict(row.get("metadata") or {}), history=history, **plain)


@dataclass(frozen=True, slots=True)
class Keep:
    """A filter's yes."""


@dataclass(frozen=True, slots=True)
class Drop:
    """A filter's no: `reason` is counted (a short English identifier), `detail` is shown with the samples."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Dropped:
    """What a step yields in place of a document that goes no further."""

    document: Document
    step: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Noted(Dropped):
    """What a step yields before a document that goes on, or for a part cut out of it: counted and sampled like a drop."""


KEEP = Keep()
