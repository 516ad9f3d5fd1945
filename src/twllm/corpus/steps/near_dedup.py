"""near_dedup: of documents that are nearly the same, keep one, over all parts of the corpus; equal texts are among them.

MinHash signatures (minhash.py), LSH over sorted runs on disk (lsh.py), the rule of what stays and the report (clusters.py).
Memory of the decision: 16 bytes a document and some 100 MB. Price and quality: docs/corpus.md.
Not covered: a short text that stands inside a long one (dedup_paragraphs, boilerplate), translations, paraphrase.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twllm.corpus.document import Document
from twllm.corpus.global_step import GlobalStep
from twllm.corpus.steps import Step, global_step, step
from twllm.corpus.steps.dedup import in_one_stream

if TYPE_CHECKING:
    from twllm.corpus.config import CorpusConfig

SCAN_CHARS = 1 << 21


@global_step("near_dedup")
class NearDedup(GlobalStep):
    """Settings: [corpus.dedup] threshold, score_key. A cluster keeps the document of the first source, then the best score."""

    name = "near_dedup"

    def __init__(self, config: "CorpusConfig") -> None:
        from twllm.corpus.lsh import COLUMNS

        self.parts = COLUMNS
        self._threshold, self._score_key = config.dedup.threshold, config.dedup.score_key
        self.sources = {source.label: number for number, source in enumerate(config.sources)}

    def scan(self, documents: Iterable[Document], folder: Path) -> Iterator[Document]:
        from twllm.corpus.clusters import NameWriter
        from twllm.corpus.dedup_runs import RunWriter
        from twllm.corpus.lsh import Choice, document_rows

        runs = RunWriter(folder)
        texts, choices, size = list[str](), list[Choice](), 0
        with closing(NameWriter(folder)) as names:
            for document in documents:
                names.write({"id": document.id, "url": document.url, "source": document.source})
                score = document.metadata.get(self._score_key)
                known = float(score) if isinstance(score, int | float) else 0.0
                choices.append(Choice(self.sources.get(document.source, len(self.sources)), known))
                texts.append(document.text)
                size += len(document.text)
                if size >= SCAN_CHARS:
                    keys, beside = document_rows(texts, choices)
                    runs.add(keys, **beside)
                    texts, choices, size = [], [], 0
                yield document
        if texts:
            keys, beside = document_rows(texts, choices)
            runs.add(keys, **beside)
        runs.close()

    def decide(self, scans: Sequence[Path], out: Path, part: int) -> None:
        import numpy as np

        from twllm.corpus.dedup_runs import folders_of
        from twllm.corpus.lsh import pairs_of

        with (out / f"pairs-{part:02}").open("wb") as file:
            for pairs in pairs_of(folders_of(scans), part, self._threshold):
                file.write(pairs.astype(np.int64).tobytes())

    def conclude(self, scans: Sequence[Path], out: Path) -> None:
        from twllm.corpus.clusters import decide_clusters
        from twllm.corpus.dedup_runs import folders_of
        from twllm.corpus.lsh import components

        runs, files = folders_of(scans), sorted(out.glob("pairs-*"))
        decide_clusters(runs, components(runs.rows, (pairs for file in files for pairs in _read_pairs(file))), out)
        for file in files:
            file.unlink()

    def publish(self, out: Path, folder: Path) -> Mapping[str, Any]:
        import json
        import shutil

        from twllm.corpus.clusters import CLUSTERS, SUMMARY

        shutil.copyfile(out / CLUSTERS, folder / CLUSTERS)
        return {"near_dedup": json.loads((out / SUMMARY).read_text(encoding="utf-8"))}


@step("near_dedup")
def near_dedup(config: "CorpusConfig") -> Step:
    """The same over one stream."""
    return in_one_stream(NearDedup(config))


def _read_pairs(file: Path) -> Iterator[Any]:
    import numpy as np

    from twllm.corpus.lsh import NEW_ROUND

    with file.open("rb") as stream:
        while data := stream.read(16 * NEW_ROUND):
            yield np.frombuffer(data, np.int64).reshape(-1, 2)
