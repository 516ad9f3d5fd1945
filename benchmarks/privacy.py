"""Personal data: recall on made-up sentences, false alarms on look-alikes and on real prose, speed.

    python benchmarks/privacy.py [DATA]          DATA: the folder that holds prose/ (default: TWLLM_SHARED_DATA or ../shared/data)

Recall: `EACH` sentences of each of twelve kinds (privacy_texts.py), numbers with right check digits in many notations; found means
that the value is gone from the text, typed that it became its own placeholder.
Look-alikes: nothing in them may change. On real prose (laws, gazettes, transcripts …)
hits are counted by kind per million characters and written with their surroundings to privacy_hits.tsv in a temporary folder, to be read:
what of them is personal data is a person's judgement (docs/privacy.md). Speed: UTF-8 over processor time of one core, a first
pass over texts in memory. The last line is `RESULT {json}`.
"""

import gzip
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from privacy_texts import NEAR_MISSES, positives

from twllm.corpus.privacy import find, scrub

EACH = 200
PROSE = ("moj-law", "ly-gazette-raw", "cons-judicial", "audreyt-transcript", "taiwan-md", "rust-book-tw")


def recall() -> tuple[float, float, dict[str, float]]:
    """(found, typed, found by kind)"""
    told, found, typed = Counter[str](), Counter[str](), Counter[str]()
    for kind, text, value in positives(random.Random(7), EACH):
        out, counts = scrub(text)
        told[kind] += 1
        gone = value not in out and bool(counts)
        found[kind] += gone
        typed[kind] += gone and f"〔{kind}〕" in out
    size = sum(told.values())
    return sum(found.values()) / size, sum(typed.values()) / size, {kind: found[kind] / told[kind] for kind in told}


def prose(data: Path, hits: Path) -> dict[str, dict[str, float]]:
    """Hits per million characters by kind, and MB/s, of each source."""
    results = dict[str, dict[str, float]]()
    with hits.open("w", encoding="utf-8") as lines:
        for name in PROSE:
            with gzip.open(data / "prose" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as rows:
                texts = [json.loads(row)["text"] for row in rows]
            start = time.process_time()
            found = [(text, one) for text in texts for one in find(text)]
            spent = time.process_time() - start
            counts = Counter(one.kind for _, one in found)
            chars, size = sum(map(len, texts)), sum(len(text.encode()) for text in texts)
            for text, (kind, a, b) in found:
                row = "\t".join(
                    " ".join(part.split()) for part in (text[max(0, a - 30) : a], text[a:b], text[b : b + 20])
                )
                lines.write(f"{name}\t{kind}\t{row}\n")
            results[name] = {"mb_s": size / 1e6 / spent, "per_million": 1e6 * len(found) / chars}
            told = "、".join(f"{kind} {n}" for kind, n in counts.most_common())
            print(
                f"| {name} | {chars / 1e6:.1f} M | {len(found)} | {1e6 * len(found) / chars:.2f} | {told} | {size / 1e6 / spent:.0f} |",
                flush=True,
            )
    return results


def main() -> None:
    found, typed, by_kind = recall()
    alarms = [text for text in NEAR_MISSES if scrub(text)[1]]
    print(f"recall {found:.4f}, right placeholder {typed:.4f}, {EACH} sentences a kind: {by_kind}")
    print(f"look-alikes changed: {len(alarms)} of {len(NEAR_MISSES)} {alarms}")
    result = {
        "recall": found,
        "typed": typed,
        "positives": EACH * len(by_kind),
        "near_misses": len(NEAR_MISSES),
        "near_misses_masked": len(alarms),
    }
    data = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("TWLLM_SHARED_DATA", "../shared/data"))
    if (data / "prose").is_dir():
        hits = Path(tempfile.mkdtemp()) / "privacy_hits.tsv"
        print("\n| source | characters | hits | per million | kinds | MB/s |\n|---|---:|---:|---:|---|---:|")
        measured = prose(data, hits)
        print(f"hits with their surroundings: {hits}")
        result |= {"mb_s_core_min": min(row["mb_s"] for row in measured.values())}
        result |= {f"per_million_{name}": row["per_million"] for name, row in measured.items()}
    else:
        print(f"skipped real prose: no {data}/prose")
    print("RESULT " + json.dumps({key: round(value, 4) for key, value in result.items()}))


if __name__ == "__main__":
    main()
