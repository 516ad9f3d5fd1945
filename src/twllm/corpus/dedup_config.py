"""Recipe section [corpus.dedup]: near duplicates, repeated paragraphs and lines, boilerplate of web sites."""

from pydantic import Field

from twllm.config import Config


class DedupConfig(Config):
    """[corpus.dedup]: limits of the steps near_dedup, dedup_paragraphs, dedup_lines, boilerplate. Chosen, not tuned."""

    threshold: float = Field(
        0.75, ge=0.5, le=1, description="near_dedup: estimated Jaccard similarity of 5-letter shingles from which two texts are one"
    )  # fmt: skip
    score_key: str = Field(
        "taiwan_score", description="near_dedup: metadata that says which of a cluster is best; highest stays"
    )
    min_paragraph: int = Field(40, ge=1, description="dedup_paragraphs: letters of the shortest paragraph looked at")
    min_line: int = Field(30, ge=1, description="dedup_lines: letters of the shortest line looked at")
    boilerplate_documents: int = Field(
        10, ge=2, description="boilerplate: a line on so many documents of one host is taken out of all of them"
    )
    boilerplate_share: float = Field(
        0.02, ge=0, le=1, description="boilerplate: and on at least this share of the host's documents"
    )
