"""`twllm run --dry-run`'s tables and `twllm plan RECIPE --gpus 8 --gpu h100`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from twllm.planning.plan import DryRun
    from twllm.planning.search import Choice, PhaseCost
    from twllm.recipe import Loaded
    from twllm.train.config import MachineConfig

SHARDING_NAMES = {
    "none": "none",
    "optimizer": "optimizer (ZeRO-2)",
    "full": "full (ZeRO-3)",
}
CHECKPOINTING_NAMES = {"none": "—", "selective": "一半 half", "full": "全部 full"}
MEMORY_NAMES = {
    "weights": "權重 weights", "gradients": "梯度 gradients", "optimizer": "最佳化狀態 optimizer", "activations": "啟動值 activations",
    "head": "輸出層 head", "overhead": "其他 overhead",
}  # fmt: skip


def plan(
    recipe: Annotated[Path, typer.Argument(help="配方檔 (recipe, TOML)", metavar="RECIPE")],
    gpu: Annotated[str, typer.Option(help="哪一種卡 (card)：h100、a100、4090……；docs/plan.md 有全部")] = "h100",
    gpus: Annotated[int, typer.Option(min=1, help="總共幾張，所有主機加起來 (over all hosts)")] = 8,
    set_: Annotated[list[str] | None, typer.Option("--set", help="改一個值 (override)", metavar="KEY=VALUE")] = None,
    memory_gib: Annotated[float | None, typer.Option(help="每張卡能用的 GiB；不給就用表裡的")] = None,
    price: Annotated[float | None, typer.Option(help="一張卡一小時多少錢 (price of a GPU hour)，算總價")] = None,
    out: Annotated[Path | None, typer.Option(help="把選出的設定寫成機器檔 (machine file to write)")] = None,
    plot: Annotated[Path | None, typer.Option(help="記憶體花在哪裡的圖 (picture of the memory, PNG)")] = None,
    json_: Annotated[bool, typer.Option("--json", help="印 JSON，給程式讀 (for scripts)")] = False,
) -> None:
    """這份配方在這些卡上放得下嗎、怎麼放、多久、多少卡時 (will it fit, how, how long, how many GPU hours)."""
    from rich.console import Console

    from twllm import artifact
    from twllm.errors import UserError
    from twllm.pipeline.checks import check_recipe
    from twllm.planning.advice import advise
    from twllm.planning.plan import plan_phases, recipe_model
    from twllm.planning.plot import draw
    from twllm.planning.search import HEADROOM, best_of_each, cuts, phase_cost, search
    from twllm.recipe import load_recipe
    from twllm.train.gpus import find_gpu

    card, loaded = find_gpu(gpu), load_recipe(recipe, set_ or (), unset_ok=True)
    missing: list[str] = []
    check_recipe(loaded, missing)
    model, notes = recipe_model(loaded.recipe)
    phases = [phase for phase, _ in plan_phases(loaded.recipe, {}, missing)]
    if gpus > 1 and any(phase.adapter and phase.adapter.quantised for phase in phases):
        what = "量化的底模不能分給多張卡 (quantised weights run on one card)"
        raise UserError(what, f"{recipe}：lora.quantise", "--gpus 1，或 lora 不量化 (--set sft.lora.quantise=none)")
    for phase in phases:
        if phase.batch_tokens // gpus < phase.context and not cuts(phases, card, gpus):
            most = phase.batch_tokens // phase.context
            what = f"{phase.name} 一步只有 {most} 列，分不給 {gpus} 張卡 (fewer rows a step than GPUs)"
            raise UserError(
                what, f"{phase.name}.batch_tokens = {phase.batch_tokens}", f"用 {most} 張以下，或加大 batch_tokens"
            )
    limit = (memory_gib or card.memory_gib) * HEADROOM
    found, chosen = search(model, phases, card, gpus, limit)
    rows = best_of_each(found, limit)
    costs = [phase_cost(model, phase, card, chosen.how, gpus) for phase in phases] if chosen else []
    advice = [] if chosen else list(advise(model, phases, card, gpus, limit))
    if plot:
        ways = [(f"sharding {row.how.sharding}, recompute {row.how.checkpointing}", row.memory) for row, _ in rows]
        bars = [(cost.phase.name, cost.memory) for cost in costs] + ways
        draw(bars, card.memory_gib, limit, f"{loaded.recipe.name}: {gpus} x {card.name}", plot)
    if json_:
        print(
            json.dumps(_as_json(rows, chosen, costs, limit, advice, notes, missing, gpus), ensure_ascii=False, indent=2)
        )
        if chosen is None:
            raise typer.Exit(2)
    else:
        console = Console(highlight=False)
        _print_notes(console, notes, missing)
        cut = found[0].how.cut
        way = f"，一列分給 {cut} 張 (context_parallel = {cut})" if cut > 1 else ""
        console.print(_options_table(rows, chosen, limit, f"{loaded.recipe.name}：{gpus} × {card.name}{way}"))
        if chosen is None:
            least = min(found, key=lambda c: c.gib)
            what = f"放不下 (does not fit)：最省也要每張 {least.gib:.1f} GiB，能用 {limit:.1f}"
            raise UserError(what, f"{gpus} × {card.name}", "；或 ".join(advice) or "換記憶體大的卡")
        console.print(_phases_table(costs))
        _print_sum(console, chosen, costs, gpus, min(gpus, card.per_host), price)
        console.print(next_step(recipe, gpus, min(gpus, card.per_host), out), soft_wrap=True)
    if out and chosen:
        artifact.write_text(out, machine_file(gpu, gpus, chosen, loaded.recipe.name))
        print(f"機器檔 machine file → {out}", file=sys.stderr if json_ else sys.stdout)


def _print_sum(
    console: object, chosen: "Choice", costs: "list[PhaseCost]", gpus: int, per_host: int, price: float | None
) -> None:
    from rich.console import Console

    from twllm.planning.host import host_memory
    from twllm.planning.speed import duration

    assert isinstance(console, Console)
    hours = chosen.seconds / 3600 * gpus
    money = f"，約 {hours * price:,.0f} 元 (at {price} an hour)" if price else ""
    host = max(host_memory(cost.job, per_host).total for cost in costs) / 2**30
    console.print(f"時間 time 約 {duration(chosen.seconds)}，{gpu_hours(hours)} 卡時 GPU hours{money}")
    console.print(
        f"主機記憶體 host memory 約 {host:,.0f} GiB（一台 {per_host} 張卡的主機 a host）；都是算的，沒有在 GPU 上驗證：docs/plan.md"
    )


def gpu_hours(hours: float) -> str:
    """For people."""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def next_step(recipe: Path, gpus: int, per_host: int, out: Path | None) -> str:
    """What to type now.

    >>> next_step(Path("r.toml"), 16, 8, Path("m.toml"))
    '下一步 next：twllm train slurm r.toml --nodes 2 --gpus-per-node 8 --machine m.toml --script job.sh（沒有 Slurm：docs/scale.md）'
    """
    machine = out or Path("machine.toml")
    run = f"twllm run {recipe} --machine {machine}"
    if gpus > per_host:
        nodes = -(-gpus // per_host)
        run = f"twllm train slurm {recipe} --nodes {nodes} --gpus-per-node {per_host} --machine {machine} --script job.sh（沒有 Slurm：docs/scale.md）"
    elif gpus > 1:
        run = f"torchrun --nproc-per-node {gpus} -m {run}"
    return f"下一步 next：{run}" if out else f"下一步 next：同一個指令加 --out {machine} 寫下選的設定，然後 {run}"


def _as_json(
    rows: "list[tuple[Choice, bool]]", chosen: "Choice | None", costs: "list[PhaseCost]", limit: float, advice: list[str],
    notes: list[str], missing: list[str], gpus: int,
) -> dict[str, object]:  # fmt: skip
    """For scripts: bytes, seconds, and the machine file's keys."""
    from dataclasses import asdict

    def told(choice: "Choice") -> dict[str, object]:
        return {**asdict(choice.how), "gib": choice.gib, "seconds": choice.seconds}

    return {
        "fits": chosen is not None, "limit_gib": limit, "chosen": told(chosen) if chosen else None,
        "gpu_hours": chosen.seconds / 3600 * gpus if chosen else None,
        "options": [{**told(row), "fits": fits} for row, fits in rows],
        "phases": [
            {
                "name": cost.phase.name, "tokens": cost.phase.tokens, "steps": cost.phase.steps, "flops": cost.flops,
                "seconds": cost.seconds, "memory": {**asdict(cost.memory), "total": cost.memory.total}, "step": asdict(cost.step),
            }
            for cost in costs
        ],
        "advice": advice, "notes": notes, "missing": missing,
    }  # fmt: skip


def _print_notes(console: object, notes: list[str], missing: list[str]) -> None:
    from rich.console import Console
    from rich.markup import escape

    assert isinstance(console, Console)
    for note in notes:
        console.print(f"[yellow]※[/] {escape(note)}")
    if missing:
        console.print(
            f"[yellow]※[/] 資料不在這裡 (data not here)，計畫照 max_tokens 算，run 會停下來：{escape('、'.join(missing))}"
        )


def _options_table(rows: "list[tuple[Choice, bool]]", chosen: "Choice | None", limit: float, title: str) -> "Table":
    """Each way to run: what it needs, how long it takes, why it is not the one."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from twllm.planning.speed import duration

    heads = ("分片 sharding", "重算", "micro-batch", "GiB", "時間", "結果 verdict")
    table = Table(*heads, title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for choice, fits in rows:
        same = chosen is not None and choice.kind == chosen.kind
        if not fits:
            verdict = f"[red]放不下[/]，少 {choice.gib - limit:.1f} GiB"
        elif same and chosen:
            choice, verdict = chosen, "[green]✓ 選這個 chosen[/]"
        elif chosen and choice.seconds <= chosen.seconds * 1.01:
            verdict = "一樣快 as fast"
        else:
            verdict = f"慢 {choice.seconds / chosen.seconds - 1:.0%}" if chosen else ""
        table.add_row(
            SHARDING_NAMES[choice.how.sharding], CHECKPOINTING_NAMES[choice.how.checkpointing], f"{choice.how.micro_tokens:,}",
            f"{choice.gib:.1f}", duration(choice.seconds).rsplit(" ", 1)[0], verdict,
        )  # fmt: skip
    return table


def _phases_table(costs: "list[PhaseCost]") -> "Table":
    """Where the memory and the time go: a column a phase."""
    from dataclasses import asdict

    from rich.table import Table

    from twllm.planning.speed import duration
    from twllm.train.gpus import GIB

    small = max(cost.memory.total - cost.memory.overhead for cost in costs) < 2 * GIB
    unit, digits = (2**20, 0) if small else (GIB, 1)
    table = Table("每張卡 per GPU", *(cost.phase.name for cost in costs), title="MiB" if small else "GiB")
    for term, name in MEMORY_NAMES.items():
        table.add_row(name, *(f"{asdict(cost.memory)[term] / unit:,.{digits}f}" for cost in costs))
    totals = (f"{cost.memory.total / unit:,.{digits}f}" for cost in costs)
    table.add_row("合計 total", *totals, style="bold", end_section=True)
    table.add_row("詞元 tokens", *(f"{cost.phase.tokens:,}" for cost in costs))
    table.add_row("步 steps", *(f"{cost.phase.steps:,}" for cost in costs))
    table.add_row("FLOPs", *(f"{cost.flops:.2e}" for cost in costs))
    table.add_row("一步 a step", *(f"{cost.step.total:.3g} s" for cost in costs))
    table.add_row("其中等資料傳輸 waits for traffic", *(f"{cost.step.traffic:.2g} s" for cost in costs))
    table.add_row("時間 time", *(duration(cost.seconds) for cost in costs))
    return table


def machine_file(gpu: str, gpus: int, choice: "Choice", recipe: str) -> str:
    """A machine file with this choice, as `twllm run --machine` reads it."""
    from twllm.train.config import MachineConfig
    from twllm.train.gpus import find_gpu

    card = find_gpu(gpu)
    settings: dict[str, object] = {
        "device": "cuda", "precision": "bf16", "gpu": gpu, "gpus": gpus, "sharding": choice.how.sharding,
        "checkpointing": choice.how.checkpointing, "micro_batch_tokens": choice.how.micro_tokens, "context_parallel": choice.how.cut,
        "checkpoint_every_s": 600.0,
    }  # fmt: skip
    lines = [
        f"# {gpus} × {card.name}：twllm plan 為 {recipe} 選的設定；每張約 {choice.gib:.1f} GiB，訓練約 {gpu_hours(choice.seconds / 3600 * gpus)} 卡時。",
        f"# Written by `twllm plan` for {recipe}; memory and time are computed (docs/plan.md), not measured on these cards.",
    ]
    defaults = {name: one.default for name, one in MachineConfig.model_fields.items()}
    for key, value in settings.items():
        text = str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)
        if key in defaults and defaults[key] != value:
            lines.append(f"{key} = {text}")
    return "\n".join(lines) + "\n"


def print_dry_run(loaded: "Loaded", out: Path, machine: "MachineConfig") -> None:
    """The tables of `twllm run --dry-run`."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from twllm.planning.plan import dry_run
    from twllm.planning.speed import duration
    from twllm.train.gpus import GIB, find_gpu

    if machine.gpu:
        card = find_gpu(machine.gpu)
        has = card.memory_gib
        found = dry_run(loaded, out, machine, card.peak_tflops)
        where = f"{machine.gpus} × {card.name}，bf16"
    else:
        from twllm.train.machine import peak_tflops, resolve_machine

        resolved = resolve_machine(machine, 0)
        threads, has = resolved.threads if resolved.device == "cpu" else 0, memory_here(resolved.device)
        found = dry_run(loaded, out, machine, machine.peak_tflops or peak_tflops(resolved), resolved.precision, threads)
        where = f"{resolved.device}，{resolved.precision}"
    console = Console(highlight=False)
    _print_notes(console, found.notes, found.missing)
    stages = Table("階段 stage", "會執行？ will run", title=f"{loaded.recipe.name} → {out}")
    for name, reason in found.stages:
        stages.add_row(name, escape(reason) or "· 已完成 (up to date)")
    heads = ("訓練 phase", "詞元 tokens", "步數 steps", "FLOPs", "記憶體 GiB", "時間 time", "詞元數 count")
    columns = [
        Column(head, no_wrap=head in heads[:2] or head in heads[3::3]) for head in heads
    ]  # numbers stay whole in 80 columns
    table = Table(*columns, box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for row in found.phases:
        times = f" × {row.repeats}" if row.repeats > 1 else ""
        table.add_row(
            row.name, f"{row.tokens:,}", f"{row.steps:,}", f"{row.flops:.2e}", f"{row.memory.total / GIB:.2f}",
            duration(row.seconds) + times, row.source,
        )  # fmt: skip
    console.print(stages, table)
    console.print(
        f"參數 parameters {found.parameters:,}；記憶體 memory 約 {found.memory_bytes / GIB:.2f} GiB（訓練 training，每個裝置 per device）"
    )
    _print_total(console, found, machine, where, duration(found.seconds), has)


def memory_here(device: str) -> float:
    """GiB of this computer, or of its GPU."""
    import os

    if device == "cuda":
        import torch

        return float(torch.cuda.get_device_properties(0).total_memory / 2**30)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _print_total(
    console: object, found: "DryRun", machine: "MachineConfig", where: str, time: str, has_gib: float
) -> None:
    from rich.console import Console

    assert isinstance(console, Console)
    total = gpu_hours(found.seconds / 3600 * machine.gpus)
    hours = f"，{total} 卡時 GPU hours" if machine.gpu else ""
    console.print(f"時間 time 約 {time}{hours}（{where}，峰值 peak {found.peak_tflops:.3g} TFLOP/s）")
    if machine.gpu:
        host = max(plan.host.total for plan in found.phases) / 2**30
        console.print(
            f"主機記憶體 host memory 約 {host:.0f} GiB（一台主機 a host：載入底模、複製中斷點時 loading, saving a state）"
        )
    if found.memory_bytes / 2**30 > has_gib:
        which = "這張卡" if machine.gpu else "這台電腦"
        fix = "twllm plan 會找放得下的卡與設定 (twllm plan finds cards and settings that do)"
        console.print(f"[red]放不下 (does not fit)[/]：{which}只有 {has_gib:.1f} GiB；{fix}")
