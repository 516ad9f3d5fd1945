"""`twllm model sizes`, `deepen` and `prune`: every size by name, and other sizes out of a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

Out = Annotated[Path, typer.Option("--out", help="輸出資料夾")]
Checkpoint = Annotated[str, typer.Argument(help="模型資料夾或 hub 名稱 (checkpoint)", metavar="BASE")]
Machine = Annotated[Path | None, typer.Option("--machine", help="機器設定檔，決定執行緒 (machine file)")]

NOTE = """FLOPs：每詞元 (per token)；生成在長度用滿時 (at full context)
訓練 GiB：fp32 權重、梯度、Adam，每個參數 16 位元組，不含激活 (without activations)；配方的細帳：twllm run RECIPE --dry-run
權重、快取 GiB：bf16；快取是一列用滿長度的鍵與值 (one full context of keys and values)"""


def register(app: typer.Typer) -> None:
    """Add the commands to `twllm model`."""
    app.command("sizes")(sizes)
    app.command("deepen")(deepen_model)
    app.command("prune")(prune_model)


def sizes(
    vocabulary: Annotated[int | None, typer.Option(help="詞彙大小；不給就照各自的配方", min=1)] = None,
    context: Annotated[int | None, typer.Option(help="一列幾個詞元；不給就照各自的配方", min=1)] = None,
    json_: Annotated[bool, typer.Option("--json", help="印 JSON")] = False,
) -> None:
    """每種大小的參數、每詞元 FLOPs、訓練與服務的記憶體 (parameters, FLOPs, memory of every size)."""
    from twllm.model.size_table import size_row
    from twllm.model.sizes import SIZES

    rows = [size_row(name, vocabulary, context) for name in SIZES]
    if json_:
        import json
        from dataclasses import asdict

        print(json.dumps([asdict(row) for row in rows], ensure_ascii=False, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    shapes = Table("大小", "寬×層", "頭／鍵值頭", "前饋", "詞彙", "長度", "參數 parameters")
    costs = Table("大小", "訓練 FLOPs", "生成 FLOPs", "訓練 GiB", "權重 GiB", "快取 GiB")
    for row in rows:
        s = row.size
        shapes.add_row(
            row.name, f"{s.D}×{s.L}", f"{s.H}／{s.K}", str(s.F), f"{row.vocabulary:,}", f"{row.context:,}", f"{row.parameters:,}",
        )  # fmt: skip
        costs.add_row(
            row.name, f"{row.train_flops_per_token:.2e}", f"{row.serve_flops_per_token:.2e}",
            *(f"{value / 2**30:.3g}" for value in (row.train_bytes, row.weight_bytes, row.cache_bytes)),
        )  # fmt: skip
    console = Console()
    console.print(shapes, costs)
    console.print(NOTE)


def deepen_model(
    base: Checkpoint,
    layers: Annotated[int, typer.Option(help="加深後的層數，最多原來的兩倍 (layers afterwards)")],
    out: Out,
    method: Annotated[
        str, typer.Option(help="solar：前後兩段相疊；interleave：複本相鄰；expand：複本先不起作用，輸出不變")
    ] = "solar",
    machine: Machine = None,
) -> None:
    """把模型加深，再繼續訓練 (depth up-scaling, block expansion)."""
    from twllm.model.deepen import deepen, describe, plan_layers
    from twllm.model.shape_config import DeepenConfig
    from twllm.recipe import validate

    cut = validate(DeepenConfig, {"layers": layers, "method": method}, "twllm model deepen")

    def change(model: Any, tokenizer: Any) -> tuple[Any, dict[str, Any]]:
        deeper, sources = deepen(model, cut.layers, cut.method)
        _, new = plan_layers(model.config.num_hidden_layers, cut.layers, cut.method)
        parameters = [sum(p.numel() for p in m.parameters()) for m in (model, deeper)]
        return deeper, {"layer_sources": sources, "new_layers": new, "parameters": parameters}

    facts = _rewrite(base, out, "model-deepen", cut.model_dump(), {}, change, machine)
    before, after = facts["parameters"]
    print(
        f"{out}：{before:,} → {after:,} 個參數 (parameters)，各層來自 (layers from) {describe(facts['layer_sources'])}"
    )
    print(f"  新的層 (new layers)：{describe(facts['new_layers'])}")


def prune_model(
    base: Checkpoint,
    texts: Annotated[Path, typer.Option(help="量重要性的文字：語料資料夾，或 .txt、.md、.jsonl (calibration texts)")],
    out: Out,
    layers: Annotated[int | None, typer.Option(help="留幾層 (layers left)")] = None,
    heads: Annotated[int | None, typer.Option(help="每層留幾個查詢頭 (query heads left)")] = None,
    kv_heads: Annotated[int | None, typer.Option(help="每層留幾個鍵值頭；不給就自動 (key/value heads)")] = None,
    intermediate: Annotated[int | None, typer.Option(help="前饋層留多寬 (feed-forward width)")] = None,
    width: Annotated[int | None, typer.Option(help="模型留多寬 (width of the stream)")] = None,
    tokens: Annotated[int, typer.Option(help="讀幾個詞元 (calibration tokens)")] = 100_000,
    machine: Machine = None,
) -> None:
    """照文字量出的重要性把模型剪小；再訓練一段就補得回來，最好用原模型當老師 (structured pruning; then distill)."""
    from twllm.artifact import hash_path
    from twllm.model.importance import calibration_rows
    from twllm.model.prune import prune
    from twllm.model.shape_config import PruneConfig
    from twllm.recipe import validate
    from twllm.tokens.train import sample_texts

    asked = {"layers": layers, "heads": heads, "kv_heads": kv_heads, "intermediate": intermediate, "width": width}
    cut = validate(PruneConfig, {**asked, "tokens": tokens}, "twllm model prune")
    read = sample_texts(texts)

    def change(model: Any, tokenizer: Any) -> tuple[Any, dict[str, Any]]:
        context = int(model.config.max_position_embeddings)
        return prune(model, cut, *calibration_rows(tokenizer, read, context, cut.tokens))

    facts = _rewrite(base, out, "model-prune", cut.model_dump(), {"texts": hash_path(texts)}, change, machine)
    before, after = facts["parameters"], facts["loss"]
    print(f"{out}：{before[0]:,} → {before[1]:,} 個參數 (parameters)，損失 (loss) {after[0]:.3f} → {after[1]:.3f}")
    for key, name in (("layers_cut", "剪掉的層 (layers cut)"), ("channels_cut", "剪掉的通道 (channels cut)")):
        if key in facts:
            print(f"  {name}：{facts[key]}")
    for key, name in (
        ("head_importance_kept", "查詢頭 (heads)"),
        ("neuron_importance_kept", "前饋單元 (neurons)"),
        ("channel_importance_kept", "通道 (channels)"),
    ):
        if key in facts:
            shares = facts[key] if isinstance(facts[key], list) else [facts[key]]
            print(
                f"  {name} 留下的重要性 (importance kept)：最少 (least) {min(shares):.1%}，最多 (most) {max(shares):.1%}"
            )


def _rewrite(
    base: str, out: Path, stage: str, config: dict[str, Any], inputs: dict[str, str],
    change: Callable[[Any, Any], tuple[Any, dict[str, Any]]], machine: Path | None,
) -> dict[str, Any]:  # fmt: skip
    """Load, change, save whole or not at all, with a manifest and the base's licence and data; returns the facts."""
    from twllm.artifact import hash_path, write_folder, write_manifest
    from twllm.model.build import load, save
    from twllm.model.hub import fetch
    from twllm.recipe import load_machine
    from twllm.release.card import carry_card
    from twllm.tokens.tokenizer import ChatTokenizer
    from twllm.train.machine import resolve_machine

    resolve_machine(load_machine(machine), 0)  # torch's threads, as in training
    source = fetch(base)
    tokenizer = ChatTokenizer.load(source)
    with write_folder(out) as folder:
        model, facts = change(load(source), tokenizer)
        save(model, tokenizer, folder)
        told = facts | carry_card(source, base, folder, out)
        write_manifest(folder, stage, config, {"model": hash_path(source), **inputs}, metrics=told)
    return facts
