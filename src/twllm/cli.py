"""The `twllm` command: thin, lazy (torch is imported only by commands that use it), and every mistake told in three lines."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from twllm.corpus import commands_dedup, commands_privacy, commands_region
from twllm.corpus.commands import check, convert
from twllm.corpus.commands_build import app as corpus_app
from twllm.doctor.commands import doctor
from twllm.errors import UserError
from twllm.evaluate.commands import app as eval_app
from twllm.evaluate.compare import compare
from twllm.export.commands import export
from twllm.feedback.commands import app as feedback_app
from twllm.model.commands import app as model_app
from twllm.pipeline.commands_vision import app as vision_app
from twllm.planning.commands import plan, print_dry_run
from twllm.serve.commands import register as register_serving
from twllm.synth.commands import app as synth_app
from twllm.tokens.commands import app as tokenizer_app
from twllm.train.launch import deepspeed_config, slurm
from twllm.train.watch_commands import seen, watch

app = typer.Typer(
    name="twllm", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="說臺灣華語的語言模型：語料、訓練、評測、服務、回饋。Language models for Taiwan Mandarin, from raw text to chat.",
)  # fmt: skip
recipe_app = typer.Typer(no_args_is_help=True, help="配方 (recipes).")
train_app = typer.Typer(no_args_is_help=True, help="單獨執行一個訓練階段 (one training phase, what `run` calls).")
for name, sub in (
    ("recipe", recipe_app),
    ("corpus", corpus_app),
    ("tokenizer", tokenizer_app),
    ("model", model_app),
    ("vision", vision_app),
    ("train", train_app),
):
    app.add_typer(sub, name=name)
train_app.command("watch")(watch)
train_app.command("seen")(seen)
train_app.command("slurm")(slurm)
train_app.command("deepspeed-config")(deepspeed_config)
app.add_typer(feedback_app, name="feedback")
app.add_typer(eval_app, name="eval")
app.add_typer(synth_app, name="synth")
commands_region.register(corpus_app)
commands_dedup.register(corpus_app)
commands_privacy.register(corpus_app)
app.command()(check)
app.command()(convert)
app.command()(compare)
app.command()(plan)
register_serving(app)
app.command()(doctor)
app.command()(export)

RecipeFile = Annotated[Path, typer.Argument(help="配方檔 (recipe, TOML)", metavar="RECIPE")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="改一個值 (override), 例如 sft.lr=1e-5；可重複；有哪些：twllm recipe keys sft",
        metavar="KEY=VALUE",
    ),
]
Machine = Annotated[Path | None, typer.Option("--machine", help="機器設定檔 (machine file)")]
Out = Annotated[Path | None, typer.Option("--out", help="輸出資料夾 (folder to write)")]


INTERRUPTED = 130


def _speaks() -> bool:
    """Before torchrun's processes have met, all of a host find the same mistake: its first one tells it."""
    distributed = sys.modules.get("torch.distributed")
    met = distributed is not None and distributed.is_available() and distributed.is_initialized()
    return met or os.environ.get("LOCAL_RANK", "0") == "0"


def main() -> None:
    """Entry point: UserError → three lines and exit code 2; Ctrl-C → 130; anything else is our bug and shows its trace."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        app()
    except UserError as error:
        if debug:
            raise
        if not getattr(error, "told", False) and _speaks():  # of several processes one tells it
            print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer makes that of Ctrl-C, without a word
            print(
                "\n已中斷；用同一個指令重跑會接續 (interrupted; run the same command again to go on)", file=sys.stderr
            )
        raise


@app.command()
def run(
    recipe: RecipeFile,
    out: Out = None,
    until: Annotated[str | None, typer.Option(help="做到這個階段為止 (last stage)")] = None,
    set_: Sets = None,
    machine: Machine = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="只列出階段、詞元、FLOPs、記憶體、時間")] = False,
) -> None:
    """從語料到評測，整份配方跑一遍；中斷後重跑會接續 (run a recipe; rerun to resume)."""
    from twllm.recipe import load_machine, load_recipe

    loaded, settings = load_recipe(recipe, set_ or (), unset_ok=dry_run), load_machine(machine)
    folder = out or Path("runs") / loaded.recipe.name
    if dry_run:
        print_dry_run(loaded, folder, settings)
        return
    from twllm.pipeline.run import run_recipe

    run_recipe(loaded, folder, settings, until)


@app.command()
def status(folder: Annotated[Path, typer.Argument(help="執行資料夾 (run folder)")]) -> None:
    """哪些階段完成、執行中、過期，為什麼 (what is done, running, stale, and why)."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from twllm.pipeline.run import run_status

    marks = {
        "done": "[green]✓ 完成[/]",
        "stale": "[yellow]↻ 過期[/]",
        "missing": "[dim]· 未執行[/]",
        "interrupted": "[yellow]⏸ 中斷[/]",
        "running": "[cyan]▶ 執行中[/]",
    }
    table = Table("階段 stage", "狀態 state", "說明 why")
    for row in run_status(folder):
        table.add_row(row.name, f"{marks[row.state]} {row.state}", escape(row.detail))
    Console().print(table)


@recipe_app.command("show")
def recipe_show(recipe: RecipeFile, set_: Sets = None) -> None:
    """每個值與它的來源 (every resolved value and where it came from)."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from twllm.recipe import describe, load_recipe

    table = Table("鍵 key", "值 value", "來源 origin")
    for key, value, origin in describe(load_recipe(recipe, set_ or ())):
        table.add_row(key, escape(str(value)), origin, style="dim" if origin == "default" else None)
    Console().print(table)


@recipe_app.command("keys")
def recipe_keys(
    section: Annotated[str, typer.Argument(help="sft、sft.lora、machine…；不給就列出有哪些 (section)")] = "",
) -> None:
    """每個鍵的意思與預設值；--set 與機器檔也是這些鍵 (what the keys mean, and their defaults)."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from twllm.keys import list_keys
    from twllm.recipe import SECTIONS

    table = Table("鍵 key", "預設值；其他選擇 default", "意思 meaning")
    for row in list_keys(SECTIONS, section):
        table.add_row(*map(escape, row))
    Console().print(table)


Model = Annotated[str, typer.Option("--model", help="起點：模型資料夾或 hub 名稱 (starting checkpoint)")]
Data = Annotated[list[str], typer.Option("--data", help="資料：twllm:NAME、檔案或資料夾；可重複")]
Target = Annotated[Path, typer.Option("--out", help="輸出的模型資料夾")]


def _train(
    phase: str,
    model: str,
    sources: list[str],
    out: Path,
    sets: list[str] | None,
    machine: Path | None,
    template: str | None,
    licence: str,
    show: int,
    find_lr: bool = False,
) -> None:
    from twllm.train.alone import train_alone

    train_alone(phase, model, sources, out, sets or [], machine, template, licence, show, find_lr)


FindLr = Annotated[
    bool, typer.Option("--find-lr", help="只找學習率：OUT 裡是曲線與圖，什麼都不訓練 (learning-rate finder)")
]
Show = Annotated[int, typer.Option(min=0, help="印出前 N 筆，學的詞元上色後就結束 (show the loss mask)")]
LICENCE = typer.Option(help="資料的授權條款，資料列沒寫時用 (licence of rows that carry none)")
TEMPLATE = typer.Option(help="對話範本；不給就用模型自己的 (default: the model's own)")


@train_app.command("pretrain")
def train_pretrain(
    model: Model,
    data: Data,
    out: Target,
    set_: Sets = None,
    machine: Machine = None,
    license: Annotated[str, LICENCE] = "",
    find_lr: FindLr = False,
) -> None:
    """繼續預訓練：每個詞元都學 (continued pretraining). --set lr=1e-5 等同配方的 pretrain.lr."""
    _train("pretrain", model, data, out, set_, machine, None, license, 0, find_lr)


@train_app.command("sft")
def train_sft(
    model: Model, data: Data, out: Target, set_: Sets = None, machine: Machine = None, template: Annotated[str | None, TEMPLATE] = None,
    license: Annotated[str, LICENCE] = "", show: Show = 0,
    find_lr: FindLr = False,
) -> None:  # fmt: skip
    """監督式微調：只學助理說的話 (supervised fine-tuning)."""
    _train("sft", model, data, out, set_, machine, template, license, show, find_lr)


@train_app.command("feedback")
def train_feedback(
    model: Model, data: Data, out: Target, set_: Sets = None, machine: Machine = None, template: Annotated[str | None, TEMPLATE] = None,
    license: Annotated[str, LICENCE] = "", show: Show = 0,
    find_lr: FindLr = False,
) -> None:  # fmt: skip
    """回饋微調：學大家給的評分；--set method=kto 或 dpo，預設只學好評 (ratings; default: positive ones only)."""
    _train("feedback", model, data, out, set_, machine, template, license, show, find_lr)


if __name__ == "__main__":
    main()
