"""The fastest way to run a recipe's phases that fits: sharding, activation checkpointing and micro-batch, tried one by one.

All phases of a recipe share one machine file, so a choice must fit every phase; its time is the sum. The search is complete: three
shardings × three kinds of checkpointing × every doubling of the micro-batch up to a rank's share of the step. Phases whose layers cannot
be computed again by halves (LoRA, experts, pictures) leave selective checkpointing out. Where nothing fits, rows are shared out (context
parallel) among 2, 4, 8 cards of a host.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from twllm.model.sizes import Size
from twllm.planning.job import Adapter, Checkpointing, Experts, Eyes, Job, Sharding
from twllm.planning.memory import Memory, step_memory
from twllm.planning.speed import StepTime, step_flops, step_time
from twllm.train.gpus import GIB, Gpu

SHARDINGS: tuple[Sharding, ...] = ("none", "optimizer", "full")
KINDS: tuple[Checkpointing, ...] = ("none", "selective", "full")
HEADROOM = 0.92  # of the card that a plan may fill: measured steps took up to 6 % more than planned (docs/plan.md)


@dataclass(frozen=True)
class Phase:
    """What the planner needs of a training phase."""

    name: str
    tokens: int
    context: int
    batch_tokens: int
    adapter: Adapter | None = None
    trained_copies: float = 1.0  # DPO and KTO run one more forward pass: 4/3
    experts: Experts | None = None
    teacher: Size | None = None
    eyes: Eyes | None = None
    compares: bool = False  # KTO, DPO
    average: bool = False  # ema_decay
    frozen: int = 0  # parameters
    frozen_tables: int = 0  # among them

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, -(-self.tokens // self.batch_tokens))


@dataclass(frozen=True)
class Model:
    """Its shape."""

    size: Size
    vocab: int


@dataclass(frozen=True)
class How:
    """What a machine file says about running."""

    sharding: Sharding = "none"
    checkpointing: Checkpointing = "none"
    micro_tokens: int = 8192
    tensor: int = 1
    shard_ranks: int | None = None
    offload: bool = False
    cut: int = 1  # context_parallel


@dataclass(frozen=True)
class Choice:
    """One way to run, and what it costs on one GPU."""

    how: How
    memory: Memory  # of the fullest phase
    seconds: float  # of all phases

    @property
    def gib(self) -> float:
        """Peak on one GPU."""
        return self.memory.total / GIB

    @property
    def kind(self) -> tuple[Sharding, Checkpointing]:
        """Without the micro-batch."""
        return self.how.sharding, self.how.checkpointing


@dataclass(frozen=True)
class PhaseCost:
    """A phase under a choice."""

    phase: Phase
    job: Job
    memory: Memory
    step: StepTime
    flops: float
    seconds: float


def job_of(model: Model, phase: Phase, how: How, gpus: int) -> Job:
    """The phase's training step; a micro-batch holds whole rows, at least one."""
    own = (
        phase.batch_tokens * how.cut // (gpus // how.tensor) // phase.context * phase.context
    )  # of a step, in those of a row
    whole = max(phase.context, min(how.micro_tokens * how.cut // phase.context * phase.context, own))
    micro = -(-whole // how.cut)
    return Job(
        model.size, model.vocab, phase.context, micro, accumulates=own > whole, sharding=how.sharding,
        checkpointing=how.checkpointing, gpus=gpus, adapter=phase.adapter, experts=phase.experts, teacher=phase.teacher, eyes=phase.eyes,
        compares=phase.compares, average=phase.average, frozen=phase.frozen, frozen_tables=phase.frozen_tables, tensor=how.tensor,
        cut=how.cut, shard_ranks=how.shard_ranks, offload=how.offload,
    )  # fmt: skip


def phase_cost(model: Model, phase: Phase, gpu: Gpu, how: How, gpus: int) -> PhaseCost:
    """Memory, FLOPs and time of a phase."""
    job = job_of(model, phase, how, gpus)
    step = step_time(job, gpu, phase.batch_tokens)
    seconds = step.total * phase.trained_copies * phase.tokens / phase.batch_tokens
    return PhaseCost(phase, job, step_memory(job), step, step_flops(job, phase.tokens) * phase.trained_copies, seconds)


def cuts(phases: Sequence[Phase], gpu: Gpu, gpus: int) -> list[int]:
    """Among how many processes, of one host, rows can be shared out such that each has a part of one in every step; fewest first."""
    alone = any(p.compares or p.experts or p.eyes or (p.adapter and p.adapter.dropout) for p in phases)
    tried = [n for n in (1, 2, 4, 8) if n == 1 or (not alone and n <= gpu.per_host and gpus % n == 0)]
    return [n for n in tried if all(phase.batch_tokens * n // gpus >= phase.context for phase in phases)]


def options(model: Model, phases: Sequence[Phase], gpu: Gpu, gpus: int, cut: int = 1) -> list[Choice]:
    """Every way to run, in the order of the search."""
    least = max(-(-phase.context // cut) for phase in phases)
    most = max(max(phase.batch_tokens // gpus, least) for phase in phases)
    sizes = [least]
    while sizes[-1] * 2 <= most:
        sizes.append(sizes[-1] * 2)
    by_halves = not any(phase.adapter or phase.experts or phase.eyes for phase in phases)
    found = []
    for sharding in SHARDINGS if gpus > 1 else SHARDINGS[:1]:
        for checkpointing in KINDS if by_halves else ("none", "full"):
            for micro in sizes:
                how = How(sharding, checkpointing, micro, cut=cut)
                costs = [phase_cost(model, phase, gpu, how, gpus) for phase in phases]
                fullest = max((cost.memory for cost in costs), key=lambda memory: memory.total)
                found.append(Choice(how, fullest, sum(cost.seconds for cost in costs)))
    return found


def best_of_each(found: Sequence[Choice], limit_gib: float) -> list[tuple[Choice, bool]]:
    """For each sharding and kind of checkpointing: its fastest choice that fits, or the smallest one and False."""
    rows = []
    for kind in dict.fromkeys(choice.kind for choice in found):
        mine = [choice for choice in found if choice.kind == kind]
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
        key=lambda c: (SHARDINGS.index(c.how.sharding), KINDS.index(c.how.checkpointing), c.gib),
    )


def search(
    model: Model, phases: Sequence[Phase], gpu: Gpu, gpus: int, limit_gib: float
) -> tuple[list[Choice], Choice | None]:
    """The options and the one to take; rows are shared out only where nothing fits otherwise."""
    found, chosen = list[Choice](), None
    for cut in cuts(phases, gpu, gpus):
        found = options(model, phases, gpu, gpus, cut)
        if chosen := pick(found, limit_gib):
            break
    return found, chosen


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
