"""What was collected: counts by model, day and reason, how far people agree, and a picture of it."""

from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from twllm.artifact import canonical_json, write_bytes
from twllm.feedback.battles import Battles
from twllm.feedback.store import Rating, RatingStore
from twllm.feedback.tables import consents, erasures

CJK_FONTS = (
    "Noto Sans CJK TC",
    "Noto Sans TC",
    "Noto Sans CJK JP",
    "PingFang TC",
    "Microsoft JhengHei",
    "WenQuanYi Zen Hei",
)


def stats(db: str | Path) -> dict[str, Any]:
    """Counts for `twllm feedback stats`: all clicks; of the ratings that count, how many are up, down, …; votes; erasures.

    Raises:
        StoreError: there is no database, or it cannot be read.
    """
    with RatingStore(db, create=False) as store:
        ratings = list(store.latest())
        votes = list(Battles(store).votes())
        with store.reading() as connection:
            erased = connection.execute(select(func.count()).select_from(erasures)).scalar()
            agreed = connection.execute(select(func.count()).select_from(consents)).scalar()
        clicks = store.clicks()
    by_model: dict[str, Counter[str]] = defaultdict(Counter)
    by_day: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: Counter[str] = Counter()
    for rating in ratings:
        sign = "up" if rating.rating > 0 else "down"
        by_model[f"{rating.model} ({rating.model_fingerprint})"][sign] += 1
        by_day[rating.created[:10]][sign] += 1
        reasons.update([f"{sign}: {rating.reason}"] if rating.reason else [])
    for vote in votes:
        by_day[vote.created[:10]]["votes"] += 1
    return {
        "clicks": clicks,
        "ratings": len(ratings),
        "up": sum(r.rating > 0 for r in ratings),
        "down": sum(r.rating < 0 for r in ratings),
        "comments": sum(bool(r.comment) for r in ratings),
        "consent": sum(r.consent for r in ratings),
        "users": len({r.user_hash for r in ratings} | {v.user_hash for v in votes}),
        "votes": len(votes),
        "votes_flagged": sum(bool(v.flag) for v in votes),
        "consent_events": agreed,
        "erasures": erased,
        "agreement": agreement(ratings),
        "reasons": dict(reasons.most_common()),
        "models": {name: _both(counts) for name, counts in sorted(by_model.items())},
        "days": {day: {**_both(counts), "votes": counts["votes"]} for day, counts in sorted(by_day.items())},
    }


def agreement(ratings: list[Rating]) -> dict[str, Any]:
    """Of answers that several people rated: how many there are, and the share of pairs of people who agree (None: none)."""
    by_answer: dict[str, dict[str, int]] = defaultdict(dict)
    for rating in ratings:
        by_answer[canonical_json(rating.messages)][rating.user_hash or str(rating.id)] = rating.rating
    several = [list(opinions.values()) for opinions in by_answer.values() if len(opinions) > 1]
    pairs = [one == other for opinions in several for one, other in combinations(opinions, 2)]
    return {"answers": len(several), "pairs": len(pairs), "share": round(sum(pairs) / len(pairs), 4) if pairs else None}


def _both(counts: Counter[str]) -> dict[str, int]:
    return {"up": counts["up"], "down": counts["down"]}


def plot(found: dict[str, Any], target: Path) -> None:
    """PNG: thumbs a day, thumbs by model, reasons."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    font = next((name for name in CJK_FONTS if name in installed), None)
    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    days, models, reasons = figure.subplots(3, 1)
    for axes, title, rows in (
        (days, "thumbs a day", list(found["days"].items())[-60:]),
        (models, "by model", list(found["models"].items())),
    ):
        names = [name if name.isascii() or font else f"model {i}" for i, (name, _) in enumerate(rows, 1)]
        axes.bar(range(len(rows)), [row["up"] for _, row in rows], color="tab:green", label="up")
        axes.bar(range(len(rows)), [-row["down"] for _, row in rows], color="tab:red", label="down")
        axes.set_xticks(range(len(rows)), names, rotation=20, ha="right", **({"fontname": font} if font else {}))
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_title(title)
        axes.legend()
    counted = list(found["reasons"].items())
    reasons.barh(range(len(counted)), [count for _, count in counted], color="tab:blue")
    reasons.set_yticks(range(len(counted)), [name for name, _ in counted])
    reasons.set_title("reasons")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_bytes(target, content.getvalue())
