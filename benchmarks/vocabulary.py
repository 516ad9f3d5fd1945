"""Characters per token before and after an extension, on text that it did not learn from, source by source.

    python benchmarks/vocabulary.py PROSE_FOLDER BASE… --add 8000 16000 [--max-chars 10000000]

PROSE_FOLDER: .jsonl.gz files of documents, one a source; every 50th document is held out. BASE: tokenizer folders.
"""

import argparse
import json
import time
from pathlib import Path

from twllm.tokens.extend import check, extend_tokenizer
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.tokens.train import every_nth, sample_texts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("prose", type=Path)
    parser.add_argument("bases", type=Path, nargs="+")
    parser.add_argument("--add", type=int, nargs="+", default=[8000])
    parser.add_argument("--max-chars", type=int, default=10_000_000)
    parser.add_argument("--leave-out", nargs="*", default=[], help="sources only measured, not learned from")
    arguments = parser.parse_args()
    held, learned = {}, []
    for file in sorted(arguments.prose.glob("*.jsonl.gz")):
        texts = sample_texts(file, 1 << 40)
        held[file.name.removesuffix(".jsonl.gz")] = texts[::50][:60]
        if not any(name in file.name for name in arguments.leave_out):
            learned += [text for i, text in enumerate(texts) if i % 50]
    for folder in arguments.bases:
        base = ChatTokenizer.load(folder)
        for add in arguments.add:
            start = time.perf_counter()
            sample = every_nth(lambda: learned, arguments.max_chars)
            extended = extend_tokenizer(base, sample, add, folder=folder)
            seconds = time.perf_counter() - start
            print(
                f"{folder.name} + {add}: learned in {seconds:.0f} s from {arguments.max_chars:,} characters", flush=True
            )
            every = [text for texts in held.values() for text in texts]
            for name, texts in [*held.items(), ("all", every)]:
                print(f"  {name:22}", json.dumps(check(base, extended, texts)), flush=True)


if __name__ == "__main__":
    main()
