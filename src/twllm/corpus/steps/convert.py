"""convert: Simplified text becomes Taiwan's Traditional (corpus/convert.py); what was converted is marked in its metadata.

`converted` holds how many places are in doubt, `converted_doubts` the first ten of them. Text that needs nothing passes
byte for byte and gets no mark. Put it before `script` and `taiwan`.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from twllm.corpus.convert import convert_text
from twllm.corpus.document import Document
from twllm.corpus.steps import Change, change_step

if TYPE_CHECKING:
    from twllm.corpus.config import CorpusConfig

SHOWN = 10


@change_step("convert")
def convert(config: "CorpusConfig") -> Change:
    """No settings."""

    def change(document: Document) -> Document:
        found = convert_text(document.text)
        if not found.changed:
            return document
        doubts = [
            f"{found.text[max(0, flag.start - 4) : flag.start + 6]}（{'/'.join(flag.options)}）"
            for flag in found.flags[:SHOWN]
        ]
        marks = {"converted": "Simplified → zh-TW", "converted_flags": len(found.flags)}
        return replace(
            document,
            text=found.text,
            metadata=document.metadata | marks | ({"converted_doubts": doubts} if doubts else {}),
        )

    return change
