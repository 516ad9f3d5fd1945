"""datatrove's side of corpus_speed.py: its own blocks, as a person would set them up for Chinese. Run by the Python that has them.

    python benchmarks/corpus_trove.py filter|dedup|warc INPUT OUT        prints seconds of each block as JSON, last

Needs: datatrove[processing], spacy and jieba (its Chinese word tokenizer), trafilatura. Changed from the defaults, which drop all Chinese:
GopherQuality's word lengths (a Chinese word has one to three characters) and stop words; everything else is as shipped.
"""

import json
import sys
import tempfile
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader, WarcReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.typeshelper import Languages

ZH = Languages.mandarin_chinese
STOP_WORDS = ["的", "是", "在", "了", "有", "和", "與", "之", "為", "及", "不", "我", "這", "以", "也"]
PACKED = "zstd"


def run(blocks: list, tasks: int = 1) -> dict[str, float]:
    """Run a pipeline here; seconds of each block."""
    with tempfile.TemporaryDirectory() as logs:
        stats = LocalPipelineExecutor(blocks, tasks=tasks, workers=1, logging_dir=logs).run()
    return {block.name: float(block.time_stats.total) for block in stats.stats}


def filters(source: Path, out: Path) -> dict[str, float]:
    """Quality filters and masking."""
    return run(
        [
            JsonlReader(str(source)),
            GopherRepetitionFilter(language=ZH),
            GopherQualityFilter(language=ZH, min_avg_word_length=1, stop_words=STOP_WORDS),
            C4QualityFilter(language=ZH, min_words_per_line=-1, filter_no_terminal_punct=False),
            FineWebQualityFilter(language=ZH),
            PIIFormatter(),
            JsonlWriter(str(out), compression=PACKED),
        ]
    )


def dedup(source: Path, out: Path) -> dict[str, float]:
    """MinHash with its default 14 buckets of 8, four stages."""
    config = MinhashConfig()
    folders = {name: str(out / name) for name in ("signatures", "buckets", "clusters", "kept")}
    found: dict[str, float] = {}
    for blocks, tasks in (
        ([JsonlReader(str(source)), MinhashDedupSignature(folders["signatures"], config, language=ZH)], 1),
        ([MinhashDedupBuckets(folders["signatures"], folders["buckets"], config=config)], config.num_buckets),
        ([MinhashDedupCluster(folders["buckets"], folders["clusters"], config=config, save_cluster_id=True)], 1),
        (
            [
                JsonlReader(str(source)),
                MinhashDedupFilter(folders["clusters"], load_cluster_ids=True),
                JsonlWriter(folders["kept"], compression=None),
            ],
            1,
        ),
    ):
        for name, seconds in run(blocks, tasks).items():
            found[name] = found.get(name, 0.0) + seconds
    return found


def warc(source: Path, out: Path) -> dict[str, float]:
    """Pages to text."""
    reader = WarcReader(str(source), glob_pattern="*.warc.gz")
    return run([reader, Trafilatura(timeout=10), JsonlWriter(str(out), compression=PACKED)])


if __name__ == "__main__":
    kind, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    steps = {"filter": filters, "dedup": dedup, "warc": warc}[kind](source, out)
    print(json.dumps(steps, ensure_ascii=False))
