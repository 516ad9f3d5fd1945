"""Write the tables of docs/plan.md between their markers: the cards, and every large recipe on its machine file. `make docs`; CI compares."""

from pathlib import Path

from twllm.planning.plan import dry_run
from twllm.planning.speed import duration
from twllm.recipe import load_machine, load_recipe
from twllm.train.gpus import GIB, GPUS, find_gpu

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "plan.md"
MACHINES = {
    "taiwan-llm-7b-v2": "h100x48",
    "taiwan-llm-13b-v2": "h100x48",
    "taiwan-llm-13b-v1": "a100x8",
    "1b": "h100x1",
    "3b": "h100x8",
    "llama3-taiwan-8b": "h100x48",
    "qlora-1gpu": "rtx4090x1",
}


def cards() -> str:
    """Name, memory, peak, links."""
    lines = ["| `gpu` | 卡 | 記憶體 GiB | bf16 峰值 TFLOP/s | 記憶體 GB/s | 連線 GB/s |", "|---|---|---|---|---|---|"]
    lines += [
        f"| `{key}` | {g.name} | {g.memory_gib:g} | {g.peak_tflops:g} | {g.memory_gb_s:,.0f} | {g.link_gb_s:g} |"
        for key, g in GPUS.items()
    ]
    return "\n".join(lines)


def recipes() -> str:
    """Computed memory, FLOPs and time."""
    lines = [
        "| 配方 | 機器檔 | 階段 | 詞元 | FLOPs | 每張卡 GiB | 時間 | 卡時 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, machine_name in MACHINES.items():
        machine = load_machine(ROOT / "machines" / f"{machine_name}.toml")
        loaded = load_recipe(ROOT / "recipes" / f"{name}.toml", unset_ok=True)
        found = dry_run(loaded, None, machine, find_gpu(str(machine.gpu)).peak_tflops)
        for row in found.phases:
            hours = row.seconds / 3600 * machine.gpus
            lines.append(
                f"| {name} | {machine_name} | {row.name} | {row.tokens:,} | {row.flops:.2e} | {row.memory.total / GIB:.1f} "
                f"| {duration(row.seconds)} | {hours:,.1f} |"
            )
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its tables written anew."""
    for name, table in (("cards", cards()), ("recipes", recipes())):
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, rest = text.split(begin)
        text = before + begin + table + "\n" + end + rest.split(end, 1)[1]
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
