"""The funnel: what each stage got, gave and dropped, by reason, with samples; written as numbers, samples and a
picture.

Everything written depends on the documents and the seed only (no times), so the same input gives the same bytes.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from twllm.artifact import write_json
from twllm.corpus.document import Document, Dropped, Noted

EXCERPT_CHARS = 300
CJK_FONTS = (
    "Noto Sans CJK TC",
    "Noto Sans TC",
    "Source Han Sans TC",
    "PingFang TC",
    "Microsoft JhengHei",
    "AR PL UMing TW",
)
# fmt: off
ZH = {
    "read": "讀入", "normalize": "正規化", "quality": "品質", "script": "正體", "dedup": "去重",
    "too_short": "太短", "garbled": "亂碼", "symbols": "符號過多", "few_han": "漢字太少", "repeated_lines": "重複行",
    "no_sentence_end": "沒有句子", "simplified": "簡體字", "duplicate": "重複文件",
    "decontaminate": "除汙", "evaluation_question": "評測題目", "evaluation_context": "評測短文",
    "evaluation_reference": "評測答案", "evaluation_text": "評測文字", "broken_line": "壞行", "broken_file": "壞檔", "no_text": "沒有文字",
}
# fmt: on


class Samples:
    """A fair sample of the drops of each reason, of fixed size, drawn as they pass (reservoir sampling)."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.kept: dict[str, list[Dropped]] = {}
        self._seen: Counter[str] = Counter()
        self._random: dict[str, Random] = {}

    def add(self, drop: Dropped) -> None:
        """Maybe keep this one."""
        self._seen[drop.reason] += 1
        kept = self.kept.setdefault(drop.reason, [])
        if len(kept) < self.size:
            kept.append(shorten(drop))
            return
        random = self._random.setdefault(drop.reason, Random(f"{self.seed}/{drop.reason}"))
        place = random.randrange(self._seen[drop.reason])
        if place < self.size:
            kept[place] = shorten(drop)


def shorten(drop: Dropped) -> Dropped:
    """The drop with an excerpt in place of its text, so that samples stay small; its length goes into the metadata."""
    old = drop.document
    metadata = {"chars": len(old.text)}
    short = Document(old.id, old.text[:EXCERPT_CHARS], old.source, old.url, old.license, metadata, old.history)
    return Dropped(short, drop.step, drop.reason, drop.detail)


class Funnel:
    """Counts what flows through the stages, in the order they are first followed."""

    def __init__(self, samples_per_reason: int, seed: int) -> None:
        self.stages: dict[str, Counter[str]] = {}
        self.drops: dict[str, dict[str, Counter[str]]] = {}
        self.notes: dict[str, dict[str, Counter[str]]] = {}  # what was cut from documents that stayed, or only found
        self.seconds: dict[str, float] = {}
        self.samples = Samples(samples_per_reason, seed)

    def follow(self, stage: str, items: Iterable[Document | Dropped]) -> Iterator[Document]:
        """Pass the documents on; count them and the drops. `seconds[stage]` includes the stages before."""
        self.stages[stage], self.drops[stage], self.seconds[stage] = Counter(), {}, 0.0
        self.notes[stage] = {}
        return self._follow(stage, iter(items))

    def _follow(self, stage: str, items: Iterator[Document | Dropped]) -> Iterator[Document]:
        given, drops = self.stages[stage], self.drops[stage]
        start = time.perf_counter()
        for item in items:
            self.seconds[stage] += time.perf_counter() - start
            if isinstance(item, Document):
                given["documents"] += 1
                given["chars"] += len(item.text)
                yield item
            else:
                reasons = self.notes[stage] if isinstance(item, Noted) else drops
                reasons.setdefault(item.reason, Counter()).update(documents=1, chars=len(item.document.text))
                self.samples.add(item)
            start = time.perf_counter()
        self.seconds[stage] += time.perf_counter() - start

    def own_seconds(self) -> dict[str, float]:
        """Seconds of each stage without the stages before it."""
        before, own = 0.0, {}
        for stage, seconds in self.seconds.items():
            own[stage], before = round(seconds - before, 3), seconds
        return own

    def dropped(self) -> dict[str, int]:
        """Documents by reason, most first."""
        total: Counter[str] = Counter()
        for reasons in self.drops.values():
            total.update({reason: count["documents"] for reason, count in reasons.items()})
        return dict(total.most_common())

    def to_rows(self) -> list[dict[str, Any]]:
        """One row a stage: documents and chars given, and the drops by reason."""
        rows = []
        for stage, given in self.stages.items():
            drops = {reason: size(count) for reason, count in sorted(self.drops[stage].items())}
            notes = {reason: size(count) for reason, count in sorted(self.notes[stage].items())}
            rows.append({"stage": stage, **size(given), "drops": drops, **({"notes": notes} if notes else {})})
        return rows

    def write(self, folder: Path, **facts: Any) -> None:
        """funnel.json, funnel.png and drops/REASON.jsonl."""
        rows = self.to_rows()
        write_json(folder / "funnel.json", {"stages": rows, **facts})
        (folder / "drops").mkdir(exist_ok=True)
        for reason, kept in self.samples.kept.items():
            lines = [json.dumps(sample_row(drop), ensure_ascii=False) for drop in kept]
            text = "".join(f"{line}\n" for line in lines)
            (folder / "drops" / f"{reason}.jsonl").write_text(text, encoding="utf-8", errors="backslashreplace")
        draw(rows, folder / "funnel.png")


def size(count: Counter[str]) -> dict[str, int]:
    """Documents and chars as plain numbers."""
    return {"documents": count["documents"], "chars": count["chars"]}


def sample_row(drop: Dropped) -> dict[str, Any]:
    """A dropped document as a row to look at."""
    document = drop.document
    return {
        "id": document.id,
        "source": document.source,
        "url": document.url,
        "step": drop.step,
        "reason": drop.reason,
        "detail": drop.detail,
        "chars": document.metadata["chars"],
        "excerpt": document.text,
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Two panels: documents left after each stage, and dropped by reason. Latin names where no CJK font is found."""
    from matplotlib import font_manager, rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    have = {font.name for font in font_manager.fontManager.ttflist}
    font = next((name for name in CJK_FONTS if name in have), None)
    say = (lambda name: f"{ZH[name]} {name}" if name in ZH else name) if font else str
    drops = {reason: count["documents"] for row in rows for reason, count in row["drops"].items()}
    with rc_context({"font.family": [font or "DejaVu Sans"], "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8, 1.6 + 0.35 * (len(rows) + len(drops))), layout="constrained")
        FigureCanvasAgg(figure)
        top, bottom = figure.subplots(2, 1, height_ratios=[len(rows), max(len(drops), 1)])
        left = [row["documents"] for row in rows]
        labels = [f"{row['documents']:,} documents, {row['chars']:,} chars" for row in rows]
        _bars(top, [say(row["stage"]) for row in rows], left, labels, "documents left")
        _bars(
            bottom,
            [say(reason) for reason in drops],
            list(drops.values()),
            [f"{n:,}" for n in drops.values()],
            "dropped",
        )
        figure.savefig(path, dpi=100, metadata={"Software": None})


def _bars(axes: Any, names: list[str], values: list[int], labels: list[str], title: str) -> None:
    bars = axes.barh(names, values, color="#3a7ca5" if title.endswith("left") else "#d1495b")
    axes.bar_label(bars, labels=labels, padding=3, fontsize=8)
    axes.set_xlim(0, max([1, *values]) * 1.6)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
