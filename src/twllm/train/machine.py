"""What this machine can do, turned into settings: device, precision, threads, compile, attention form.

bf16 on a CPU pays only where the instruction set multiplies it (AVX512-BF16, AMX): measured 3-4x faster than fp32 there and
100x slower without (dev/LOG.md), so `auto` asks the processor and not the user.
"""

import os
from dataclasses import asdict, dataclass
from typing import Any

import torch

from twllm.errors import UserError
from twllm.train.config import MachineConfig

COMPILE_PAYS_AT_TOKENS = 2_000_000  # costs about 20 s of one core, gains 1.3 to 1.8 times (bf16) on CPU: dev/LOG.md
GPU_PEAK_TFLOPS = {
    "H100": 989.0,
    "H200": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "4090": 165.0,
    "3090": 71.0,
}  # dense bf16, makers' sheets


@dataclass(frozen=True)
class Machine:
    """Resolved settings of this run; they go into the manifest, since they decide the last bits of the weights."""

    device: str
    precision: str
    threads: int
    compile: bool
    attention: str  # see attention.py; execution.py adapts it to the model
    checkpointing: str = "none"  # see execution.py
    offload: bool = False

    def autocast(self) -> Any:
        """The context in which forward and loss run."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def cpu_multiplies_bf16() -> bool:
    """Whether this processor has bf16 matrix instructions."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def usable_cores() -> int:
    """Cores this process may use (cgroups and affinity respected)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_machine(config: MachineConfig, planned_tokens: int) -> Machine:
    """Turn "auto" into settings and set torch's threads.

    Raises:
        UserError: a GPU was asked for and there is none.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "這台機器沒有可用的 GPU (no CUDA device)",
            "machine.device = cuda",
            '改用 device = "auto"，或安裝 CUDA 版的 torch',
        )
    fast_bf16 = device == "cuda" or cpu_multiplies_bf16()
    precision = ("bf16" if fast_bf16 else "fp32") if config.precision == "auto" else config.precision
    compiled = planned_tokens >= COMPILE_PAYS_AT_TOKENS if config.compile == "auto" else config.compile == "on"
    threads = config.threads or max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    if config.offload and device != "cuda":
        raise UserError(
            "offload 只在 GPU 上有意義 (offload needs a GPU)", "machine.offload = true", "在 CPU 上拿掉這個設定"
        )
    keep_freed_memory()
    form = "mask" if compiled or device == "cuda" else "pieces"
    return Machine(device, precision, threads, compiled, form, config.checkpointing, config.offload)


def keep_freed_memory() -> bool:
    """Let glibc reuse freed blocks of any size; returns whether it is glibc.

    By default each tensor above 32 MiB is mapped anew and its pages are faulted in one by one: adding 1 to 49 MB takes 49 ms,
    with reuse 29 ms; log-softmax of it 77 and 17 ms (dev/LOG.md). Price: the process keeps its peak.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # not glibc
        return False
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1))


def measure_peak_tflops(machine: Machine, seconds: float = 0.3) -> float:
    """Best matrix-product speed seen in `seconds`, in the precision of the run: the yardstick for MFU and time estimates."""
    import time

    dtype = torch.bfloat16 if machine.precision == "bf16" else torch.float32
    size = 4096 if machine.device == "cuda" else 1024
    a = torch.randn(size, size, device=machine.device, dtype=dtype)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end or not best:
        start = time.perf_counter()
        float((a @ a)[0, 0])
        best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e12)
    return best


def peak_tflops(machine: Machine) -> float:
    """The maker's figure for a known GPU, else measured."""
    if machine.device == "cuda":
        name = torch.cuda.get_device_name()
        return next((peak for key, peak in GPU_PEAK_TFLOPS.items() if key in name), 0.0) or measure_peak_tflops(machine)
    return measure_peak_tflops(machine)
