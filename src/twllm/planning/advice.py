"""What to change where nothing fits: more or larger cards, a shorter context, low-rank adapters, four bits; each tried, what fits is told."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from twllm.planning.job import Adapter
from twllm.planning.search import HEADROOM, Model, Phase, fewest_gpus, options, pick
from twllm.planning.speed import duration
from twllm.train.gpus import GPUS, Gpu

RANK = 64  # of the adapters that are tried
LEAST_CONTEXT = 512


def advise(model: Model, phases: Sequence[Phase], gpu: Gpu, gpus: int, limit_gib: float) -> Iterator[str]:
    """Sentences, the smallest change first; none if nothing tried fits.

    >>> from twllm.model.sizes import SIZES
    >>> from twllm.train.gpus import GPUS
    >>> list(advise(Model(SIZES["7b"], 32_000), [Phase("sft", 10**8, 2048, 32768)], GPUS["4090"], 1, 22.3))[-1]
    'QLoRA：[sft.lora] r = 64, quantise = "nf4"，用 1 張（每張最少 8.8 GiB，約 10.5 小時 hours）'
    """
    limit = gpu.memory_gib * HEADROOM
    quantised = any(phase.adapter and phase.adapter.quantised for phase in phases)  # runs on one card
    whole = limit <= limit_gib * 1.001  # of the card may be used
    fewest = fewest_gpus(model, phases, gpu) if whole and not quantised else None
    if fewest and fewest > gpus:
        yield f"{fewest} 張這種卡 ({fewest} GPUs；{_fits(model, phases, gpu, fewest, limit_gib)})"
    larger = sorted(
        (other.memory_gib, key) for key, other in GPUS.items() if whole and other.memory_gib > gpu.memory_gib
    )
    for memory, key in larger:
        if found := _fits(model, phases, GPUS[key], gpus, memory * HEADROOM):
            yield f"換成 --gpu {key}（{found}）"
            break
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
    in_four_bits = [replace(phase, adapter=Adapter(RANK, True)) for phase in phases]
    if found := _fits(model, in_four_bits, gpu, 1, limit_gib):
        yield f'QLoRA：{names} r = {RANK}, quantise = "nf4"，用 1 張（{found}）'


def _fits(model: Model, phases: Sequence[Phase], gpu: Gpu, gpus: int, limit_gib: float) -> str:
    """What a card would hold at least, and how long the fastest way would take; "" where it does not fit."""
    tried = options(model, phases, gpu, gpus)
    found = pick(tried, limit_gib)
    return f"每張最少 {min(choice.gib for choice in tried):.1f} GiB，約 {duration(found.seconds)}" if found else ""


def _shorter(phase: Phase, context: int) -> Phase:
    return replace(phase, context=min(context, phase.context))
