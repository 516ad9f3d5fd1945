"""What a phase makes the model forget: bits per character of named texts before and after it, a table, a picture, a verdict.

Texts are cut into rows of the phase's context and measured with the training loss; both times in the same way, so only the change counts.
A text is forgotten where its bits per character rise by more than `max_rise`. With adapters over a quantised base, both
numbers are those of the quantised model. For a test with intervals, place by place, see `twllm eval no-harm`.
Not covered: abilities that bits do not show.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from twllm import data
from twllm.artifact import fingerprint, write_json, write_text
from twllm.tokens.build import text_shard
from twllm.tokens.shards import TokenShard
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.tokens.train import sample_texts
from twllm.train import distributed
from twllm.train.data import PackedData
from twllm.train.machine import Machine
from twllm.train.methods_config import ForgettingConfig
from twllm.train.objective import TokenObjective
from twllm.train.parallel import inside

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VERDICTS = {"forgotten": "忘了 forgotten", "kept": "沒忘 kept", "better": "進步 better"}


@dataclass(frozen=True)
class Row:
    """One text, in bits per character."""

    name: str
    chars: int
    before: float
    after: float
    verdict: str

    @property
    def change(self) -> float:
        """Share by which the bits rose."""
        return self.after / self.before - 1


class Forgetting:
    """The texts of one phase, as training rows. `measure` before and after; `report` compares."""

    def __init__(self, config: ForgettingConfig, tokenizer: ChatTokenizer, context: int, work: Path) -> None:
        self.config, self.texts = config, dict[str, PackedData]()

        def write() -> None:
            shutil.rmtree(work, ignore_errors=True)
            for number, source in enumerate(config.texts):
                texts = sample_texts(data.resolve(source), config.max_chars)
                text_shard(work / f"{number:03}", ((str(i), text) for i, text in enumerate(texts)), tokenizer)

        distributed.from_main(write)
        for number, source in enumerate(config.texts):
            self.texts[source] = PackedData([TokenShard(work / f"{number:03}")], [1.0], context, 0)

    def measure(self, model: "PreTrainedModel", machine: Machine, rows: int) -> dict[str, float]:
        """Bits per character of each text, `rows` at a time."""
        objective = TokenObjective(model, replace(machine, attention="mask"))
        attention, training, found = model.config._attn_implementation, model.training, {}
        model.set_attn_implementation("sdpa")
        model.eval()
        with torch.no_grad():
            for source, texts in self.texts.items():
                cut = texts.each_once()
                nats = math.fsum(
                    float(inside(model, objective.loss, texts.batch(cut[i : i + rows])))
                    for i in range(0, len(cut), rows)
                )
                found[source] = nats / math.log(2) / texts.shards[0].index["num_chars"]
        model.train(training)
        model.set_attn_implementation(attention)
        return found

    def report(self, before: dict[str, float], after: dict[str, float], folder: Path, title: str) -> dict[str, Any]:
        """Write `forgetting.json`, `.md` and `.png` into `folder`; gives the facts for the manifest."""
        rows = [
            Row(
                name,
                texts.shards[0].index["num_chars"],
                before[name],
                after[name],
                self._verdict(before[name], after[name]),
            )
            for name, texts in self.texts.items()
        ]
        lost = [row.name for row in rows if row.verdict == "forgotten"]
        facts = {"rows": [asdict(row) for row in rows], "max_rise": self.config.max_rise, "forgotten": lost}
        write_json(folder / "forgetting.json", facts)
        write_text(folder / "forgetting.md", f"# {title}\n\n{markdown(rows, self.config.max_rise)}")
        plot(rows, folder / "forgetting.png", title)
        return facts

    def _verdict(self, before: float, after: float) -> str:
        if after > before * (1 + self.config.max_rise):
            return "forgotten"
        return "better" if after < before else "kept"


def markdown(rows: Sequence[Row], max_rise: float) -> str:
    """The table, and the verdict in one sentence."""
    lines = [
        "| 文字 text | 字數 chars | 之前 before | 之後 after | 變化 change | 判定 verdict |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.name} | {r.chars:,} | {r.before:.3f} | {r.after:.3f} | {r.change:+.1%} | {VERDICTS[r.verdict]} |"
        for r in rows
    ]
    lost = "、".join(row.name for row in rows if row.verdict == "forgotten")
    told = f"忘了 (forgotten)：{lost}" if lost else "沒有忘掉任何一份 (nothing forgotten)"
    return "\n".join(
        [*lines, "", f"每字位元數，越低越好；上升超過 {max_rise:.1%} 算忘了 (bits per character). {told}", ""]
    )


def told(facts: dict[str, Any]) -> str:
    """The table, from the facts of a manifest."""
    return markdown([Row(**row) for row in facts["rows"]], facts["max_rise"])


def plot(rows: Sequence[Row], target: Path, title: str) -> None:
    """PNG: two bars a text."""
    from twllm.train.plots import picture, shown

    with picture(target, 8, 1.2 + 0.7 * len(rows)) as figure:
        axes = figure.add_subplot()
        places = range(len(rows))
        axes.barh([p - 0.2 for p in places], [r.before for r in rows], 0.38, color="tab:gray", label="before")
        colours = ["tab:red" if r.verdict == "forgotten" else "tab:blue" for r in rows]
        label = "after (red: forgotten)"
        axes.barh([p + 0.2 for p in places], [r.after for r in rows], 0.38, color=colours, label=label)
        for place, row in zip(places, rows, strict=True):
            axes.text(row.after, place + 0.2, f" {row.change:+.1%}", va="center", fontsize=8)
        axes.set_yticks(list(places), [shown(row.name.rsplit("/", 1)[-1]) for row in rows])
        axes.invert_yaxis()
        axes.set(xlabel="bits per character", title=f"{title}: forgetting")
        axes.margins(x=0.12)
        axes.legend()


def before(
    forgetting: Forgetting, model: "PreTrainedModel", machine: Machine, rows: int, work: Path
) -> dict[str, float]:
    """`measure` of the starting weights, kept in `work`: a resumed run does not measure again."""
    import json

    file = work / "forgetting.json"
    key = fingerprint([forgetting.config.model_dump(), machine.as_dict()])
    kept = distributed.from_main(lambda: json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})
    if kept.get("key") == key:
        return dict(kept["before"])
    found = forgetting.measure(model, machine, rows)
    if distributed.is_main():
        write_json(file, {"key": key, "before": found})
    return found
