"""The attention of packed rows as one C++ kernel for CPUs (attend.cpp): compiled with the machine's g++ when first needed, 2 s, then cached.

About twice as fast as the batched products of buckets.py (dev/LOG.md), for documents of any length, and nothing of the size
tokens × tokens is kept. Same sums, to rounding (tests/train/test_kernel.py); the result does not depend on the number of threads.
Not covered: processors whose matrix products torch's oneDNN does not generate (needs AVX512 for fp32, AVX512-BF16 or AMX for bf16), machines
without a compiler, head widths that are no multiple of 16: `find_kernel` is None there, and buckets.py does the work.
"""

import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twllm.train.data import Batch

SOURCE = Path(__file__).with_name("attend.cpp")
FLAGS = ("-O3", "-std=c++20", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
BF16 = 15  # c10::ScalarType
# N tokens of all rows, n pieces, H heads, K key/value heads, E head width, P tokens of shared prefix


@dataclass(frozen=True)
class Pieces:
    """Who looks at whom in a micro-batch: the same for all layers."""

    table: Tensor  # (n, 4) int64, longest first: first place and length of the prefix, first place and length of the document
    rows: Tensor  # (n,) its row
    shape: tuple[int, int]  # (B, T)
    prefix: int


def pieces_of(batch: Batch) -> Pieces:
    """The documents of a micro-batch, and the prefix of each row as one of its own."""
    B, T = batch.ids.shape
    P = batch.prefix
    found = [(row, (row * T, P, row * T + start, length)) for row, start, length in batch.pieces]
    found += [(row, (row * T, 0, row * T, P)) for row in range(B) if P]
    found.sort(key=lambda piece: -piece[1][3])
    return Pieces(torch.tensor([place for _, place in found]), torch.tensor([row for row, _ in found]), (B, T), P)


@lru_cache(maxsize=1)
def find_kernel() -> Any:
    """The compiled library; None where it cannot be had."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    lib = Path(torch.__file__).parent / "lib"
    if compiler is None or not (lib / "libtorch_cpu.so").exists():
        return None
    key = sha256(repr((SOURCE.read_bytes(), FLAGS, torch.__version__, _processor())).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "twllm"
    target = folder / f"attend-{key}.so"
    try:
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            beside = folder / f"{target.name}.{os.getpid()}"
            command = [compiler, *FLAGS, str(SOURCE), "-o", str(beside), f"-L{lib}", f"-Wl,-rpath,{lib}", "-ltorch_cpu"]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            beside.replace(target)
        found = ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError):  # another compiler, another torch, a folder that cannot be written
        return None
    found.twllm_can_attend.restype = ctypes.c_bool
    found.twllm_can_attend.argtypes = [ctypes.c_int8]
    found.twllm_attend.restype = None
    found.twllm_attend.argtypes = [
        ctypes.c_bool, *[ctypes.c_int64] * 4, ctypes.c_void_p, ctypes.c_float, ctypes.c_int64, ctypes.POINTER(ctypes.c_void_p),
    ]  # fmt: skip
    return found


def _processor() -> str:
    """What `-march=native` makes of this machine depends on it."""
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return "unknown"
    return flags


def can_attend(dtype: torch.dtype, width: int) -> bool:
    """Whether the kernel computes heads of `width` in `dtype` here."""
    if dtype not in (torch.float32, torch.bfloat16) or width % 16:
        return False
    kernel = find_kernel()
    if dtype == torch.float32:
        return kernel is not None and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return kernel is not None and bool(kernel.twllm_can_attend(BF16))


def _call(layout: Pieces, heads: tuple[int, int, int], scaling: float, *tensors: Tensor | None) -> None:
    """The forward with query, key, value, out, log-sums; the backward with six more."""
    H, K, E = heads
    assert all(x is None or x.is_contiguous() for x in tensors)
    places = (ctypes.c_void_p * 11)(*[x.data_ptr() if x is not None else None for x in tensors])
    half = tensors[0] is not None and tensors[0].dtype == torch.bfloat16
    find_kernel().twllm_attend(
        half, len(layout.table), H, K, E, layout.table.data_ptr(), scaling, torch.get_num_threads(), places
    )


class _Attend(torch.autograd.Function):
    """Attention within the pieces: query (N, H, E), key and value (N, K, E) → (N, H, E)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Pieces, scaling: float) -> Tensor:
        q, k, v = query.contiguous(), key.contiguous(), value.contiguous()
        ctx.heads, ctx.layout, ctx.scaling = (q.shape[1], k.shape[1], q.shape[2]), layout, scaling
        out, sums = torch.zeros_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
        _call(layout, ctx.heads, scaling, q, k, v, out, sums)
        ctx.save_for_backward(q, k, v, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, sums = ctx.saved_tensors
        layout, (B, T), P = ctx.layout, ctx.layout.shape, ctx.layout.prefix
        K, E = k.shape[1:]
        d_q, d_k, d_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        slots = [q.new_zeros(len(layout.table), K, P, E, dtype=torch.float32) for _ in range(2)]
        _call(layout, ctx.heads, ctx.scaling, q, k, v, out, sums, grads[0].contiguous(), d_q, d_k, d_v, *slots)
        if P:
            for target, slot in zip((d_k, d_v), slots, strict=True):
                shared = slot.new_zeros(B, K, P, E).index_add_(0, layout.rows, slot)
                target.view(B, T, K, E)[:, :P] += shared.transpose(1, 2)
        return d_q, d_k, d_v, None, None


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Pieces, scaling: float) -> Tensor:
    """Each document on its own, and the prefix of its row: query (N, H, E), key and value (N, K, E) → (N, H, E)."""
    found: Tensor = _Attend.apply(query.to(value.dtype), key.to(value.dtype), value, layout, scaling)
    return found
