"""`twllm doctor` alone: this machine. Which engines and extras are here, what the hardware can do, what a person should know."""

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from twllm.doctor.findings import Finding

OPTIONAL = {  # module → (what it is for, extra)
    "openvino": ("CPU 引擎 (CPU engine)", "openvino"),
    "llama_cpp": ("GGUF 引擎", "llamacpp"),
    "vllm": ("GPU 引擎", "vllm"),
    "datatrove": ("大型語料 (corpus executors)", "corpus"),
    "datasets": ("hub 資料集", "data"),
    "lm_eval": ("lm-evaluation-harness", "lmeval"),
    "psycopg": ("PostgreSQL", "postgres"),
}
LEAST_DISK = 10 << 30


def check_machine(folder: Path) -> list[Finding]:
    """Findings about Python, torch, processors, memory, disk (of `folder`), fonts, extras."""
    return [*_software(), *_hardware(folder), *_fonts(), *_extras()]


def _software() -> Iterator[Finding]:
    versions = "、".join(f"{name} {importlib.metadata.version(name)}" for name in ("twllm", "torch", "transformers"))
    yield Finding("machine", "ok", f"Python {platform.python_version()}（{sys.platform}）、{versions}")


def _hardware(folder: Path) -> Iterator[Finding]:
    import torch

    from twllm.train.machine import cpu_multiplies_bf16

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            yield Finding("machine", "ok", f"GPU {number}: {facts.name}，{facts.total_memory / 2**30:.0f} GiB")
    else:
        fast = cpu_multiplies_bf16()
        told = "會乘 bf16 (fast bf16)" if fast else "不會乘 bf16，用 fp32 (no fast bf16)"
        yield Finding("machine", "ok", f"沒有 GPU；{torch.get_num_threads()} 個 CPU 執行緒，{told}")
    free = shutil.disk_usage(folder).free
    level = "ok" if free > LEAST_DISK else "warning"
    fix = "" if free > LEAST_DISK else "訓練前先清出空間：每個檢查點是參數數 × 12 位元組"
    yield Finding("machine", level, f"{folder}：還有 {free / 2**30:.0f} GiB 空間", fix=fix)  # type: ignore[arg-type]


def _fonts() -> Iterator[Finding]:
    from matplotlib import font_manager

    from twllm.corpus.funnel_files import CJK_FONTS

    have = {font.name for font in font_manager.fontManager.ttflist}
    if not have & set(CJK_FONTS):
        fix = "apt install fonts-noto-cjk（或任何中文字型）"
        yield Finding("machine", "warning", "沒有中文字型，圖上只有英文 (no CJK font)", fix=fix)


def _extras() -> Iterator[Finding]:
    for module, (purpose, extra) in OPTIONAL.items():
        if importlib.util.find_spec(module):
            yield Finding("machine", "ok", f"{module}：{purpose}")
        else:
            yield Finding("machine", "unknown", f"沒裝 {module}：{purpose}", fix=f"要用就 pip install 'twllm[{extra}]'")
