"""Recipe sections [tokenizer] and [template], and the [[…datasets]] of the chat phases."""

from typing import Literal

from pydantic import Field

from twllm.config import Config


class TokenizerConfig(Config):
    """[tokenizer]: learn one on the corpus, or keep the base model's, or extend that."""

    method: Literal["train", "keep", "extend"] = Field(
        "train", description="train on the corpus, keep the base checkpoint's, or add pieces to it (docs/models.md)"
    )
    vocab_size: int = Field(16_000, ge=300, description="pieces, control tokens included (train)")
    add: int = Field(8000, ge=1, description="new pieces (extend)")
    init: Literal["average", "mean", "focus", "fitted"] = Field(
        "mean", description="how their rows begin in the model: docs/models.md (extend)"
    )
    multiple: int = Field(64, ge=1, description="the model's vocabulary is filled up to a multiple of it (extend)")
    min_frequency: int = Field(2, ge=1, description="a merge must occur this often (train, extend)")
    max_chars: int = Field(
        20_000_000,
        ge=1,
        description="characters to learn from: documents are sampled evenly from a larger corpus (train, extend)",
    )
    max_piece_chars: int = Field(4, ge=1, description="longest piece, in Han characters (train, extend)")


class TemplateConfig(Config):
    """[template]: the chat template that goes into the tokenizer folder."""

    name: Literal["taiwan-llm-v1", "taiwan-llm-v2", "chatml"] = Field("taiwan-llm-v2", description="a shipped template")


class DatasetConfig(Config):
    """A source of conversations (docs/conversations.md)."""

    path: str = Field(
        description="twllm:NAME, a file or a folder: .jsonl .json .parquet .csv .tsv .xml .yml, also .gz .zst"
    )
    format: Literal["messages", "oasst", "fastchat", "transcript", "squad", "chatterbot", "xml"] = Field(
        "messages",
        description="messages: any row with turns or question and answer, told by its shape (OASST and FastChat too)",
    )
    weight: float = Field(1.0, gt=0, description="times an epoch shows each conversation")
    license: str = Field("", description="licence, where the rows do not carry their own")
    on_broken: Literal["stop", "skip"] = Field(
        "stop", description="a row that is no conversation: stop and name it, or skip it and count it by reason"
    )
    max_leak_rate: float = Field(
        1.0,
        ge=0,
        le=1,
        description="leave out an answer with more Simplified characters and other regions' words than this share of its Han",
    )
    question_key: str = Field("", description="column of the question (CSV, XML, jsonl); empty: the usual names")
    answer_key: str = Field("", description="column of the answer; empty: the usual names")
    languages: tuple[str, ...] = Field(
        (), description='keep rows whose own language tag is one of these ("zh" takes zh-TW); rows without a tag stay'
    )
    paths: Literal["all", "best"] = Field(
        "all", description="oasst: every path to a last answer, or at each branching only the best ranked answer"
    )
    window_chars: int = Field(1200, ge=100, description="transcript: most characters of one conversation")
