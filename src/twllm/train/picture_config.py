"""Recipe section [vision]: which encoder, which pictures, and the two phases that make a chat model see (docs/vision.md)."""

from typing import Literal

from pydantic import Field, model_validator

from twllm.config import Config
from twllm.tokens.config import DatasetConfig
from twllm.train.config import OptimConfig

Part = Literal["projector", "encoder", "language"]


class PicturePhaseConfig(OptimConfig):
    """[vision.align] and [vision.instruct]: loss on the assistant's tokens of conversations with pictures."""

    train: tuple[Part, ...] = Field(("projector",), description="parts that learn; the others stay as they are")
    datasets: tuple[DatasetConfig, ...] = Field(
        (),
        description="conversations with pictures, or without; those that [vision.draw] makes come first (docs/vision.md)",
    )

    @model_validator(mode="after")
    def _something_learns(self) -> "PicturePhaseConfig":
        if not self.train:
            raise ValueError("train is empty: nothing would learn")
        if self.batch_tokens < self.context:
            raise ValueError(f"batch_tokens {self.batch_tokens} is less than one row (context {self.context})")
        if len(set(self.train)) < len(self.train):
            raise ValueError("train names a part twice")
        for key in ("lora", "forgetting", "patience"):
            if getattr(self, key):
                raise ValueError(f"{key} is not there for pictures yet")
        if self.freeze:
            raise ValueError("freeze would be at odds with train, which names the parts that learn")
        return self


class DrawConfig(Config):
    """[vision.draw]: pictures that the recipe draws itself: road signs, charts, night-market menus."""

    pictures: int = Field(3000, ge=1, description="for training")
    held_out: int = Field(150, ge=1, description="other pictures, with questions for the evaluation")
    seed: int = Field(1, ge=0, description="which pictures")


class VisionConfig(Config):
    """[vision]: the chat model of the phases before, joined with an encoder of pictures."""

    encoder: str | None = Field(None, description="CLIP or SigLIP: a Hugging Face folder, or a name on the hub")
    revision: str | None = Field(None, description="hub revision of the encoder")
    encoder_license: str = Field("", description="licence of the encoder where its card does not say")
    size: str | None = Field(None, description="an encoder from scratch instead: tiny")
    layer: int = Field(-2, description="whose layer's features are taken: -1 the last, -2 as LLaVA")
    multiple: int = Field(1, ge=1, description="the vocabulary, now with <image>, is filled up to a multiple of it")
    seed: int = Field(1, ge=0, description="the projector's first weights, and those of an encoder from scratch")
    draw: DrawConfig | None = Field(None, description="draw the pictures")
    encode: PicturePhaseConfig | None = Field(
        None,
        description="size only, before align: the encoder learns by captioning, with a copy of the chat model that is thrown away",
    )
    align: PicturePhaseConfig = Field(
        default_factory=lambda: PicturePhaseConfig(lr=1e-3), description="first phase: captions"
    )
    instruct: PicturePhaseConfig = Field(
        default_factory=lambda: PicturePhaseConfig(lr=2e-5, train=("projector", "language")),
        description="second phase: conversations",
    )
    questions: str | None = Field(
        None, description="held-out questions (jsonl: image, question, answer); None: those of [vision.draw]"
    )
    gate: float | None = Field(None, ge=0, le=1, description="share of right answers below which nothing is released")

    @model_validator(mode="after")
    def _one_encoder(self) -> "VisionConfig":
        if (self.encoder is None) == (self.size is None):
            raise ValueError("give encoder or size, exactly one of them")
        if self.size and (self.revision or self.encoder_license):
            raise ValueError("revision and encoder_license would be ignored with size")
        if self.encoder and self.encode:
            raise ValueError("encode would be ignored with encoder: it is for an encoder from scratch (size)")
        if self.size and not self.encode and "encoder" not in self.align.train:
            raise ValueError("an encoder from scratch has to learn before align: give [vision.encode]")
        if self.encode and set(self.encode.train) != {"encoder"}:
            raise ValueError('encode trains the encoder alone: train = ["encoder"]')
        if not (self.align.enabled or self.instruct.enabled):
            raise ValueError("align and instruct are both off: there would be no model that sees")
        for name, phase in (("encode", self.encode), ("align", self.align), ("instruct", self.instruct)):
            if phase and phase.enabled and not phase.datasets and self.draw is None:
                raise ValueError(f"{name} has no datasets, and there is no [vision.draw]")
        if self.gate is not None and self.questions is None and self.draw is None:
            raise ValueError("gate has no questions to be measured on")
        return self
