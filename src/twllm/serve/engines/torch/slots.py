"""Keys and values of all slots in one tensor, and the attention of one step over them.

Rows that answer are attended together where their slots lie side by side and are about equally long, so that little padding is
read; prompts one by one. On CPUs the memory is an anonymous map: only touched pages cost, and an emptied slot gives them back.
S slots, L layers, K key/value heads, H heads, C tokens a slot can hold, E head width, N rows of a step, T tokens looked at.
"""

import contextlib
import mmap
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from twllm.serve.engines.batching.runner import Work

CALL_BYTES = 400_000  # padding worth an attention call less: 15 us of a call at 28 GB/s, as measured on two cores


class Shape(NamedTuple):
    """Of a slot."""

    layers: int
    heads: int
    context: int
    width: int

    def token_bytes(self, dtype: torch.dtype) -> int:
        """Keys and values of one token."""
        return 2 * self.layers * self.heads * self.width * dtype.itemsize


class SlotMemory:
    """(S, L, 2, K, C, E)."""

    def __init__(self, slots: int, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.slots, self.shape = slots, shape
        sizes = (slots, shape.layers, 2, shape.heads, shape.context, shape.width)
        self._map: mmap.mmap | None = None
        self._slot_bytes = shape.context * shape.token_bytes(dtype)
        if device.type == "cpu" and hasattr(mmap, "MAP_ANONYMOUS"):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
            self._map = mmap.mmap(-1, slots * self._slot_bytes, flags=flags)
            whole = torch.frombuffer(self._map, dtype=dtype).view(sizes)
        else:
            whole = torch.zeros(sizes, dtype=dtype, device=device)
        self.whole = whole
        self.layers = [whole[:, layer] for layer in range(shape.layers)]  # (S, 2, K, C, E) each

    def clear(self, slot: int) -> None:
        """Give the slot's pages back."""
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = -(-slot * self._slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (slot + 1) * self._slot_bytes // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start:
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def copy(self, source: int, target: int, length: int) -> None:
        """The first `length` tokens."""
        self.whole[target, :, :, :, :length] = self.whole[source, :, :, :, :length]


class Rows(NamedTuple):
    """Answers in neighbouring slots: rows start to end of the step, slots from `slot` on, padded to `longest` tokens."""

    start: int
    end: int
    slot: int
    longest: int
    mask: Tensor | None  # (n, 1, 1, T)


class Prompt(NamedTuple):
    """Part of a prompt: rows start to end of the step, which stand at `done` and after in the slot."""

    start: int
    end: int
    slot: int
    done: int
    mask: Tensor | None  # (n, T); None: causal from the slot's beginning, or a single row


class Step:
    """Attention of one step. `order`: which of the work each comes first in the flat row; `ids` and `positions` of it."""

    def __init__(self, memory: SlotMemory, work: Sequence[Work], lengths: Sequence[int]) -> None:
        self._memory = memory
        dtype, device = memory.whole.dtype, memory.whole.device
        single = sorted((i for i, w in enumerate(work) if len(w.ids) == 1), key=lambda i: work[i].slot)
        self.order = [*single, *(i for i, w in enumerate(work) if len(w.ids) > 1)]
        self.ids = [id for i in self.order for id in work[i].ids]
        self.positions = [lengths[work[i].slot] + n for i in self.order for n in range(len(work[i].ids))]
        self.last: list[int] = []  # row of each work's last id, in `order`
        self._answers = len(single)
        slots = [work[i].slot for i in single]
        self._slots = torch.tensor(slots, device=device)
        self._places = torch.tensor(self.positions[: len(single)], device=device)
        self._rows = [
            _rows(*part, self.positions, dtype, device) for part in _neighbours(slots, self.positions, memory)
        ]
        self._prompts: list[Prompt] = []
        row = 0
        for i in self.order:
            size = len(work[i].ids)
            if size > 1:
                done = lengths[work[i].slot]
                mask = _causal(size, done, dtype, device) if done else None
                self._prompts.append(Prompt(row, row + size, work[i].slot, done, mask))
            row += size
            self.last.append(row - 1)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query (N, H, E), key and value (N, K, E) → (N, H, E); keys and values go into the slots."""
        held = self._memory.layers[layer]
        K, (_, H, E) = key.shape[1], query.shape
        parts = []
        if self._answers == 1:
            slot, place = self._rows[0].slot, self.positions[0]
            held[slot, 0, :, place] = key[0]
            held[slot, 1, :, place] = value[0]
        elif self._answers:
            held[self._slots, 0, :, self._places] = key[: self._answers]
            held[self._slots, 1, :, self._places] = value[: self._answers]
        for start, end, slot, longest, row_mask in self._rows:
            some = held[slot : slot + end - start, :, :, :longest]  # (n, 2, K, T, E)
            q = query[start:end].view(end - start, K, H // K, E)  # heads that share keys are the rows of one product
            out = F.scaled_dot_product_attention(q, some[:, 0], some[:, 1], attn_mask=row_mask, scale=scaling)
            parts.append(out.reshape(end - start, H, E))
        for start, end, slot, done, mask in self._prompts:
            total = done + end - start
            own = held[slot, :, :, :total]  # (2, K, T, E)
            own[0, :, done:] = key[start:end].transpose(0, 1)
            own[1, :, done:] = value[start:end].transpose(0, 1)
            q = query[start:end].transpose(0, 1)[None]
            k, v = own[0][None], own[1][None]
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=H != K
            )
            parts.append(out[0].transpose(0, 1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _neighbours(slots: Sequence[int], positions: Sequence[int], memory: SlotMemory) -> list[tuple[int, int, int]]:
    """(first row, end, slot): runs of neighbouring slots, cut where padding would cost more than a call."""
    layer_bytes = memory.shape.token_bytes(memory.whole.dtype) // memory.shape.layers
    found: list[tuple[int, int, int]] = []
    longest = 0
    for row, slot in enumerate(slots):
        length = positions[row] + 1
        if found:
            start, end, first = found[-1]
            padding = abs(longest - length) * ((end - start) if length > longest else 1) * layer_bytes
            if slot == first + end - start and padding <= CALL_BYTES:
                found[-1] = (start, row + 1, first)
                longest = max(longest, length)
                continue
        found.append((row, row + 1, slot))
        longest = length
    return found


def _rows(start: int, end: int, slot: int, positions: Sequence[int], dtype: torch.dtype, device: torch.device) -> Rows:
    lengths = [place + 1 for place in positions[start:end]]
    longest = max(lengths)
    mask = None
    if min(lengths) < longest:
        beyond = torch.arange(longest, device=device) >= torch.tensor(lengths, device=device)[:, None]
        mask = torch.zeros(end - start, longest, dtype=dtype, device=device).masked_fill_(beyond, -torch.inf)
        mask = mask[:, None, None]
    return Rows(start, end, slot, longest, mask)


def _causal(size: int, done: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size, done + size): row i sees everything up to done + i."""
    return torch.full((size, done + size), -torch.inf, dtype=dtype, device=device).triu_(done + 1)
