"""Shapes of base models that recipes name, from their config.json on the hub, so that a plan needs no download.

Written down by hand from the published config files; a checkpoint that is at hand is read instead. Held against transformers'
parameter counts in tests/planning/test_recipes.py.
"""

from dataclasses import dataclass

from twllm.model.sizes import Size


@dataclass(frozen=True)
class HubShape:
    """A shape, its vocabulary and its longest context."""

    size: Size
    vocab: int
    context: int


_LLAMA2_7B = HubShape(Size(4096, 32, 32, 32, 11008), 32_000, 4096)
_LLAMA2_13B = HubShape(Size(5120, 40, 40, 40, 13824), 32_000, 4096)
HUB_SHAPES = {
    "meta-llama/Llama-2-7b-hf": _LLAMA2_7B,
    "meta-llama/Llama-2-13b-hf": _LLAMA2_13B,
    "meta-llama/Llama-2-70b-hf": HubShape(Size(8192, 80, 64, 8, 28672), 32_000, 4096),
    "yentinglin/Taiwan-LLM-7B-v2.0-base": _LLAMA2_7B,
    "yentinglin/Taiwan-LLM-7B-v2.1-chat": _LLAMA2_7B,
    "yentinglin/Taiwan-LLM-13B-v2.0-base": _LLAMA2_13B,
    "yentinglin/Taiwan-LLM-13B-v2.0-chat": _LLAMA2_13B,
    "meta-llama/Meta-Llama-3-8B": HubShape(Size(4096, 32, 32, 8, 14336), 128_256, 8192),
    "meta-llama/Meta-Llama-3-70B": HubShape(Size(8192, 80, 64, 8, 28672), 128_256, 8192),
    "yentinglin/Llama-3-Taiwan-8B-Instruct": HubShape(Size(4096, 32, 32, 8, 14336), 128_258, 8192),
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": HubShape(Size(2048, 22, 32, 4, 5632), 32_000, 2048),
    "meta-llama/Llama-3.2-1B": HubShape(Size(2048, 16, 32, 8, 8192, tied=True), 128_256, 131_072),
    "meta-llama/Llama-3.2-3B": HubShape(Size(3072, 28, 24, 8, 8192, tied=True), 128_256, 131_072),
}
