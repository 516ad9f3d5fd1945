"""Recipe section [evaluate]."""

from typing import Literal

from pydantic import Field

from twllm.config import Config


class EvaluateConfig(Config):
    """[evaluate]: which suites, on what data, and what must be reached."""

    suites: tuple[str, ...] = Field(("culture",), description="suites to run")
    questions: str = Field("twllm:culture", description="culture questions: twllm:NAME, a file or a folder")
    tceval_data: str | None = Field(None, description="TC-Eval in MediaTek's layout (with drcd beside it)")
    limit: int | None = Field(None, ge=1, description="items per task, at most")
    max_new_tokens: int = Field(64, ge=1, description="longest answer, in tokens")
    batch_size: int = Field(32, ge=1, description="prompts decoded together; does not change the result")
    contamination: tuple[str, ...] = Field(
        (), description="training data outside this recipe; its own corpus and conversations are always looked at"
    )
    gates: dict[str, float] = Field(default_factory=dict, description="suite -> lowest score that may be released")
    ablations: tuple[Literal["no_cpt", "no_feedback"], ...] = Field(
        (), description="also train and evaluate without a phase"
    )
    seed: int = Field(1, description="for samples of items")
