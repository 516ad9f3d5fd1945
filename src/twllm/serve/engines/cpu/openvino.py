"""The OpenVINO runner: paged attention in OpenVINO, everything else (queue, sampling, grammars, text) ours.

Keys and values live in blocks of 32 tokens; a slot is a list of blocks. Sharing a beginning costs nothing: both slots name the same
blocks, and one is copied when it is written to while shared. All tokens of a step, of prompts and answers alike, go through in one row.
Memory for blocks is reserved, not taken: the system gives pages when they are first written.
Not covered: GPUs and NPUs (OpenVINO has them; not tried here), sharing between processes.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from twllm.errors import UserError
from twllm.model.llama_shape import read_shape
from twllm.model.weights import Weights
from twllm.serve.engines.batching.runner import Logits, Work
from twllm.serve.engines.cpu.openvino_graph import Precision, build
from twllm.serve.engines.decoding.sampler import raw_logprobs
from twllm.serve.engines.interface import PromptScores

SLOTS = 32  # answers at once; chosen
STEP_TOKENS = 512  # of prompts; chosen, not tuned
SHARE = 0.25  # of the machine's memory for keys and values, as the torch engine
SCORED_ROWS = 256  # logits at once when scoring: 32 MB for a vocabulary of 32,000; chosen


class OpenVinoRunner:
    """A Llama-shaped folder in OpenVINO's CPU plugin."""

    step_tokens = STEP_TOKENS

    def __init__(
        self, folder: str | Path, *, precision: Precision = "bf16", slots: int = SLOTS,
        threads: int | None = None, context: int | None = None, kv_bytes: int | None = None,
    ) -> None:  # fmt: skip
        """Build, compile and warm up; `context` None is the model's.

        Raises:
            UserError: not Llama-shaped, or too little memory for one answer.
        """
        folder = Path(folder)
        shape = read_shape(folder)
        self.slots, self.vocab = slots, shape.V
        self.context = min(context or shape.context, shape.context)
        self._weights = Weights(folder)
        compiled = _compile(build(shape, self._weights, precision, self.context), precision, threads)
        self._request = compiled.create_infer_request()
        caches = {port.any_name: port for port in compiled.inputs if "_cache." in port.any_name}
        self._size = int(next(iter(caches.values())).partial_shape[2].get_length())
        token = sum(_bytes(port) for port in caches.values()) // self._size
        allowed = _memory() if kv_bytes is None else kv_bytes
        a_slot = -(-self.context // self._size)
        count = min(slots * a_slot, allowed // (token * self._size))
        if count < 1:
            raise UserError(
                f"放鍵值快取的記憶體不夠 ({allowed / 1e9:.1f} GB is too little for keys and values)",
                "kv_bytes",
                "換小一點的模型",
            )
        self.context = min(self.context, count * self._size)
        self.capacity = max(1, count - slots) * self._size if count < slots * a_slot else slots * self.context
        self._blocks = _Blocks(count + a_slot)  # one slot more, for scoring
        self._caches = [self._reserve(name, port, count + a_slot) for name, port in caches.items()]
        self._tables: list[list[int]] = [[] for _ in range(slots + 1)]
        self._lengths = [0] * (slots + 1)
        self.step([Work(0, [0], True)])  # weights are packed at the first run
        self.trim(0, 0)
        self._weights.release()

    def step(self, work: Sequence[Work]) -> Sequence[Logits | None]:
        """See `Runner.step`."""
        found = self._infer([(one.slot, list(one.ids)) for one in work], [1 if one.logits else 0 for one in work])
        rows = iter(found)
        return [next(rows) if one.logits else None for one in work]

    def trim(self, slot: int, length: int) -> None:
        """See `Runner.trim`."""
        table = self._tables[slot]
        keep = -(-length // self._size)
        self._blocks.give_back(table[keep:])
        del table[keep:]
        self._lengths[slot] = length

    def copy(self, source: int, target: int, length: int) -> bool:
        """See `Runner.copy`: no numbers are copied, the blocks are named twice."""
        table = self._tables[source][: -(-length // self._size)]
        self._blocks.share(table)
        self._tables[target] = list(table)
        self._lengths[target] = length
        return True

    def prompt_logprobs(self, sequences: Sequence[list[int]], top: int) -> list[PromptScores]:
        """See `Runner.prompt_logprobs`."""
        return [self._score(ids, top) for ids in sequences]

    def close(self) -> None:
        """Free the model; the runner cannot be used any more."""
        del self._request, self._caches

    def _score(self, ids: list[int], top: int) -> PromptScores:
        spare, given, best = self.slots, [], []
        try:
            for start in range(0, len(ids), SCORED_ROWS):
                part = ids[start : start + SCORED_ROWS]
                for at, logits in enumerate(self._infer([(spare, part)], [len(part)]), start + 1):
                    follows = ids[at] if at < len(ids) else part[-1]
                    logprob, others = raw_logprobs(logits, follows, top)
                    best.append(others)
                    given += [logprob] if at < len(ids) else []
        finally:
            self.trim(spare, 0)
        return PromptScores(given, best)

    def _infer(self, work: Sequence[tuple[int, list[int]]], wanted: Sequence[int]) -> NDArray[np.float32]:
        """Append ids to slots; logits (rows, V) of the last `wanted` ids of each."""
        ids: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        past, begins, blocks, block_begins = [], [0], [], [0]
        for (slot, given), count in zip(work, wanted, strict=True):
            start = self._lengths[slot]
            self._make_room(slot, start + len(given))
            ids += given
            positions += range(start, start + len(given))
            rows += range(len(ids) - count, len(ids))
            past.append(start)
            begins.append(len(ids))
            blocks += self._tables[slot]
            block_begins.append(len(blocks))
        values = {
            "input_ids": np.array(ids, np.int64),
            "position_ids": np.array(positions, np.int64),
            "rows": np.array(rows or [0], np.int64),
            "past_lens": np.array(past, np.int32),
            "subsequence_begins": np.array(begins, np.int32),
            "block_indices": np.array(blocks, np.int32),
            "block_indices_begins": np.array(block_begins, np.int32),
            "max_context_len": np.array(max(p + len(g) for p, (_, g) in zip(past, work, strict=True)), np.int32),
        }
        for name, value in values.items():
            self._request.set_tensor(name, ov.Tensor(value))
        self._request.infer()
        for slot, given in work:
            self._lengths[slot] += len(given)
        logits: NDArray[np.float32] = self._request.get_output_tensor(0).data.reshape(-1, self.vocab)
        return logits[: len(rows)]

    def _make_room(self, slot: int, length: int) -> None:
        """Blocks for `length` tokens, those that will be written to the slot's own."""
        table, start = self._tables[slot], self._lengths[slot]
        self._blocks.give_back(table[-(-start // self._size) :])  # left by a step that failed
        del table[-(-start // self._size) :]
        if start % self._size and self._blocks.shared(table[-1]):
            (own,) = self._blocks.take(1)
            for cache in self._caches:
                cache[own] = cache[table[-1]]
            self._blocks.give_back([table[-1]])
            table[-1] = own
        table += self._blocks.take(-(-length // self._size) - len(table))

    def _reserve(self, name: str, port: Any, count: int) -> NDArray[Any]:
        """Zeroed memory for one layer's keys or values, (block, K, token, E); bytes, for OpenVINO of its own kind."""
        sizes = [dimension.get_length() for dimension in list(port.partial_shape)[1:]]
        memory = np.zeros((count, sizes[0], sizes[1], sizes[2] * port.element_type.size), np.uint8)
        self._request.set_tensor(
            name, ov.Tensor(memory.view(_numpy(port)), ov.Shape([count, *sizes]), port.element_type)
        )
        return memory


class _Blocks:
    """Which blocks are free, and how many slots name each."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count - 1, -1, -1))
        self._users = [0] * count

    def take(self, count: int) -> list[int]:
        if count > len(self._free):
            raise MemoryError("no free block: the scheduler keeps to `capacity`")
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._users[block] = 1
        return taken

    def share(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._users[block] += 1

    def shared(self, block: int) -> bool:
        return self._users[block] > 1

    def give_back(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._users[block] -= 1
            if self._users[block] == 0:
                self._free.append(block)


def _compile(model: ov.Model, precision: Precision, threads: int | None) -> Any:
    kind = "f32" if precision == "fp32" else "bf16"
    settings = {"INFERENCE_PRECISION_HINT": kind, "KV_CACHE_PRECISION": kind, "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    return ov.Core().compile_model(model, "CPU", settings)


def _numpy(port: Any) -> type[Any]:
    return np.float32 if port.element_type == ov.Type.f32 else np.uint16


def _bytes(port: Any) -> int:
    """Of one block."""
    sizes = [dimension.get_length() for dimension in list(port.partial_shape)[1:]]
    return int(np.prod(sizes)) * int(port.element_type.size)


def _memory() -> int:
    return int(SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
