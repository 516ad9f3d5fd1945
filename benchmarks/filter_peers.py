"""Whose filter keeps Taiwan's text: ours and datatrove's Chinese-capable filters on the same documents, source by source.

    python benchmarks/filter_peers.py DATA --trove PYTHON      PYTHON: an environment with datatrove, spacy, jieba (corpus_trove.py)

datatrove: Gopher repetition and quality, C4, FineWeb, set for Chinese as in corpus_trove.py; it has no filter for region, and its
language filter needs a model that must be downloaded, so what it cannot tell it keeps. Ours: `classify` with the limits of `corpus build`.
Documents and pages only (sentences are no documents), at most `--each` a source, cut at 20,000 characters. The sources are those of
region_quality.py, whose docstring says which of them were read while word lists were made. The last line is `RESULT {json}`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from region_quality import Source, sources

from twllm.corpus.classify import classify

MAX_CHARS = 20_000


def kept_by_trove(python: str, found: list[Source]) -> tuple[dict[str, int], float]:
    """Documents kept of each source, and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "in" / "all.jsonl", Path(folder) / "out"
        file.parent.mkdir()
        rows = [{"id": f"{s.name}#{n}", "text": text} for s in found for n, text in enumerate(s.texts)]
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import corpus_trove
corpus_trove.PACKED = None
corpus_trove.filters(Path({str(file.parent)!r}), Path({str(out)!r}))
"""
        start = time.perf_counter()
        subprocess.run([python, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        kept = dict.fromkeys((s.name for s in found), 0)
        for part in out.glob("*.jsonl"):
            for line in part.read_text(encoding="utf-8").splitlines():
                kept[json.loads(line)["id"].rpartition("#")[0]] += 1
    return kept, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--trove", default=sys.executable)
    parser.add_argument("--each", type=int, default=200)
    args = parser.parse_args()
    found = [
        s._replace(texts=[text[:MAX_CHARS] for text in s.texts[: args.each]])
        for s in sources(args.data)
        if s.kind in ("document", "page")
    ]
    start = time.perf_counter()
    ours = {s.name: sum(classify(text).keep for text in s.texts) for s in found}
    seconds = time.perf_counter() - start
    trove, trove_seconds = kept_by_trove(args.trove, found)
    print("| source | Taiwan's | documents | ours keeps | datatrove keeps |\n|---|---|---|---|---|")
    for s in found:
        n = len(s.texts)
        print(f"| {s.name} | {'yes' if s.native else 'no'} | {n} | {ours[s.name] / n:.3f} | {trove[s.name] / n:.3f} |")
    result: dict[str, float] = {"seconds": round(seconds, 1), "trove_seconds": round(trove_seconds, 1)}
    for name, kept in (("ours", ours), ("trove", trove)):
        good = sum(kept[s.name] for s in found if s.native)
        bad = sum(kept[s.name] for s in found if not s.native)
        result[f"precision_{name}"] = round(good / max(1, good + bad), 4)
        result[f"recall_{name}"] = round(good / sum(len(s.texts) for s in found if s.native), 4)
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
