"""Engines on the same random Llama: tokens/s of 1 and of 16 streams, and the share of the machine's memory bandwidth that 1 stream uses.

Every engine answers through `submit`, as the server does: prompts of 64 ids, 64 ids each, greedy. A stream's speed is that
between first and last id (reading the prompts is told apart as time to the first id). Beside them transformers, in the same
run: `generate` and its continuous batching. Rounds alternate between the engines; the best round counts, because other work
on the machine only slows. Bandwidth is measured by summing a gigabyte.

    python benchmarks/engine_speed.py                                    # torch and every CPU engine installed, 87 M and 1 B
    python benchmarks/engine_speed.py --sizes 87m --engines torch,openvino --rounds 5 --json out.json
"""

import argparse
import json
import os
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")
SIZES: dict[str, dict[str, int]] = {
    "3m": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 352},
    "87m": {"hidden_size": 768, "num_hidden_layers": 10, "num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": 2048},
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192},
}  # fmt: skip
VOCAB = 32_000
PROMPT, TOKENS = 64, 64
ROWS: dict[str, dict[str, Any]] = {  # engine → options of `open_engine`
    "torch": {},
    "openvino": {},
    "llamacpp": {},
}


def make_model(folder: Path, size: str, context: int = 2048) -> int:
    """A random Llama in bf16 with a byte-level tokenizer of VOCAB ids; returns the bytes of its weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    from twllm.tokens.tokenizer import ChatTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{a}{b}{c}" for a in alphabet for b in alphabet[:64] for c in alphabet[:2])]
    backend = Tokenizer(models.BPE(vocab={piece: n for n, piece in enumerate(pieces[: VOCAB - 2])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = ChatTokenizer(backend).with_template("taiwan-llm-v2")
    tokenizer.save(folder)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        config = LlamaConfig(
            **SIZES[size], vocab_size=VOCAB, max_position_embeddings=context, tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    return sum(p.numel() * p.element_size() for p in model.parameters())


def bandwidth() -> float:
    """Bytes per second at which memory is read."""
    import torch

    block = torch.ones(1 << 28)
    best = min(_timed(block.sum) for _ in range(5))
    return block.numel() * 4 / best


def _timed(run: Any) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def prompts(count: int, seed: int) -> list[list[int]]:
    """Ids that begin differently, so that nothing is shared."""
    import numpy as np

    return np.random.default_rng(seed).integers(10, VOCAB - 10, size=(count, PROMPT)).tolist()


def measure(engine: Any, streams: int, seed: int) -> tuple[float, float]:
    """(tokens/s of all streams between the last first id and the first end, seconds to the last first id)."""
    from twllm.serve.engines.interface import Sampling, TokenEvent

    times: list[list[float]] = [[] for _ in range(streams)]
    left = threading.Semaphore(0)

    def reader(number: int) -> Any:
        def hear(event: Any) -> None:
            if isinstance(event, TokenEvent):
                times[number].append(time.perf_counter())
            else:
                left.release()

        return hear

    start = time.perf_counter()
    sampling = Sampling(max_tokens=TOKENS, ignore_eos=True)
    for number, ids in enumerate(prompts(streams, seed)):
        engine.submit(ids, sampling, reader(number))
    for _ in range(streams):
        left.acquire()
    assert all(len(row) == TOKENS for row in times)
    begin, end = max(row[0] for row in times), min(row[-1] for row in times)
    said = sum(sum(begin < at <= end for at in row) for row in times)
    return said / (end - begin), begin - start


class Transformers:
    """transformers' own two ways, measured as a whole with the prompts read once more alone."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def generate(self, streams: int, seed: int) -> float:
        """tokens/s of `generate`, all prompts equally long."""
        import torch

        ids = torch.tensor(prompts(streams, seed))
        settings = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        first = _timed(lambda: self.model.generate(ids, max_new_tokens=1, **settings))
        whole = _timed(lambda: self.model.generate(ids, max_new_tokens=TOKENS, **settings))
        return streams * (TOKENS - 1) / (whole - first)

    def continuous(self, streams: int, seed: int) -> float:
        """tokens/s of what `transformers serve --continuous-batching` uses, reading included."""
        from transformers import GenerationConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        settings = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0)
        memory = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=1024)
        found: Any = {}

        def run() -> None:
            found.update(
                self.model.generate_batch(
                    prompts(streams, seed), generation_config=settings, continuous_batching_config=memory
                )
            )

        seconds = _timed(run)
        assert len(found) == streams
        return sum(len(output.generated_tokens) for output in found.values()) / seconds


def run(size: str, engines: list[str], rounds: int, threads: int, peers: bool) -> dict[str, Any]:
    """All rows of one size: the best of the rounds."""
    import torch

    from twllm.errors import UserError
    from twllm.serve.engines import open_engine

    torch.set_num_threads(threads)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        weights = make_model(Path(scratch), size)
        opened = {}
        for kind in engines:
            try:
                opened[kind] = open_engine(kind, scratch, threads=threads, options=ROWS.get(kind))
            except UserError as error:
                print(f"{kind}: {error}")
        theirs = Transformers(Path(scratch)) if peers else None
        rate = 0.0
        for turn in range(rounds):
            rate = max(rate, bandwidth())
            for streams in (1, 16):
                for kind, engine in opened.items():
                    speed, first = measure(engine, streams, 100 * turn + streams)
                    _keep(found, kind, f"tokens_s_{streams}", speed)
                    _keep(found, kind, f"first_s_{streams}", -first)
                if theirs is not None:
                    _keep(found, "transformers generate", f"tokens_s_{streams}", theirs.generate(streams, turn))
                    _keep(found, "transformers continuous", f"tokens_s_{streams}", theirs.continuous(streams, turn))
        for engine in opened.values():
            engine.close()
    for row in found.values():
        row["bandwidth_share_b1"] = row["tokens_s_1"] * weights / rate
    return {"weights_gb": weights / 1e9, "bandwidth_gb_s": rate / 1e9, "rows": found}


def _keep(found: dict[str, dict[str, float]], kind: str, key: str, value: float) -> None:
    row = found.setdefault(kind, {})
    row[key] = max(row.get(key, -1e9), value)


def main() -> None:
    """Read the options, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="87m,1b")
    parser.add_argument("--engines", default=",".join(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-peers", action="store_true", help="without transformers")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results = {}
    for size in given.sizes.split(","):
        result = run(size, given.engines.split(","), given.rounds, given.threads, not given.no_peers)
        results[size] = result
        print(f"\n{size}: {result['weights_gb']:.2f} GB of weights, memory {result['bandwidth_gb_s']:.1f} GB/s")
        print(f"{'':26}{'1 stream':>12}{'16 streams':>12}{'bandwidth':>12}{'first id, 16':>14}")
        for kind, row in result["rows"].items():
            first = f"{-row['first_s_16']:>12.2f} s" if "first_s_16" in row else ""
            share = f"{row['bandwidth_share_b1']:.0%}"
            print(f"{kind:26}{row['tokens_s_1']:>8.0f} t/s{row['tokens_s_16']:>8.0f} t/s{share:>12}{first}")
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
