"""The final folder: the checkpoint's files and a bilingual model card that says what it was made of and how it scored.

The card lists every data set with its licences, and says at its top when non-commercial, no-derivatives, model-generated or
unlicensed rows went in: what the rows themselves say, counted when they were read, not what the recipe hopes.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twllm import data
from twllm.artifact import read_manifest
from twllm.corpus.licences import DataUse, notices
from twllm.errors import UserError
from twllm.recipe import Recipe

FILES = ("*.safetensors", "*.json", "*.jinja", "*.model")


def write_release(
    recipe: Recipe, model: Path, evaluation: Path, out: Path, data_folders: Sequence[Path] = ()
) -> dict[str, Any]:
    """Copy the checkpoint into `out` and write README.md. `data_folders`: the finished corpus and token stages, whose
    manifests count the rows of each licence.

    Raises:
        UserError: a score is below the recipe's gate (`evaluate.gates`); nothing is released.
    """
    result = json.loads((evaluation / "result.json").read_text(encoding="utf-8"))
    scores = {name: block for name, block in result.items() if isinstance(block, dict) and "n" in block}
    check_gates(recipe.evaluate.gates, scores)
    manifest = json.loads((model / "manifest.json").read_text(encoding="utf-8"))
    for pattern in FILES:
        for file in model.glob(pattern):
            if file.name != "manifest.json":
                shutil.copyfile(file, out / file.name)
    metrics = manifest["metrics"]
    uses = data_uses(recipe, [read_manifest(folder) or {} for folder in data_folders])
    (out / "README.md").write_text(model_card(recipe, metrics["parameters"], scores, uses), encoding="utf-8")
    return {key: metrics[key] for key in ("parameters", "weights_fingerprint", "template_fingerprint")}


def check_gates(gates: dict[str, float], scores: dict[str, Any]) -> None:
    """Refuse a release whose scores are below the gates."""
    for suite, least in gates.items():
        score = scores.get(suite, {}).get("score")
        if score is None or score < least:
            raise UserError(
                f"{suite} 得分 {score} 未達門檻 {least} (release gate)",
                f"evaluate.gates.{suite}",
                "改進模型，或調整配方裡的門檻",
            )


def data_uses(recipe: Recipe, manifests: Sequence[Mapping[str, Any]] = ()) -> list[DataUse]:
    """What every data set of the recipe was used for, with its licences: rows as the stages counted them, 0 where none did."""
    metrics = {str(manifest.get("stage")): manifest.get("metrics") or {} for manifest in manifests}
    corpus = metrics.get("corpus", {})
    uses = []
    if recipe.corpus.sources:
        counted = corpus.get("licenses") or {source.license: 0 for source in recipe.corpus.sources}
        names = "、".join(shown(source.name or source.path) for source in recipe.corpus.sources)
        uses.append(DataUse(names, "預訓練 pretrain", counted))
    for phase, config in (("sft", recipe.sft), ("feedback", recipe.feedback)):
        if not config.enabled:
            continue
        for number, dataset in enumerate(config.datasets):
            facts = metrics.get(f"tokens-{phase}", {}).get(f"{number:03}", {})
            counted = facts.get("licenses") or {dataset.license: 0}
            uses.append(DataUse(shown(dataset.path), phase, counted, facts.get("generators") or {}))
    return uses


def shown(name: str) -> str:
    """A data set's name on the card: no local folders."""
    return name if name.startswith(data.PREFIX) else Path(name).name


def notice_block(uses: Sequence[DataUse]) -> str:
    """What a reader must know before anything else: non-commercial, model-generated or unlicensed rows; "" for none."""
    lines = [
        f"> ⚠️ **{sentence}** {'、'.join(f'{name} {rows:,}' if rows > 1 else name for name, rows in sets.items())}\n"
        for sentence, sets in notices(uses)
    ]
    return ">\n".join(lines) + ("\n" if lines else "")


def data_table(uses: Sequence[DataUse]) -> str:
    """One Markdown row for each data set and licence."""
    rows = []
    for use in uses:
        for licence, count, flags in use.licence_rows():
            flags = (*flags, *use.generator_flags())
            unread = not count and licence.startswith("（")
            told = "見資料列 (in the rows)" if unread else licence
            number = f"{count:,}" if count else ""
            rows.append(f"| {use.name} | {use.use} | {number} | {told} | {'' if unread else '、'.join(flags)} |\n")
    return "".join(dict.fromkeys(rows))


def model_card(recipe: Recipe, parameters: int, scores: dict[str, Any], uses: Sequence[DataUse] | None = None) -> str:
    """README.md of the released folder, with the hub's YAML head. `uses` None: what the recipe says, no rows counted."""
    uses = data_uses(recipe) if uses is None else uses
    base = recipe.base.model or f"從頭訓練 (from scratch, size {recipe.base.size})"
    head = f"---\nlanguage: zh\nlicense: {recipe.release.license}\npipeline_tag: text-generation\ntags: [traditional-chinese, taiwan, twllm]\n---\n"
    table = "".join(f"| {name} | {block['score']:.4f} | {block['n']} |\n" for name, block in scores.items())
    return (
        f"{head}\n# {recipe.name}\n\n{notice_block(uses)}{recipe.release.description}\n\n"
        f"說臺灣華語的語言模型，以 [twllm](https://arxiv.org/abs/2311.17487) 訓練。"
        f"A language model for Taiwan Mandarin, trained with twllm.\n\n"
        f"* 起點 (base): {base}\n* 參數 (parameters): {parameters:,}\n* 對話範本 (template): {recipe.template.name}\n\n"
        f"## 分數 (scores)\n\n| 題組 suite | 得分 score | 題數 n |\n|---|---|---|\n{table}\n"
        f"## 資料 (data)\n\n| 來源 source | 用途 use | 筆數 rows | 授權 licence | 注意 flags |\n|---|---|---:|---|---|\n{data_table(uses)}\n"
        f"## 使用 (use)\n\n```\ntwllm chat 這個資料夾\n```\n\n"
        f"## 限制 (limits)\n\n回答可能有誤，請查證；不可用於醫療、法律等需要專業判斷的決定。"
        f"Answers may be wrong; not for medical, legal or other professional decisions.\n"
    )
