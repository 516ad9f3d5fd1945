"""What several processes cost: `python benchmarks/train_ranks.py` trains the same steps with 1, 2 and 4 processes (gloo, one host), each layout.

Printed: processor seconds a token (all processes together; not time, since 4 processes share what cores there are), and bytes sent a
step by all processes together, against what the collectives of the layout must move (`expected`). Bytes are those that a process
writes, from /proc/self/io: nothing else may be written while it is timed, and nothing is. Linux only.
"""

import argparse
import os
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

MODEL, VOCAB, CONTEXT, STEP, MICROS = (
    Size(256, 4, 4, 2, 704),
    4096,
    512,
    4096,
    2,
)  # 5 M parameters; tokens and micro-batches a step
LAYOUTS: dict[str, dict[str, Any]] = {
    "none (DDP)": {},
    "optimizer (ZeRO-2)": {"sharding": "optimizer"},
    "full (ZeRO-3)": {"sharding": "full"},
    "tensor_parallel 2": {"tensor": 2},
    "context_parallel 2": {"cut": 2},
    "tensor_parallel 2 × full": {"tensor": 2, "sharding": "full"},
    "context_parallel 2 × full": {"cut": 2, "sharding": "full"},
    "context_parallel 4": {"cut": 4},
    "full, shard_ranks 2": {"sharding": "full", "shard_ranks": 2},
}
OF = {
    1: ["none (DDP)"],
    2: list(LAYOUTS)[:5],
    4: [*list(LAYOUTS)[:3], *list(LAYOUTS)[5:]],
}


def expected(job: Job, scatter: int) -> float:
    """Bytes sent a step by all processes, fp32. A gather of S bytes sends (n - 1) S among n processes, an all-reduce twice that, a
    reduce-scatter `scatter` times: once with NCCL; gloo makes it out of an all-reduce.
    """
    size = job.size
    groups = job.gpus // job.tensor
    ends = (
        2 * job.vocab * size.D + size.D
    )  # embedding, head and last norm: gathered once a micro-batch however it is sharded
    whole = count_parameters(size, job.vocab)
    own = ends + (whole - ends) / job.tensor
    shards, copies = job.shards, groups // job.shards
    total = 0.0
    if job.sharding != "none":
        gathered = ends + (own - ends) * (2 if job.sharding == "full" else 1)
        total += MICROS * (shards - 1) * (gathered + scatter * own) * copies * job.tensor
        total += 2 * (copies - 1) * own * job.tensor * MICROS
    else:
        total += 2 * (groups - 1) * own * job.tensor
    if job.tensor > 1:  # hidden states: after the attention and the feed-forward, and their gradients before both
        total += size.L * 4 * 2 * (job.tensor - 1) * STEP * size.D
    if job.cut > 1:  # keys and values of a row's tokens, and their gradients
        total += size.L * (1 + scatter) * (job.cut - 1) * STEP * 2 * size.D * size.K / size.H
    return 4 * total


def written() -> int:
    """Bytes that this process wrote since it began, sockets included."""
    return int(Path("/proc/self/io").read_text().split("wchar:")[1].split()[0])


def work(folder: Path, plan: Job, steps: int) -> dict[str, float]:
    """In one process: the steps after the first, timed."""
    from twllm.train import distributed

    trainer = make_trainer(plan, folder / f"rank{distributed.rank()}", {"batch_tokens": STEP})
    trainer.train_step(0)
    distributed.all_sum([0.0])
    sent, cpu = written(), time.process_time()
    for step in range(1, steps + 1):
        trainer.train_step(step)
    distributed.all_sum([0.0])
    return {"cpu": time.process_time() - cpu, "sent": written() - sent}


def main() -> None:
    from tests.train.ranks import collect, start_ranks

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="that are timed")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    parameters = count_parameters(MODEL, VOCAB) / 1e6
    print(
        f"{parameters:.1f} M parameters, fp32, {STEP} tokens a step in {MICROS} micro-batches, {os.cpu_count()} cores"
    )
    print(
        "| 行程 | 分法 | 每千詞元的 CPU 秒 | 和一個行程比 | 每步傳輸 MB | 公式 | 比 | 公式 NCCL |\n|---|---|---|---|---|---|---|---|"
    )
    alone, ratios = 0.0, []
    for count, names in OF.items():
        for name in names:
            change = LAYOUTS[name]
            micro = STEP // count // MICROS
            job = Job(MODEL, VOCAB, CONTEXT, micro, True, "fp32", gpus=count, accelerator=False)
            job = replace(job, **change)
            if job.tensor > 1:
                job = replace(job, micro_tokens=micro * job.tensor)
            with tempfile.TemporaryDirectory() as folder:
                told = collect(start_ranks(work, count, Path(folder), plan=job, steps=args.steps), timeout_s=600)
                assert all(kind == "ok" for kind, _ in told), told
                found = [result for _, result in told]
            cpu = sum(rank["cpu"] for rank in found) / (STEP * args.steps)
            sent, said = sum(rank["sent"] for rank in found) / args.steps, expected(job, 2)
            alone = alone or cpu
            if said:
                ratios.append(sent / said)
            traffic = "— | — | — | —"
            if said:
                traffic = f"{sent / 1e6:,.1f} | {said / 1e6:,.1f} | {sent / said:.3f} | {expected(job, 1) / 1e6:,.1f}"
            print(
                f"| {count} | {name if said else '—'} | {cpu * 1000:.2f} | {cpu / alone:.2f} | {traffic} |", flush=True
            )
    print(f"\nRESULT rank_layouts={len(ratios)} bytes_lowest={min(ratios):.3f} bytes_highest={max(ratios):.3f}")


if __name__ == "__main__":
    main()
