"""The leaderboard: the votes that count, ranked. One row a model; where a name was given to several, each has its own."""

from dataclasses import asdict
from typing import Any

from twllm.feedback.battles import Battles, Known
from twllm.feedback.ranking import METHOD, rank
from twllm.feedback.store import RatingStore


def leaderboard(store: RatingStore) -> dict[str, Any]:
    """What /api/leaderboard tells: models (best first), number of battles, time of the last vote, method."""
    outcomes = Battles(store).outcomes()
    known = {model for a, b, _, _ in outcomes for model in (a, b)}
    names = [model.name for model in {Known(model.name, model.fingerprint) for model in known}]

    def label(model: Known) -> str:
        return model.name if names.count(model.name) == 1 else f"{model.name} ({model.fingerprint[:8]})"

    ranked = rank([(label(a), label(b), vote) for a, b, vote, _ in outcomes])
    rows = [
        {key: round(value, 1) if isinstance(value, float) else value for key, value in asdict(r).items()}
        for r in ranked
    ]
    updated = outcomes[-1][3] if outcomes else None
    return {"models": rows, "battles": len(outcomes), "updated": updated, "method": METHOD}
