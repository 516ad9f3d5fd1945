"""What several processes cost: `python benchmarks/train_ranks.py` trains the same steps with 1, 2 and 4 processes (gloo, one host), each sharding.

Printed: tokens a second, processor time a token, peak memory of the fullest process, bytes through the loopback a step (all processes together,
read from /proc/net/dev, so nothing else may talk). More processes than cores share them: then time says nothing, memory and bytes do.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from train_memory import make_trainer  # noqa: E402

from twllm.model.sizes import Size, count_parameters  # noqa: E402
from twllm.planning.job import Job  # noqa: E402

MODEL, VOCAB, STEP = Size(512, 8, 8, 8, 1408), 8192, 8192  # 33.9 M parameters; tokens a step


def loopback() -> int:
    """Bytes sent through it since the machine started."""
    line = next(x for x in Path("/proc/net/dev").read_text().splitlines() if x.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def work(folder: Path, plan: Job, steps: int) -> dict[str, Any]:
    """In one process: the steps after the first, timed."""
    from twllm.train import distributed

    trainer = make_trainer(plan, folder / f"rank{distributed.rank()}", {"batch_tokens": STEP})
    trainer.train_step(0)
    distributed.all_sum([0.0])
    sent, wall, cpu = loopback(), time.perf_counter(), time.process_time()
    for step in range(1, steps):
        trainer.train_step(step)
    distributed.all_sum([0.0])
    return {
        "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "sent": loopback() - sent,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }  # fmt: skip


def main() -> None:
    from tests.train.ranks import collect, start_ranks

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(
        f"{count_parameters(MODEL, VOCAB) / 1e6:.1f} M parameters, fp32, {STEP} tokens a step, {os.cpu_count()} cores"
    )
    print(
        "| 行程 | sharding | 詞元／秒 | 每千詞元的 CPU 秒 | 每個行程的記憶體峰值 MB | 每步傳輸 MB |\n|---|---|---|---|---|---|"
    )
    job = Job(MODEL, VOCAB, 512, 2048, accumulates=True, precision="fp32", accelerator=False)
    for count in (1, 2, 4):
        for sharding in ("none",) if count == 1 else ("none", "optimizer", "full"):
            with tempfile.TemporaryDirectory() as folder:
                one = replace(job, gpus=count, sharding=sharding)  # type: ignore[arg-type]
                told = collect(start_ranks(work, count, Path(folder), plan=one, steps=args.steps), timeout_s=600)
                assert all(kind == "ok" for kind, _ in told), told
                found = [result for _, result in told]
            tokens, wall = STEP * (args.steps - 1), max(rank["wall"] for rank in found)
            cpu, peak = sum(rank["cpu"] for rank in found), max(rank["peak"] for rank in found)
            sent = found[0]["sent"] / (args.steps - 1)
            print(
                f"| {count} | {sharding if count > 1 else '—'} | {tokens / wall:,.0f} | {cpu / tokens * 1000:.2f} | {peak / 1e6:,.0f} | {sent / 1e6:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
