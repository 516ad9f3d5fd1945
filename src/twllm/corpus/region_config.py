"""Recipe section [corpus.region]: settings of the steps language, region, quality_model and sites."""

from typing import Literal

from pydantic import Field

from twllm.config import Config


class RegionConfig(Config):
    """[corpus.region]: settings of corpus steps that judge language, region, web sites."""

    languages: tuple[str, ...] = Field(
        ("zh", "lzh"), description="language, region: kept, ISO 639: zh, lzh, yue, nan, hak, en …"
    )
    page_rules: bool = Field(
        True, description="quality, region: the rules of corpus/quality.py: advertising, menus, repetition"
    )
    min_score: float = Field(0.5, ge=0, le=1, description="region: how much a text must read as Taiwan's")
    cut: bool = Field(True, description="region: cut foreign paragraphs out of mixed pages; false: drop such pages")
    sites: str = Field("", description="sites: the file of `twllm corpus sites` with a person's marks")
    unreviewed_sites: Literal["keep", "drop"] = Field("keep", description="sites: what happens to hosts without a mark")
    quality_model: str = Field("", description="quality_model: the file of `twllm corpus quality train`")
    min_quality: float = Field(0.5, ge=0, le=1, description="quality_model: least score")
