"""dedup: of documents with the same text, keep the first, over all parts of the corpus. The same: white space aside.

Memory of the decision is 64 bits a document and their sorting (10 M documents: 0.3 GB; two different texts collide with
probability 3e-6 then). As a step in one stream it keeps about 100 bytes a document. Near duplicates: near_dedup.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from twllm.corpus.document import KEEP, Document, Drop, Dropped, Keep
from twllm.corpus.global_step import GlobalStep, write_drops
from twllm.corpus.steps import Rule, Step, filter_step, global_step

if TYPE_CHECKING:
    from twllm.corpus.config import CorpusConfig


def text_hash(text: str) -> int:
    """64 bits of the text without white space."""
    packed = "".join(text.split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(packed, digest_size=8).digest(), "little")


@filter_step("dedup")
def dedup(config: "CorpusConfig") -> Rule:
    """No settings."""
    seen: set[int] = set()

    def rule(document: Document) -> Keep | Drop:
        if (key := text_hash(document.text)) in seen:
            return Drop("duplicate")
        seen.add(key)
        return KEEP

    return rule


@global_step("dedup")
class ExactDedup(GlobalStep):
    """The same over the whole corpus."""

    name = "dedup"

    def __init__(self, config: "CorpusConfig") -> None:
        pass

    def scan(self, documents: Iterable[Document], folder: Path) -> Iterator[Document]:
        import numpy as np

        hashes: list[int] = []
        for document in documents:
            hashes.append(text_hash(document.text))
            yield document
        np.save(folder / "hashes.npy", np.asarray(hashes, np.uint64))

    def decide(self, scans: Sequence[Path], out: Path, part: int) -> None:
        import numpy as np

        hashes = [np.load(folder / "hashes.npy") for folder in scans]
        every = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
        again = np.ones(len(every), bool)
        again[np.unique(every, return_index=True)[1]] = False
        start = 0
        for number, found in enumerate(hashes):
            places = np.flatnonzero(again[start : start + len(found)])
            write_drops(out, number, ((place, "duplicate", "") for place in places.tolist()))
            start += len(found)


def in_one_stream(whole: GlobalStep) -> Step:
    """A global step as a step over one stream, which it has to hold: for tests and small files."""

    def run(documents: Iterable[Document]) -> Iterator[Document | Dropped]:
        with tempfile.TemporaryDirectory() as name:
            scan, out = Path(name) / "scan", Path(name) / "out"
            scan.mkdir()
            out.mkdir()
            held = list(whole.scan(documents, scan))
            for part in range(whole.parts):
                whole.decide([scan], out, part)
            whole.conclude([scan], out)
            yield from whole.apply(held, out, 0)

    return run
