"""The llama.cpp runner: llama.cpp's key/value memory and kernels through its low-level API, everything else ours.

The checkpoint becomes a GGUF file without vocabulary (ids in, logits out) in a cache folder, once for each set of weights; a .gguf file
can be given instead of it. One memory is shared by all sequences (`kv_unified`), a beginning is shared by naming it twice.
Not covered: GPUs (n_gpu_layers is 0), LoRA, log-probabilities of more than `context` ids.
"""

import atexit
import contextlib
import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import llama_cpp._utils as silence
import llama_cpp.llama_cpp as lib
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from twllm.artifact import remove_partial
from twllm.errors import UserError
from twllm.model.llama_shape import LLAMACPP_ROPE, read_shape
from twllm.serve.engines.batching.runner import Logits, Work
from twllm.serve.engines.checkpoint import model_fingerprint
from twllm.serve.engines.decoding.sampler import raw_logprobs
from twllm.serve.engines.interface import PromptScores

Precision = Literal["fp32", "fp16", "bf16", "q8_0"]
FILES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "q8_0": "q8_0"}
SLOTS = 32  # answers at once; chosen
STEP_TOKENS = 512  # of prompts, and of a llama.cpp batch; its own default
SHARE = (
    1 / 16
)  # of the machine's memory for keys and values; less than the other engines', because llama.cpp takes it at once
_started = False


def cache_folder() -> Path:
    """Where converted models lie: $TWLLM_CACHE, else the user's cache folder."""
    given = os.environ.get("TWLLM_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twllm"


def converted(folder: Path, precision: Precision) -> Path:
    """The GGUF file of these weights, written if it is not there yet; older ones of the same folder's name stay.

    Raises:
        UserError: not Llama-shaped, or no space.
    """
    file = cache_folder() / "gguf" / f"{model_fingerprint(folder)}-{precision}.gguf"
    if not file.is_file():
        from twllm.release.gguf import write_gguf

        remove_partial(file)
        write_gguf(folder, file, FILES[precision], vocabulary=False)  # type: ignore[arg-type]
    return file


class LlamaCppRunner:
    """A Llama-shaped folder, or a GGUF file, in llama.cpp on the CPU."""

    step_tokens = STEP_TOKENS

    def __init__(
        self, model: str | Path, *, precision: Precision = "bf16", slots: int = SLOTS,
        threads: int | None = None, context: int | None = None, kv_bytes: int | None = None,
    ) -> None:  # fmt: skip
        """Load the model; `context` None is its own. fp32 keeps keys and values in fp32, too.

        Raises:
            UserError: the model cannot be converted or loaded, or too little memory for one answer.
        """
        _start()
        model = Path(model)
        file = model if model.suffix == ".gguf" else converted(model, precision)
        self._context_handle: Any = None
        settings = lib.llama_model_default_params()
        settings.n_gpu_layers = 0
        settings.use_extra_bufts = precision != "q8_0"  # repacked q8_0 crashes on AMX (0.3.36)
        self._model: Any = lib.llama_model_load_from_file(os.fsencode(file), settings)
        if not self._model:
            raise UserError("llama.cpp 讀不進這個檔案 (cannot load)", file, "檢查檔案是否完整，或刪除後重新轉換")
        trained = int(lib.llama_model_n_ctx_train(self._model))
        self.context = min(context or trained, trained)
        kind = GGMLQuantizationType.F32 if precision == "fp32" else GGMLQuantizationType.F16
        heads, layers = lib.llama_model_n_head_kv(self._model), lib.llama_model_n_layer(self._model)
        width = lib.llama_model_n_embd(self._model) // lib.llama_model_n_head(self._model)
        if model.is_dir():
            width = read_shape(model, LLAMACPP_ROPE).E
        token = 2 * layers * heads * width * (4 if precision == "fp32" else 2)
        allowed = (
            int(SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) if kv_bytes is None else kv_bytes
        )
        self.capacity = min(slots * self.context, allowed // token // 256 * 256)
        if self.capacity < 256 and self.capacity < self.context:
            self.close()
            raise UserError(
                f"放鍵值快取的記憶體不夠 ({allowed / 1e9:.1f} GB is too little for keys and values)",
                "kv_bytes",
                "換小一點的模型",
            )
        self.context = min(self.context, self.capacity)
        self.slots, self.vocab = slots, int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model)))
        self._spare = slots  # one sequence more, for scoring
        wanted = lib.llama_context_default_params()
        wanted.n_ctx = self.capacity + self.context
        wanted.n_batch = wanted.n_ubatch = STEP_TOKENS
        wanted.n_seq_max, wanted.kv_unified = slots + 1, True
        exact = precision == "fp32"  # its flash attention computes in half precision
        wanted.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED if exact else lib.LLAMA_FLASH_ATTN_TYPE_AUTO
        wanted.type_k = wanted.type_v = int(kind)
        wanted.n_threads = wanted.n_threads_batch = threads or _cores()
        wanted.no_perf = True
        self._context_handle = lib.llama_init_from_model(self._model, wanted)
        if not self._context_handle:
            self.close()
            raise UserError("llama.cpp 開不了這個模型 (no context)", file, "減少 slots 或 context")
        self._memory = lib.llama_get_memory(self._context_handle)
        self._batch = lib.llama_batch_init(STEP_TOKENS, 0, 1)
        self._lengths = [0] * (slots + 1)

    def step(self, work: Sequence[Work]) -> Sequence[Logits | None]:
        """See `Runner.step`."""
        flat = [
            (id, self._lengths[one.slot] + at, one.slot, one.logits and at == len(one.ids) - 1)
            for one in work
            for at, id in enumerate(one.ids)
        ]
        found = iter(self._decode(flat))
        for one in work:
            self._lengths[one.slot] += len(one.ids)
        return [next(found) if one.logits else None for one in work]

    def trim(self, slot: int, length: int) -> None:
        """See `Runner.trim`."""
        lib.llama_memory_seq_rm(self._memory, slot, length, -1)
        self._lengths[slot] = length

    def copy(self, source: int, target: int, length: int) -> bool:
        """See `Runner.copy`: the cells are named twice, not copied."""
        lib.llama_memory_seq_cp(self._memory, source, target, 0, length)
        self._lengths[target] = length
        return True

    def prompt_logprobs(self, sequences: Sequence[list[int]], top: int) -> list[PromptScores]:
        """See `Runner.prompt_logprobs`."""
        return [self._score(ids, top) for ids in sequences]

    def close(self) -> None:
        """Free model and memory."""
        if self._context_handle:
            lib.llama_batch_free(self._batch)
            lib.llama_free(self._context_handle)
            self._context_handle = None
        if self._model:
            lib.llama_model_free(self._model)
            self._model = None

    def _score(self, ids: list[int], top: int) -> PromptScores:
        given: list[float] = []
        best = []
        try:
            logits = self._decode([(id, at, self._spare, True) for at, id in enumerate(ids)])
            for follows, row in zip([*ids[1:], ids[-1]], logits, strict=True):
                logprob, others = raw_logprobs(row, follows, top)
                given.append(logprob)
                best.append(others)
        finally:
            self.trim(self._spare, 0)
        return PromptScores(given[:-1], best)

    def _decode(self, flat: Sequence[tuple[int, int, int, bool]]) -> list[Logits]:
        """Run (id, position, sequence, logits wanted); copies of the wanted logits, because a second batch overwrites them."""
        found: list[Logits] = []
        for start in range(0, len(flat), STEP_TOKENS):
            part = flat[start : start + STEP_TOKENS]
            batch = self._batch
            batch.n_tokens = len(part)
            for at, (id, position, sequence, wanted) in enumerate(part):
                batch.token[at], batch.pos[at], batch.n_seq_id[at] = id, position, 1
                batch.seq_id[at][0], batch.logits[at] = sequence, wanted
            code = lib.llama_decode(self._context_handle, batch)
            if code != 0:
                raise RuntimeError(f"llama_decode returned {code}")
            for at, (_, _, _, wanted) in enumerate(part):
                if wanted:
                    found.append(self._logits(at).copy())
        return found

    def _logits(self, at: int) -> NDArray[np.float32]:
        pointer = lib.llama_get_logits_ith(self._context_handle, at)
        return np.ctypeslib.as_array(pointer, shape=(self.vocab,))


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _quiet(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """llama.cpp writes pages to stderr for each model."""


def _start() -> None:
    global _started
    if not _started:
        _started = True
        lib.llama_log_set(_quiet, ctypes.c_void_p(0))
        lib.llama_backend_init()
        for file in (silence.outnull_file, silence.errnull_file):  # llama_cpp leaves them open, which Python reports
            atexit.register(file.close)


def _cores() -> int:
    with contextlib.suppress(AttributeError):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
