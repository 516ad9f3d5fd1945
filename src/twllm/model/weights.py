"""A checkpoint's weights without torch: safetensors mapped into memory as numpy arrays, nothing is read before it is used.

safetensors' own numpy reader cannot give bf16 and copies each tensor; here a 2 GB file is mapped in a millisecond, and pages that
are read can be given back (`release`). bf16 comes as uint16, because numpy has no bf16.
Not covered: quantised checkpoints (GPTQ, AWQ), pickles (never read).
"""

import json
import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twllm.errors import UserError

DTYPES = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
HEADER_BYTES = 1 << 27  # a header above it is a broken file; the format's own limit is 100 MB


class Weight(NamedTuple):
    """One tensor: `kind` is "BF16" (uint16 in `array`), "F16" or "F32"."""

    array: NDArray[Any]
    kind: str


class Weights(dict[str, Weight]):
    """Tensors by name. Whoever hands their memory on has to keep this object."""

    def __init__(self, folder: Path) -> None:
        """Map every safetensors file of the folder.

        Raises:
            UserError: there is none, one is cut short, or it holds another kind of number.
        """
        super().__init__()
        self._maps: list[mmap.mmap] = []
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UserError("沒有 safetensors 權重檔 (no safetensors)", folder, "需要 safetensors 格式的模型")
        for file in files:
            self._map(file)

    def _map(self, file: Path) -> None:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(size, HEADER_BYTES):
                raise _broken(file)
            try:
                header = json.loads(stream.read(length))
            except ValueError as error:
                raise _broken(file) from error
            memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps.append(memory)
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in DTYPES:
                raise UserError(
                    f"不支援這種數值 (unsupported numbers): {entry['dtype']}", f"{file}: {name}", "換 --engine torch"
                )
            start, end = entry["data_offsets"]
            if 8 + length + end > size:
                raise _broken(file)
            kind = DTYPES[entry["dtype"]]
            flat = np.frombuffer(memory, kind, (end - start) // np.dtype(kind).itemsize, 8 + length + start)
            self[name] = Weight(flat.reshape(entry["shape"]), entry["dtype"])

    def release(self) -> None:
        """Give the pages that were read back to the system; they are read again when needed."""
        for memory in self._maps:
            memory.madvise(mmap.MADV_DONTNEED)

    def f32(self, name: str) -> NDArray[np.float32]:
        """A tensor as fp32, copied unless it is."""
        array, kind = self[name]
        if kind == "BF16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(np.float32, copy=False)


def to_bf16(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """fp32 → bf16 bits, rounded to the nearest, ties to even, as torch does. NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(array), np.uint16(0x7FC0), rounded)


def _broken(file: Path) -> UserError:
    return UserError("權重檔壞了或不完整 (broken or cut safetensors)", file, "重新下載這個檔案")
