"""4,096 → 8,192 → 32,768 positions on a CPU: a model of 2 layers trains, is saved, opened by transformers and asked; memory, time, recall.

    python benchmarks/long_ladder.py runs/ladder

The base is long_context.py's, with Llama 2's RoPE base of 10,000, taught up to 4,096 positions; both longer ones start from it by YaRN. Each rung is a
process of its own, so that its peak memory is its own. Two conversations a cell of the needle grid: a sign of life, not a score.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from long_context import OLD, VOCABULARY, Lesson, ask, new_model, recall, repeats, save_as, write_rows
from transformers import AutoModelForCausalLM

from twllm.artifact import write_json
from twllm.evaluate.needle_data import conversations
from twllm.evaluate.texts import read_texts
from twllm.model.build import load
from twllm.model.rope import extend
from twllm.model.rope_config import RopeConfig
from twllm.tokens.config import TokenizerConfig
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.tokens.train import train_tokenizer

# context, factor from the base, tokens of the lesson at this length
RUNGS = {"4k": (4096, 1.0, 1_000_000), "8k": (8192, 2.0, 12 * 8192), "32k": (32768, 8.0, 6 * 32768)}


def ladder(root: Path, threads: int) -> None:
    """A base of 4,096 positions (RoPE base 10,000, as Llama 2) to 8,192 and 32,768, each rung in a process of its own."""
    found = []
    for name in RUNGS:
        subprocess.run([sys.executable, __file__, str(root), "--threads", str(threads), "--rung", name], check=True)
        found.append(json.loads((root / f"{name}.json").read_text()))
    write_json(root / "ladder.json", found)


def rung(root: Path, name: str, threads: int) -> None:
    """Train, save, load in transformers, ask: one of `RUNGS`."""
    context, factor, tokens = RUNGS[name]
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(context)
    texts = [one.text.strip() for one in read_texts("twllm:knowledge")]
    train, held = [t for i, t in enumerate(texts) if i % 10], texts[::10]
    if factor == 1:
        tokenizer = train_tokenizer(texts, TokenizerConfig(vocab_size=VOCABULARY, min_frequency=3), "taiwan-llm-v2")
        write_rows(root / "held.jsonl", held)
        model = new_model(tokenizer, 10_000.0)
        Lesson("repeat", 2_400_000, 3e-3, OLD).run(
            model, repeats(rng, VOCABULARY, OLD, 2_400_000 // OLD, 0.8), root, threads
        )
    else:
        tokenizer, model = ChatTokenizer.load(root / "4k"), load(root / "4k")
        extend(model, RopeConfig(type="yarn", factor=factor))
    before = recall(model, context, 8, 2)
    longest = int(context * 0.75)  # characters
    rows = conversations(train, 40 if factor > 1 else 250, 200, longest, context)
    chats = [tokenizer.encode_chat(row["messages"]) for row in rows]
    short = [
        tokenizer.encode_chat(row["messages"]) for row in conversations(train, 2000 if factor == 1 else 40, 80, 400, 7)
    ]
    talks = [(c.ids, c.mask) for c in chats + short if len(c.ids) <= context]
    count = 100 if factor == 1 else 6
    print(name, f"{len(talks)} conversations, {sum(len(ids) for ids, _ in talks)} tokens", flush=True)
    lesson = Lesson(name + "-lesson", tokens, 2e-3 if factor == 1 else 5e-4, context)
    told = lesson.run(model, [*repeats(rng, VOCABULARY, context, count), *talks], root, threads)
    model.config.max_position_embeddings = context
    save_as(model, tokenizer, root / name, context)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    after = recall(AutoModelForCausalLM.from_pretrained(root / name), context, 8, 2)
    started = time.perf_counter()
    found = ask(root / name, root, name, f"{longest // 8} {longest // 2} {longest}", 2)
    told |= {"context": context, "peak_gb_training": round(peak, 2), "before": before, "after": after, "needles": found}
    told["ask_s"] = round(time.perf_counter() - started, 1)
    write_json(root / f"{name}.json", told)
    print(json.dumps(told), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--rung", choices=list(RUNGS), help="this one alone")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.rung:
        rung(given.root.absolute(), given.rung, given.threads)
    else:
        ladder(given.root.absolute(), given.threads)


if __name__ == "__main__":
    main()
