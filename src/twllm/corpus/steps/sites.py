"""sites: obey a person's marks of web sites (`twllm corpus sites` writes the file, corpus/sites.py reads it)."""

from pathlib import Path
from typing import TYPE_CHECKING

from twllm.corpus.document import KEEP, Document, Drop, Keep
from twllm.corpus.steps import Rule, filter_step
from twllm.errors import UserError

if TYPE_CHECKING:
    from twllm.corpus.config import CorpusConfig


@filter_step("sites")
def sites(config: "CorpusConfig") -> Rule:
    """Settings: region.sites, region.unreviewed_sites. A document without a URL is no site's and stays."""
    from twllm.corpus.sites import host_of, mark_of, read_marks

    settings = config.region
    if not settings.sites:
        raise UserError(
            "步驟 sites 少了網站清單 (no file of sites)",
            "corpus.region.sites",
            "twllm corpus sites FILE… --out sites.toml",
        )
    marks = read_marks(Path(settings.sites))

    def rule(document: Document) -> Keep | Drop:
        if not document.url:
            return KEEP
        mark, host = mark_of(document.url, marks)
        if mark:
            return KEEP if mark == "keep" else Drop("site_dropped", host)
        return KEEP if settings.unreviewed_sites == "keep" else Drop("site_unreviewed", host_of(document.url))

    return rule
