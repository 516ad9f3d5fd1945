"""Seconds a training step takes on GPUs: arithmetic, traffic and the update, from the makers' numbers. A plan, not a promise.

Arithmetic runs at REACHED of the dense peak. Sharded weights travel for every micro-batch ("full": gathered for the forward and again for
the backward pass; "optimizer": gathered once), gradients are scattered for each; what fits under the arithmetic is hidden, the rest
is waited for. The constants are chosen: large-model trainers report 35–50 % of an H100's or A100's peak (torchtitan, arXiv
2410.06511; Llama 2 and 3 reports), nothing was measured on a GPU here.
"""

import math
from dataclasses import dataclass

from twllm.model.sizes import Size, count_parameters, train_flops_per_token
from twllm.planning.gpus import NETWORK_GB_S, Gpu
from twllm.planning.memory import Job, adapter_parameters, layer_parameters

REACHED = 0.45  # of the peak, matrix products and what stands between them
TRAFFIC = 0.7  # of the link's nominal speed
LAYER_S = 120e-6  # kernel launches of a layer's forward and backward pass, which a tiny micro-batch does not hide
COLLECTIVE_S = 40e-6  # that a collective takes however little it moves; sharded layers have one or three each
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


def step_flops(size: Size, vocab: int, context: int, tokens: int, adapter: bool = False) -> float:
    """Model FLOPs of `tokens` tokens: 6 a weight, or 4 where the weights are frozen (no gradient of theirs); plus attention."""
    whole = float(train_flops_per_token(size, vocab, context))
    frozen = 2.0 * (size.L * layer_parameters(size) + vocab * size.D) if adapter else 0.0
    return tokens * (whole - frozen)


def step_time(job: Job, gpu: Gpu, batch_tokens: int) -> StepTime:
    """One optimizer step of `batch_tokens` tokens, spread evenly over the job's GPUs."""
    size, micros = job.size, max(1, math.ceil(batch_tokens / job.gpus / job.micro_tokens))
    flops = step_flops(size, job.vocab, job.context, 1, job.adapter is not None) * batch_tokens / job.gpus
    again = 4 / 3 if job.checkpointing else 1.0
    compute = flops * again / (gpu.peak_tflops * 1e12 * REACHED) + micros * size.L * LAYER_S * again
    whole = count_parameters(size, job.vocab) + job.extra_parameters
    trained = adapter_parameters(size, job.adapter) if job.adapter else whole
    link = (gpu.link_gb_s if job.gpus <= gpu.per_host else min(NETWORK_GB_S, gpu.link_gb_s)) * 1e9 * TRAFFIC
    travels = waits = 0.0
    if job.gpus > 1:
        share = (job.gpus - 1) / job.gpus
        gradients = 4 * trained * (2 if job.sharding == "none" else 1)  # all-reduce moves them twice
        weights = {"none": 0.0, "optimizer": 2.0 * whole * micros, "full": 4.0 * whole * micros}[job.sharding]
        travels = share * (weights + gradients * (1 if job.sharding == "none" else micros)) / link
        waits = COLLECTIVE_S * (
            1 if job.sharding == "none" else micros * size.L * (2 if job.sharding == "optimizer" else 3)
        )
    shards = 1 if job.sharding == "none" else job.gpus
    update = UPDATE_BYTES * trained / shards / (gpu.memory_gb_s * 1e9)
    return StepTime(compute, waits + max(0.0, travels - compute), update)
