"""quality_model: keep what scores well by a classifier trained on one's own examples (corpus/quality_model.py)."""

from pathlib import Path
from typing import TYPE_CHECKING

from twllm.corpus.document import KEEP, Document, Drop, Keep
from twllm.corpus.steps import Rule, filter_step
from twllm.errors import UserError, require_file

if TYPE_CHECKING:
    from twllm.corpus.config import CorpusConfig


@filter_step("quality_model")
def quality_model(config: "CorpusConfig") -> Rule:
    """Settings: region.quality_model, region.min_quality."""
    from twllm.corpus.quality_model import QualityModel

    settings = config.region
    if not settings.quality_model:
        fix = "twllm corpus quality train --good … --bad … --out MODEL，再設 quality_model"
        raise UserError("步驟 quality_model 少了模型 (no model)", "corpus.region.quality_model", fix)
    model = QualityModel.load(require_file(Path(settings.quality_model)))

    def rule(document: Document) -> Keep | Drop:
        score = model.score(document.text)
        return KEEP if score >= settings.min_quality else Drop("low_quality", f"{score:.3f} < {settings.min_quality}")

    return rule
