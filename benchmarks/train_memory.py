"""Memory of real training steps against the planner's prediction: `python benchmarks/train_memory.py` prints the tables of docs/plan.md.

Measured is what torch allocated during one optimizer step (the second, so that the moments exist), from the profiler's record of every
allocation and release, plus every tensor that stood before it: weights, moments, averages, a teacher.
  grid      sizes × contexts × micro-batches × accumulation × checkpointing × precision: what the formula was made on
  methods   LoRA, QLoRA (bitsandbytes), EMA, DPO, a teacher, freezing, a mixture, long rows, short documents, selective checkpointing
  unseen    shapes like Llama 3's at 60 to 150 M parameters, predicted with the formula as it is
  ranks     the fullest of 2 or 4 processes (gloo), by sharding, tensor and context parallel
  time      seconds of a step (one thread, not compiled), against FLOPs at the matrix peak of the same minute and passes over memory
  saving    the copy of a state that waits to be written, against 12 bytes a trained parameter
"""

import argparse
import gc
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from twllm.model.sizes import Size  # noqa: E402
from twllm.planning.host import host_memory  # noqa: E402
from twllm.planning.job import Adapter, Experts, Job  # noqa: E402
from twllm.planning.memory import step_memory  # noqa: E402

WIDTHS = {
    "1.8M": Size(128, 4, 2, 2, 352),
    "5M": Size(256, 4, 4, 2, 704),
    "15M": Size(384, 6, 6, 6, 1024),
    "30M": Size(512, 8, 8, 2, 1408),
}
VOCAB = 4096
SMALL = Job(WIDTHS["5M"], VOCAB, 256, 1024, accelerator=False)
Case = tuple[str, Job]


def grid() -> Iterator[Case]:
    """Thinned to what tells something."""
    axes = itertools.product(WIDTHS, (256, 1024), (1, 4), (False, True), ("none", "full"), ("fp32", "bf16"))
    for name, context, rows, accumulates, checkpointing, precision in axes:
        if name == "30M" and (rows * context > 1024 or not accumulates):
            continue
        yield name, Job(
            WIDTHS[name], VOCAB, context, rows * context, accumulates, precision, checkpointing=checkpointing, accelerator=False  # type: ignore[arg-type]
        )  # fmt: skip


def methods() -> Iterator[Case]:
    """What the grid has not, each in fp32 and bf16."""
    wide = replace(SMALL, size=WIDTHS["15M"])
    changes: dict[str, tuple[Job, dict[str, Any]]] = {
        "LoRA r 16": (SMALL, {"adapter": Adapter(16)}),
        "LoRA r 16 重算": (SMALL, {"adapter": Adapter(16), "checkpointing": "full"}),
        "LoRA q v，15M": (wide, {"adapter": Adapter(8, targets=("q_proj", "v_proj"))}),
        "QLoRA r 16": (wide, {"adapter": Adapter(16, True)}),
        "QLoRA r 16 重算": (wide, {"adapter": Adapter(16, True), "checkpointing": "full"}),
        "EMA": (SMALL, {"average": True}),
        "DPO": (SMALL, {"compares": True, "document": 128}),
        "DPO 四列 1,024": (SMALL, {"compares": True, "context": 1024, "micro_tokens": 4096, "document": 500}),
        "老師 15M": (SMALL, {"teacher": WIDTHS["15M"]}),
        "老師 15M 重算": (SMALL, {"teacher": WIDTHS["15M"], "checkpointing": "full"}),
        "凍結 0–1 層": (SMALL, {"frozen": 2}),
        "專家 8 選 2": (SMALL, {"experts": Experts(8, 2)}),
        "專家 8 選 2，半寬": (SMALL, {"experts": Experts(8, 2, 2)}),
        "selective": (SMALL, {"checkpointing": "selective"}),
        "selective 15M": (wide, {"checkpointing": "selective", "context": 1024, "micro_tokens": 4096}),
        "短文 50": (SMALL, {"document": 50}),
        "8k": (SMALL, {"context": 8192, "micro_tokens": 8192}),
        "32k": (replace(SMALL, size=WIDTHS["1.8M"]), {"context": 32768, "micro_tokens": 32768}),
        "32k 重算": (replace(SMALL, size=WIDTHS["1.8M"]), {"context": 32768, "micro_tokens": 32768, "checkpointing": "full"}),
    }  # fmt: skip
    for (name, (job, change)), precision in itertools.product(changes.items(), ("fp32", "bf16")):
        if frozen := change.get("frozen"):
            from twllm.planning.job import layer_parameters

            change = {**change, "frozen": frozen * (layer_parameters(job.size) + 2 * job.size.D)}
        yield name, replace(job, precision=precision, **change)


def unseen() -> Iterator[Case]:
    """Not used to make the formula: wide vocabularies, Llama 3's ratios (F = 3.5 D, four queries a key), tied and untied."""
    for name, size, vocab, context, rows, precision, checkpointing in (
        ("D 512 L 8 F 1792 詞彙 32k 不共用", Size(512, 8, 8, 2, 1792), 32_000, 512, 2, "fp32", "none"),
        ("同上 共用 重算", Size(512, 8, 8, 2, 1792, True), 32_000, 2048, 1, "bf16", "full"),
        ("D 640 L 10 F 2240 詞彙 32k 不共用", Size(640, 10, 10, 5, 2240), 32_000, 512, 2, "bf16", "none"),
        ("D 768 L 12 F 2688 詞彙 32k 不共用", Size(768, 12, 12, 4, 2688), 32_000, 256, 2, "bf16", "selective"),
        ("D 512 L 8 F 1792 詞彙 128k 共用", Size(512, 8, 8, 2, 1792, True), 128_256, 512, 2, "bf16", "none"),
        ("D 384 L 12 F 1344 詞彙 128k 不共用", Size(384, 12, 6, 2, 1344), 128_256, 1024, 1, "fp32", "full"),
    ):  # fmt: skip
        yield name, Job(
            size, vocab, context, rows * context, False, precision, checkpointing=checkpointing, accelerator=False  # type: ignore[arg-type]
        )  # fmt: skip


def ranks() -> Iterator[Case]:
    """Several processes."""
    job = replace(SMALL, size=WIDTHS["15M"], precision="fp32", context=256, micro_tokens=512)
    for count, precision in ((2, "fp32"), (2, "bf16"), (4, "fp32"), (4, "bf16")):
        for sharding in ("none", "optimizer", "full"):
            yield f"{count} 個 {sharding}", replace(job, gpus=count, sharding=sharding, precision=precision)  # type: ignore[arg-type]
    yield "2 個 full，LoRA r 16", replace(job, gpus=2, sharding="full", precision="bf16", adapter=Adapter(16))
    yield "2 個 tensor_parallel", replace(job, gpus=2, tensor=2)
    yield "4 個 tensor_parallel 2 × full", replace(job, gpus=4, tensor=2, sharding="full")
    for count, cut in ((1, 1), (2, 2), (4, 4), (4, 2)):  # one document a row, one row a process or some
        yield (
            f"{count} 個 context_parallel {cut}",
            replace(job, context=4096, micro_tokens=4096 // cut, gpus=count, cut=cut),
        )


def make_trainer(job: Job, folder: Path, settings: dict[str, Any] | None = None) -> Any:
    """A trainer on random documents, set up as the job says."""
    from functools import partial

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from twllm.tokens.shards import TokenShard
    from twllm.train import execution
    from twllm.train.config import FeedbackConfig, MachineConfig, PretrainConfig
    from twllm.train.data import PackedData
    from twllm.train.loop import Trainer
    from twllm.train.objective import TokenObjective

    execution.can_attend = lambda *_: False  # type: ignore[attr-defined]  # as the plan counts: the kernel keeps no weights of attention
    torch.set_num_threads(1)
    batch = (settings or {}).get("batch_tokens") or job.micro_tokens * (2 if job.accumulates else 1) * (
        job.gpus // job.tensor
    )
    write_documents(job, folder / "shard", 2 * batch)
    data = PackedData([TokenShard(folder / "shard")], [1.0], job.context, 1, group=2 if job.compares else 1)
    phase: Any = {"lr": 1e-4, "batch_tokens": batch, "context": job.context, **(settings or {})}
    objective: Any = TokenObjective
    if job.adapter:
        a = job.adapter
        phase["lora"] = {
            "r": a.rank, "targets": "all-linear" if len(a.targets) > 2 else a.targets, "quantise": "nf4" if a.quantised else "none",
            "modules_to_save": a.whole,
        }  # fmt: skip
    if job.average:
        phase["ema_decay"] = 0.99
    if job.frozen:
        phase["freeze"] = ("layers.0-1",)
    machine = MachineConfig(
        threads=1, device="cpu", precision=job.precision, compile="off", tensorboard=False, micro_batch_tokens=job.micro_tokens,
        checkpointing=job.checkpointing, sharding=job.sharding, shard_ranks=job.shard_ranks, tensor_parallel=job.tensor,
        context_parallel=job.cut,
    )  # fmt: skip
    torch.manual_seed(1)
    model: Any = LlamaForCausalLM(LlamaConfig(**job.size.llama(job.vocab, job.context)))
    if job.experts:
        from twllm.model.moe_config import MoeShape
        from twllm.model.upcycle import upcycle

        e = job.experts
        model = upcycle(model, MoeShape(experts=e.count, top_k=e.top_k, granularity=e.granularity))
    config: Any = PretrainConfig(**phase)
    if job.compares:
        from twllm.train.preference import PreferenceObjective

        config = FeedbackConfig(**phase, method="dpo")
        objective = partial(PreferenceObjective, data=data, config=config, work=folder)
    if job.teacher:
        from twllm.train.distill import DistillObjective
        from twllm.train.teacher_config import TeacherConfig

        teacher = LlamaForCausalLM(LlamaConfig(**job.teacher.llama(job.vocab, job.context)))
        objective = partial(
            DistillObjective, teacher=teacher.requires_grad_(False).eval(), config=TeacherConfig(model="a")
        )
    trainer = Trainer("memory", model, data, config, machine, folder / "work", None, objective)
    trainer.model.train()
    return trainer


def write_documents(job: Job, folder: Path, tokens: int) -> None:
    """Random ones of the job's length, so many that they fill `tokens`."""
    import numpy as np

    from twllm.tokens.preferences import LABELS
    from twllm.tokens.shards import write_shard

    rng, length = np.random.default_rng(0), job.document or job.context
    count = tokens // job.context * (job.context // length)
    if job.compares:
        mask = [False] * 16 + [True] * (length - 16)
    documents = [
        (f"d{i}", rng.integers(0, job.vocab, length).tolist(), mask if job.compares else None) for i in range(count)
    ]
    write_shard(folder, documents, job.vocab)
    if job.compares:
        np.save(folder / LABELS, np.tile(np.array([1, -1], np.int8), count // 2))


def allocated_peak(job: Job, folder: Path | None = None) -> float:
    """Bytes at the fullest moment of the second optimizer step, all that stood before it included."""
    others = storages()
    with tempfile.TemporaryDirectory() as own:
        trainer = make_trainer(job, (folder or Path(own)) / f"rank{_rank()}")
        trainer.train_step(0)
        standing = sum(size for place, size in storages().items() if others.get(place) != size)
        return standing + allocated(lambda: trainer.train_step(1))


def allocated(work: Callable[[], Any]) -> float:
    """Bytes that `work` had at most beyond what stood before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return float(peak)


def storages() -> dict[int, int]:
    """Bytes of the memory behind all tensors of this process, by address; what several share is counted once."""
    import torch

    gc.collect()
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and hasattr(thing, "to_local"):
            thing = thing.to_local()
        if (
            type(thing) in (torch.Tensor, torch.nn.Parameter)
            and thing.device.type == "cpu"
            and thing.layout == torch.strided
        ):
            found[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return found


def _rank() -> int:
    from twllm.train import distributed

    return distributed.rank()


def rank_peak(folder: Path, case: Job) -> float:
    """`allocated_peak` in one of several processes."""
    return allocated_peak(case, folder)


def several_peak(job: Job) -> float:
    """The fullest of the job's processes."""
    from tests.train.ranks import run_ranks

    with tempfile.TemporaryDirectory() as folder:
        return float(max(run_ranks(rank_peak, job.gpus, Path(folder), case=job)))


def saving_peak(job: Job) -> tuple[float, float]:
    """(bytes that a state's copy takes in memory, what is planned); on a CPU it goes into what the step has just freed."""
    from twllm.train.state import Saver

    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(job, Path(folder))
        trainer.train_step(0)
        saver = Saver(Path(folder) / "states")
        grown = allocated(lambda: trainer._save(saver, 1, {}))
        saver.close()
    return grown, host_memory(job, 1).saving


def step_seconds(job: Job) -> tuple[float, float]:
    """(median seconds of five steps, what is planned with the matrix peak measured before and after)."""
    import time
    from statistics import median

    from twllm.planning.speed import cpu_seconds
    from twllm.train.machine import measure_peak_tflops

    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(job, Path(folder))
        trainer.train_step(0)
        peaks, seconds = [measure_peak_tflops(trainer.machine)], []
        for step in range(1, 6):
            started = time.perf_counter()
            trainer.train_step(step)
            seconds.append(time.perf_counter() - started)
        peaks.append(measure_peak_tflops(trainer.machine))
    tokens = job.micro_tokens * (2 if job.accumulates else 1)
    return median(seconds), cpu_seconds(job, tokens, max(peaks), 1)


def main() -> None:
    tables = {"grid": grid, "methods": methods, "unseen": unseen, "ranks": ranks}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=[*tables, "saving", "time"], metavar="TABLE")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    args = parser.parse_args()
    for table in args.tables:
        if table == "time":
            for (name, size), precision in itertools.product(WIDTHS.items(), ("fp32", "bf16")):
                took, said = step_seconds(replace(SMALL, size=size, precision=precision))  # type: ignore[arg-type]
                print(f"| {name} | {precision} | {said:.3f} | {took:.3f} | {said / took:.2f} |", flush=True)
            continue
        if table == "saving":
            for name, size in (("15M", WIDTHS["15M"]), ("30M", WIDTHS["30M"])):
                grown, said = saving_peak(replace(SMALL, size=size, precision="fp32"))
                print(f"| 存中斷點 {name} | {said / 1e6:.1f} | {grown / 1e6:.1f} | {said / grown:.3f} |", flush=True)
            continue
        print(
            "| 列 | context | micro-batch | 累積 | 重算 | 精度 | 預測 MB | 量到 MB | 比 |\n|---|---|---|---|---|---|---|---|---|"
        )
        ratios = []
        for name, job in tables[table]():
            if args.only not in name:
                continue
            said = step_memory(job).total
            found = several_peak(job) if job.gpus > 1 else allocated_peak(job)
            ratios.append(said / found)
            print(
                f"| {name} | {job.context} | {job.micro_tokens} | {'有' if job.accumulates else '—'} | {job.checkpointing} | {job.precision} "
                f"| {said / 1e6:.1f} | {found / 1e6:.1f} | {said / found:.3f} |",
                flush=True,
            )
        off = sorted(abs(r - 1) for r in ratios)
        print(
            f"\nRESULT {table}_rows={len(ratios)} {table}_median_error={off[len(off) // 2]:.3f} "
            f"{table}_lowest={min(ratios):.3f} {table}_highest={max(ratios):.3f}\n", flush=True
        )  # fmt: skip


if __name__ == "__main__":
    main()
