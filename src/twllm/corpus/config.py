"""Recipe section [corpus]: the sources, the steps and their limits.

Where a limit was measured, on what: steps/quality.py and steps/script.py. The rest is chosen, not tuned.
"""

from pathlib import PurePath
from typing import Literal

from pydantic import Field, field_validator, model_validator

from twllm.config import Config
from twllm.errors import did_you_mean

DEFAULT_STEPS = ("normalize", "quality", "script", "dedup")


class CorpusSource(Config):
    """[[corpus.sources]]: one collection of documents."""

    path: str = Field(description="twllm:NAME, a file, a folder, or a glob such as data/**/*.jsonl.gz")
    name: str | None = Field(None, min_length=1, description="name in reports and ids; default: the file's or folder's")
    license: str = Field("", description="licence of the documents whose rows do not carry their own `license`")
    text_key: str = Field("text", description="key (jsonl) or column (parquet) that holds the text")
    limit: int | None = Field(None, ge=1, description="read at most so many documents")
    weight: float = Field(1.0, gt=0, description="times a training epoch shows each document of this source")

    @property
    def label(self) -> str:
        """The name, or the path's last part without its suffixes: `prose/moj-law.jsonl.gz` → `moj-law`."""
        if self.name:
            return self.name
        last = PurePath(self.path.removeprefix("twllm:").split("*")[0].rstrip("/")).name
        return last.split(".")[0] or last or self.path


class CorpusConfig(Config):
    """[corpus]: sources → steps → documents and a held-out part."""

    sources: tuple[CorpusSource, ...] = Field((), description="where the documents come from, in this order")
    steps: tuple[str, ...] = Field(DEFAULT_STEPS, description="steps, in this order")
    on_broken: Literal["stop", "skip"] = Field("stop", description="broken line or file: stop, or skip it and count it")
    min_chars: int = Field(20, ge=1, description="quality: fewest characters, white space not counted")
    min_han_share: float = Field(0.2, ge=0, le=1, description="quality: Han + Bopomofo, of all but white space")
    max_symbol_share: float = Field(
        0.3, ge=0, le=1, description="quality: symbols, markup and emoji, of all but white space"
    )
    max_garbled_share: float = Field(0.01, ge=0, le=1, description="quality: U+FFFD and private-use characters")
    max_repeated_share: float = Field(
        0.3, ge=0, le=1, description="quality: characters in lines seen before in the document"
    )
    need_sentence_end: bool = Field(True, description="quality: at least one of 。！？… or a Western full stop")
    max_simplified_share: float = Field(0.02, ge=0, le=1, description="script: Simplified-only characters, of all Han")
    varieties: tuple[str, ...] = Field(("zh-TW",), description="taiwan: verdicts of the checker that are kept")
    max_leak_rate: float = Field(
        0.01, ge=0, le=1, description="taiwan: Han in Simplified characters or another region's words, of all Han"
    )
    decontaminate: Literal["drop", "cut", "report"] = Field(
        "drop", description="decontaminate: a document with an evaluation item goes, loses those lines, or is only told"
    )
    decontaminate_against: tuple[str, ...] = Field(
        (), description="decontaminate: files of evaluation texts (twllm eval texts writes them), or twllm:culture"
    )
    decontaminate_threshold: float = Field(
        0.8, gt=0, le=1, description="decontaminate: share of an item in common n-grams from which it counts as found"
    )
    decontaminate_chars: int = Field(13, ge=8, description="decontaminate: characters of an n-gram of Chinese")
    decontaminate_words: int = Field(8, ge=4, description="decontaminate: words of an n-gram of Latin text")
    decontaminate_common: int = Field(
        5, ge=2, description="decontaminate: an n-gram of so many items is boilerplate and counts for nothing"
    )
    held_out: float = Field(
        0.02, ge=0, lt=1, description="share of the documents, by hash of the id, kept for held-out loss"
    )
    max_held_out: int = Field(1000, ge=0, description="most documents in the held-out part")
    samples_per_reason: int = Field(20, ge=0, description="dropped documents kept to look at, for each reason")
    seed: int = Field(1, description="which documents are held out, which drops are sampled")

    @field_validator("steps")
    @classmethod
    def _known_steps(cls, steps: tuple[str, ...]) -> tuple[str, ...]:
        from twllm.corpus import steps as registry

        for name in steps:
            if name not in registry.names():
                raise ValueError(f"沒有「{name}」這個步驟 (unknown step)：{did_you_mean(name, registry.names())}")
        if len(set(steps)) != len(steps):
            raise ValueError("同一個步驟寫了兩次 (a step is listed twice)")
        return steps

    @model_validator(mode="after")
    def _against_what(self) -> "CorpusConfig":
        if ("decontaminate" in self.steps) != bool(self.decontaminate_against):
            missing = "decontaminate_against" if "decontaminate" in self.steps else '步驟 steps 裡的 "decontaminate"'
            raise ValueError(
                f"除汙要有步驟也要有對照的題目，少了 {missing} (the step and what it looks for belong together)"
            )
        return self

    @model_validator(mode="after")
    def _distinct_names(self) -> "CorpusConfig":
        labels = [source.label for source in self.sources]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"兩個來源同名「{twice[0]}」(two sources of one name)：給它們不同的 name")
        return self
