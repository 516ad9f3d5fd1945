"""`twllm tokenizer`: train one, extend one for Traditional Chinese, compare them."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="分詞器 (tokenizers).")


@app.command("train")
def tokenizer_train(
    corpus: Annotated[Path, typer.Argument(help="corpus build 的輸出資料夾")],
    out: Annotated[Path, typer.Option("--out", help="輸出資料夾")],
    vocab_size: Annotated[int, typer.Option(help="詞彙大小")] = 16_000,
    template: Annotated[str, typer.Option(help="對話範本")] = "taiwan-llm-v2",
    chats: Annotated[list[str] | None, typer.Option(help="一併學習的對話資料 (conversations)")] = None,
) -> None:
    """在語料上訓練位元組級 BPE (train a byte-level BPE)."""
    from twllm.artifact import hash_path, write_folder, write_manifest
    from twllm.errors import require_file
    from twllm.recipe import validate
    from twllm.tokens.config import DatasetConfig, TokenizerConfig
    from twllm.tokens.train import train_tokenizer, training_texts

    require_file(corpus)
    config = validate(TokenizerConfig, {"vocab_size": vocab_size}, "--vocab-size")
    with write_folder(out) as folder:
        tokenizer = train_tokenizer(
            training_texts(corpus, [DatasetConfig(path=path) for path in chats or []], template), config, template
        )
        tokenizer.save(folder)
        facts = {"vocab_size": tokenizer.vocab_size, "template_fingerprint": tokenizer.template_fingerprint}
        write_manifest(
            folder,
            "tokenizer",
            config.model_dump() | {"template": template},
            {"corpus": hash_path(corpus)},
            metrics=facts,
        )
    print(f"{out}：{tokenizer.vocab_size:,} 個詞元 (pieces)")


@app.command("extend")
def tokenizer_extend(
    base: Annotated[str, typer.Argument(help="要擴充的分詞器：模型資料夾或 hub 名稱 (base)", metavar="BASE")],
    corpus: Annotated[Path, typer.Argument(help="corpus 資料夾，或 .txt/.md/.jsonl 檔", metavar="CORPUS")],
    out: Annotated[Path, typer.Option("--out", help="輸出資料夾")],
    add: Annotated[int, typer.Option("--add", min=1, help="新增幾個詞元 (pieces)")] = 8000,
    max_piece_chars: Annotated[int, typer.Option(min=1, help="最長的詞元，以漢字計")] = 4,
    max_chars: Annotated[int, typer.Option(min=1, help="最多讀多少字 (characters to learn from)")] = 20_000_000,
) -> None:
    """在語料上學新的繁體中文詞元，接在原有詞彙之後；舊詞元編號不變 (new pieces after the old ones)."""
    from twllm.artifact import hash_path, write_folder, write_manifest
    from twllm.model.hub import fetch
    from twllm.tokens.extend import check, extend_tokenizer
    from twllm.tokens.tokenizer import ChatTokenizer
    from twllm.tokens.train import every_nth, sample_texts

    source = fetch(base, patterns=["tokenizer*", "*.jinja", "config.json"])
    old, texts = ChatTokenizer.load(source), sample_texts(corpus, 1 << 40)
    held = texts[::50][:400]  # for the numbers only, when there are texts enough to spare
    learned = [text for i, text in enumerate(texts) if i % 50] if len(texts) >= 100 else texts
    config = {"add": add, "max_piece_chars": max_piece_chars, "max_chars": max_chars}
    with write_folder(out) as folder:
        sample = every_nth(lambda: learned, max_chars)
        extended = extend_tokenizer(old, sample, add, folder=source, max_chars=max_piece_chars)
        extended.save(folder)
        facts = check(old, extended, held)
        inputs = {"base": hash_path(source), "corpus": hash_path(corpus)}
        write_manifest(folder, "tokenizer-extend", config, inputs, metrics=facts)
    before, after = facts["chars_per_token"]
    print(f"{out}：{facts['vocab_size'][0]:,} → {facts['vocab_size'][1]:,} 個詞元 (pieces)")
    print(
        f"每個詞元 {before} → {after} 字 (characters per token)，同樣的字少用 {facts['speed_up']} 倍詞元 (expected speed-up)"
    )
    if facts["changed_elsewhere"] or facts["broken_texts"] or facts["unreachable_pieces"]:
        print(f"注意 (note)：{facts}")


@app.command("report")
def tokenizer_report(
    text: Annotated[Path, typer.Argument(help="corpus 資料夾，或 .txt/.md/.jsonl 檔")],
    tokenizers: Annotated[list[Path], typer.Argument(help="要比較的分詞器資料夾")],
    out: Annotated[Path | None, typer.Option("--out", help="也寫成 JSON")] = None,
) -> None:
    """每個詞元幾個字，與其他分詞器並列 (characters per token, side by side)."""
    from rich.console import Console
    from rich.table import Table

    from twllm.artifact import write_json
    from twllm.tokens.train import report, sample_texts

    rows = report(sample_texts(text), tokenizers)
    table = Table(
        "分詞器 tokenizer", "詞彙 vocabulary", "字／詞元 chars per token", "詞元／千字 tokens per 1,000 chars"
    )
    for row in sorted(rows, key=lambda row: -row["chars_per_token"]):
        table.add_row(
            row["tokenizer"],
            f"{row['vocab_size']:,}",
            f"{row['chars_per_token']:.3f}",
            f"{row['tokens_per_1000_chars']:.0f}",
        )
    Console().print(table)
    if out:
        write_json(out, rows)
