"""`twllm export MODEL`: write what others open, and push it to the hub."""

from pathlib import Path
from typing import Annotated

import typer

from twllm.errors import UserError


def export(
    model: Annotated[str, typer.Argument(help="模型資料夾、hub 名稱，或 LoRA 轉接器資料夾", metavar="MODEL")],
    out: Annotated[Path, typer.Option("--out", help="輸出資料夾")],
    format: Annotated[
        list[str] | None, typer.Option("--format", help="hf、bf16、gguf、ollama、int8、gptq、awq；可重複，預設 hf")
    ] = None,
    type: Annotated[
        list[str] | None, typer.Option("--type", help="GGUF 型別：f32、f16、bf16、q8_0、q4_k_m…；可重複，預設 f16")
    ] = None,
    name: Annotated[str, typer.Option(help="模型名稱；預設資料夾名 (name on the card)")] = "",
    license: Annotated[str, typer.Option(help="釋出的授權；預設模型自己的。internal：不對外給")] = "",
    base: Annotated[str, typer.Option(help="轉接器的底模；預設它自己寫的 (an adapter's base)")] = "",
    base_license: Annotated[str, typer.Option("--base-license", help="底模的授權，模型卡沒寫時用")] = "",
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="訓練資料 名稱=授權，資料夾自己沒寫時用；可重複", metavar="NAME=LICENCE"),
    ] = None,
    accept: Annotated[
        list[str] | None, typer.Option("--accept", help="看過條款、確定可以：generated、unknown；可重複")
    ] = None,
    num_ctx: Annotated[
        int | None, typer.Option("--num-ctx", min=1, help="Ollama 的上下文；預設模型的，最多 8192")
    ] = None,
    questions: Annotated[int, typer.Option(min=0, help="量化前後各問幾題文化題；0 只量位元數")] = 100,
    no_scores: Annotated[bool, typer.Option("--no-scores", help="不量量化少了什麼 (do not measure)")] = False,
    allow_template_mismatch: Annotated[
        bool, typer.Option("--allow-template-mismatch", help="範本和訓練時不同也匯出")
    ] = False,
    push: Annotated[
        str, typer.Option(help="寫好後上傳到 hub 的 擁有者/名稱；金鑰用 HF_TOKEN", metavar="OWNER/NAME")
    ] = "",
    public: Annotated[bool, typer.Option("--public", help="公開；預設私人 (private unless given)")] = False,
    revision: Annotated[str | None, typer.Option(help="上傳到這個分支 (branch)")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="上傳只列出檔案，不連線 (list what would be sent)")
    ] = False,
) -> None:
    """匯出成別人能開的格式，附雙語模型卡；授權或範本不對就不寫 (safetensors, GGUF, Ollama, int8, GPTQ, AWQ; push to the hub)."""
    from rich.console import Console

    from twllm.corpus.licences import DataUse
    from twllm.export.build import Export
    from twllm.export.build import export as write

    uses = []
    for text in data or ():
        named, equals, licence = text.partition("=")
        if not equals:
            raise UserError("要寫成 名稱=授權 (NAME=LICENCE)", text, "例如 alpaca-tw=cc-by-nc-4.0")
        uses.append(DataUse(named, "訓練 training", {licence: 0}))
    asked = Export(
        formats=tuple(dict.fromkeys(format or ["hf"])), gguf_types=tuple(dict.fromkeys(type or ["f16"])), name=name,
        license=license, base=base, base_license=base_license, data=tuple(uses), accept=tuple(accept or ()), context=num_ctx,
        questions=questions, scores=not no_scores, allow_template_mismatch=allow_template_mismatch,
    )  # fmt: skip
    console = Console(stderr=True)
    with console.status("檢查 (checking)") as status:
        facts = write(model, out, asked, status.update)
    for loss in facts.losses:
        if loss["bits_after"] is not None:
            console.print(
                f"{loss['format']}：每字位元數 (bits per character) {loss['bits_before']:.3f} → {loss['bits_after']:.3f}"
            )
    print(f"{out}：{'、'.join(asked.formats)}，授權 (licence) {facts.license}")
    if push:
        _push(out, push, not public, revision, dry_run, console.print)


def _push(folder: Path, repository: str, private: bool, revision: str | None, dry_run: bool, tell: object) -> None:
    from twllm.release.hub import push

    sent = push(folder, repository, private=private, revision=revision, dry_run=dry_run, tell=tell)  # type: ignore[arg-type]
    if dry_run:
        for name, size in sent.files.items():
            print(f"  {size / 1e6:10,.2f} MB  {name}")
        print(f"會上傳 (would send) {len(sent.files)} 個檔案，{sent.size_bytes / 1e6:,.1f} MB → {repository}")
    else:
        print(f"已上傳 (pushed) → {sent.url}")
