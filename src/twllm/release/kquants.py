"""K-quants: llama.cpp's own quantiser (through llama-cpp-python, extra `llamacpp`) on a GGUF file that gguf.py wrote.

Rows whose length no K-quant fits (256 numbers a block) become q5_0 or q8_0, as llama.cpp decides. From fp32, so that nothing is rounded twice.
Not covered: importance matrices, and with them the IQ kinds below four bits.
"""

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

from twllm.artifact import explain_os_errors, sync
from twllm.errors import UserError
from twllm.release.gguf import write_gguf

KINDS = {"q2_k": "Q2_K", "q3_k_m": "Q3_K_M", "q4_0": "Q4_0", "q4_k_s": "Q4_K_S", "q4_k_m": "Q4_K_M", "q5_k_s": "Q5_K_S",
         "q5_k_m": "Q5_K_M", "q6_k": "Q6_K"}  # fmt: skip


def write_kquant(
    folder: Path,
    out: Path,
    kind: str,
    *,
    facts: Mapping[str, str] | None = None,
    threads: int | None = None,
    allow_template_mismatch: bool = False,
) -> Path:
    """Write `out`, whole or not at all; needs room for the model in fp32 beside it.

    Raises:
        UserError: llama-cpp-python is missing, or what `write_gguf` refuses.
    """
    try:
        import llama_cpp.llama_cpp as lib
    except ImportError as error:
        fix = "pip install 'twllm[llamacpp]'（要編譯），或用 f16、q8_0"
        raise UserError(f"{kind} 要 llama.cpp 來做 (llama-cpp-python is missing)", out, fix) from error
    exact = out.with_name(f".{out.name}.exact-{os.getpid()}.gguf")
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    with explain_os_errors(out):
        try:
            write_gguf(folder, exact, "f32", facts=facts, allow_template_mismatch=allow_template_mismatch)
            quiet = _quiet(lib)
            settings = lib.llama_model_quantize_default_params()
            settings.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{KINDS[kind]}")
            settings.nthread = threads or os.cpu_count() or 1
            failed = lib.llama_model_quantize(os.fsencode(exact), os.fsencode(partial), ctypes.byref(settings))
            del quiet
            if failed or not partial.is_file():
                raise UserError(f"llama.cpp 做不出 {kind} (quantisation failed)", folder, "改用 q8_0，或檢查磁碟空間")
            sync(partial)
            partial.replace(out)
        finally:
            exact.unlink(missing_ok=True)
            partial.unlink(missing_ok=True)
    return out


def _quiet(lib: object) -> object:
    """llama.cpp writes hundreds of lines to stderr; the callback has to live as long as it is set."""
    callback = lib.llama_log_callback(lambda level, text, data: None)  # type: ignore[attr-defined]
    _kept.append(callback)
    lib.llama_log_set(callback, ctypes.c_void_p(0))  # type: ignore[attr-defined]
    return callback


_kept: list[object] = []
