"""Bytes a training step holds on one GPU, term by term.

The terms are what autograd saves in transformers' Llama layer and in our head, counted from the code (below) and held against
measured training steps: docs/plan.md has the table, tests/planning/test_memory.py the bound. Counted for eager mode; compiled blocks keep
less (the compiler recomputes cheap things), so there this is an upper bound.

A token of a layer keeps, in D model width, F feed-forward width, κ = K / H, with bytes fp32 | bf16 autocast:
  two norms     input, normalised input (fp32)                            16 D | 16 D
  projections   their input: one tensor | one bf16 cast each (q k v, gate up)  8 D | 10 D
  attention     q, k, v, each piece's output, the rows' output  (12 + 8 κ) D | (6 + 4 κ) D
  documents     q, k, v once more, where a micro-batch holds several 12 D | 6 D
  feed-forward  gate, silu(gate), up, their product                       16 F | 8 F
With activation checkpointing only the layer's input stays (4 D), and one layer at a time is whole.

Sharding: "none" holds everything on every GPU; "optimizer" (ZeRO-2 like) shards the fp32 weights, gradients and moments and keeps
whole bf16 weights; "full" (ZeRO-3 like) gathers a layer at a time. Not covered: offload, tensor and context parallelism (sequences are
whole), what NCCL and the allocator really take (OVERHEAD_BYTES and FRAGMENTATION are chosen, not measured: no GPU was at hand).
"""

from dataclasses import asdict, dataclass
from typing import Literal

from twllm.model.sizes import Size, count_parameters

Sharding = Literal["none", "optimizer", "full"]
Precision = Literal["fp32", "bf16"]
HEAD_CHUNK = 1024  # tokens whose logits exist at a time, and at most
HEAD_LOGITS = 1 << 25  # so many logits: train/loss.py CHUNK and CHUNK_LOGITS, held equal by a test
NF4_BYTES = (
    0.5 + 4 / 64 / 4
)  # four bits a weight and a byte-quantised scale for each 64 (QLoRA, arXiv 2305.14314, double quantisation)
OVERHEAD_BYTES = (
    1.0 * 2**30
)  # CUDA context, cuBLAS and allocator rounding; plus as much again for NCCL where there are several GPUs
FRAGMENTATION = 0.06  # of everything that comes and goes in a step


ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Adapter:
    """LoRA on the named matrices of each layer; `quantised`: the frozen ones are kept in four bits (QLoRA)."""

    rank: int
    quantised: bool = False
    targets: tuple[str, ...] = ALL_LINEAR


@dataclass(frozen=True)
class Job:
    """A training step as the memory sees it."""

    size: Size
    vocab: int
    context: int
    micro_tokens: int
    accumulates: bool = True  # gradients of earlier micro-batches stand while one runs
    precision: Precision = "bf16"
    sharding: Sharding = "none"
    checkpointing: bool = False
    gpus: int = 1
    adapter: Adapter | None = None
    masked: bool = False  # a (T, T) attention mask a row, on devices without varlen attention
    extra_parameters: int = 0  # experts beyond the dense model
    head_chunk: int = HEAD_CHUNK
    accelerator: bool = True  # False: no CUDA context, no NCCL


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the step's fullest moment."""

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


def layer_parameters(size: Size) -> int:
    """Weights of one layer's matrices."""
    return int(2 * size.D * size.D * (1 + size.K / size.H) + 3 * size.D * size.F)


def adapter_parameters(size: Size, adapter: Adapter) -> int:
    """Trainable weights of LoRA; a target that the table does not know counts nothing.

    >>> adapter_parameters(Size(4096, 32, 32, 32, 11008), Adapter(64))
    159907840
    """
    shared = size.D * size.K // size.H
    ends = {"q_proj": 2 * size.D, "o_proj": 2 * size.D, "k_proj": size.D + shared, "v_proj": size.D + shared}
    ends |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), size.D + size.F)
    return size.L * adapter.rank * sum(ends.get(target, 0) for target in adapter.targets)


def layer_activation_bytes(job: Job) -> float:
    """What a token of one layer keeps until its backward pass."""
    size = job.size
    D, F, k = size.D, size.F, float(size.K / size.H)
    copies = 3 * _moving_bytes(job) * D if job.accelerator or job.micro_tokens > job.context else 0
    if job.precision == "fp32":
        return copies + (36 + 8 * k) * D + 16 * F + 4 * size.H + 8
    return copies + (32 + 4 * k) * D + 8 * F + 4 * size.H + 8


def step_memory(job: Job) -> Memory:
    """The fullest moment of a step.

    >>> round(step_memory(Job(Size(4096, 32, 32, 32, 11008), 32_000, 4096, 4096)).weights / 2**30, 1)
    37.4
    """
    whole = count_parameters(job.size, job.vocab) + job.extra_parameters
    trained = adapter_parameters(job.size, job.adapter) if job.adapter else whole
    shards = 1 if job.sharding == "none" else job.gpus
    standing = _standing_weights(job, whole, trained, shards)
    moment = max(_moments(job, trained, shards), key=sum)
    copies, gradients, activations, head = moment
    overhead = 0.0
    if job.accelerator:
        overhead = OVERHEAD_BYTES * (1 + (job.gpus > 1)) + FRAGMENTATION * sum(moment)
    return Memory(standing + copies, gradients, 8 * trained / shards, activations, head, overhead)


def _standing_weights(job: Job, whole: int, trained: int, shards: int) -> float:
    """fp32 masters, or frozen weights in the products' precision or four bits and fp32 adapters."""
    if not job.adapter:
        return 4 * whole / shards
    in_layers, moving = job.size.L * layer_parameters(job.size), _moving_bytes(job)
    frozen = in_layers * (NF4_BYTES if job.adapter.quantised else moving) + (whole - in_layers) * moving
    return (frozen + 4 * trained) / shards


def _moving_bytes(job: Job) -> int:
    return 2 if job.precision == "bf16" else 4


def _moments(job: Job, trained: int, shards: int) -> list[tuple[float, float, float, float]]:
    """(copies of weights, gradients, activations, head) at the moments that can be the fullest."""
    size, t = job.size, job.micro_tokens
    layer, head = layer_parameters(size) + job.extra_parameters / size.L, float(job.vocab * size.D)
    token = layer_activation_bytes(job)
    saved = t * (4 * size.D if job.checkpointing else token) * size.L + t * (
        12 * size.D + 24
    )  # + final norm, ids, labels
    if job.masked:
        saved += t * job.context * (1 if job.precision == "fp32" else 3)
    again = t * token if job.checkpointing else 0.0  # a layer's activations, computed again
    working = t * ((8 if job.precision == "fp32" else 4) * size.F + 4 * size.D)  # gradients inside a feed-forward
    kept = 4 * trained / shards  # all gradients, once the backward pass has been through
    before = kept if job.accumulates else 0.0
    scattered = (
        0.0
        if job.sharding == "none"
        else 4 * (adapter_parameters(size, job.adapter) / size.L if job.adapter else layer)
    )
    chunk = max(1, min(t, job.head_chunk, HEAD_LOGITS // job.vocab))
    head_gradient = (
        0.0 if job.adapter else 4 * head
    )  # made with the loss, in the forward pass, beside earlier micro-batches' own
    narrow = (
        0 if job.precision == "fp32" else 4 * head + 2 * t * size.D
    )  # the head and its gradient in bf16, the hidden states
    logits = (8 if job.precision == "fp32" else 10) * chunk * job.vocab + _moving_bytes(job) * t * size.D + narrow
    first = 0.0 if job.adapter else 4 * (head + layer) / shards
    return [
        (_copies(job, "forward", layer, head), before + head_gradient, saved, logits),
        (
            _copies(job, "layer", layer, head),
            (before + head_gradient or first) + scattered,
            saved + again + working,
            0.0,
        ),
        (
            _copies(job, "layer", layer, head),
            kept + scattered,
            t * (token + 4 * size.D) + working,
            0.0,
        ),  # the first layer, last
        (0.0 if shards == 1 else _copies(job, "update", layer, head), kept + scattered, 0.0, 0.0),
    ]


def _copies(job: Job, moment: str, layer: float, head: float) -> float:
    """Bytes of weights beside the standing ones: bf16 casts, gathered shards, a four-bit matrix unpacked."""
    size, moving = job.size, _moving_bytes(job)
    if job.adapter:
        unpacked = moving * size.D * size.F if job.adapter.quantised and moment == "layer" else 0
        gathered = 0.0 if job.sharding != "full" else 2 * layer * (NF4_BYTES if job.adapter.quantised else moving)
        return unpacked + gathered + 2 * adapter_parameters(size, job.adapter)
    if job.sharding == "optimizer":
        return moving * (size.L * layer + 2 * head)
    if job.sharding == "full":
        return moving * (2 * layer + 2 * head)  # a layer in use and the next on its way; both ends stay
    if moment == "update" or job.precision == "fp32":
        return 0.0
    if job.checkpointing and moment != "forward":  # autocast's casts go with the layer that is computed again
        return 2 * (head if moment == "head" else layer)
    return 2 * (size.L * layer + head)
