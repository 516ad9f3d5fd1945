"""`twllm eval positions MODEL… --text TEXT`: the loss at each place of a long row, in buckets, as table, JSON and picture.

Texts are joined (the end token between them) and cut into rows of `context` tokens; each token is scored once, with everything before it in
its row. Past the length that a model can read its curve jumps; up to there a good one falls or stays level. Bits per token: models
with one tokenizer can be compared. A model whose config ends before `context` is still asked: that is what the picture is for.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from twllm.errors import UserError

CAPS = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # Gemma 2, Cohere, Granite
PLACES = 1024  # whose logits exist at a time


def positions(
    models: Annotated[list[str], typer.Argument(help="模型；名稱=資料夾 也可以 (NAME=FOLDER)", metavar="MODEL...")],
    text: Annotated[str, typer.Option(help="文字：twllm:NAME、檔案或語料資料夾")],
    out: Annotated[Path, typer.Option(help="輸出資料夾：positions.json、.md、.png")],
    context: Annotated[int, typer.Option(min=16, help="每列幾個詞元 (tokens a row)")] = 8192,
    buckets: Annotated[int, typer.Option(min=1, help="分成幾段 (buckets)")] = 16,
    rows: Annotated[int, typer.Option(min=1, help="最多幾列 (rows)")] = 32,
) -> None:
    """損失對位置的圖：長上下文哪裡開始壞掉 (loss against position, by model)."""
    from twllm.artifact import hash_path, write_folder, write_json, write_manifest
    from twllm.evaluate.texts import read_texts
    from twllm.model.hub import fetch

    named = dict(_named(model) for model in models)
    texts = [one.text for one in read_texts(text)]
    curves, folders = {}, {name: fetch(model) for name, model in named.items()}
    for name, folder in folders.items():
        curves[name] = measure(folder, texts, context, buckets, rows)
    report = {"context": context, "buckets": edges(context, buckets), "bits_per_token": curves}
    with write_folder(out) as folder:
        write_json(folder / "positions.json", report)
        (folder / "positions.md").write_text(markdown(report), encoding="utf-8")
        plot(report, folder / "positions.png")
        inputs = {name: hash_path(model) for name, model in folders.items()}
        write_manifest(folder, "positions", {"text": text, "context": context, "rows": rows}, inputs)
    print(markdown(report), end="")


def _named(model: str) -> tuple[str, str]:
    name, equals, folder = model.partition("=")
    return (name, folder) if equals else (Path(model).name, model)


def measure(folder: Path, texts: Sequence[str], context: int, buckets: int, rows: int) -> list[float]:
    """Mean bits per token of each bucket of a checkpoint's rows.

    Raises:
        UserError: the texts do not fill one row.
    """
    from twllm.model.build import load
    from twllm.tokens.tokenizer import ChatTokenizer

    return curve(load(folder), cut(texts, ChatTokenizer.load(folder), context, rows), buckets)


def cut(texts: Sequence[str], tokenizer: Any, context: int, rows: int) -> list[list[int]]:
    """At most `rows` rows of context + 1 ids (the last one is only predicted)."""
    start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    ids: list[int] = []
    for text in texts:
        ids += [*([start] if not ids else []), *tokenizer.encode(text), tokenizer.eos_id]
        if len(ids) > rows * (context + 1):
            break
    found = [ids[i : i + context + 1] for i in range(0, len(ids) - context, context + 1)][:rows]
    if not found:
        raise UserError(
            f"文字不夠一列 {context} 個詞元 (not one row of text)",
            f"{len(ids)} 個詞元",
            "換長一點的文字或縮短 --context",
        )
    return found


def curve(model: Any, rows: Sequence[Sequence[int]], buckets: int) -> list[float]:
    """Mean bits per token in each bucket of positions, over all rows."""
    import torch
    import torch.nn.functional as F

    total = torch.zeros(len(rows[0]) - 1, dtype=torch.float64)
    model.eval()
    with torch.inference_mode():
        for row in rows:
            ids = torch.tensor([row], device=model.device)
            for start, logits in _logits(model, ids[:, :-1]):
                wanted = ids[0, 1 + start :][: len(logits)]
                total[start:][: len(logits)] += F.cross_entropy(logits, wanted, reduction="none").double().cpu()
    bits = (total / len(rows) / math.log(2)).tolist()
    width = math.ceil(len(bits) / buckets)
    return [math.fsum(bits[i : i + width]) / len(bits[i : i + width]) for i in range(0, len(bits), width)]


def _logits(model: Any, ids: Any) -> Iterator[tuple[int, Any]]:
    """(first place, logits in fp32) of a row, `PLACES` at a time: 32k places × 128k pieces at once would be 16 GB."""
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    if any(getattr(config, key, None) not in (None, 1) for key in CAPS):  # the model does more than its head's product
        yield 0, model(input_ids=ids, use_cache=False).logits[0].float()
        return
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]  # (T, D)
    for start in range(0, len(hidden), PLACES):
        yield start, head(hidden[start : start + PLACES]).float()


def edges(context: int, buckets: int) -> list[int]:
    """The first position past each bucket."""
    width = math.ceil(context / buckets)
    return [min(context, width * (i + 1)) for i in range(math.ceil(context / width))]


def markdown(report: dict[str, Any]) -> str:
    """One row a model, one column a bucket."""
    heads = " | ".join(f"–{edge}" for edge in report["buckets"])
    lines = [f"| 位元／詞元 bits per token，位置 position | {heads} |", "|---" * (len(report["buckets"]) + 1) + "|"]
    for name, values in report["bits_per_token"].items():
        lines.append(f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |")
    return "\n".join(lines) + "\n"


def plot(
    report: dict[str, Any], target: Path, title: str = "Loss against position", ylabel: str = "bits per token"
) -> None:
    """PNG: a line a model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, values) in enumerate(report["bits_per_token"].items()):
        label = name if name.isascii() else f"model {number + 1}"  # the font has no Han
        axes.plot(report["buckets"], values, marker="o", markersize=3, label=label)
    axes.set(xlabel="position in the row (tokens)", ylabel=ylabel, title=title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(target, dpi=110)
