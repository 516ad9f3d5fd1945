"""What this machine can do, turned into settings: device, precision, threads, compile, attention form.

bf16 on a CPU pays only where the instruction set multiplies it (AVX512-BF16, AMX): measured 3-4x faster than fp32 there and
100x slower without (dev/LOG.md), so `auto` asks the processor and not the user. The same on GPUs: cards before Ampere emulate bf16.
fp32 stays fp32: torch's TF32 switches are left off. Not covered: fp16 (needs loss scaling), CUDA graphs, cards that differ in one process.
"""

import os
from dataclasses import asdict, dataclass
from typing import Any

import torch

from twllm.errors import UserError
from twllm.train.config import MachineConfig
from twllm.train.gpus import recognise

COMPILE_PAYS_AT_TOKENS = 2_000_000  # costs about 20 s of one core, gains 1.3 to 1.8 times (bf16) on CPU: dev/LOG.md


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


def gpu_multiplies_bf16() -> bool:
    """Whether the current GPU has bf16 tensor cores (NVIDIA: from Ampere on)."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


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
    fast_bf16 = gpu_multiplies_bf16() if device == "cuda" else cpu_multiplies_bf16()
    precision = ("bf16" if fast_bf16 else "fp32") if config.precision == "auto" else config.precision
    compiled = planned_tokens >= COMPILE_PAYS_AT_TOKENS if config.compile == "auto" else config.compile == "on"
    threads = config.threads or max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    if config.offload and device != "cuda":
        raise UserError(
            "offload 只在 GPU 上有意義 (offload needs a GPU)", "machine.offload = true", "在 CPU 上拿掉這個設定"
        )
    keep_freed_memory()
    torch.set_flush_denormal(
        True
    )  # a peaked softmax is full of them: flash attention's backward of 8,192 tokens is 12 times as fast
    if device == "cuda":
        grow_segments()
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


def grow_segments() -> bool:
    """Let the GPU allocator grow its segments instead of adding some that fit nothing later: packed rows ask for other sizes at
    each step. Returns whether it was done; an allocator that the environment already sets is left alone. Before the first tensor.
    """
    if any(
        os.environ.get(name) for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
    ):
        return False
    torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
    return True


def measure_peak_tflops(machine: Machine, seconds: float = 0.3) -> float:
    """Best matrix-product speed seen in `seconds`, in the precision of the run: the yardstick for MFU and time estimates."""
    import time

    gpu = machine.device == "cuda"
    dtype = torch.bfloat16 if machine.precision == "bf16" else torch.float32
    size, repeats = (8192, 4) if gpu else (1024, 1)  # on a GPU several between two waits: a launch takes microseconds
    a = torch.randn(size, size, device=machine.device, dtype=dtype)
    out = torch.empty_like(a)
    torch.mm(a, a, out=out)  # the libraries load
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end or not best:
        if gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(a, a, out=out)
        if gpu:
            torch.cuda.synchronize()
        best = max(best, repeats * 2 * size**3 / (time.perf_counter() - start) / 1e12)
    return best


def peak_tflops(machine: Machine) -> float:
    """The maker's figure for a known GPU in bf16, else measured."""
    known = (
        recognise(torch.cuda.get_device_name()) if machine.device == "cuda" and machine.precision == "bf16" else None
    )
    return known.peak_tflops if known else measure_peak_tflops(machine)
