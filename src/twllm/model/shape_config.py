"""What another depth or width is to be: settings of `twllm model prune` and `deepen`, and of a recipe's [base.prune], [base.deepen]; no torch."""

from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from twllm.config import Config
from twllm.model.sizes import Size


class PruneConfig(Config):
    """How much is left; what is not named stays whole."""

    layers: int | None = Field(None, ge=1, description="layers that are left")
    heads: int | None = Field(None, ge=1, description="query heads a layer")
    kv_heads: int | None = Field(
        None,
        ge=1,
        description="key/value heads a layer; None: all where they divide `heads`, else as many queries each as before",
    )
    intermediate: int | None = Field(
        None, ge=1, description="feed-forward width; a multiple of 256 suits every consumer"
    )
    width: int | None = Field(
        None, ge=2, description="width of the residual stream; a multiple of 256 suits every consumer"
    )
    tokens: int = Field(100_000, ge=100, description="tokens of the texts that importance and loss are measured on")

    @model_validator(mode="after")
    def _cuts_something(self) -> "PruneConfig":
        if all(getattr(self, name) is None for name in ("layers", "heads", "intermediate", "width")):
            raise ValueError("nothing to cut: give layers, heads, intermediate or width")
        if self.kv_heads and not self.heads:
            raise ValueError("kv_heads goes with heads")
        return self

    def shape(self, size: Size) -> Size:
        """The size that is left, for plans (the heads keep their width; parameters of attention are counted a little high)."""
        heads = self.heads or size.H
        return replace(
            size, D=self.width or size.D, L=self.layers or size.L, F=self.intermediate or size.F,
            H=heads, K=self.kv_heads or kept_kv_heads(size.H, size.K, heads) if self.heads else size.K,
        )  # fmt: skip


class DeepenConfig(Config):
    """How many layers, and where they come from (model/deepen.py)."""

    layers: int = Field(ge=2, description="layers afterwards, at most twice as many as before")
    method: Literal["solar", "interleave", "expand"] = Field(
        "solar",
        description="solar: overlapping halves; interleave: each beside its copy; expand: copies that add nothing yet",
    )


def planned(size: Size, prune: PruneConfig | None, deepen: DeepenConfig | None) -> Size:
    """The size that a recipe's base model becomes before its first phase."""
    if prune:
        return prune.shape(size)
    return replace(size, L=deepen.layers) if deepen else size


def kept_kv_heads(heads: int, kv_heads: int, kept: int) -> int:
    """Key/value heads of `kept` query heads, 0 if there is no way: all of them, else as many queries for each as before.

    >>> kept_kv_heads(32, 4, 16), kept_kv_heads(32, 32, 24), kept_kv_heads(8, 4, 6), kept_kv_heads(8, 4, 3)
    (4, 24, 3, 0)
    """
    if kept % kv_heads == 0:
        return kv_heads
    group = heads // kv_heads
    return 0 if kept % group else kept // group
