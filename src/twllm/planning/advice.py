"""What to change where nothing fits: more cards, low-rank adapters, four bits, a shorter context; each tried, the ones that fit are told."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from twllm.planning.job import Adapter
from twllm.planning.search import HEADROOM, Model, Phase, fewest_gpus, options, pick
from twllm.train.gpus import Gpu

RANK = 64  # of the adapters that are tried
LEAST_CONTEXT = 512


def advise(model: Model, phases: Sequence[Phase], gpu: Gpu, gpus: int, limit_gib: float) -> Iterator[str]:
    """Sentences, the smallest change first; none if nothing tried fits.

    >>> from twllm.model.sizes import SIZES
    >>> from twllm.train.gpus import GPUS
    >>> list(advise(Model(SIZES["7b"], 32_000), [Phase("sft", 10**8, 2048, 32768)], GPUS["4090"], 1, 22.3))[-1]
    'QLoRA：[sft.lora] r = 64, quantise = "nf4"，用 1 張（每張 GPU 12.0 GiB）'
    """
    limit = gpu.memory_gib * HEADROOM
    fewest = fewest_gpus(model, phases, gpu) if limit <= limit_gib * 1.001 else None
    if fewest and fewest > gpus:
        yield f"{fewest} 張這種卡 ({fewest} GPUs)"
    context = max(phase.context for phase in phases) // 2
    while context >= LEAST_CONTEXT:
        if found := _fits(model, [_shorter(phase, context) for phase in phases], gpu, gpus, limit_gib):
            yield f"context = {context}（{found}）"
            break
        context //= 2
    if any(phase.adapter or phase.eyes for phase in phases):
        return
    names = "、".join(f"[{phase.name}.lora]" for phase in phases)
    with_lora = [replace(phase, adapter=Adapter(RANK)) for phase in phases]
    if found := _fits(model, with_lora, gpu, gpus, limit_gib):
        yield f"LoRA：{names} r = {RANK}（{found}）"
    quantised = [replace(phase, adapter=Adapter(RANK, True)) for phase in phases]
    if found := _fits(model, quantised, gpu, 1, limit_gib):
        yield f'QLoRA：{names} r = {RANK}, quantise = "nf4"，用 1 張（{found}）'


def _fits(model: Model, phases: Sequence[Phase], gpu: Gpu, gpus: int, limit_gib: float) -> str:
    """What a card would hold, "" where it does not fit."""
    found = pick(options(model, phases, gpu, gpus), limit_gib)
    return f"每張 GPU {found.gib:.1f} GiB" if found else ""


def _shorter(phase: Phase, context: int) -> Phase:
    return replace(phase, context=min(context, phase.context))
