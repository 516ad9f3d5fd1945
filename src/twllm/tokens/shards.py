"""Token shards: memory-mapped ids, loss-mask bits and document offsets, written whole or not at all.

A shard folder holds `ids.bin` (uint16 below 65,536 ids, else uint32), `mask.bin` (one bit a token, most significant bit
first: True = the loss covers the token), `offsets.npy` (uint64, documents + 1), `names.jsonl` (one id a document, to name
the culprit when a loss explodes) and `index.json`.
"""

import json
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twllm.errors import UserError


def write_shard(
    folder: Path, documents: Iterable[tuple[str, list[int], list[bool] | None]], vocab_size: int, **facts: Any
) -> dict[str, Any]:
    """Write (name, ids, mask or None = all True) documents; returns the index (`num_documents`, `num_tokens`, …)."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype: Any = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    offsets, learned, bits = array("Q", [0]), 0, np.zeros(0, bool)
    with (
        (folder / "ids.bin").open("wb") as ids_file,
        (folder / "mask.bin").open("wb") as mask_file,
        (folder / "names.jsonl").open("w", encoding="utf-8") as names,
    ):
        for name, ids, mask in documents:
            if not ids:
                continue
            if max(ids) >= vocab_size:
                raise UserError(
                    f"詞元編號 {max(ids)} 超出詞彙 (token id out of range)", name, f"詞彙只有 {vocab_size} 個"
                )
            ids_file.write(np.asarray(ids, dtype).tobytes())
            keep = np.ones(len(ids), bool) if mask is None else np.asarray(mask, bool)
            bits = np.concatenate([bits, keep])
            whole = len(bits) // 8 * 8
            mask_file.write(np.packbits(bits[:whole]).tobytes())
            bits = bits[whole:]
            learned += int(keep.sum())
            offsets.append(offsets[-1] + len(ids))
            names.write(json.dumps(name) + "\n")  # escaped: an id may hold a lone surrogate
        mask_file.write(np.packbits(bits).tobytes())
    np.save(folder / "offsets.npy", np.asarray(offsets, np.uint64))
    index = {
        "dtype": np.dtype(dtype).name,
        "vocab_size": vocab_size,
        "num_documents": len(offsets) - 1,
        "num_tokens": offsets[-1],
        "num_learned_tokens": learned,
        **facts,
    }
    (folder / "index.json").write_text(json.dumps(index, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return index


class TokenShard:
    """Read-only view of a shard folder; nothing is loaded before it is asked for."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        try:
            self.index: dict[str, Any] = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(
                "不是詞元資料夾 (not a token shard)", self.folder, "先執行 twllm run 產生 tokens 階段"
            ) from error
        empty = not self.index["num_tokens"]
        dtype = np.dtype(self.index["dtype"])
        self.ids: NDArray[Any] = np.zeros(0, dtype) if empty else np.memmap(self.folder / "ids.bin", dtype, "r")
        self._bits: NDArray[np.uint8] = (
            np.zeros(0, np.uint8) if empty else np.memmap(self.folder / "mask.bin", np.uint8, "r")
        )
        self.offsets: NDArray[np.int64] = np.load(self.folder / "offsets.npy").astype(np.int64)
        if len(self.ids) != self.index["num_tokens"] or self.offsets[-1] != len(self.ids):
            raise UserError("詞元檔案長度不符 (damaged token shard)", self.folder, "刪除這個資料夾再重跑")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per document."""
        return np.diff(self.offsets)

    def mask(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Loss mask of tokens [start, stop)."""
        low = start // 8
        return np.unpackbits(self._bits[low : (stop + 7) // 8])[start - low * 8 : stop - low * 8].astype(bool)

    def name(self, document: int) -> str:
        """The document's id (reads the list of names: for error messages and inspection)."""
        with (self.folder / "names.jsonl").open(encoding="utf-8") as lines:
            return next((str(json.loads(line)) for i, line in enumerate(lines) if i == document), "?")
