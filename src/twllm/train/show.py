"""`twllm train sft|feedback … --show N`: the first documents of each data set token by token, the learned ones marked: what the loss covers.

The documents come from the same code as training's shards, cut to the same context. Colour on a terminal; elsewhere, or with NO_COLOR, 【】.
"""

from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console
from rich.text import Text

from twllm.errors import UserError
from twllm.tokens.build import chat_shard
from twllm.tokens.conversation import read_dataset
from twllm.tokens.preferences import LABELS, tokenize_preferences
from twllm.tokens.shards import TokenShard
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.config import FeedbackConfig, OptimConfig, SftConfig
from twllm.train.live import printable

MARKS = {1: "👍", -1: "👎", 0: "對照 mismatched：只用來估 z，不學"}


def show_masks(config: OptimConfig, tokenizer: ChatTokenizer, count: int) -> None:
    """Print the first `count` documents of each data set.

    Raises:
        UserError: as training would.
    """
    assert isinstance(config, SftConfig | FeedbackConfig)
    console = Console(highlight=False)
    plain = not console.is_terminal or console.no_color
    console.print("【】裡的學 (learned)" if plain else "[bold green]綠色的學[/] (green: learned)")
    method = config.method if isinstance(config, FeedbackConfig) else None
    for dataset in config.datasets:
        with TemporaryDirectory(prefix="twllm-show-") as place:
            folder = Path(place) / "000"
            if method in ("kto", "dpo"):
                tokenize_preferences(
                    Path(place), [dataset], tokenizer, config.context, "kto" if method == "kto" else "dpo"
                )
            else:
                rows = (row for row in read_dataset(dataset) if method is None or row.rating == 1)
                facts = chat_shard(folder, islice(rows, count), tokenizer, config.context, may_be_empty=True)
                if not facts["num_conversations"]:
                    raise UserError(
                        "沒有要學的資料 (nothing to learn)", dataset.path, "檢查資料；回饋只學 rating = 1 的"
                    )
                if facts["num_too_long"]:
                    console.print(
                        f"※ {facts['num_too_long']} 筆比 context {config.context} 長，不會學 (too long)", markup=False
                    )
            shard = TokenShard(folder)
            labels = np.load(folder / LABELS).tolist() if method in ("kto", "dpo") else None
            for document in range(min(len(shard), count * (1 if labels is None else 2))):
                _print(console, tokenizer, shard, document, MARKS[labels[document]] if labels else "", plain)


def _print(
    console: Console, tokenizer: ChatTokenizer, shard: TokenShard, document: int, mark: str, plain: bool
) -> None:
    low, high = (int(x) for x in shard.offsets[document : document + 2])
    mask = shard.mask(low, high).tolist()
    text, decoder, before = Text(), tokenizer.stream(), False
    names = {value: name for name, value in tokenizer.controls.items()}
    for id, learned in zip(shard.ids[low:high].tolist(), mask, strict=True):
        if plain and learned != before:
            text.append("【" if learned else "】")
        text.append(printable(names.get(id) or decoder.push(id)), style="bold green" if learned else "dim")
        text.append("·", style="bright_black")
        before = learned
    if plain and before:
        text.append("】")
    head = f"{shard.name(document)}  {mark}  {len(mask)} 個詞元，學 {sum(mask)} 個 (tokens, learned)"
    console.print(printable(head), style="bold", markup=False, soft_wrap=True)
    console.print(text, "\n", soft_wrap=plain)
