"""`train_speed.py --growth`: what our training costs as the model and the context grow; a table and docs/images/train-growth.png.

Model: 6.9 M and about ten times as many parameters. Context: 512 to 4,096 tokens, once with short paragraphs packed into the rows and once
with documents as long as the row, whose attention grows with it. Tokens a step are the same everywhere.
"""

import json
from pathlib import Path
from typing import Any

MODELS = {"7 M": {"D": 256, "L": 6, "H": 4, "K": 4, "F": 704}, "70 M": {"D": 768, "L": 9, "H": 12, "K": 12, "F": 2112}}
CONTEXTS = (512, 1024, 2048, 4096)
TOKENS = 4096  # a step
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "train-growth.png"


def long_rows(source: str, target: Path, characters: int) -> str:
    """The texts of `source`, joined into documents of at least so many characters."""
    joined, parts = [], ""
    with Path(source).open(encoding="utf-8") as lines:
        for line in lines:
            parts += json.loads(line)["text"]
            if len(parts) >= characters:
                joined.append(parts)
                parts = ""
    target.write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in joined), encoding="utf-8"
    )
    return str(target)


def measure(job: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
    """Median of three turns after warm-up."""
    import sys

    from train_speed import workers

    with workers({name: (sys.executable, "train_worker.py", job)}, folder) as running:
        worker = running[name]
        worker.turn(2)
        turns = []
        for _ in range(3):
            peak = worker.ask("peak")["peak_flop_s"]
            turn = worker.turn(1)
            turns.append({**turn, "share": turn["flops"] / turn["seconds"] / peak})
    turns.sort(key=lambda turn: turn["tok_s"])
    return turns[1]


def growth(folder: Path, rows: dict[str, str], base: dict[str, Any], args: Any) -> None:
    """Measure, print a table, draw it."""
    from train_speed import make_checkpoint

    found = []
    for model, shape in MODELS.items():
        checkpoint = folder / f"model {model}"
        make_checkpoint(checkpoint, args.vocab_size, max(CONTEXTS), shape)
        for context in CONTEXTS:
            if model != "7 M" and context not in (CONTEXTS[0], CONTEXTS[-1]):
                continue
            for kind in ("short", "long"):
                source = (
                    rows["text"]
                    if kind == "short"
                    else long_rows(rows["text"], folder / f"{context}.jsonl", context * 3)
                )
                job = {
                    **base,
                    "checkpoint": str(checkpoint),
                    "rows": source,
                    "context": context,
                    "batch_tokens": TOKENS,
                }
                turn = measure(job, folder, f"{model} {context} {kind}")
                found.append({"model": model, "context": context, "documents": kind, "turn": turn})
                print(
                    f"{model:>5} context {context:5} {kind:5} documents: {turn['tok_s']:7,.0f} tokens/s, "
                    f"{turn['share']:.0%} of the matrix peak, {turn['peak_bytes'] / 1e9:.2f} GB", flush=True,
                )  # fmt: skip
    draw(found)
    facts = [{**row, "turn": {key: row["turn"][key] for key in ("tok_s", "share", "peak_bytes")}} for row in found]
    print("RESULT " + json.dumps({"growth": facts, "threads": args.threads, "precision": base["precision"]}))


def draw(found: list[dict[str, Any]]) -> None:
    """Speed, share of the peak and memory against the context, a line for each model and kind of document."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    speed, share, memory = figure.subplots(1, 3)
    for colour, model in zip(("tab:blue", "tab:orange"), MODELS, strict=True):
        for kind, style in (("short", "o-"), ("long", "s--")):
            points = [row for row in found if row["model"] == model and row["documents"] == kind]
            contexts, turns = [row["context"] for row in points], [row["turn"] for row in points]
            label = f"{model}, " + ("short paragraphs packed" if kind == "short" else "documents as long as a row")
            speed.plot(contexts, [turn["tok_s"] for turn in turns], style, color=colour, label=label)
            share.plot(contexts, [100 * turn["share"] for turn in turns], style, color=colour)
            memory.plot(contexts, [turn["peak_bytes"] / 1e9 for turn in turns], style, color=colour)
    titles = ((speed, "tokens / s"), (share, "share of the matrix peak, %"), (memory, "peak memory, GB"))
    for axes, title in titles:
        axes.set(xscale="log", xlabel="context (tokens a row)", title=title)
        axes.set_ylim(bottom=0 if axes is not speed else None)
        axes.set_xticks(CONTEXTS, [f"{c:,}" for c in CONTEXTS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    speed.set_yscale("log")
    slowest, fastest = (choose(row["turn"]["tok_s"] for row in found) for choose in (min, max))
    ticks = [10**n * k for n in range(1, 7) for k in (1, 2, 5) if slowest / 2 < 10**n * k < fastest * 2]
    speed.set_yticks(ticks, minor=False)
    speed.set_ylim(slowest / 1.5, fastest * 1.5)
    speed.minorticks_off()
    speed.yaxis.set_major_formatter("{x:,.0f}")
    figure.legend(*speed.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=120)
