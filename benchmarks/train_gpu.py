"""Training speed on a GPU: our loop against TRL's SFTTrainer with Liger kernels, 1 B and 7 B Llama shapes, 4k context, packed rows.

    pip install trl liger-kernel flash-attn peft      # in an environment of its own
    python benchmarks/train_gpu.py --peer-python OTHER/bin/python
    python benchmarks/train_gpu.py --peer-python OTHER/bin/python --models 1b --rounds 1      # a first look, some minutes
    python benchmarks/train_gpu.py --device cpu --layers 2 --context 256 --steps 1 …          # the same path, without any kernel

Random weights, a vocabulary of 32,000, fp32 weights and moments with bf16 products on both sides; where that does not fit on the card
by the planner (16 bytes a parameter and what a step adds), LoRA of rank 16 on frozen bf16 weights, on both sides. The processes take
turns, one at a time, since a card has no room for two; each turn is a fresh process: warm-up (and compiling) is not counted. A step is one
micro-batch of as many whole rows as the planner says; who runs out of memory gets half of them, and the table says so.
Modes: kept (all activations), selective (ours only), recomputed (gradient checkpointing). The best mode of each counts, and the same
mode side by side. MFU: model FLOPs (6 a weight, causal attention within documents; nothing computed again, no padding) by the maker's peak.
"""

import argparse
import contextlib
import json
import math
import os
import random
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_speed import Worker, make_tokenizer, texts

from twllm.model.sizes import SIZES, Size
from twllm.planning.job import Adapter, Job
from twllm.planning.memory import step_memory
from twllm.planning.search import HEADROOM
from twllm.train.gpus import GIB, recognise

RANK = 16
MOST_ROWS = 8  # of a micro-batch; more no longer fill a card better
MODES: dict[str, Any] = {"kept": "none", "selective": "selective", "recomputed": "full"}  # → our `checkpointing`


@dataclass
class Runner:
    """One trainer in one mode, and how many rows it got through with; 0: not even one fits."""

    name: str
    script: str
    python: str
    job: dict[str, Any]
    rows: int

    def turn(self, folder: Path, args: argparse.Namespace) -> dict[str, Any] | None:
        """Warm up and measure in a fresh process, with half the rows after each time that memory runs out."""
        while self.rows:
            context = self.job["context"]
            job = {**self.job, "batch_tokens": self.rows * context, "micro_batch_tokens": self.rows * context}
            if "settings" in job:
                job["settings"] = {**job["settings"], "per_device_train_batch_size": self.rows}
            worker: Worker | None = None
            try:
                worker = Worker(self.python, self.script, job, folder, self.name.replace(" ", "-"))
                peak = worker.ask("peak")["peak_flop_s"] if self.script == "train_worker.py" else None
                worker.turn(args.warmup)
                found = worker.turn(args.steps)
                return {**found, "matmul": peak, "facts": {**worker.facts, "lengths": None}}
            except (RuntimeError, BrokenPipeError) as error:
                log = (folder / f"{self.name.replace(' ', '-')}.err").read_text(errors="replace")
                if "OutOfMemoryError" not in log:
                    raise RuntimeError(f"{self.name}: {log[-2000:]}") from error
                print(f"{self.name}: {self.rows} rows do not fit", flush=True)
                self.rows //= 2
            finally:
                if worker:
                    with contextlib.suppress(OSError):  # of a process that is gone
                        worker.close()
        return None


def make_shape(folder: Path, size: Size, vocab: int, context: int) -> None:
    """Config and tokenizer; the weights are made where they are used. The embedding has rows that the tokenizer does not."""
    from transformers import LlamaConfig

    tokenizer = make_tokenizer(min(vocab, 8000))
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": None}
    LlamaConfig(**size.llama(vocab, context), **ids, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    tokenizer.save(folder)


def write_documents(file: Path, characters: int, longest: int) -> None:
    """Documents of 100 characters to `longest`, each as likely as one of twice the length: shipped paragraphs joined, drawn by a fixed seed."""
    paragraphs, draw, written = [row["text"] for row in texts()], random.Random(0), 0
    with file.open("w", encoding="utf-8") as out:
        while written < characters:
            wanted = math.exp(draw.uniform(math.log(100), math.log(longest)))
            text = ""
            while len(text) < wanted:
                text += draw.choice(paragraphs)
            out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            written += len(text)


def planned_rows(size: Size, args: argparse.Namespace, memory_gib: float, mode: str, adapter: Adapter | None) -> int:
    """Rows of a micro-batch that fit by the planner, a power of two; 0: none."""
    fit = 0
    for rows in (1, 2, 4, MOST_ROWS):
        job = Job(
            size, args.vocab, args.context, rows * args.context, accumulates=False, checkpointing=MODES[mode], adapter=adapter,
            precision=args.precision,
        )  # fmt: skip
        fit = rows if step_memory(job).total <= HEADROOM * memory_gib * GIB else fit
    return fit


def runners(
    name: str, size: Size, folder: Path, args: argparse.Namespace, memory_gib: float
) -> tuple[bool, list[Runner]]:
    """Ours and TRL in each mode; whether all weights are trained."""
    full = not args.lora and any(planned_rows(size, args, memory_gib, mode, None) for mode in MODES)
    adapter = None if full else Adapter(RANK)
    base = {
        "context": args.context, "lr": 1e-5, "threads": args.threads, "precision": args.precision, "checkpoint": str(folder / name), "rows": str(folder / "rows.jsonl"),
        "device": args.device, "random": True, "rank": 0 if full else RANK, "compile": args.compile,
    }  # fmt: skip
    gpu = args.device == "cuda"
    trl = {
        "packing": True,
        "packing_strategy": "bfd",
        "use_liger_kernel": gpu,
        "dataloader_num_workers": 2 if gpu else 0,
    }
    found = []
    for mode, checkpointing in MODES.items():
        if mode == "selective" and not full:
            continue  # adapters leave transformers' layers, which cannot be recomputed in part
        rows = planned_rows(size, args, memory_gib, mode, adapter) if gpu else 1
        found.append(
            Runner(f"ours {mode}", "train_worker.py", sys.executable, {**base, "checkpointing": checkpointing}, rows)
        )
        if mode != "selective" and not args.alone:
            settings = {**trl, "gradient_checkpointing": mode == "recomputed"}
            found.append(
                Runner(f"trl {mode}", "train_peers.py", args.peer_python, {**base, "settings": settings}, rows)
            )
    return full, found


def measure(name: str, size: Size, folder: Path, args: argparse.Namespace, card: Any) -> dict[str, Any]:
    """All modes of both, in turns; medians."""
    make_shape(folder / name, size, args.vocab, args.context)
    full, group = runners(name, size, folder, args, card["memory_gib"])
    turns: dict[str, list[dict[str, Any]]] = {runner.name: [] for runner in group}
    for number in range(args.rounds):
        for runner in group if number % 2 == 0 else group[::-1]:
            found = runner.turn(folder, args)
            if found:
                turns[runner.name].append(found)
                print(
                    f"{name} round {number + 1} {runner.name:16} {found['tok_s']:9,.0f} tokens/s  peak {found['peak_bytes'] / GIB:6.1f} GiB  "
                    f"{runner.rows} rows  loss {found['losses'][-1]:.3f}", flush=True,
                )  # fmt: skip
    return summary(full, group, turns, card)


def summary(full: bool, group: list[Runner], turns: dict[str, list[dict[str, Any]]], card: Any) -> dict[str, Any]:
    """Speeds, MFU, memory; ours ÷ TRL's best and, in the same mode, its memory ÷ ours."""
    rows = {}
    peak = card["peak_tflops"] or max((t["matmul"] or 0 for found in turns.values() for t in found), default=0.0) / 1e12
    cost = [t["model_flops"] / t["tokens"] for name, found in turns.items() if name.startswith("ours") for t in found]
    for runner in group:
        found = turns[runner.name]
        if not found:
            rows[runner.name] = None
            continue
        speed = statistics.median(t["tok_s"] for t in found)
        rows[runner.name] = {
            "tok_s": round(speed), "mfu": round(speed * statistics.median(cost) / peak / 1e12, 4), "rows": runner.rows,
            "peak_gib": round(max(t["peak_bytes"] for t in found) / GIB, 2),
            "padding": round(1 - sum(t["tokens"] for t in found) / sum(t["places"] for t in found), 4), "loss": round(found[-1]["losses"][-1], 3),
        }  # fmt: skip
    ours, trl = ([r for n, r in rows.items() if r and n.startswith(who)] for who in ("ours", "trl"))
    both = [(rows[f"ours {m}"], rows.get(f"trl {m}")) for m in MODES if f"ours {m}" in rows]
    pairs = [(a, b) for a, b in both if a and b and a["rows"] == b["rows"]]
    facts = [t["facts"] for name, found in turns.items() if name.startswith("trl") for t in found]
    best = max((r["tok_s"] for r in ours), default=0)
    return {
        "trained": "all weights" if full else f"LoRA, rank {RANK}", "runs": rows, "mfu": max((r["mfu"] for r in ours), default=None),
        "ratio_trl": round(best / max(r["tok_s"] for r in trl), 3) if trl and best else None,
        "ratio_same_mode": [round(a["tok_s"] / b["tok_s"], 3) for a, b in pairs],
        "peak_ratio_trl": round(statistics.median(b["peak_gib"] / a["peak_gib"] for a, b in pairs), 3) if pairs else None,
        "peak_tflops": round(peak, 2), "matmul_tflops": round(max((t["matmul"] or 0 for f in turns.values() for t in f), default=0) / 1e12, 2),
        "attention": sorted({t["facts"]["machine"]["attention"] for n, f in turns.items() if n.startswith("ours") for t in f}),
        "trl": facts[-1] if facts else None,
    }  # fmt: skip


def find_card(args: argparse.Namespace) -> dict[str, Any]:
    """Name, memory and the maker's peak of what is measured on.

    Raises:
        SystemExit: there is no GPU, and nobody asked for the CPU.
    """
    import torch

    if args.device == "cpu":
        return {"name": "cpu", "memory_gib": 1e9, "peak_tflops": None}
    if not torch.cuda.is_available():
        sys.exit(
            "沒有可用的 GPU：這支程式量的是 GPU（no CUDA device）。只想看它跑得通，加上 --device cpu --layers 2 --context 256 --vocab 2000 --steps 1"
        )
    name = torch.cuda.get_device_name()
    known = recognise(name)
    free = torch.cuda.mem_get_info()[1] / GIB
    return {"name": name, "memory_gib": free, "peak_tflops": known.peak_tflops if known else None}


def sizes(args: argparse.Namespace) -> dict[str, Size]:
    """The named sizes, or one small shape where layers are given."""
    if args.layers:
        return {"small": Size(64, args.layers, 4, 2, 176)}
    return {name: SIZES[name] for name in args.models}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure each size; RESULT's keys, by size."""
    card = find_card(args)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_documents(folder / "rows.jsonl", args.characters, args.context)  # a character is at most a token here
        for size, shape in sizes(args).items():
            found[size] = measure(size, shape, folder, args, card)
    liger = args.device == "cuda"  # its kernels are Triton's
    keys = {"mfu": "mfu"} | {f"{key}_liger" if liger else key: key for key in ("ratio_trl", "peak_ratio_trl")}
    told = {name: {size: one[key] for size, one in found.items()} for name, key in keys.items()}
    return {**told, "card": card["name"], "sizes": found}


def parser() -> argparse.ArgumentParser:
    """The settings, each with its default."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--models", nargs="+", choices=sorted(SIZES), default=["1b", "7b"])
    found.add_argument(
        "--peer-python", default=os.environ.get("TWLLM_PEER_PYTHON", sys.executable), help="has trl and liger-kernel"
    )
    found.add_argument("--alone", action="store_true", help="without TRL: MFU and memory only")
    found.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    found.add_argument("--layers", type=int, default=0, help="a small shape of so many layers, instead of --models")
    found.add_argument("--lora", action="store_true", help="adapters even where all weights could be trained")
    found.add_argument("--context", type=int, default=4096)
    found.add_argument("--vocab", type=int, default=32_000)
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--warmup", type=int, default=4, help="optimizer steps before each turn")
    found.add_argument("--steps", type=int, default=8, help="optimizer steps of a turn")
    found.add_argument(
        "--characters", type=int, default=2_000_000, help="of text; drawn again and again if steps need more"
    )
    found.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    found.add_argument("--compile", choices=["on", "off"], default="on", help="ours")
    found.add_argument("--threads", type=int, default=1, help="CPU only")
    return found


def main() -> None:
    """Measure and print; the last line is `RESULT {json}`."""
    print("RESULT " + json.dumps(run(parser().parse_args())))


if __name__ == "__main__":
    main()
