"""Bytes a training step holds in one process (on one GPU), at its fullest moment.

What stands: weights, moments, an average, a teacher. What comes and goes: bf16 copies, activations (activations.py), the head's
chunk of logits, gradients. Held against measured training steps (docs/plan.md has the tables, tests/planning/test_memory.py the bound),
in eager mode; compiled blocks keep less, so there this is an upper bound.
Sharding: "none" holds everything in every process; "optimizer" (ZeRO-2 like) shares out the fp32 weights, gradients and moments and keeps
whole bf16 weights; "full" (ZeRO-3 like) gathers a layer at a time.
Not covered: what NCCL and the allocator really take (OVERHEAD_BYTES and FRAGMENTATION are chosen, not measured: no GPU was at hand).
"""

from dataclasses import asdict, dataclass

from twllm.model.sizes import count_parameters
from twllm.planning.activations import kept_bytes, layer_bytes
from twllm.planning.job import Job, adapter_parameters, layer_parameters

HEAD_CHUNK = 1024  # tokens whose logits exist at a time, and at most
CACHED_LOGITS = 1 << 19  # a CPU's softmax at a time
HEAD_PIECES = 8192  # of the vocabulary whose gradient is made at a time, in bf16
HEAD_LOGITS = 1 << 25  # so many logits: train/loss.py CHUNK and CHUNK_LOGITS, held equal by a test
GPU_HEAD_CHUNK, GPU_HEAD_LOGITS = 4096, 1 << 27  # the same on a GPU that trains the head
NF4_BYTES = (
    0.5 + 1 / 64
)  # four bits a weight and a byte of scale for each 64 (QLoRA, arXiv 2305.14314, double quantisation)
OVERHEAD_BYTES = (
    1.0 * 2**30
)  # CUDA context, cuBLAS and allocator rounding; as much again for NCCL where there are several GPUs
FRAGMENTATION = 0.06  # of everything that comes and goes in a step


@dataclass(frozen=True)
class Memory:
    """Bytes in one process at the step's fullest moment."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    head: float
    overhead: float

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(asdict(self).values()))


@dataclass(frozen=True)
class Moment:
    """What comes and goes, at one moment of a step."""

    name: str
    copies: float
    gradients: float
    activations: float
    head: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.copies + self.gradients + self.activations + self.head


def step_memory(job: Job) -> Memory:
    """The fullest moment of a step.

    >>> from twllm.model.sizes import SIZES
    >>> round(step_memory(Job(SIZES["7b"], 32_000, 4096, 4096)).weights / 2**30, 1)
    37.2
    """
    return memory_at(job, max(moments(job), key=lambda moment: moment.total))


def memory_at(job: Job, moment: Moment) -> Memory:
    """All that a process holds at one of a step's moments."""
    overhead = 0.0
    if job.accelerator:
        overhead = OVERHEAD_BYTES * (1 + (job.gpus > 1)) + FRAGMENTATION * moment.total
    standing = _standing_weights(job) + 4 * job.average * job.trained / job.shards
    return Memory(
        standing + moment.copies, moment.gradients, 8 * job.trained / job.shards, moment.activations, moment.head, overhead
    )  # fmt: skip


def _standing_weights(job: Job) -> float:
    """fp32 masters of what learns, the rest in the products' precision or in four bits; a teacher; an encoder and its projector."""
    m, own = job.moving, job.own_parameters
    teacher = m * count_parameters(job.teacher, job.vocab) if job.teacher else 0
    if job.adapter:
        whole = m * own + 4 * job.trained
        if job.adapter.quantised:
            whole -= (m - NF4_BYTES) * job.size.L * layer_parameters(job.size)
    else:
        whole = 4 * own - (4 - m) * own * (job.frozen / job.parameters if job.learns_language else 1)
    if job.eyes:
        whole += (4 if "encoder" in job.eyes.learns else m) * job.eyes.parameters
        whole += 4 * job.size.D * (job.eyes.D + job.size.D)
    return whole / job.shards + teacher


def moments(job: Job) -> list[Moment]:
    """Those that can be the fullest: the head, a teacher's pass, the last layer's backward, the first one's, the embedding's gradient, the update."""
    size, t = job.size, job.micro_tokens
    layer, head = layer_parameters(size, job.experts) / job.tensor, float(job.vocab * size.D)
    token, saved = layer_bytes(job), kept_bytes(job)
    on_card = saved if not job.offload else min(saved, 2 * t * token)  # the rest waits in the host's memory
    learns_head = (
        "lm_head" in job.adapter.whole if job.adapter else job.learns_language and job.frozen_tables < job.tables
    )
    kept = 4 * job.trained / job.shards  # all gradients, once the backward pass has been through
    before = kept if job.accumulates else 0.0
    made = 4 * head if learns_head else 0.0  # with the loss, in the forward pass, beside earlier micro-batches' own
    scattered = _scattered(job, layer)
    again = _computed_again(job)
    working = t * (2 * job.moving * size.F / job.tensor + 4 * size.D)  # gradients inside a feed-forward
    if job.cut > 1:  # or of the keys and values of whole rows: in order, gathered, and in fp32 to be summed
        working = max(working, t * job.cut * 2 * size.D * size.K / size.H * (2 * job.moving + 4))
    first = made or 4 * layer / job.shards * (not job.adapter)
    in_layer = _copies(job, "layer", layer, head)
    found = [
        Moment("head", _copies(job, "forward", layer, head), before + made, on_card, _head_bytes(job, learns_head)),
        Moment("last layer", in_layer, before + first + scattered, on_card + again + working, 0.0),
        Moment("first layer", in_layer, kept + scattered, t * (token + 4 * size.D) + working, 0.0),
        Moment("update", 0.0 if job.shards == 1 else _copies(job, "update", layer, head), kept + scattered, 0.0, 0.0),
    ]
    if job.learns_language:
        table = 4 * head * (job.accumulates or size.tied)  # made whole, then added
        if scattered:  # both ends are summed over the processes together, at the end, out of one flat copy
            table = 8 * job.tables
        found.append(Moment("embedding", in_layer, kept + table, 4 * t * size.D, 0.0))
    if job.teacher:
        a = job.teacher
        passing = t * (12 * a.D + job.moving * 3 * a.F)
        found.append(Moment("teacher", _copies(job, "forward", layer, head), before, on_card + passing, 0.0))
    return found


def _computed_again(job: Job) -> float:
    """Activations of the one layer whose backward pass runs, where they were not kept."""
    if job.checkpointing == "none":
        return 0.0
    size, whole = job.size, layer_bytes(job)
    if job.checkpointing == "selective":
        whole = 4 * size.D + job.moving * (size.D + 4 * size.F)
    return job.micro_tokens * whole


def _scattered(job: Job, layer: float) -> float:
    """A layer's gradients before they are summed over the processes and shared out, and the flat copy that travels."""
    if job.gpus == 1:
        return 0.0
    flat = 8 if job.sharding == "optimizer" else 4  # whole layers stand: the one before is still on its way
    return (4 + flat) * (adapter_parameters(job.size, job.adapter) / job.size.L if job.adapter else layer)


def _head_bytes(job: Job, learns: bool) -> float:
    """Logits of a chunk and what is made of them; hidden states and the head in bf16."""
    t, V, D, m = job.micro_tokens, job.vocab, job.size.D, job.moving
    if job.eyes and job.eyes.classifies:
        return 0.0
    hidden = t * D * (4 + m + (2 if m == 2 else 0))  # picked, its gradient, its cast
    cast = 0  # the head in bf16, and a part of a chunk's gradient of it (on a CPU also in fp32)
    if learns and m == 2:
        cast = 2 * V * D + (2 if job.accelerator else 6) * min(V, HEAD_PIECES) * D
    if job.compares:
        chunk = max(1, min(t, HEAD_CHUNK, HEAD_LOGITS // V))
        return hidden + 4 * V * D * learns + 12 * chunk * V
    most, logits = (GPU_HEAD_CHUNK, GPU_HEAD_LOGITS) if job.accelerator and learns else (HEAD_CHUNK, HEAD_LOGITS)
    chunk = max(1, min(t, most, logits // V))
    if job.teacher:
        return hidden + cast + 20 * chunk * V + t * m * job.teacher.D
    if job.accelerator:  # the gradient of the logits, and their softmax
        return hidden + cast + (m + 4) * chunk * V
    return hidden + cast + m * chunk * V + 8 * min(CACHED_LOGITS, chunk * V)


def _copies(job: Job, moment: str, layer: float, head: float) -> float:
    """Bytes of weights beside the standing ones: bf16 casts of what learns, gathered shards, a four-bit matrix unpacked."""
    size, moving = job.size, job.moving
    if job.eyes and job.eyes.classifies:
        return 0.0 if moving == 4 else 2.0 * job.eyes.parameters
    unpacked = moving * size.D * size.F * (moment == "layer") if job.adapter and job.adapter.quantised else 0.0
    extra = adapter_parameters(size, job.adapter) if job.adapter else 0.0
    if job.gpus > 1:
        # FSDP's, with tensor parallel only, too: what it gathers stands beside the shards; "full": a layer in use and the next one
        layers = 2 * (layer + extra / size.L) if job.sharding == "full" else size.L * layer + extra
        # embedding and head travel as they are (train/parallel.py)
        tables = job.tables * (4 if job.learns_language else moving)
        return moving * layers + tables + 4 * head * (len(job.adapter.whole) if job.adapter else 0)
    if moment == "update" or job.precision == "fp32":
        return unpacked
    experts = 0.0
    if job.experts and job.learns_language:
        experts = size.L * (layer - layer_parameters(size) + 3 * size.D * size.F)
    dense = size.L * layer - experts - (job.frozen - job.frozen_tables)
    casts = dense if job.learns_language else extra  # what is frozen is in bf16 as it stands
    if job.checkpointing == "full":
        # casts go with their layer, but autocast keeps those it made until the forward pass is over
        return 2 * (casts * (1 if moment == "forward" else 1 / size.L) + experts / size.L) + unpacked
    return 2 * (casts + experts) + unpacked
