"""[base.rope]: how positions beyond those that a model was trained on are told apart."""

from typing import Literal

from pydantic import Field, model_validator

from twllm.config import Config


class RopeConfig(Config):
    """[base.rope]: longer contexts for a model with rotary positions (docs/methods.md)."""

    type: Literal["linear", "dynamic", "yarn", "theta"] = Field(
        description="linear: positions ÷ factor; dynamic: NTK by the text's length; yarn: by wave length; theta: another base"
    )
    factor: float = Field(1.0, ge=1, description="the new context is the old one × this")
    theta: float | None = Field(
        None,
        gt=0,
        description="theta: the new base; None: the NTK-aware one, old base × factor^(E / (E − 2)), E = head width",
    )

    @model_validator(mode="after")
    def _complete(self) -> "RopeConfig":
        if self.factor == 1:
            raise ValueError("factor says how many times longer the context gets: more than 1")
        if self.theta and self.type != "theta":
            raise ValueError(f'theta would be ignored with type = "{self.type}"')
        return self
