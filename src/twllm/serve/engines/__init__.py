"""Engines: prompt ids in, token events out. They know nothing of HTTP, of the APIs or of who asks.

    interface, checkpoint   what every engine offers; what a model's folder says
    decoding/               logits → ids → text: one sampler, grammars, stop strings, single tokens as text
    batching/               continuous batching: the scheduler, its slots, and the runner that it steps
    torch/                  the torch engine and its runner; also scores and answers for many known prompts (evaluation)
    cpu/                    runners over OpenVINO and llama.cpp
    remote/, vllm           engines that live elsewhere: another server, vLLM

`open_engine` is the way to one of them by name; each is imported when it is asked for. A new kind is one function in its own file
and one line here.
"""

import difflib
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from twllm.errors import UserError
from twllm.serve.engines.interface import Engine

Opener = Callable[..., Engine]  # (model, *, threads, allow_template_mismatch, **options)
ENGINES: dict[str, tuple[str, str]] = {  # kind → module, function
    "torch": ("twllm.serve.engines.torch.engine", "TorchEngine"),
    "openvino": ("twllm.serve.engines.cpu", "open_openvino"),
    "llamacpp": ("twllm.serve.engines.cpu", "open_llamacpp"),
    "vllm": ("twllm.serve.engines.vllm", "open_vllm"),
    "remote": ("twllm.serve.engines.remote.engine", "open_remote"),
}


def open_engine(
    kind: str,
    model: str | Path,
    *,
    threads: int | None = None,
    allow_template_mismatch: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Engine:
    """A loaded engine of this kind; "auto" takes the best one for the hardware among those installed.

    Raises:
        UserError: no such kind, an option it does not have, not installed, or the model is not for it.
    """
    kind = pick(model) if kind == "auto" else kind
    if kind not in ENGINES:
        close = difflib.get_close_matches(kind, ENGINES, 1)
        raise UserError(
            f"沒有這種引擎 (no such engine): {kind}",
            "--engine",
            f"要用 {close[0]} 嗎？(did you mean {close[0]}?)" if close else "可用：auto、" + "、".join(ENGINES),
        )
    module, name = ENGINES[kind]
    opener: Opener = getattr(import_module(module), name)
    try:
        return opener(model, threads=threads, allow_template_mismatch=allow_template_mismatch, **(options or {}))
    except TypeError as error:
        if "unexpected keyword argument" not in str(error) or not options:
            raise
        raise UserError(
            f"{kind} 引擎沒有這個選項 (no such option): {'、'.join(options)}", "--engine-option", "看 docs 的引擎選項表"
        ) from error


def pick(model: str | Path) -> str:
    """The kind that "auto" stands for: remote for an address, vLLM or torch on a GPU, OpenVINO on a CPU where it knows the model."""
    if str(model).startswith(("http://", "https://")):
        return "remote"
    import torch

    if torch.cuda.is_available():
        return "vllm" if find_spec("vllm") else "torch"
    from twllm.serve.engines.cpu import openvino_fits

    return "openvino" if openvino_fits(model) else "torch"
