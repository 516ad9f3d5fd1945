"""A run's report: scores, ablations, time and memory, as JSON, Markdown and pictures."""

import json
from pathlib import Path
from typing import Any

from twllm import artifact
from twllm.recipe import Recipe

ABLATION_NAMES = {"full": "完整 full", "no_cpt": "無繼續預訓練 without cPT", "no_feedback": "無回饋 without feedback"}


def write_report(recipe: Recipe, out: Path, names: list[str]) -> str:
    """Write `report.json`, `report.md`, `loss.png` and `ablations.png` in the run folder; returns the text for the terminal."""
    report = collect(recipe, out, names)
    text = markdown(report)
    artifact.write_json(out / "report.json", report)
    artifact.write_text(out / "report.md", text)
    _plot_losses(recipe, out)
    _plot_ablations(report["ablations"], out / "ablations.png")
    return text


def collect(recipe: Recipe, out: Path, names: list[str]) -> dict[str, Any]:
    """Everything the report says, from the manifests and results of the stages `names` (folders of an earlier recipe do not count)."""
    found = {name: artifact.read_manifest(out / name) for name in sorted(names)}
    stages = {name: manifest for name, manifest in found.items() if manifest is not None}
    variants = ["full", *recipe.evaluate.ablations]
    results = {v: json.loads((out / f"evaluate-{v}" / "result.json").read_text(encoding="utf-8")) for v in variants}
    scores = {name: block for name, block in results["full"].items() if isinstance(block, dict) and "n" in block}
    main = "culture" if "culture" in scores else next(iter(scores))
    return {
        "name": recipe.name,
        **scores,
        "ablations": {
            v: {k: r[main][k] for k in ("correct", "score", "n", "interval") if k in r[main]}
            for v, r in results.items()
        },
        "ablation_suite": main,
        "wall_s": round(sum(s["seconds"] for s in stages.values()), 1),
        "peak_rss_mb": max(s["peak_rss_mb"] for s in stages.values()),
        "parameters": stages["model"]["metrics"]["parameters"],
        "weights_fingerprint": stages["model"]["metrics"]["weights_fingerprint"],
        "training": {n: _training_facts(s["metrics"]) for n, s in stages.items() if "train_s" in s["metrics"]},
        "stages": {name: {"seconds": s["seconds"], "peak_rss_mb": s["peak_rss_mb"]} for name, s in stages.items()},
        "code_version": artifact.code_version(),
    }


def _training_facts(metrics: dict[str, Any]) -> dict[str, Any]:
    keys = ("steps", "tokens", "train_s", "loss", "held_out_loss", "held_out_bits_per_char", "padding_share", "machine",
            "kept", "kept_step", "stopped_at", "lora", "forgetting")  # fmt: skip
    return {key: metrics[key] for key in keys if key in metrics}


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"# {report['name']}",
        "",
        "## 分數 (scores)",
        "",
        "| 題組 suite | 答對 correct | 題數 n | 得分 score |",
        "|---|---|---|---|",
    ]
    for name, block in report.items():
        if isinstance(block, dict) and "n" in block:
            lines.append(f"| {name} | {block.get('correct', '-')} | {block['n']} | {block['score']:.3f} |")
    lines += [
        "",
        f"## 消融 (ablations, {report['ablation_suite']})",
        "",
        "| 模型 model | 答對 correct | 題數 n | 95% 區間 |",
        "|---|---|---|---|",
    ]
    for variant, row in report["ablations"].items():
        low, high = row.get("interval", (float("nan"), float("nan")))
        lines.append(
            f"| {ABLATION_NAMES.get(variant, variant)} | {row.get('correct', '-')} | {row['n']} | {low:.3f}–{high:.3f} |"
        )
    lines += [
        "",
        "## 訓練 (training)",
        "",
        "| 階段 stage | 步數 steps | 詞元 tokens | 秒 s | 損失 loss |",
        "|---|---|---|---|---|",
    ]
    for name, row in report["training"].items():
        lines.append(f"| {name} | {row['steps']} | {row['tokens']:,} | {row['train_s']:.0f} | {row['loss']:.3f} |")
    lines += [
        "",
        f"共 {report['wall_s']:.0f} 秒，記憶體最高 {report['peak_rss_mb']:.0f} MB，{report['parameters']:,} 個參數。",
        "",
    ]
    for name, row in report["training"].items():
        if "forgetting" in row:
            from twllm.train.forgetting import told

            lines += [
                f"## 遺忘 (forgetting, {name})",
                "",
                told(row["forgetting"]),
                f"![forgetting]({name}/forgetting.png)",
                "",
            ]
    items = report.get("culture", {}).get("items", [])
    if items:
        lines += ["## 問答 (some answers)", ""]
        right, wrong = ([i for i in items if i["correct"] is flag] for flag in (True, False))
        for item in right[:8] + wrong[:8]:
            answer = item["answer"].replace("\n", " ")[:60]
            lines.append(f"* {'✓' if item['correct'] else '✗'} {item['question']} → {answer}")
        lines.append("")
    return "\n".join(lines)


def _plot_losses(recipe: Recipe, out: Path) -> None:
    """One panel a phase."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from twllm.train.rows import read_rows

    names = [n for n in ("pretrain", "sft", "feedback") if (out / n / "metrics.jsonl").exists()]
    figure = Figure(figsize=(4.2 * max(1, len(names)), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for i, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), i + 1)
        rows = read_rows(out / name / "metrics.jsonl")
        for key, label, style in (("loss", "training", "-"), ("held_out_loss", "held out", "o-")):
            points = [(r["step"], r[key]) for r in rows if key in r]
            if points:
                axes.plot(*zip(*points, strict=True), style, linewidth=1, markersize=4, label=label)
        axes.set(title=name, xlabel="optimizer step", ylabel="nats per token")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(out / "loss.png", dpi=110)


def _plot_ablations(ablations: dict[str, Any], target: Path) -> None:
    """Bars with 95 % intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names, scores = list(ablations), [row["score"] for row in ablations.values()]
    spans = [row.get("interval", (row["score"], row["score"])) for row in ablations.values()]
    errors = [
        [s - low for s, (low, _) in zip(scores, spans, strict=True)],
        [high - s for s, (_, high) in zip(scores, spans, strict=True)],
    ]
    axes.bar(names, scores, yerr=errors, capsize=6, color=["tab:blue", "tab:orange", "tab:green"][: len(names)])
    axes.set(ylim=(0, 1), ylabel="share of questions answered right (95 % interval)")
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(target, dpi=110)
