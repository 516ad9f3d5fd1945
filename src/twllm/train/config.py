"""Recipe sections [pretrain], [sft], [feedback], and what a machine file says about training."""

from typing import Literal

from pydantic import Field, model_validator

from twllm.config import Config
from twllm.tokens.config import DatasetConfig
from twllm.train.methods_config import ForgettingConfig, LoraConfig
from twllm.train.teacher_config import TeacherConfig


class OptimConfig(Config):
    """What every training phase shares. Batches are given in tokens; rows and accumulation are computed."""

    enabled: bool = Field(True, description="false: skip the phase")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="muon: for the matrices between embedding and head, AdamW for the rest, at one lr (arXiv 2502.16982)",
    )
    lr: float = Field(2e-5, gt=0, description="peak learning rate")
    min_lr_share: float = Field(0.0, ge=0, le=1, description="the schedule ends at lr × this")
    schedule: Literal["cosine", "restarts", "wsd", "constant"] = Field(
        "cosine", description="after the warmup; restarts: several cosines; wsd: constant, then down in the last part"
    )
    cycles: int = Field(1, ge=1, description="restarts: cosines of equal length (arXiv 1608.03983)")
    decay_share: float = Field(0.2, gt=0, le=1, description="wsd: share of the steps that go down (arXiv 2405.18392)")
    lr_factors: dict[str, float] = Field(
        {}, description='of the rate, by part of the model: { embed_tokens = 0.1, "layers.0-3" = 0.5 }'
    )
    freeze: tuple[str, ...] = Field(
        (), description='parts that stay as they are: ["embed_tokens", "layers.0-7", "norm"]'
    )
    warmup_share: float = Field(0.03, ge=0, lt=1, description="share of the steps with rising learning rate")
    batch_tokens: int = Field(16_384, ge=1, description="tokens (padding included) an optimizer step sees")
    context: int = Field(2048, ge=8, description="tokens a row; documents in a row do not see each other")
    weight_decay: float = Field(0.0, ge=0, description="AdamW; the paper uses none")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW")
    clip: float = Field(1.0, gt=0, description="gradient norm limit")
    epochs: float = Field(1.0, gt=0, description="passes over the data (a fraction is a part of one)")
    max_tokens: int | None = Field(None, ge=1, description="stop after this many tokens, whatever epochs says")
    seed: int = Field(1, ge=0, description="data order and random weights")
    eval_every: int = Field(0, ge=0, description="steps between held-out losses; 0: only at the end")
    patience: int = Field(0, ge=0, description="stop after so many held-out losses without a new best one; 0: never")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="keep a moving average of the weights, 0.999 e.g.; 0: none")
    keep: Literal["auto", "last", "best", "ema"] = Field(
        "auto", description="which weights are the result; auto: best with patience, else ema with ema_decay, else last"
    )
    neftune_alpha: float = Field(
        0.0, ge=0, description="noise on the embeddings while training (arXiv 2310.05914); 5 e.g."
    )
    lora: LoraConfig | None = Field(None, description="train low-rank adapters instead of all weights")
    forgetting: ForgettingConfig | None = Field(None, description="measure what the phase makes the model forget")

    @property
    def kept(self) -> Literal["last", "best", "ema"]:
        """`keep` with "auto" resolved."""
        if self.keep != "auto":
            return self.keep
        return "best" if self.patience else "ema" if self.ema_decay else "last"

    @property
    def unseen(self) -> set[str]:
        """Settings that do not change the weights: they are left out of what decides whether a result is up to date."""
        return {"enabled", "forgetting"} | ({"eval_every"} if self.kept != "best" else set())

    @model_validator(mode="after")
    def _methods_are_used(self) -> "OptimConfig":
        if (self.schedule == "restarts") != (self.cycles > 1):
            raise ValueError('schedule = "restarts" 要配 cycles ≥ 2 (goes with)')
        if self.schedule != "wsd" and self.decay_share != OptimConfig.model_fields["decay_share"].default:
            raise ValueError(f"schedule = {self.schedule} 時 decay_share 會被忽略 (would be ignored)")
        if self.schedule == "constant" and self.min_lr_share:
            raise ValueError("schedule = constant 時 min_lr_share 會被忽略 (would be ignored)")
        if self.patience and not self.eval_every:
            raise ValueError("patience 數的是保留損失：也要給 eval_every (needs it)")
        if self.patience and self.kept != "best":
            raise ValueError(f"patience 留最好的權重，和 keep = {self.keep} 矛盾 (at odds)")
        if self.keep == "ema" and not self.ema_decay:
            raise ValueError('keep = "ema" 要給 ema_decay (needs it)')
        if self.optimizer == "muon" and self.lora:
            raise ValueError("muon is for whole matrices, not for adapters: AdamW with lora")
        if self.freeze and self.lora:
            raise ValueError("用 lora 時 freeze 會被忽略 (would be ignored)：轉接器以外本來就凍結")
        if any(factor <= 0 for factor in self.lr_factors.values()):
            raise ValueError("lr_factors 要大於 0 (above 0)；不想動的部分用 freeze = [...]")
        return self


class PretrainConfig(OptimConfig):
    """[pretrain]: next-token loss on every token of the corpus."""

    teacher: TeacherConfig | None = Field(None, description="learn from a larger model, too (docs/models.md)")


class SftConfig(OptimConfig):
    """[sft]: loss on the assistant's tokens only."""

    datasets: tuple[DatasetConfig, ...] = Field((), description="sources and weights")
    held_out: float = Field(0.0, ge=0, lt=1, description="share of the conversations kept for a held-out loss")
    teacher: TeacherConfig | None = Field(None, description="learn from a larger model, too (docs/models.md)")

    @model_validator(mode="after")
    def _measures_something(self) -> "SftConfig":
        if self.eval_every and not self.held_out:
            raise ValueError("沒有 held_out，eval_every 會被忽略 (would be ignored)：給 held_out = 0.05 之類")
        return self


class FeedbackConfig(OptimConfig):
    """[feedback]: train on what people rated (docs/feedback.md)."""

    method: Literal["sft-positive", "kto", "dpo"] = Field(
        "sft-positive",
        description="sft-positive (the paper's): learn answers rated +1; kto: +1 and -1; dpo: pairs of answers to one prompt",
    )
    beta: float = Field(
        0.1, gt=0, description="kto, dpo: how far the model may move from where it starts; less is farther"
    )
    dpo_loss: Literal["sigmoid", "ipo"] = Field(
        "sigmoid",
        description="dpo: the paper's, or a margin to reach per token instead of without end (arXiv 2310.12036)",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="dpo: share of pairs thought to be the wrong way round (arXiv 2403.00409)"
    )
    sft_weight: float = Field(
        0.0, ge=0, description="dpo: plus so much of the chosen answers' cross entropy (arXiv 2404.19733)"
    )
    desirable_weight: float = Field(1.0, gt=0, description="kto: weight of answers rated +1")
    undesirable_weight: float = Field(1.0, gt=0, description="kto: weight of answers rated -1")
    datasets: tuple[DatasetConfig, ...] = Field(
        (), description="exported ratings (twllm feedback export) and shipped ones"
    )

    @model_validator(mode="after")
    def _no_idle_settings(self) -> "FeedbackConfig":
        of_kto, of_dpo = ("desirable_weight", "undesirable_weight"), ("dpo_loss", "label_smoothing", "sft_weight")
        if self.eval_every:
            raise ValueError("回饋階段沒有保留的資料，eval_every 會被忽略 (would be ignored)")
        used = {"kto": {"beta", *of_kto}, "dpo": {"beta", *of_dpo}}.get(self.method, set())
        for name in ("beta", *of_kto, *of_dpo):
            if name not in used and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"method = {self.method} 時 {name} 會被忽略 (would be ignored)")
        if self.dpo_loss == "ipo" and self.label_smoothing:
            raise ValueError('dpo_loss = "ipo" 時 label_smoothing 會被忽略 (would be ignored)')
        if used and self.kept == "best":
            raise ValueError(f"{self.method} has no held-out loss: patience and keep = best are for the other phases")
        if used and self.neftune_alpha:
            raise ValueError(f"neftune_alpha 用在學文字的方法，method = {self.method} 不行 (not for it)")
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
    checkpointing: Literal["none", "selective", "full"] = Field(
        "none", description="activations computed again to save memory; selective: half of a layer; full: all of it"
    )
    offload: bool = Field(False, description="GPU: activations wait for the backward pass in the host's memory")
    checkpoint_every_s: float = Field(20.0, gt=0, description="seconds between resumable states")
    tensorboard: bool | None = Field(None, description="None: write TensorBoard files if it is installed")
    peak_tflops: float | None = Field(
        None, gt=0, description="for time estimates and MFU; None: measured (CPU) or looked up"
    )
    gpu: str | None = Field(None, description="card this file is for, as in docs/plan.md; plans are made for it")
    gpus: int = Field(1, ge=1, description="how many of `gpu` there are, over all hosts; plans are made for them")
    sharding: Literal["none", "optimizer", "full"] = Field(
        "none",
        description="several processes: copies; weights, gradients and moments shared out (as ZeRO-2); gathered layer by layer (ZeRO-3)",
    )
    shard_ranks: int | None = Field(
        None, ge=2, description="processes that share out one copy, 8 on hosts of 8 cards e.g.; None: all of them"
    )
    tensor_parallel: int = Field(1, ge=1, description="processes that compute one layer together, within a host")
    context_parallel: int = Field(
        1,
        ge=1,
        description="processes that share out each row's tokens, within a host; for rows that do not fit on one",
    )
    timeout_s: float = Field(600.0, gt=0, description="several processes: how long one may keep the others waiting")

    @model_validator(mode="after")
    def _no_idle_settings(self) -> "MachineConfig":
        if self.device == "cuda" and self.threads is not None:
            raise ValueError("device = cuda 時 threads 會被忽略 (would be ignored)：它是 CPU 的設定")
        if self.gpus > 1 and self.gpu is None:
            raise ValueError('有 gpus 也要有卡的種類 (needs gpu)：gpu = "h100"')
        if self.shard_ranks and self.sharding == "none":
            raise ValueError('sharding = "none" 時 shard_ranks 會被忽略 (would be ignored)')
        if self.tensor_parallel > 1 and self.context_parallel > 1:
            raise ValueError("tensor_parallel 和 context_parallel 不能一起用 (not together)")
        return self
