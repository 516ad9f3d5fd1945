"""Recipe section [corpus]: the sources, the steps and their limits, the mix.

Where a limit was measured, on what: steps/quality.py and steps/script.py. The rest is chosen, not tuned.
"""

from pathlib import PurePath
from typing import Literal

from pydantic import Field, field_validator, model_validator

from twllm.config import Config
from twllm.corpus.dedup_config import DedupConfig
from twllm.corpus.privacy_config import PrivacyConfig
from twllm.corpus.region_config import RegionConfig
from twllm.errors import did_you_mean

DEFAULT_STEPS = ("normalize", "region", "quality", "privacy", "boilerplate", "near_dedup")


class CommonCrawlConfig(Config):
    """[corpus.sources.commoncrawl]: pages of one snapshot of Common Crawl."""

    snapshot: str = Field(min_length=1, description="such as CC-MAIN-2024-10")
    format: Literal["warc", "wet"] = Field(
        "warc", description="pages as crawled, or their text as Common Crawl took it"
    )
    select: Literal["index", "api", "files"] = Field(
        "index",
        description="index: the snapshot's sorted index by byte ranges; api: its CDX server; files: whole WARC or WET files",
    )
    hosts: tuple[str, ...] = Field((), description='hosts and what is under them: ".tw", "gov.tw", "www.cna.com.tw"')
    url_pattern: str = Field("", description="regular expression that a URL must match, somewhere in it")
    languages: tuple[str, ...] = Field((), description='index: the main language is one of these, such as "zho"')
    first_file: int = Field(0, ge=0, description="files: number of the first one")
    max_files: int | None = Field(None, ge=1, description="files: so many of them")
    max_blocks: int | None = Field(None, ge=1, description="index: so many index blocks (of 3,000 pages); api: pages")
    base_url: str = Field(
        "https://data.commoncrawl.org/", description="where the snapshot lies: http(s), s3:// or a folder"
    )
    index_url: str = Field("https://index.commoncrawl.org/", description="api: the CDX server")
    retries: int = Field(8, ge=0, description="times a request is repeated (429, 5xx, broken connection)")
    wait_s: float = Field(1.0, ge=0, description="wait before the first repetition; doubles each time, at most 60 s")


class HubConfig(Config):
    """[corpus.sources.hub]: a data set through the `datasets` library, streamed."""

    name: str = Field(min_length=1, description="owner/name, or a builder such as parquet, json")
    subset: str | None = Field(None, description="configuration of the data set")
    split: str = Field("train", description="which split")
    revision: str | None = Field(None, description="commit or tag")
    data_files: tuple[str, ...] = Field((), description="files of the data set (or of a builder) to read")


class CorpusSource(Config):
    """[[corpus.sources]]: one collection of documents."""

    path: str = Field(
        "", description="twllm:NAME, a file, a folder, a glob such as data/**/*.jsonl.gz, or a URL (s3://, gs://, hf://, https://)"
    )  # fmt: skip
    commoncrawl: CommonCrawlConfig | None = Field(None, description="in place of path: a snapshot of Common Crawl")
    hub: HubConfig | None = Field(None, description="in place of path: a data set of a hub")
    name: str | None = Field(None, min_length=1, description="name in reports and ids; default: the file's or folder's")
    license: str = Field("", description="licence of the documents whose rows do not carry their own `license`")
    text_key: str = Field("text", description="key (jsonl) or column (parquet) that holds the text")
    limit: int | None = Field(None, ge=1, description="read at most so many documents")
    weight: float = Field(1.0, gt=0, description="times a training epoch shows each document of this source")
    group: str | None = Field(None, min_length=1, description="group in [corpus.mix]; default: the source's name")
    max_epochs: float | None = Field(None, gt=0, description="mix: most times this source is shown")
    skip_steps: tuple[str, ...] = Field((), description="steps that this source does not go through")
    on_broken: Literal["stop", "skip"] | None = Field(None, description="for this source, in place of corpus.on_broken")

    @property
    def label(self) -> str:
        """The name, or the path's last part without its suffixes: `prose/moj-law.jsonl.gz` → `moj-law`."""
        if self.name:
            return self.name
        if self.commoncrawl or self.hub:
            return self.commoncrawl.snapshot if self.commoncrawl else PurePath(self.hub.name).name if self.hub else ""
        last = PurePath(self.path.removeprefix("twllm:").split("*")[0].rstrip("/")).name
        return last.split(".")[0] or last or self.path

    @property
    def origin(self) -> str:
        """What is told of where it comes from: the path, or the snapshot or data set."""
        if self.commoncrawl:
            return f"{self.commoncrawl.snapshot} {self.commoncrawl.format} {','.join(self.commoncrawl.hosts)}".rstrip()
        return self.path or (f"hub:{self.hub.name}" if self.hub else "")

    @property
    def terms(self) -> str:
        """The licence of documents that carry none of their own; empty where nothing is said."""
        return self.license or ("Common Crawl Terms of Use; pages: their authors" if self.commoncrawl else "")

    @model_validator(mode="after")
    def _one_place(self) -> "CorpusSource":
        if bool(self.path) + bool(self.commoncrawl) + bool(self.hub) != 1:
            raise ValueError("來源要有 path、commoncrawl、hub 其中一個 (exactly one of path, commoncrawl, hub)")
        return self


class MixConfig(Config):
    """[corpus.mix]: how much of the training tokens each group of sources gives. Without shares: the sources' weights."""

    shares: dict[str, float] = Field(
        default_factory=dict,
        description="group → share of the tokens; they are scaled to sum 1",
    )
    replay: dict[str, float] = Field(
        default_factory=dict,
        description="group → share of all tokens that is taken off the others: English, general data",
    )
    max_epochs: float = Field(
        4.0, gt=0, description="most times a document is shown (arXiv 2305.16264: four cost little)"
    )
    tokens: int | None = Field(None, ge=1, description="tokens of one training epoch; default: what the sources hold")
    when_short: Literal["redistribute", "shrink"] = Field(
        "redistribute",
        description="a group is too small: the others take over its tokens, or the epoch shrinks until the shares hold",
    )

    @model_validator(mode="after")
    def _sane(self) -> "MixConfig":
        if any(share <= 0 for share in (*self.shares.values(), *self.replay.values())):
            raise ValueError("佔比要大於 0 (shares must be positive)")
        if sum(self.replay.values()) >= 1:
            raise ValueError("replay 的佔比加起來要小於 1 (replay shares must sum to less than 1)")
        if both := set(self.shares) & set(self.replay):
            raise ValueError(f"「{min(both)}」同時在 shares 和 replay (in both)")
        if self.replay and not self.shares:
            raise ValueError("有 replay 也要有 shares (replay needs shares)")
        return self


class CorpusConfig(Config):
    """[corpus]: sources → steps → documents and a held-out part."""

    sources: tuple[CorpusSource, ...] = Field((), description="where the documents come from, in this order")
    steps: tuple[str, ...] = Field(DEFAULT_STEPS, description="steps, in this order")
    on_broken: Literal["auto", "stop", "skip"] = Field(
        "auto",
        description="broken line, record or file: stop, or skip it and count it; auto: skip what comes from the web",
    )
    takedown: str | None = Field(None, description="file of URLs, hosts, ids and texts that must not be in the corpus")
    region: RegionConfig = Field(
        default_factory=RegionConfig, description="steps language, region, quality_model, sites"
    )
    dedup: DedupConfig = Field(
        default_factory=DedupConfig, description="steps near_dedup, dedup_paragraphs, boilerplate"
    )
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig, description="step privacy")
    mix: MixConfig = Field(default_factory=MixConfig, description="shares of the training tokens")
    write: Literal["one", "shards"] = Field(
        "one", description="documents in one file, or in one file a part of the input"
    )
    part_mb: float = Field(64.0, gt=0, description="small files are taken together to parts of so many megabytes")
    max_document_mb: float = Field(64.0, gt=0, description="a line, page or file larger than this is broken input")
    max_document_seconds: float = Field(
        60.0, gt=0, description="a page, docx, epub or pdf that takes longer to read is broken input"
    )
    count_tokens: str | None = Field(
        None, description="tokenizer folder that counts the funnel's tokens; without: UTF-8 bytes / 4.5"
    )
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
    seed: int = Field(1, ge=0, description="which documents are held out, which drops are sampled")

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

    @model_validator(mode="after")
    def _known_groups(self) -> "CorpusConfig":
        for source in self.sources:
            for name in source.skip_steps:
                if name not in self.steps:
                    raise ValueError(f"skip_steps 的「{name}」不在 steps 裡：{did_you_mean(name, self.steps)}")
        asked = {**self.mix.shares, **self.mix.replay}
        groups = [source.group or source.label for source in self.sources]
        if asked:
            for name in asked:
                if name not in groups:
                    raise ValueError(
                        f"[corpus.mix] 的「{name}」沒有來源 (no source in the group)：{did_you_mean(name, groups)}"
                    )
            for name in groups:
                if name not in asked:
                    raise ValueError(f"來源群「{name}」在 [corpus.mix] 沒有佔比 (group without a share)")
        return self
