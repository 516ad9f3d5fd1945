"""[pretrain.teacher] and [sft.teacher]: learn from a larger checkpoint (distillation); no torch."""

from pydantic import Field

from twllm.config import Config


class TeacherConfig(Config):
    """The larger model whose predictions the smaller one learns, beside the text itself (train/distill.py)."""

    model: str = Field(description="the larger model: a Hugging Face folder or hub name with the very same tokenizer")
    revision: str | None = Field(None, description="hub revision (commit or tag)")
    weight: float = Field(0.5, gt=0, le=1, description="share of the teacher's loss; the rest is the text's own")
    temperature: float = Field(1.0, gt=0, description="both distributions are softened by it before they are compared")
