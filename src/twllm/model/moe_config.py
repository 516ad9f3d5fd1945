"""What a mixture of experts is to be: settings of `twllm model upcycle` and of a recipe's [base.moe]; no torch."""

from typing import Literal

from pydantic import Field, model_validator

from twllm.config import Config


class MoeShape(Config):
    """How many experts, how many of them a token passes, and how far they are from equal at first."""

    experts: int = Field(8, ge=2, description="experts a layer")
    top_k: int = Field(2, ge=1, description="experts a token passes")
    granularity: int = Field(
        1,
        ge=1,
        description="experts a copy of the dense layer is cut into; = top_k: the dense model's active parameters",
    )
    reinit: float = Field(0.0, ge=0, le=1, description="share of each expert's inner units drawn anew")
    noise: float = Field(0.0, ge=0, description="noise on the copies, as a share of the weights' spread")
    balance: float = Field(0.01, ge=0, description="weight of the loss that spreads tokens over experts")

    @model_validator(mode="after")
    def _fits(self) -> "MoeShape":
        if self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} > experts {self.experts}")
        for name in ("experts", "top_k"):
            if getattr(self, name) % self.granularity:
                raise ValueError(f"{name} {getattr(self, name)} is no multiple of granularity {self.granularity}")
        return self


class MoeConfig(MoeShape):
    """[base.moe]: the dense model gets experts before one of the phases."""

    before: Literal["pretrain", "sft", "feedback"] = Field(
        "pretrain", description="phase that is the first to train the experts; the ones before it train the dense model"
    )
