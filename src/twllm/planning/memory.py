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
    """fp32 masters; frozen layers in four bits and fp32 adapters; a teacher in the products' precision; an encoder."""
    teacher = job.moving * count_parameters(job.teacher, job.vocab) if job.teacher else 0
    whole = 4 * job.own_parameters
    if job.adapter:
        whole += 4 * job.trained
        if job.adapter.quantised:
            whole -= (4 - NF4_BYTES) * job.size.L * layer_parameters(job.size)
    if job.eyes:
        whole += 4 * (job.eyes.parameters + job.size.D * (job.eyes.D + job.size.D))
    return whole / job.shards + teacher


def moments(job: Job) -> list[Moment]:
    """Those that can be the fullest: the head, a teacher's pass, the last layer's backward, the first one's, the embedding's gradient, the update."""
    size, t = job.size, job.micro_tokens
    layer, head = layer_parameters(size, job.experts) / job.tensor, float(job.vocab * size.D)
    token, saved = layer_bytes(job), kept_bytes(job)
    on_card = saved if not job.offload else min(saved, 2 * t * token)  # the rest waits in the host's memory
    learns_head = not job.frozen and (
        "lm_head" in job.adapter.whole if job.adapter else not job.eyes or "language" in job.eyes.learns
    )
    kept = 4 * job.trained / job.shards  # all gradients, once the backward pass has been through
    before = kept if job.accumulates else 0.0
    made = 4 * head if learns_head else 0.0  # with the loss, in the forward pass, beside earlier micro-batches' own
    scattered = _scattered(job, layer)
    again = _computed_again(job)
    working = t * (2 * job.moving * size.F / job.tensor + 4 * size.D)  # gradients inside a feed-forward
    first = made or 4 * layer / job.shards * (not job.adapter)
    in_layer = _copies(job, "layer", layer, head)
    found = [
        Moment("head", _copies(job, "forward", layer, head), before + made, on_card, _head_bytes(job, learns_head)),
        Moment("last layer", in_layer, before + first + scattered, on_card + again + working, 0.0),
        Moment("first layer", in_layer, kept + scattered, t * (token + 4 * size.D) + working, 0.0),
        Moment("update", 0.0 if job.shards == 1 else _copies(job, "update", layer, head), kept + scattered, 0.0, 0.0),
    ]
    if not job.adapter and not (job.eyes and "language" not in job.eyes.learns):
        table = 4 * head * (job.accumulates or size.tied)  # made whole, then added
        if scattered:  # both ends are summed over the processes together, at the end, out of one flat copy
            table = 8 * head * (1 if size.tied else 2)
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
    if job.gpus == job.tensor:
        return 0.0
    return 8 * (adapter_parameters(job.size, job.adapter) / job.size.L if job.adapter else layer)


def _head_bytes(job: Job, learns: bool) -> float:
    """Logits of a chunk and what is made of them; hidden states and the head in bf16."""
    t, V, D, m = job.micro_tokens, job.vocab, job.size.D, job.moving
    if job.eyes and job.eyes.classifies:
        return 0.0
    hidden = t * D * (4 + m + (2 if m == 2 else 0))  # picked, its gradient, its cast
    cast = 0 if m == 4 else (4 if learns else 2) * V * D  # the head, and a chunk's gradient of it
    if job.compares:
        chunk = max(1, min(t, HEAD_CHUNK, HEAD_LOGITS // V))
        return hidden + (cast or 4 * V * D) + 12 * chunk * V
    most, logits = (GPU_HEAD_CHUNK, GPU_HEAD_LOGITS) if job.accelerator and learns else (HEAD_CHUNK, HEAD_LOGITS)
    chunk = max(1, min(t, most, logits // V))
    several = t > chunk  # the chunk before is still held while the next one is made
    if job.teacher:
        each = 28 if several else 20
        return hidden + cast + 4 * V * D * (m == 4) + each * chunk * V + t * m * job.teacher.D
    if job.accelerator:  # the gradient of the logits, and their softmax
        return hidden + cast + (m + (8 if several else 4)) * chunk * V
    return hidden + cast + m * (1 + several) * chunk * V + 8 * min(CACHED_LOGITS, chunk * V)


def _copies(job: Job, moment: str, layer: float, head: float) -> float:
    """Bytes of weights beside the standing ones: bf16 casts, gathered shards, a four-bit matrix unpacked."""
    size, moving = job.size, job.moving
    if job.eyes and job.eyes.classifies:
        return 0.0 if moving == 4 else 2.0 * job.eyes.parameters
    layers = size.L * layer
    if job.experts:  # run in fp32: no casts of theirs
        layers -= size.L * (layer - layer_parameters(size)) + 3 * size.L * size.D * size.F
    if job.adapter and job.adapter.quantised:
        return 2.0 * adapter_parameters(size, job.adapter) * (moving == 2) + moving * size.D * size.F * (
            moment == "layer"
        )
    extra = adapter_parameters(size, job.adapter) if job.adapter else 0.0
    if (
        job.sharding != "full" and job.gpus > job.tensor
    ):  # gathered, or with copies in every process: FSDP holds a second one
        return moving * (size.L * layer + extra + 2 * head)
    if job.sharding == "full" and job.gpus > job.tensor:
        return moving * (
            2 * (layer + extra / size.L) + 2 * head
        )  # a layer in use and the next on its way; both ends stay
    if moment == "update" or job.precision == "fp32":
        return 0.0
    if job.checkpointing == "full" and moment != "forward":  # autocast's casts go with the layer that is computed again
        return 2 * layers / size.L
    return 2 * (layers + extra)
