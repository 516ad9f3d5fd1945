"""`twllm vision`: draw pictures, ask a model about pictures, and look at what a recipe's [vision] would be given."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="看得見圖片的模型 (models that see pictures).")


@app.command("draw")
def draw(
    out: Annotated[Path, typer.Option("--out", help="輸出資料夾")],
    pictures: Annotated[int, typer.Option(min=1, help="訓練用的圖片")] = 3000,
    held_out: Annotated[int, typer.Option(min=1, help="保留的圖片，附題目")] = 150,
    seed: Annotated[int, typer.Option(help="亂數種子")] = 1,
) -> None:
    """畫路標、圖表與夜市菜單，附說明、對話與題目 (signs, charts, menus with captions, chats, questions)."""
    from twllm.artifact import write_folder, write_manifest
    from twllm.draw.build import draw_set

    with write_folder(out) as folder:
        facts = draw_set(folder, pictures, held_out, seed)
        write_manifest(
            folder, "pictures", {"pictures": pictures, "held_out": held_out, "seed": seed}, {}, metrics=facts
        )
    print(f"{out}：{facts['pictures']:,} 張訓練圖，{facts['held_out_questions']:,} 題")


@app.command("eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="看得見圖片的模型資料夾", metavar="MODEL")],
    questions: Annotated[Path, typer.Argument(help="jsonl：image、question、answer、kind", metavar="QUESTIONS")],
    out: Annotated[Path, typer.Option("--out", help="結果的資料夾：result.json、report.md")],
) -> None:
    """問圖片題：看圖、灰圖、不給圖各問一次 (asked with the picture, with a grey one, without)."""
    from twllm.artifact import write_folder, write_manifest
    from twllm.evaluate.pictures import evaluate_pictures, report

    with write_folder(out) as folder:
        result = evaluate_pictures(model, questions, folder)
        write_manifest(folder, "evaluate-vision", {"questions": str(questions.name)}, {"model": result["fingerprint"]})
    print(report(result))
