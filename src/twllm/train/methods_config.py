"""Tables inside [pretrain], [sft] and [feedback]: [….lora] and [….forgetting]."""

from typing import Literal

from pydantic import Field, model_validator

from twllm.config import Config


class LoraConfig(Config):
    """[….lora]: train low-rank changes of the linear layers (arXiv 2106.09685) and merge them at the end (docs/methods.md)."""

    r: int = Field(16, ge=1, description="rank")
    alpha: int = Field(32, ge=1, description="a change counts alpha / r times (rslora: alpha / √r)")
    dropout: float = Field(0.0, ge=0, lt=1, description="of what goes into a change, while training")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description='layers by name, ["q_proj", "v_proj"]; all-linear: every one but the output head'
    )
    modules_to_save: tuple[str, ...] = Field(
        (), description='trained whole, e.g. ["embed_tokens", "lm_head"] after an extended vocabulary'
    )
    rslora: bool = Field(False, description="scale by alpha / √r (arXiv 2312.03732), for high ranks")
    quantise: Literal["none", "nf4"] = Field(
        "none", description="nf4: the frozen layers in 4 bits (QLoRA, arXiv 2305.14314); needs twllm[qlora]"
    )

    @model_validator(mode="after")
    def _head_is_saved_whole(self) -> "LoraConfig":
        if self.targets != "all-linear":
            if not self.targets:
                raise ValueError("targets is empty")
            if "lm_head" in self.targets:
                raise ValueError('the output head has no low-rank form here; put it into modules_to_save = ["lm_head"]')
            if both := set(self.targets) & set(self.modules_to_save):
                raise ValueError(f"{sorted(both)[0]} is in targets and in modules_to_save")
        return self


class ForgettingConfig(Config):
    """[….forgetting]: bits per character of texts before and after the phase, with a verdict (docs/methods.md)."""

    texts: tuple[str, ...] = Field(
        min_length=1, description="twllm:NAME, files or folders; each is one row of the report"
    )
    max_rise: float = Field(
        0.03, gt=0, description="a text whose bits per character rise by more than this share is forgotten"
    )
    max_chars: int = Field(200_000, ge=1, description="characters read of each text")
