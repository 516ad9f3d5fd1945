"""The CPU engines by name: our scheduler and sampler over OpenVINO or llama.cpp. Torch is not imported."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from twllm.errors import UserError, require_file
from twllm.model.llama_shape import LLAMACPP_ROPE, read_shape
from twllm.serve.engines.batching.scheduler import BatchingEngine
from twllm.serve.engines.checkpoint import Facts, read_facts


def open_openvino(
    model: str | Path, *, threads: int | None = None, allow_template_mismatch: bool = False,
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto", **options: Any,
) -> BatchingEngine:  # fmt: skip
    """OpenVINO's CPU plugin; `options`: slots, context, kv_bytes.

    Raises:
        UserError: not installed, or the model is not Llama-shaped.
    """
    _require("openvino", "openvino")
    from twllm.serve.engines.cpu.openvino import OpenVinoRunner

    folder = _folder(model)
    facts = _facts(folder, allow_template_mismatch)
    chosen = ("bf16" if multiplies_bf16() else "fp32") if precision == "auto" else precision
    return BatchingEngine(OpenVinoRunner(folder, precision=chosen, threads=threads, **options), facts)


def open_llamacpp(
    model: str | Path, *, threads: int | None = None, allow_template_mismatch: bool = False,
    precision: Literal["auto", "fp32", "fp16", "bf16", "q8_0"] = "auto", gguf: str | Path | None = None, **options: Any,
) -> BatchingEngine:  # fmt: skip
    """llama.cpp; `options`: slots, context, kv_bytes. `gguf`: weights from this file, the folder gives tokenizer and template.

    Raises:
        UserError: not installed, or the model is not Llama-shaped.
    """
    _require("llama_cpp", "llamacpp")
    from twllm.serve.engines.cpu.llamacpp import LlamaCppRunner

    folder = _folder(model)
    facts = _facts(folder, allow_template_mismatch)
    chosen = ("bf16" if multiplies_bf16() else "fp16") if precision == "auto" else precision
    file = require_file(gguf, "找不到 GGUF 檔 (no such GGUF file)") if gguf else folder
    return BatchingEngine(LlamaCppRunner(file, precision=chosen, threads=threads, **options), facts)


def openvino_fits(model: str | Path) -> bool:
    """Whether OpenVINO is installed and knows this model: what "auto" asks on a machine without a GPU."""
    if importlib.util.find_spec("openvino") is None:
        return False
    try:
        read_shape(model)
    except UserError:
        return False
    return any(Path(model).glob("*.safetensors"))


def multiplies_bf16() -> bool:
    """Whether the processor has bf16 products (AVX512-BF16, AMX, Arm's BF16); False where it cannot be told."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(flags)


def _folder(model: str | Path) -> Path:
    return require_file(model, "找不到模型資料夾 (no such model folder)")


def _facts(folder: Path, allow_template_mismatch: bool) -> Facts:
    facts = read_facts(folder, allow_template_mismatch=allow_template_mismatch)
    return replace(facts, context=read_shape(folder, LLAMACPP_ROPE).context)


def _require(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(f"沒有安裝 {module} (not installed)", f"--engine {extra}", f"pip install 'twllm[{extra}]'")
