"""A training step as the planner sees it: which model, how much of it learns, how it is spread over processes. Parameters are counted here."""

from dataclasses import dataclass
from typing import Literal

from twllm.model.sizes import Size, count_parameters

Sharding = Literal["none", "optimizer", "full"]
Precision = Literal["fp32", "bf16"]
Checkpointing = Literal["none", "selective", "full"]
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Adapter:
    """LoRA on the named matrices of each layer; `quantised`: the frozen ones are kept in four bits (QLoRA)."""

    rank: int
    quantised: bool = False
    targets: tuple[str, ...] = ALL_LINEAR
    whole: tuple[str, ...] = ()  # trained whole beside it: embed_tokens, lm_head
    dropout: bool = False


@dataclass(frozen=True)
class Experts:
    """A mixture made of the dense model: `count` experts of F / `granularity`, `top_k` of them for a token."""

    count: int
    top_k: int
    granularity: int = 1


@dataclass(frozen=True)
class Eyes:
    """An encoder of pictures before the language model, and the projector between them."""

    D: int
    L: int
    F: int
    tokens: int  # features of a picture, each in the place of a token
    parameters: int  # of the encoder
    learns: tuple[str, ...] = ("projector",)  # projector, encoder, language
    classifies: bool = False  # [vision.encode]: the language model only stands by


@dataclass(frozen=True)
class Job:
    """A training step. `gpus`: all processes; `tensor` of them compute one layer together."""

    size: Size
    vocab: int
    context: int
    micro_tokens: int
    accumulates: bool = True  # gradients of earlier micro-batches stand while one runs
    precision: Precision = "bf16"
    sharding: Sharding = "none"
    checkpointing: Checkpointing = "none"
    gpus: int = 1
    adapter: Adapter | None = None
    experts: Experts | None = None
    accelerator: bool = True  # False: torch on a CPU; no CUDA context, no NCCL
    document: int | None = None  # tokens of a long document, which CPU attention depends on; None: a whole row
    teacher: Size | None = None  # distillation: another model's forward pass
    eyes: Eyes | None = None
    compares: bool = False  # KTO, DPO: log-probabilities through the head, kept for the backward pass
    average: bool = False  # a moving average of what is trained (ema_decay)
    frozen: int = 0  # parameters that `freeze` keeps as they are
    frozen_tables: int = 0  # those of them that are the embedding's or the head's
    tensor: int = 1
    cut: int = 1  # processes that share out each row's tokens; of a micro-batch, `micro_tokens` are in each
    shard_ranks: int | None = None
    offload: bool = False

    @property
    def moving(self) -> int:
        """Bytes of a number in the products' precision."""
        return 2 if self.precision == "bf16" else 4

    @property
    def fused(self) -> bool:
        """Whether layers run as train/fused.py has them (plain weights), not as transformers' modules."""
        return not (self.adapter or self.experts or self.tensor > 1 or self.eyes)

    @property
    def tables(self) -> int:
        """Parameters of the embedding and the head, one table where they are tied."""
        return self.vocab * self.size.D * (1 if self.size.tied else 2)

    @property
    def learns_language(self) -> bool:
        """Whether the language model's own weights learn (without `freeze`'s), not adapters or what stands before it."""
        return not self.adapter and not (self.eyes and "language" not in self.eyes.learns)

    @property
    def shards(self) -> int:
        """Processes that share out one copy of the weights."""
        return 1 if self.sharding == "none" else self.shard_ranks or max(1, self.gpus // self.tensor)

    @property
    def parameters(self) -> int:
        """All of the language model's."""
        return count_parameters(self.size, self.vocab) + expert_parameters(self.size, self.experts)

    @property
    def own_parameters(self) -> float:
        """What a process of a tensor-parallel group has of them before anything is shared out: linear layers are cut, the rest is whole."""
        cut = self.size.L * layer_parameters(self.size, self.experts)
        return self.parameters - cut + cut / self.tensor

    @property
    def trained(self) -> float:
        """Parameters that learn, of this process's tensor-parallel part."""
        if self.adapter:
            tables = (
                self.vocab * self.size.D * (1 if self.size.tied and self.adapter.whole else len(self.adapter.whole))
            )
            return adapter_parameters(self.size, self.adapter) + tables
        if self.eyes:
            return eyes_trained(self)
        return self.own_parameters * (1 - self.frozen / self.parameters)


def expert_parameters(size: Size, experts: Experts | None) -> int:
    """Of the experts beyond the dense model's feed-forward layers, and of the routers."""
    if experts is None:
        return 0
    return int(size.L * size.D * (3 * size.F * (experts.count / experts.granularity - 1) + experts.count))


def layer_parameters(size: Size, experts: Experts | None = None) -> int:
    """Weights of one layer's matrices."""
    dense = int(2 * size.D * size.D * (1 + size.K / size.H) + 3 * size.D * size.F)
    return dense + expert_parameters(size, experts) // size.L


def adapter_parameters(size: Size, adapter: Adapter) -> int:
    """Trainable weights of LoRA; a target that the table does not know counts nothing.

    >>> adapter_parameters(Size(4096, 32, 32, 32, 11008), Adapter(64))
    159907840
    """
    shared = size.D * size.K // size.H
    ends = {"q_proj": 2 * size.D, "o_proj": 2 * size.D, "k_proj": size.D + shared, "v_proj": size.D + shared}
    ends |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), size.D + size.F)
    return size.L * adapter.rank * sum(ends.get(target, 0) for target in adapter.targets)


def projector_parameters(job: Job) -> int:
    """Two layers with biases between the encoder's width and the language model's."""
    assert job.eyes
    return job.size.D * (job.eyes.D + job.size.D + 2)


def eyes_trained(job: Job) -> float:
    """What learns in a phase with pictures; the classifier of [vision.encode] has at most the vocabulary as classes."""
    assert job.eyes
    parts = {"projector": projector_parameters(job), "encoder": job.eyes.parameters, "language": job.parameters}
    return sum(parts[part] for part in job.eyes.learns)
