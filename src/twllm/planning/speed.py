"""Seconds a training step takes on GPUs: arithmetic, traffic and the update, from the makers' numbers. A plan, not a promise.

Arithmetic runs at REACHED of the dense peak. Sharded weights travel for every micro-batch ("full": gathered for the forward and again for
the backward pass; "optimizer": gathered once), gradients are scattered for each; what fits under the arithmetic is hidden, the rest
is waited for. The constants are chosen: large-model trainers report 35–50 % of an H100's or A100's peak (torchtitan, arXiv
2410.06511; Llama 2 and 3 reports), nothing was measured on a GPU here.
"""

import math
from dataclasses import dataclass

from twllm.model.sizes import train_flops_per_token
from twllm.planning.activations import TEXT_OF_A_PICTURE
from twllm.planning.job import Job, layer_parameters
from twllm.train.gpus import NETWORK_GB_S, Gpu

REACHED = 0.45  # of the peak, matrix products and what stands between them
TRAFFIC = 0.7  # of the link's nominal speed
LAYER_S = 120e-6  # kernel launches of a layer's forward and backward pass, which a tiny micro-batch does not hide
COLLECTIVE_S = 40e-6  # that a collective takes however little it moves; sharded layers have one or three each
CHANNEL_S = 1.13e-7  # of a thread, a token, layer and channel; fitted on eight CPU steps of 1.8 to 30 M parameters (docs/plan.md)
UPDATE_BYTES = 28  # read and written a parameter by AdamW: weight, gradient, two moments, fp32


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step."""

    compute: float
    traffic: float  # that arithmetic does not hide
    update: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.compute + self.traffic + self.update


def step_flops(job: Job, tokens: float) -> float:
    """Model FLOPs of `tokens` tokens: 6 a weight, or 4 where it is frozen (no gradient of its own), plus attention; 2 a weight of a teacher;
    of a picture's encoder 2, or 6 where it learns. Nothing for what is computed again.
    """
    size = job.size
    each = float(train_flops_per_token(size, job.vocab, job.context))
    weights = size.L * layer_parameters(size) + job.vocab * size.D
    if job.experts:
        each += 18.0 * size.L * size.D * size.F * (job.experts.top_k / job.experts.granularity - 1)
    if job.adapter or (job.eyes and "language" not in job.eyes.learns):
        each -= 2.0 * weights
    each -= 2.0 * min(job.frozen, weights)
    if job.teacher:
        each += train_flops_per_token(job.teacher, job.vocab, job.context) / 3
    if job.eyes:
        e = job.eyes
        seen = e.tokens / (e.tokens + TEXT_OF_A_PICTURE)  # places of a row that are a picture's
        each = (0.0 if e.classifies else each) + seen * e.parameters * (6 if "encoder" in e.learns else 2)
    return tokens * each


def again(job: Job) -> float:
    """How much longer the arithmetic takes for what is computed again: a third of it is the forward pass."""
    if job.checkpointing == "none":
        return 1.0
    size = job.size
    second = (size.D * size.D + 3 * size.D * size.F) / layer_parameters(size)  # output and feed-forward, of a layer
    return 1 + (second if job.checkpointing == "selective" else 1.0) / 3


def cpu_seconds(job: Job, tokens: float, peak_tflops: float, threads: int) -> float:
    """On a CPU, not compiled: the products at the measured peak, and what passes over memory between them, whatever the precision."""
    channels = float(job.size.L * job.size.D) if not (job.eyes and job.eyes.classifies) else 0.0
    if job.teacher:
        channels += job.teacher.L * job.teacher.D / 3
    if job.eyes:
        e = job.eyes
        channels += e.L * e.D * e.tokens / (e.tokens + TEXT_OF_A_PICTURE) / (1 if "encoder" in e.learns else 3)
    return step_flops(job, tokens) / (peak_tflops * 1e12) + CHANNEL_S * tokens * channels / threads


def step_time(job: Job, gpu: Gpu, batch_tokens: int) -> StepTime:
    """One optimizer step of `batch_tokens` tokens, spread evenly over the job's GPUs."""
    size, groups = job.size, job.gpus // job.tensor
    micros = max(1, math.ceil(batch_tokens / groups / job.micro_tokens))
    longer = again(job)
    compute = step_flops(job, batch_tokens) / job.gpus * longer / (gpu.peak_tflops * 1e12 * REACHED)
    compute += micros * size.L * LAYER_S * longer
    whole = job.own_parameters + job.tables * job.learns_language  # which travel in fp32
    link = (gpu.link_gb_s if job.gpus <= gpu.per_host else min(NETWORK_GB_S, gpu.link_gb_s)) * 1e9 * TRAFFIC
    travels = waits = 0.0
    if groups > 1:
        share = (groups - 1) / groups
        gradients = 4 * job.trained * (2 if job.sharding == "none" else 1)  # all-reduce moves them twice
        weights = {"none": 0.0, "optimizer": 2.0 * whole * micros, "full": 4.0 * whole * micros}[job.sharding]
        travels = share * (weights + gradients * (1 if job.sharding == "none" else micros)) / link
        waits = COLLECTIVE_S * (
            1 if job.sharding == "none" else micros * size.L * (2 if job.sharding == "optimizer" else 3)
        )
    if job.tensor > 1:  # two sums of the hidden states a layer, forward and backward; nothing hides them
        moved = 4 * size.L * job.moving * size.D * batch_tokens / groups * 2 * (job.tensor - 1) / job.tensor
        waits += moved / (gpu.link_gb_s * 1e9 * TRAFFIC) + 4 * micros * size.L * COLLECTIVE_S
    if job.cut > 1:  # keys and values of a layer: gathered in each pass, their gradients summed in fp32
        passes = 2 * job.moving * (2 if job.checkpointing == "full" else 1) + 2 * 4
        moved = size.L * passes * size.D * size.K / size.H * job.micro_tokens * (job.cut - 1) * micros
        waits += moved / (gpu.link_gb_s * 1e9 * TRAFFIC) + 3 * micros * size.L * COLLECTIVE_S
    update = UPDATE_BYTES * job.trained / job.shards / (gpu.memory_gb_s * 1e9)
    return StepTime(compute, waits + max(0.0, travels - compute), update)


def duration(seconds: float) -> str:
    """For people."""
    for unit, size in (("年 years", 365 * 86400), ("天 days", 86400), ("小時 hours", 3600), ("分鐘 minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{math.ceil(seconds)} 秒 seconds"
