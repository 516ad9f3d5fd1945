"""boilerplate: a line that stands on many documents of one host (menus, notices, footers) is cut out of all of them.

Lines of any length count; documents without a URL are left alone. What went is counted and sampled in the funnel
(`cut_boilerplate`). Memory: a counter of the hosts. How it works and its price: dedup_lines.py. Not covered: lines with a changing number or date.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twllm.corpus.dedup_lines import CutStep, documents_of, group_seed
from twllm.corpus.document import Document
from twllm.corpus.steps import Step, global_step, step
from twllm.corpus.steps.dedup import in_one_stream
from twllm.corpus.takedown import host_of

if TYPE_CHECKING:
    from twllm.corpus.config import CorpusConfig

HOSTS = "hosts.json"


@global_step("boilerplate")
class Boilerplate(CutStep):
    """Settings: [corpus.dedup] boilerplate_documents, boilerplate_share."""

    name, reason = "boilerplate", "boilerplate"

    def __init__(self, config: "CorpusConfig") -> None:
        self._least, self._share = config.dedup.boilerplate_documents, config.dedup.boilerplate_share
        self._documents: Any = None  # of each host, by the hash of its name

    def group(self, document: Document) -> str | None:
        return host_of(document.url) or None

    def scan(self, documents: Iterable[Document], folder: Path) -> Iterator[Document]:
        hosts = Counter[str]()

        def count() -> Iterator[Document]:
            for document in documents:
                hosts[host_of(document.url)] += 1
                yield document

        yield from super().scan(count(), folder)
        (folder / HOSTS).write_text(json.dumps(hosts, ensure_ascii=False), encoding="utf-8")

    def decide(self, scans: Sequence[Path], out: Path, part: int) -> None:
        import numpy as np

        hosts = Counter[str]()
        for folder in scans:
            hosts.update(json.loads((folder / HOSTS).read_text(encoding="utf-8")))
        big = {group_seed(host): count for host, count in hosts.items() if host and count >= self._least}
        keys = np.array(sorted(big), np.uint64)
        self._documents = keys, np.array([big[key] for key in keys.tolist()], np.int64)
        super().decide(scans, out, part)

    def goes(self, documents: Any, starts: Any, groups: Any) -> Any:
        import numpy as np

        keys, counts = self._documents
        if not len(keys):
            return np.zeros(len(documents), bool)
        at = np.minimum(np.searchsorted(keys, groups), len(keys) - 1)
        of_host = np.where(keys[at] == groups, counts[at], np.iinfo(np.int64).max)
        many = documents_of(documents, starts)
        return np.repeat((many >= self._least) & (many >= self._share * of_host), np.diff(starts))


@step("boilerplate")
def boilerplate(config: "CorpusConfig") -> Step:
    """The same over one stream."""
    return in_one_stream(Boilerplate(config))
