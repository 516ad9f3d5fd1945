"""Training speed: our loop against TRL's SFTTrainer — same model, texts, template, dtype, threads — on chats and on packed texts.

Each trainer is a process of its own; they take turns of a few optimizer steps, so that all meet the same neighbours, and a
round's ratio compares turns that lie seconds apart; the median round counts. Speed is real tokens (no padding; a chat's tokens
include its own copy of the system text, which our rows hold once) per second. Warm-up (and with it compiling, ours too) is not
counted but reported. TRL runs with the best of TRIALS (`--search` measures them all; BEST names the leading ones, the best of which counts).
Peak memory is compared at context 2,048 with a vocabulary of 128,000, where whole logits are a gigabyte.
Padding: our best-fit rows, first-fit rows of the same documents, and what TRL's trainer was given.

    python benchmarks/train_speed.py --peer-python OTHER/bin/python   # an environment with trl; default: this one
    python benchmarks/train_speed.py --growth                         # cost as model and context grow, docs/images/train-growth.png

LLaMA-Factory is compared on chats with --factory-python, axolotl on both with --axolotl-python.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
HERE = Path(__file__).resolve().parent
SOURCES = ("twllm:taiwan_instruction", "twllm:taiwan_facts")
_PLAIN: dict[str, Any] = {"gradient_checkpointing": False}


def _length(batch: int, **more: Any) -> dict[str, Any]:
    return {**_PLAIN, "per_device_train_batch_size": batch, "train_sampling_strategy": "group_by_length", **more}


def _packed(batch: int, accumulate: int, strategy: str = "bfd", **more: Any) -> dict[str, Any]:
    batches = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulate}
    return {**_PLAIN, "packing": True, "packing_strategy": strategy, **batches, **more}


TRIALS: dict[str, dict[str, dict[str, Any]]] = {
    "sft": {
        "default": {},
        "by length, 16": _length(16, gradient_accumulation_steps=4), "by length, 32": _length(32, gradient_accumulation_steps=2),
        "by length, 64": _length(64), "by length, 128": _length(128), "by length, 64, compiled": _length(64, torch_compile=True),
        "packed, 1": _packed(1, 8), "packed, 2": _packed(2, 4), "packed, 8": _packed(8, 1),
        "packed, 1, compiled": _packed(1, 8, torch_compile=True), "padding free, 32": {**_PLAIN, "per_device_train_batch_size": 32, "padding_free": True},
        "wrapped, 1": _packed(1, 8, "wrapped"), "wrapped, 1, Liger": _packed(1, 8, "wrapped", use_liger_kernel=True),
        "wrapped, 1, compiled": _packed(1, 8, "wrapped", torch_compile=True),
        "wrapped, 8": _packed(8, 1, "wrapped"), "wrapped, 8, compiled": _packed(8, 1, "wrapped", torch_compile=True),
    },
    "text": {
        "default": {},
        "packed, 1": _packed(1, 6), "packed, 2": _packed(2, 3), "packed, 6": _packed(6, 1), "packed, 1, compiled": _packed(1, 6, torch_compile=True),
        "wrapped, 1": _packed(1, 6, "wrapped"), "wrapped, 2": _packed(2, 3, "wrapped"), "wrapped, 6": _packed(6, 1, "wrapped"),
        "wrapped, 1, compiled": _packed(1, 6, "wrapped", torch_compile=True), "wrapped, 6, compiled": _packed(6, 1, "wrapped", torch_compile=True),
    },
}  # fmt: skip
BEST = {  # the fastest of TRIALS (--search, dev/LOG.md): close to each other, so a run measures these and counts the best
    "sft": ["by length, 128", "wrapped, 1", "wrapped, 1, compiled"],
    "text": ["packed, 1", "wrapped, 1", "wrapped, 6", "wrapped, 1, compiled"],
}
LARGE = ("default", "by length, 128")  # take turns with ours alone: 12 GB
OTHERS = {  # the best of what was tried (dev/LOG.md): LLaMA-Factory by length, axolotl in packed rows
    "llamafactory": {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4, "train_sampling_strategy": "group_by_length"},
    "axolotl": {"micro_batch_size": 1, "gradient_accumulation_steps": 6, "sample_packing": True, "torch_compile": True},
}  # fmt: skip
MODEL = {"D": 256, "L": 6, "H": 4, "K": 4, "F": 704}  # 6.9 M parameters with 8,000 pieces


class Worker:
    """A trainer in a process; `turn` lets it train, `close` ends it."""

    def __init__(self, python: str, script: str, job: dict[str, Any], folder: Path, name: str) -> None:
        file, self.log = folder / f"{name}.json", folder / f"{name}.err"
        file.write_text(json.dumps(job), encoding="utf-8")
        self.name, self.error = name, self.log.open("w")
        self.process = subprocess.Popen(
            [python, str(HERE / script), str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.error, text=True
        )  # fmt: skip
        self.facts = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict):
                    return found
        raise RuntimeError(f"{self.name} ended: {self.log.read_text(errors='replace')[-800:]}")

    def ask(self, order: str | int) -> dict[str, Any]:
        """Give an order, wait for the answer."""
        assert self.process.stdin
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        return self._answer()

    def turn(self, steps: int) -> dict[str, Any]:
        """Train `steps` optimizer steps."""
        found = self.ask(steps)
        return {**found, "tok_s": found["tokens"] / found["seconds"]}

    def close(self) -> None:
        """Let the process end."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
        self.error.close()


@contextlib.contextmanager
def workers(jobs: dict[str, tuple[str, str, dict[str, Any]]], folder: Path) -> Iterator[dict[str, Worker]]:
    """The named workers, started one after the other."""
    started: dict[str, Worker] = {}
    try:
        for name, (python, script, job) in jobs.items():
            started[name] = Worker(python, script, job, folder, name)
        yield started
    finally:
        for worker in started.values():
            worker.close()


def make_tokenizer(vocab_size: int) -> Any:
    """Trained on the conversations."""
    from twllm.tokens.config import TokenizerConfig
    from twllm.tokens.train import train_tokenizer

    texts = [message["content"] for row in conversations() for message in row["messages"]]
    config = TokenizerConfig(vocab_size=vocab_size, min_frequency=1, max_piece_chars=6)
    return train_tokenizer(texts, config, "taiwan-llm-v2")


def make_checkpoint(folder: Path, vocab_size: int, context: int, model: dict[str, int], rows: int = 0) -> None:
    """A random Llama and a tokenizer trained on the conversations; `rows` of embedding where more than the tokenizer has."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from twllm.model.build import save
    from twllm.model.sizes import Size

    tokenizer = make_tokenizer(vocab_size)
    torch.manual_seed(0)
    llama = LlamaConfig(
        **Size(**model, tied=True).llama(rows or tokenizer.vocab_size, context), bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id, pad_token_id=None,
    )  # fmt: skip
    save(LlamaForCausalLM(llama), tokenizer, folder)


def conversations(limit: int = 4000) -> list[dict[str, Any]]:
    """The shipped conversations, mixed by a fixed seed."""
    import random

    from twllm.tokens.conversation import read_conversations

    rows = [{"messages": list(row.messages)} for source in SOURCES for row in read_conversations(source)]
    random.Random(0).shuffle(rows)
    return rows[:limit]


def texts() -> list[dict[str, Any]]:
    """The shipped paragraphs."""
    from twllm import data
    from twllm.tokens.rows import list_files, read_rows

    found = [{"text": row["text"]} for file in list_files("twllm:knowledge") for _, row in read_rows(file)]
    assert found, data
    return found


def write_rows(folder: Path) -> dict[str, str]:
    """Both data sets as JSON lines."""
    found = {}
    for kind, rows in (("sft", conversations()), ("text", texts())):
        found[kind] = str(folder / f"{kind}.jsonl")
        Path(found[kind]).write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
    return found


def jobs_for(kind: str, settings: dict[str, dict[str, Any]], base: dict[str, Any], peer: str) -> dict[str, Any]:
    """Ours, and TRL with each of `settings`."""
    jobs: dict[str, Any] = {"ours": (sys.executable, "train_worker.py", base)}
    for name, more in settings.items():
        jobs[name] = (peer, "train_peers.py", {**base, "settings": more})
    return jobs


def add_others(jobs: dict[str, Any], kind: str, base: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """LLaMA-Factory (chats only) and axolotl beside TRL where their environments are given."""
    pythons = {"llamafactory": args.factory_python if kind == "sft" else "", "axolotl": args.axolotl_python}
    for peer, python in pythons.items():
        if python:
            jobs[peer] = (python, "train_peers.py", {**base, "peer": peer, "settings": OTHERS[peer]})
    return jobs


def compare(jobs: dict[str, Any], folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Alternating rounds; medians of speeds, of ours ÷ each other, of our share of the matrix peak."""
    with workers(jobs, folder) as running:
        start = time.perf_counter()
        running["ours"].turn(args.warmup)
        warm = time.perf_counter() - start
        for name, worker in running.items():
            worker.turn(args.warmup) if name != "ours" else None
        rounds: list[dict[str, dict[str, Any]]] = []
        shares = []
        for number in range(args.rounds):
            order = list(running) if number % 2 == 0 else list(running)[::-1]
            peak = running["ours"].ask("peak")["peak_flop_s"]
            rounds.append({name: running[name].turn(args.steps) for name in order})
            ours = rounds[-1]["ours"]
            shares.append(ours["flops"] / ours["seconds"] / max(peak, running["ours"].ask("peak")["peak_flop_s"]))
            print(
                f"round {number + 1}: " + "  ".join(f"{n} {rounds[-1][n]['tok_s']:,.0f}" for n in running), flush=True
            )
        facts = running["ours"].facts

    def middle(name: str, value: str) -> float:
        return statistics.median(one[name][value] for one in rounds)

    peers = [name for name in jobs if name != "ours"]
    return {
        "tok_s": {name: round(middle(name, "tok_s")) for name in jobs},
        "ratio": {n: round(statistics.median(r["ours"]["tok_s"] / r[n]["tok_s"] for r in rounds), 3) for n in peers},
        "ratio_cpu": {n: round(statistics.median(_by_cpu(r["ours"]) / _by_cpu(r[n]) for r in rounds), 3) for n in peers},
        "share": round(statistics.median(shares), 3),
        "flop_s": statistics.median(r["ours"]["flops"] / r["ours"]["seconds"] for r in rounds),
        "padding": {n: round(1 - sum(r[n]["tokens"] for r in rounds) / sum(r[n]["places"] for r in rounds), 4) for n in peers}
        | {"ours": round(facts["padding_share"], 4), "first_fit": round(first_fit_waste(facts["lengths"], facts["prefix"], args.context), 4)},
        "peak_bytes": {name: rounds[-1][name]["peak_bytes"] for name in jobs},
        "warmup_s": round(warm, 1),
        "prefix": facts["prefix"],
        "precision": facts["machine"]["precision"],
    }  # fmt: skip


def _by_cpu(turn: dict[str, Any]) -> float:
    """Tokens a second of processor time: what a busy machine hardly moves. Meaningful with one thread (two wait spinning)."""
    return float(turn["tokens"] / turn["cpu_s"])


def first_fit_waste(lengths: list[int], prefix: int, context: int) -> float:
    """Padding share of first-fit rows in the order given; documents longer than a row are cut, as best-fit does."""
    room: list[int] = []
    total = 0
    for length in lengths:
        rest = length - prefix
        while rest > 0:
            piece = min(rest, context - prefix)
            rest, total = rest - piece, total + piece
            at = next((i for i, free in enumerate(room) if free >= piece), None)
            if at is None:
                room.append(context - prefix - piece)
            else:
                room[at] -= piece
    return 1 - (total + prefix * len(room)) / (context * len(room))


def peak_memory(folder: Path, rows: dict[str, str], base: dict[str, Any], args: argparse.Namespace) -> dict[str, int]:
    """Peak resident bytes of ours and TRL's best packed setting at context 2,048, 128,000 pieces, two rows a step."""
    checkpoint = folder / "wide"
    make_checkpoint(checkpoint, args.vocab_size, 2048, {**MODEL, "L": 2}, rows=128_000)
    job = {
        **base,
        "checkpoint": str(checkpoint),
        "rows": rows["text"],
        "context": 2048,
        "batch_tokens": 2048,
        "compile": "off",
    }
    found = {}
    for name, one in jobs_for("text", {"trl": _packed(1, 1)}, job, args.peer_python).items():
        with workers({name: one}, folder) as running:
            found[name] = int(running[name].turn(2)["peak_bytes"])
            print(f"peak memory {name}: {found[name] / 1e9:.2f} GB", flush=True)
    return found


def search(folder: Path, rows: dict[str, str], base: dict[str, Any], args: argparse.Namespace) -> None:
    """Each of TRL's settings next to ours, a few turns each, four settings at a time."""
    for kind in ("sft", "text"):
        names = list(TRIALS[kind])
        for group in (names[i : i + 4] for i in range(0, len(names), 4)):
            jobs = jobs_for(kind, {n: TRIALS[kind][n] for n in group}, {**base, "rows": rows[kind]}, args.peer_python)
            found = compare(jobs, folder, args)
            for name in group:
                print(
                    f"{kind:5} {name:26} {found['tok_s'][name]:6,} tokens/s, ours ÷ this {found['ratio'][name]} (by CPU time {found['ratio_cpu'][name]})",
                    flush=True,
                )


def on_gpu(args: argparse.Namespace) -> dict[str, Any]:
    """train_gpu.py's keys, None where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        return dict.fromkeys(("mfu", "ratio_trl_liger", "peak_ratio_trl_liger"))
    from train_gpu import parser, run

    return run(parser().parse_args(["--peer-python", args.peer_python]))


def main() -> None:
    """Measure and print; the last line is `RESULT {json}`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps a turn")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=3072)
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--peer-python", default=os.environ.get("TWLLM_PEER_PYTHON", sys.executable), help="has trl")
    parser.add_argument("--factory-python", default="", help="has llamafactory; left out without")
    parser.add_argument("--axolotl-python", default="", help="has axolotl; left out without")
    parser.add_argument("--search", action="store_true", help="try every TRL setting and stop")
    parser.add_argument("--growth", action="store_true", help="our cost as model and context grow, and stop")
    args = parser.parse_args()
    from twllm.train.machine import cpu_multiplies_bf16

    precision = ("bf16" if cpu_multiplies_bf16() else "fp32") if args.precision == "auto" else args.precision
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write_rows(folder)
        base = {
            "context": args.context, "lr": args.lr, "threads": args.threads, "precision": precision, "batch_tokens": args.batch_tokens,
            "checkpoint": str(folder / "model"),
        }  # fmt: skip
        if args.growth:
            from train_growth import growth

            growth(folder, rows, base, args)
            return
        make_checkpoint(folder / "model", args.vocab_size, args.context, MODEL)
        if args.search:
            search(folder, rows, base, args)
            return
        found = {}
        for kind, best in BEST.items():
            job = {**base, "rows": rows[kind]}
            small = jobs_for(kind, {n: TRIALS[kind][n] for n in best if n not in LARGE}, job, args.peer_python)
            found[kind] = compare(add_others(small, kind, job, args), folder, args)
            if kind == "sft":
                large = compare(
                    jobs_for(kind, {n: TRIALS[kind][n] for n in LARGE}, job, args.peer_python), folder, args
                )
                for key, value in found[kind].items():
                    if isinstance(value, dict):
                        value |= {name: one for name, one in large[key].items() if name in LARGE}
        memory = peak_memory(folder, rows, base, args)
    sft, text = found["sft"], found["text"]
    result = {
        **{f"ratio_trl_best_{name}": min(one["ratio"][n] for n in BEST[kind]) for name, kind, one in (("sft", "sft", sft), ("packed", "text", text))},
        "ratio_llamafactory_sft": sft["ratio"].get("llamafactory"),
        "ratio_axolotl_sft": sft["ratio"].get("axolotl"), "ratio_axolotl_packed": text["ratio"].get("axolotl"),
        "ratio_trl_default_sft": sft["ratio"]["default"],
        "ratio_cpu_time": {"sft": sft["ratio_cpu"], "packed": text["ratio_cpu"]},
        "sft_tok_s": sft["tok_s"], "packed_tok_s": text["tok_s"],
        "matmul_peak_share": sft["share"], "matmul_peak_share_packed": text["share"], **on_gpu(args),
        "padding_share_sft": sft["padding"], "padding_share_packed": text["padding"],
        "peak_bytes": {"sft": sft["peak_bytes"], "packed": text["peak_bytes"], "128k vocabulary": memory},
        "peak_ratio_trl_128k": round(memory["trl"] / memory["ours"], 2),
        "warmup_s": sft["warmup_s"], "precision": precision, "shared_prefix_tokens": sft["prefix"], "threads": args.threads,
        "trl_best": BEST, "rounds": args.rounds,
    }  # fmt: skip
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
