"""The fastest way to run a recipe's phases that fits: sharding, activation checkpointing and micro-batch, tried one by one.

All phases of a recipe share one machine file, so a choice must fit every phase; its time is the sum. The search is complete: three
shardings × with and without checkpointing × every doubling of the micro-batch up to a rank's share of the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from twllm.model.sizes import Size
from twllm.planning.gpus import GIB, Gpu
from twllm.planning.memory import Adapter, Job, Memory, Sharding, step_memory
from twllm.planning.speed import StepTime, step_flops, step_time

SHARDINGS: tuple[Sharding, ...] = ("none", "optimizer", "full")
HEADROOM = 0.95  # of the card that a plan may fill


@dataclass(frozen=True)
class Phase:
    """What the planner needs of a training phase."""

    name: str
    tokens: int
    context: int
    batch_tokens: int
    adapter: Adapter | None = None
    trained_copies: float = 1.0  # DPO and KTO run one more forward pass: 4/3

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, -(-self.tokens // self.batch_tokens))


@dataclass(frozen=True)
class Model:
    """Its shape."""

    size: Size
    vocab: int
    extra_parameters: int = 0


@dataclass(frozen=True)
class Choice:
    """One way to run, and what it costs on one GPU."""

    sharding: Sharding
    checkpointing: bool
    micro_tokens: int
    memory: Memory  # of the fullest phase
    seconds: float  # of all phases

    @property
    def gib(self) -> float:
        """Peak on one GPU."""
        return self.memory.total / GIB


@dataclass(frozen=True)
class PhaseCost:
    """A phase under a choice."""

    phase: Phase
    memory: Memory
    step: StepTime
    flops: float
    seconds: float


def job_of(model: Model, phase: Phase, choice: tuple[Sharding, bool, int], gpus: int) -> Job:
    """The phase's training step; a micro-batch holds whole rows, at least one."""
    sharding, checkpointing, micro = choice
    own = phase.batch_tokens // gpus // phase.context * phase.context  # of a step, on each GPU
    micro = max(phase.context, min(micro // phase.context * phase.context, own))
    return Job(
        model.size, model.vocab, phase.context, micro, accumulates=own > micro, sharding=sharding, checkpointing=checkpointing,
        gpus=gpus, adapter=phase.adapter, extra_parameters=model.extra_parameters,
    )  # fmt: skip


def phase_cost(model: Model, phase: Phase, gpu: Gpu, choice: tuple[Sharding, bool, int], gpus: int) -> PhaseCost:
    """Memory, FLOPs and time of a phase."""
    job = job_of(model, phase, choice, gpus)
    step = step_time(job, gpu, phase.batch_tokens)
    flops = step_flops(model.size, model.vocab, phase.context, phase.tokens, phase.adapter is not None)
    seconds = step.total * phase.trained_copies * phase.tokens / phase.batch_tokens
    return PhaseCost(phase, step_memory(job), step, flops * phase.trained_copies, seconds)


def options(model: Model, phases: Sequence[Phase], gpu: Gpu, gpus: int) -> list[Choice]:
    """Every way to run, in the order of the search."""
    least = max(phase.context for phase in phases)
    most = max(max(phase.batch_tokens // gpus, phase.context) for phase in phases)
    sizes = [least]
    while sizes[-1] * 2 <= most:
        sizes.append(sizes[-1] * 2)
    found = []
    for sharding in SHARDINGS if gpus > 1 else SHARDINGS[:1]:
        for checkpointing in (False, True):
            for micro in sizes:
                costs = [phase_cost(model, phase, gpu, (sharding, checkpointing, micro), gpus) for phase in phases]
                fullest = max((cost.memory for cost in costs), key=lambda memory: memory.total)
                found.append(Choice(sharding, checkpointing, micro, fullest, sum(cost.seconds for cost in costs)))
    return found


def best_of_each(found: Sequence[Choice], limit_gib: float) -> list[tuple[Choice, bool]]:
    """For each sharding with and without checkpointing: its fastest choice that fits, or the smallest one and False."""
    rows = []
    for kind in dict.fromkeys((choice.sharding, choice.checkpointing) for choice in found):
        mine = [choice for choice in found if (choice.sharding, choice.checkpointing) == kind]
        fitting = [choice for choice in mine if choice.gib <= limit_gib]
        best = min(fitting, key=lambda c: c.seconds) if fitting else min(mine, key=lambda c: c.gib)
        rows.append((best, bool(fitting)))
    return rows


def pick(found: Sequence[Choice], limit_gib: float) -> Choice | None:
    """The fastest choice that fits; among those within a hundredth of it, the one that shards least, then needs least memory."""
    fitting = [choice for choice in found if choice.gib <= limit_gib]
    if not fitting:
        return None
    best = min(choice.seconds for choice in fitting)
    return min(
        (c for c in fitting if c.seconds <= best * 1.01),
        key=lambda c: (SHARDINGS.index(c.sharding), c.checkpointing, c.gib),
    )


def fewest_gpus(model: Model, phases: Sequence[Phase], gpu: Gpu, at_most: int = 1024) -> int | None:
    """How many of these cards the model needs at least (powers of two), for the message where nothing fits."""
    gpus = 1
    while gpus <= at_most:
        if all(phase.batch_tokens // gpus >= phase.context for phase in phases) and pick(
            options(model, phases, gpu, gpus), gpu.memory_gib * HEADROOM
        ):
            return gpus
        gpus *= 2
    return None
