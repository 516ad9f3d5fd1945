"""Recipe sections [pretrain], [sft], [feedback], and what a machine file says about training."""

from typing import Literal

from pydantic import Field, model_validator

from twllm.config import Config
from twllm.tokens.config import DatasetConfig


class OptimConfig(Config):
    """What every training phase shares. Batches are given in tokens; rows and accumulation are computed."""

    enabled: bool = Field(True, description="false: skip the phase")
    lr: float = Field(2e-5, gt=0, description="peak learning rate")
    min_lr_share: float = Field(0.0, ge=0, le=1, description="the cosine ends at lr × this")
    warmup_share: float = Field(0.03, ge=0, lt=1, description="share of the steps with rising learning rate")
    batch_tokens: int = Field(16_384, ge=1, description="tokens (padding included) an optimizer step sees")
    context: int = Field(2048, ge=8, description="tokens a row; documents in a row do not see each other")
    weight_decay: float = Field(0.0, ge=0, description="AdamW; the paper uses none")
    beta1: float = Field(0.9, description="AdamW")
    beta2: float = Field(0.95, description="AdamW")
    clip: float = Field(1.0, gt=0, description="gradient norm limit")
    epochs: float = Field(1.0, gt=0, description="passes over the data (a fraction is a part of one)")
    max_tokens: int | None = Field(None, ge=1, description="stop after this many tokens, whatever epochs says")
    seed: int = Field(1, description="data order and random weights")
    eval_every: int = Field(0, ge=0, description="steps between held-out losses; 0: only at the end")


class PretrainConfig(OptimConfig):
    """[pretrain]: next-token loss on every token of the corpus."""


class SftConfig(OptimConfig):
    """[sft]: loss on the assistant's tokens only."""

    datasets: tuple[DatasetConfig, ...] = Field((), description="sources and weights")
    held_out: float = Field(0.0, ge=0, lt=1, description="share of the conversations kept for a held-out loss")


class FeedbackConfig(OptimConfig):
    """[feedback]: train on what people rated (docs/feedback.md)."""

    method: Literal["sft-positive", "kto", "dpo"] = Field(
        "sft-positive",
        description="sft-positive (the paper's): learn answers rated +1; kto: +1 and -1; dpo: pairs of answers to one prompt",
    )
    beta: float = Field(
        0.1, gt=0, description="kto, dpo: how far the model may move from where it starts; less is farther"
    )
    desirable_weight: float = Field(1.0, gt=0, description="kto: weight of answers rated +1")
    undesirable_weight: float = Field(1.0, gt=0, description="kto: weight of answers rated -1")
    datasets: tuple[DatasetConfig, ...] = Field(
        (), description="exported ratings (twllm feedback export) and shipped ones"
    )

    @model_validator(mode="after")
    def _no_idle_settings(self) -> "FeedbackConfig":
        used = {"kto": {"beta", "desirable_weight", "undesirable_weight"}, "dpo": {"beta"}}.get(self.method, set())
        for name in ("beta", "desirable_weight", "undesirable_weight"):
            if name not in used and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} would be ignored with method = {self.method}")
        return self


class MachineConfig(Config):
    """A machine file: how to run, never what to train. The same recipe gives the same model on the same kind of machine."""

    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the hardware multiplies it, else fp32"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile; auto: only for runs that repay it"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads; None: all cores this process may use")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    micro_batch_tokens: int = Field(8192, ge=1, description="tokens a forward pass holds; the rest is accumulated")
    checkpoint_every_s: float = Field(20.0, gt=0, description="seconds between resumable states")
    tensorboard: bool | None = Field(None, description="None: write TensorBoard files if it is installed")
    peak_tflops: float | None = Field(
        None, gt=0, description="for time estimates and MFU; None: measured (CPU) or looked up"
    )

    @model_validator(mode="after")
    def _no_idle_settings(self) -> "MachineConfig":
        if self.device == "cuda" and self.threads is not None:
            raise ValueError("threads is a CPU setting and would be ignored with device = cuda")
        return self
