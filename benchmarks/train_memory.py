"""Memory of real training steps against the planner's prediction: `python benchmarks/train_memory.py` prints the table of docs/plan.md.

Measured is what torch allocated during one optimizer step (the second, so that the moments exist), from the profiler's record of every
allocation and release, plus what stood before it: weights, moments. `--rss` adds the process's own peak (VmHWM, reset before the step, each
row in a fresh process): what the operating system says, with Python, the libraries and the allocator in it.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from twllm.model.sizes import Size
from twllm.planning.memory import Job, step_memory

WIDTHS = {
    "1.8M": Size(128, 4, 2, 2, 352),
    "5M": Size(256, 4, 4, 2, 704),
    "15M": Size(384, 6, 6, 6, 1024),
    "30M": Size(512, 8, 8, 2, 1408),
}
VOCAB = 4096


def jobs() -> list[tuple[str, Job]]:
    """Sizes × contexts × micro-batches × accumulation × checkpointing × precision, thinned to what tells something."""
    grid = itertools.product(WIDTHS, (256, 1024), (1, 4), (False, True), (False, True), ("fp32", "bf16"))
    found = []
    for name, context, rows, accumulates, checkpointing, precision in grid:
        if name == "30M" and (rows * context > 1024 or not accumulates):
            continue
        job = Job(
            WIDTHS[name], VOCAB, context, rows * context, accumulates, precision, checkpointing=checkpointing, accelerator=False
        )  # fmt: skip
        found.append((name, job))
    return found


def make_trainer(job: Job, folder: Path) -> Any:
    """A trainer on random documents of a row each, set up as the job says."""
    import numpy as np
    from transformers import LlamaConfig, LlamaForCausalLM

    from twllm.tokens.shards import TokenShard, write_shard
    from twllm.train.config import MachineConfig, PretrainConfig
    from twllm.train.data import PackedData
    from twllm.train.loop import Trainer

    accumulation = 2 if job.accumulates else 1
    batch = job.micro_tokens * accumulation
    rng = np.random.default_rng(0)
    documents = [
        (f"d{i}", rng.integers(0, job.vocab, job.context).tolist(), None) for i in range(2 * batch // job.context)
    ]
    write_shard(folder / "shard", documents, job.vocab)
    data = PackedData([TokenShard(folder / "shard")], [1.0], job.context, 1)
    phase = PretrainConfig(lr=1e-4, batch_tokens=batch, context=job.context)
    machine = MachineConfig(
        threads=1, device="cpu", precision=job.precision, compile="off", tensorboard=False, micro_batch_tokens=job.micro_tokens,
        checkpointing="full" if job.checkpointing else "none",
    )  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**job.size.llama(job.vocab, job.context)))
    trainer = Trainer("memory", model, data, phase, machine, folder / "work")
    trainer.model.train()
    return trainer


def allocated_peak(job: Job) -> float:
    """Bytes at the fullest moment of the second optimizer step, weights and moments included."""
    from torch.profiler import ProfilerActivity, profile

    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(job, Path(folder))
        trainer.train_step(0)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            trainer.train_step(1)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    standing = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    moments = sum(v.numel() * v.element_size() for s in trainer.optimizer.state.values() for v in s.values())
    return float(standing + moments + peak)


def resident_peak(job: Job) -> tuple[float, float]:
    """(VmHWM of the second step, VmRSS before the model was built), in this process."""
    import torch

    torch.ones(8) @ torch.ones(8)
    import transformers  # noqa: F401 - its share is not the step's

    before = _status("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(job, Path(folder))
        trainer.train_step(0)
        Path("/proc/self/clear_refs").write_text("5")
        trainer.train_step(1)
    return _status("VmHWM"), before


def _status(key: str) -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return float(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rss", action="store_true")
    parser.add_argument("--row", type=int, help="measure this row's resident memory and print it (used by --rss)")
    args = parser.parse_args()
    table = jobs()
    if args.row is not None:
        print(json.dumps(resident_peak(table[args.row][1])))
        return
    print(
        "| 模型 | context | micro-batch | 累積 | 重算 | 精度 | 預測 MB | 量到 MB | 比 |"
        + (" RSS 增加 MB |" if args.rss else "")
    )
    print("|---|---|---|---|---|---|---|---|---|" + ("---|" if args.rss else ""))
    ratios = []
    for number, (name, job) in enumerate(table):
        said, found = step_memory(job).total, allocated_peak(job)
        ratios.append(said / found)
        row = f"| {name} | {job.context} | {job.micro_tokens} | {'有' if job.accumulates else '—'} | {'有' if job.checkpointing else '—'} | {job.precision} "
        row += f"| {said / 1e6:.1f} | {found / 1e6:.1f} | {said / found:.3f} |"
        if args.rss:
            command = [sys.executable, __file__, "--row", str(number)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            peak, before = json.loads(output.strip().splitlines()[-1])
            row += f" {(peak - before) / 1e6:.1f} |"
        print(row, flush=True)
    worst = max(ratios, key=lambda r: abs(r - 1))
    print(f"\nRESULT memory_rows={len(ratios)} memory_worst_ratio={worst:.3f}")


if __name__ == "__main__":
    main()
