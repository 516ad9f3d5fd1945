"""Characters a second that are searched for TC-Eval's texts, memory, and what is flagged, as a Markdown table for docs/decontamination.md.

    python benchmarks/decontamination_speed.py DATA            DATA: a folder with tceval/, drcd/ and prose/ (see docs/decontamination.md)

CPU seconds of one process, so that a busy machine does not count; reading and unpacking included.
"""

import resource
import sys
import time
from pathlib import Path

from twllm.evaluate.suite_overlap import find_overlap
from twllm.evaluate.suite_passages import read_suites

SOURCES = ("moj-law", "ly-gazette-raw", "audreyt-transcript", "taiwan-md", "cons-judicial", "rust-book-tw")


def main(data: Path) -> None:
    """One row a source; the suites' index is built anew for each (its time is in the row)."""
    suites, _ = read_suites(["tmmlu", "ttqa", "penguins"], data / "tceval" / "data-as-published")
    suites |= read_suites(["drcd"], data / "drcd")[0]
    print("| 語料 | 字 | CPU 秒 | M 字/秒 | 汙染 (TMMLU, TTQA, Penguins, DRCD) | 記憶體 MB |")
    print("|---|---|---|---|---|---|")
    for name in SOURCES:
        start = time.process_time()
        found = find_overlap(suites, [str(data / "prose" / f"{name}.jsonl.gz")])
        seconds = time.process_time() - start
        chars = sum(facts["chars"] for facts in found.against.values())
        flagged = "、".join(str(facts["flagged"]) for facts in found.summary()["suites"].values())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"| {name} | {chars:,} | {seconds:.1f} | {chars / seconds / 1e6:.1f} | {flagged} | {peak} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
