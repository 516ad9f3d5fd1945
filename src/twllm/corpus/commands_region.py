"""`twllm corpus classify`, `twllm corpus sites`, `twllm corpus quality`: label documents, review web sites, train a quality model."""

from pathlib import Path
from typing import Annotated

import typer

from twllm.errors import UserError, require_file

Documents = Annotated[list[Path], typer.Argument(help="文件：.jsonl（可壓縮）、.parquet 或資料夾", metavar="FILE…")]
quality = typer.Typer(
    help="用自己的好壞範例訓練小型品質分類器 (train a small quality classifier on your examples)", no_args_is_help=True
)


def classify(
    file: Annotated[Path, typer.Argument(help="一列一份文件，文字在 text", metavar="FILE.jsonl")],
    out: Annotated[Path, typer.Option("--out", help="寫到這裡，原有欄位都留著 (all fields are kept)")],
    workers: Annotated[int, typer.Option(help="行程數；0 是 CPU 核心數", min=0)] = 0,
    min_score: Annotated[float, typer.Option(help="臺灣分數的下限", min=0, max=1)] = 0.5,
    text_key: Annotated[str, typer.Option(help="文字的欄位")] = "text",
    cut: Annotated[bool, typer.Option("--cut", help="混雜的網頁換成留下的段落 (replace text by what is kept)")] = False,
    documents: Annotated[
        bool,
        typer.Option(
            "--documents", help="也套用 build 的篇幅門檻：字數、句子、重複行 (the build's limits for documents, too)"
        ),
    ] = False,
) -> None:
    """標出每份文件的語言、字體、地區、品質，該不該留 (keep, reason, lang, script, region, score)."""
    from twllm.corpus.classify_file import classify_file

    counts = classify_file(
        require_file(file), out, workers=workers, min_score=min_score, text_key=text_key, cut=cut, documents=documents
    )
    print(f"{counts.documents:,} 份文件，留下 {counts.kept:,}（{counts.kept / max(counts.documents, 1):.1%}）→ {out}")
    for reason, times in counts.reasons.most_common():
        print(f"  {reason:<20} {times:>10,}")
    if counts.broken:
        print(f"壞掉的列 broken lines: {counts.broken}（第 {'、'.join(counts.broken_places)} 列）")


def sites(
    files: Documents,
    out: Annotated[Path, typer.Option("--out", help="給人標 keep / drop 的檔案")] = Path("sites.toml"),
    html: Annotated[Path | None, typer.Option("--html", help="樣本網頁；預設和 --out 同名")] = None,
    samples: Annotated[int, typer.Option(help="每個網站給幾份樣本", min=0)] = 5,
    min_documents: Annotated[int, typer.Option(help="文件比這少的網站不列", min=1)] = 1,
    text_key: Annotated[str, typer.Option(help="文字的欄位")] = "text",
) -> None:
    """依份量排出網站，附樣本，人標好留或丟，build 就照做；重跑會留住標記 (review web sites; marks are kept)."""
    from twllm.corpus.sites import review

    page = html or out.with_suffix(".html")
    table = review(files, out, page, samples, min_documents, text_key)
    print(
        f'{len(table):,} 個網站 → {out}（樣本 samples: {page}）；改好 mark = "keep" 或 "drop" 後在 [corpus] 設 sites = "{out}"'
    )


@quality.command("train")
def train(
    good: Annotated[list[Path], typer.Option("--good", help="好的範例：.jsonl、.parquet、.txt")],
    bad: Annotated[list[Path], typer.Option("--bad", help="不好的範例")],
    out: Annotated[Path, typer.Option("--out", help="模型檔 (.safetensors)")],
    held_out: Annotated[float, typer.Option(help="留下來量的比例", min=0.01, max=0.9)] = 0.2,
    seed: Annotated[int, typer.Option(help="怎麼分")] = 1,
) -> None:
    """訓練，並量留下來的部分：AUC、各門檻的精確率與召回率 (train and evaluate on held-out examples)."""
    from twllm.corpus.quality_model import read_texts, train_model

    for path in (*good, *bad):
        require_file(path)
    _report(train_model(read_texts(good), read_texts(bad), out, held_out=held_out, seed=seed))
    print(f"→ {out}")


@quality.command("score")
def score(
    files: Documents,
    model: Annotated[Path, typer.Option("--model", help="train 寫出的模型檔")],
) -> None:
    """每份文件的分數，一列一個 (a score for each document)."""
    from twllm.corpus.quality_model import QualityModel, read_texts

    scorer = QualityModel.load(require_file(model))
    for file in files:
        for text in read_texts([require_file(file)]):
            print(f"{scorer.score(text):.4f}\t{' '.join(text[:60].split())}")


def register(app: typer.Typer) -> None:
    """Put the commands under `twllm corpus`."""
    app.command()(classify)
    app.command()(sites)
    app.add_typer(quality, name="quality")


def _report(report: dict[str, object]) -> None:
    print(f"AUC {report['auc']:.4f}　範例 examples {report['train']:,}＋{report['held_out']:,}（量 held out）")
    print("門檻 threshold　精確率 precision　召回率 recall")
    rows = report["thresholds"]
    if not isinstance(rows, list):
        raise UserError("報告不對 (broken report)", "thresholds", "重新訓練")
    for row in rows:
        print(f"{row['threshold']:>14.2f}　{row['precision']:>14.3f}　{row['recall']:>10.3f}")
