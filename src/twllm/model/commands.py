"""`twllm model`: give a checkpoint another vocabulary or experts, and look at how experts are used; sizes are in commands_size.py."""

from pathlib import Path
from typing import Annotated

import typer

from twllm.model import commands_size

app = typer.Typer(
    no_args_is_help=True, help="改模型的形狀：大小、深度、詞彙、專家混合 (size, depth, vocabulary, experts)."
)
commands_size.register(app)

Out = Annotated[Path, typer.Option("--out", help="輸出資料夾")]
Checkpoint = Annotated[str, typer.Argument(help="模型資料夾或 hub 名稱 (checkpoint)", metavar="MODEL")]


@app.command("resize")
def resize(
    model: Checkpoint,
    tokenizer: Annotated[Path, typer.Argument(help="tokenizer extend 的輸出", metavar="TOKENIZER")],
    out: Out,
    init: Annotated[str, typer.Option(help="新詞元的初始值 (first rows)：average、mean、focus、fitted")] = "mean",
    texts: Annotated[Path | None, typer.Option(help="focus、fitted 用來學的文字")] = None,
    multiple: Annotated[int, typer.Option(min=1, help="詞彙補到這個數的倍數")] = 64,
) -> None:
    """把模型的詞彙換成擴充過的分詞器；舊詞元的輸出不變 (embedding and head fit an extended tokenizer)."""
    from twllm.artifact import hash_path, write_folder, write_manifest
    from twllm.model.build import load, save
    from twllm.model.hub import fetch
    from twllm.model.vocabulary import resize_vocabulary
    from twllm.release.card import carry_card
    from twllm.tokens.tokenizer import ChatTokenizer
    from twllm.tokens.train import sample_texts

    source = fetch(model)
    old, new = ChatTokenizer.load(source), ChatTokenizer.load(tokenizer)
    read = sample_texts(texts) if texts else []
    inputs = {"model": hash_path(source), "tokenizer": hash_path(tokenizer)} | (
        {"texts": hash_path(texts)} if texts else {}
    )
    with write_folder(out) as folder:
        found = load(source)
        facts = resize_vocabulary(found, old, new, init, multiple, read)
        save(found, new, folder)
        facts |= carry_card(source, model, folder, out)
        write_manifest(folder, "model-resize", {"init": init, "multiple": multiple}, inputs, metrics=facts)
    print(
        f"{out}：詞彙 (vocabulary) {facts['vocab_size'][0]:,} → {facts['vocab_size'][1]:,}，{facts['new_tokens']:,} 個新詞元"
    )


@app.command("upcycle")
def upcycle_model(
    model: Checkpoint,
    out: Out,
    experts: Annotated[int, typer.Option(help="每層幾位專家 (experts)")] = 8,
    top_k: Annotated[int, typer.Option(help="每個詞元經過幾位 (experts a token passes)")] = 2,
    granularity: Annotated[int, typer.Option(help="一份前饋層切成幾位專家；等於 top-k 時用到的參數和原來一樣多")] = 1,
    reinit: Annotated[float, typer.Option(help="重新抽的內部單元比例 (share drawn anew)")] = 0.0,
    noise: Annotated[float, typer.Option(help="加在複本上的雜訊 (noise)")] = 0.0,
    seed: Annotated[int, typer.Option(help="亂數種子")] = 1,
) -> None:
    """密集模型 → 專家混合（Mixtral 格式）；訓練前輸出不變 (dense → mixture of experts, same logits)."""
    from twllm.artifact import hash_path, write_folder, write_manifest
    from twllm.model.build import load, save
    from twllm.model.hub import fetch
    from twllm.model.moe_config import MoeShape
    from twllm.model.upcycle import count_active, upcycle
    from twllm.recipe import validate
    from twllm.release.card import carry_card
    from twllm.tokens.tokenizer import ChatTokenizer

    settings = {"experts": experts, "top_k": top_k, "granularity": granularity, "reinit": reinit, "noise": noise}
    shape, source = validate(MoeShape, settings, "twllm model upcycle"), fetch(model)
    with write_folder(out) as folder:
        found = upcycle(load(source), shape, seed)
        save(found, ChatTokenizer.load(source), folder)
        total, active = count_active(found)
        facts = {"parameters": total, "active_parameters": active, **carry_card(source, model, folder, out)}
        write_manifest(
            folder, "model-upcycle", shape.model_dump() | {"seed": seed}, {"model": hash_path(source)}, metrics=facts
        )
    print(f"{out}：{total:,} 個參數 (parameters)，每個詞元用到 {active:,} (active)")


@app.command("experts")
def experts_report(
    model: Checkpoint,
    texts: Annotated[
        list[str], typer.Argument(help="領域=檔案，例如 法律=law.jsonl；可重複 (DOMAIN=FILE)", metavar="DOMAIN=FILE")
    ],
    out: Out,
) -> None:
    """每一層、每個領域用了哪些專家：表、JSON、PNG (which experts which texts use)."""
    from rich.console import Console
    from rich.table import Table

    from twllm import data
    from twllm.artifact import hash_path, write_folder, write_manifest
    from twllm.errors import UserError
    from twllm.model.build import load
    from twllm.model.hub import fetch
    from twllm.model.moe import expert_use, write_use
    from twllm.tokens.tokenizer import ChatTokenizer
    from twllm.tokens.train import sample_texts

    domains = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not equals:
            raise UserError("要寫成 領域=檔案 (DOMAIN=FILE)", text, "例如 法律=law.jsonl")
        domains[name] = sample_texts(data.resolve(file), 200_000)
    source = fetch(model)
    use = expert_use(load(source), ChatTokenizer.load(source), domains)
    with write_folder(out) as folder:
        write_use(use, folder)
        write_manifest(folder, "experts", {"domains": list(domains)}, {"model": hash_path(source)})
    table = Table("領域 domain", "層 layer", "最多 largest share", "最少 smallest", "等效專家數 effective experts")
    for name, domain in use["domains"].items():
        for layer, shares in enumerate(domain["shares"]):
            effective = domain["effective_experts"][layer]
            table.add_row(
                name, str(layer), f"{max(shares):.1%}", f"{min(shares):.1%}", f"{effective:.2f}／{use['experts']}"
            )
    Console().print(table)
    print(out / "experts.png")


@app.command("average")
def average_models(
    models: Annotated[list[str], typer.Argument(help="兩個以上的模型 (checkpoints)", metavar="MODEL...")],
    out: Out,
    weights: Annotated[str, typer.Option(help="每個的權重，用逗號隔開；不給就相等 (weights)")] = "",
) -> None:
    """幾個檢查點的權重平均 (mean of checkpoints, a "model soup")."""
    from twllm.artifact import hash_path, write_folder, write_manifest
    from twllm.errors import UserError
    from twllm.model.average import average
    from twllm.model.hub import fetch
    from twllm.release.card import averaged_card

    try:
        shares = [float(part) for part in weights.split(",")] if weights else [1.0] * len(models)
    except ValueError as error:
        raise UserError("權重要是數字 (weights are numbers)", f"--weights {weights}", "例如 --weights 1,1,2") from error
    folders = [fetch(model) for model in models]
    inputs = {model: hash_path(folder) for model, folder in zip(models, folders, strict=True)}
    with write_folder(out) as folder:
        facts = average(folders, shares, folder)
        facts |= averaged_card(dict(zip(models, folders, strict=True)), folder, out)
        write_manifest(folder, "model-average", {"weights": shares}, inputs, metrics=facts)
    print(f"{out}：{facts['averaged']} 個檢查點的平均 (mean of checkpoints)")


@app.command("rope")
def rope_model(
    model: Checkpoint,
    out: Out,
    type: Annotated[str, typer.Option(help="linear、dynamic、yarn、theta")],
    factor: Annotated[float, typer.Option(help="上下文變成幾倍 (times longer)")],
    theta: Annotated[float | None, typer.Option(help="theta 的新底數；不給就用 NTK 的公式 (new base)")] = None,
) -> None:
    """加長上下文：只改位置編碼，寫進 config.json (longer context by RoPE scaling)."""
    from twllm.artifact import hash_path, write_folder, write_manifest
    from twllm.model.hub import fetch
    from twllm.model.rope import context_limit, extend_folder
    from twllm.model.rope_config import RopeConfig
    from twllm.recipe import validate
    from twllm.release.card import carry_card

    settings, source = (
        validate(RopeConfig, {"type": type, "factor": factor, "theta": theta}, "twllm model rope"),
        fetch(model),
    )
    with write_folder(out) as folder:
        changes = extend_folder(source, settings, folder)
        told = changes | carry_card(source, model, folder, out)
        write_manifest(folder, "model-rope", settings.model_dump(), {"model": hash_path(source)}, metrics=told)
    print(f"{out}：最多 {context_limit(changes):,} 個詞元 (positions)，{changes['rope_parameters']}")
