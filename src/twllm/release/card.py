"""The model card: README.md in both languages, with the hub's YAML head.

It says at its top when non-commercial, no-derivatives, model-generated or unlicensed rows went in: what the rows themselves say, counted
when they were read, not what the recipe hopes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from twllm.corpus.licences import DataUse, Licence, classify, notices, with_generator
from twllm.release.facts import BEFORE, KEY, ModelFacts, count_parameters, facts_of_folder, of_folder, shown
from twllm.release.gate import INTERNAL

# fmt: off
HUB_LICENCES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-sa-3.0", "cc0-1.0", "bsd-3-clause",
                "bsd-2-clause", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "openrail", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "unlicense", "isc"}
# fmt: on


def model_card(facts: ModelFacts, kind: str = "hf", files: Sequence[str] = ()) -> str:
    """README.md of a released folder; `kind` is the format, `files` the model files that its use names."""
    parts = [
        f"{_head(facts, kind)}\n# {facts.name}\n\n{notice_block(facts)}{facts.description}\n\n"
        "說臺灣華語的語言模型，以 [twllm](https://arxiv.org/abs/2311.17487) 處理。A language model for Taiwan Mandarin, made with twllm.\n",
        _facts_list(facts),
        _scores(facts),
        _losses(facts),
        _data(facts),
        _settings(facts),
        _template(facts),
        f"## 使用 (use)\n\n```\n{_use(kind, files)}\n```\n",
        _limits(facts, kind),
        f"## 原模型卡 (the original card)\n\n{facts.original}\n" if facts.original else "",
    ]
    return "\n".join(part for part in parts if part)


def carry_card(source: Path, base: str, folder: Path, out: Path) -> dict[str, Any]:
    """The card of a checkpoint in `folder`, to become `out`, that another shape was made of `base`: licence and data are the base's.

    README.md is written; what is returned belongs into the manifest's metrics, where a later training or export finds it.
    """
    return _write(facts_of_folder(source), base, folder, out)


def trained_card(
    source: Path, base: str, folder: Path, out: Path, uses: Sequence[DataUse], settings: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """The same of a checkpoint that `base` was trained to with `uses`."""
    facts = facts_of_folder(source)
    before = [replace(use, use=BEFORE + use.use.removeprefix(BEFORE)) for use in facts.uses]
    return _write(facts, base, folder, out, uses=(*before, *uses), settings=tuple(settings), **of_folder(folder))


def averaged_card(sources: Mapping[str, Path], folder: Path, out: Path) -> dict[str, Any]:
    """The same of a mean of checkpoints: the licences and the data of all of them."""
    found = [facts_of_folder(source) for source in sources.values()]
    licences = " AND ".join(dict.fromkeys(facts.license for facts in found if facts.license))
    uses = [
        use
        for number, facts in enumerate(found)
        for use in facts.uses
        if not any(use in f.uses for f in found[:number])
    ]
    told = replace(
        found[0], license=licences if all(facts.license for facts in found) else "", uses=tuple(uses),
        uses_known=all(facts.uses_known for facts in found),
    )  # fmt: skip
    names = [facts.name if Path(base).is_dir() else shown(base) for base, facts in zip(sources, found, strict=True)]
    return _write(told, "", folder, out, base="、".join(names))


def _write(facts: ModelFacts, origin: str, folder: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """README.md, and what the manifest keeps: the facts of the model that was there before, with what is new."""
    told = replace(
        facts,
        **{
            "name": out.resolve().name, "base": facts.name if Path(origin).is_dir() else shown(origin), "base_license": facts.license,
            "parameters": count_parameters(folder), "description": "", "scores": {}, "settings": (), "losses": (), **changes,
        },
    )  # fmt: skip
    (folder / "README.md").write_text(model_card(told), encoding="utf-8")
    return {KEY: told.to_row()}


def _head(facts: ModelFacts, kind: str) -> str:
    licence = facts.license.lower()
    lines = ["---", "language:", "- zh", f"license: {licence if licence in HUB_LICENCES else 'other'}"]
    if licence not in HUB_LICENCES:
        lines.append(f'license_name: "{facts.license or "not stated"}"')
    if facts.base:
        lines.append(f'base_model: "{facts.base}"')
    lines += [
        "pipeline_tag: text-generation",
        f"tags: [traditional-chinese, taiwan, twllm{'' if kind == 'hf' else ', ' + kind}]",
    ]
    return "\n".join([*lines, "---", ""])


def notice_block(facts: ModelFacts) -> str:
    """What a reader must know before anything else: non-commercial, model-generated or unlicensed rows; "" for none."""
    lines = [
        f"> ⚠️ **{sentence}** {'、'.join(f'{name} {rows:,}' if rows > 1 else name for name, rows in sets.items())}\n"
        for sentence, sets in notices(facts.uses)
    ]
    if made := makers(facts.uses):
        lines.append(
            f"> ⚠️ **含 {'、'.join(made)} 的模型產生的資料。Contains data generated by models of {', '.join(made)}.**\n"
        )
    if facts.base_license is not None and (base := classify(facts.base_license)).non_commercial:
        lines.append(f"> ⚠️ **底模不得商用（{base.id}）。The base model is non-commercial.**\n")
    if facts.accepted:
        told = "；".join(dict.fromkeys(facts.accepted))
        lines.append(f"> 釋出者看過以下條款後釋出 (released knowing that)：{told}\n")
    if facts.license.strip().lower() in INTERNAL:
        lines.append("> ⚠️ **內部使用，不對外散布。Internal use, not to be given on.**\n")
    return ">\n".join(lines) + ("\n" if lines else "")


def makers(uses: Sequence[DataUse]) -> list[str]:
    """Whose models wrote rows."""
    found = [classify(text).generator for use in uses for text in use.licences]
    found += [with_generator(Licence(""), model).generator for use in uses for model in use.generators]
    return [name for name in dict.fromkeys(found) if name and name != "?"]


def _facts_list(facts: ModelFacts) -> str:
    base = facts.base or (
        "從頭訓練 (from scratch)" if facts.base_license is None else "見原模型卡 (see the original card)"
    )
    told = f"（{facts.base_license}）" if facts.base and facts.base_license else ""
    rows = [
        ("起點 (base)", f"{base}{told}"),
        ("參數 (parameters)", f"{facts.parameters:,}"),
        ("上下文 (context)", f"{facts.context:,} 個詞元 tokens" if facts.context else ""),
        ("授權 (licence)", facts.license),
        ("對話範本 (template)", facts.template or facts.template_fingerprint),
    ]
    return "".join(f"* {name}: {value}\n" for name, value in rows if value)


def _scores(facts: ModelFacts) -> str:
    if not facts.scores:
        return ""
    rows = "".join(f"| {name} | {block['score']:.4f} | {block['n']} |\n" for name, block in facts.scores.items())
    return f"## 分數 (scores)\n\n| 題組 suite | 得分 score | 題數 n |\n|---|---|---|\n{rows}"


def _losses(facts: ModelFacts) -> str:
    if not facts.losses:
        return ""
    head = "## 量化少了什麼 (what quantisation cost)\n\n| 格式 format | 每字位元數 bits per character | 文化題 culture | 大小 size |\n|---|---|---|---|\n"
    rows = "".join(
        f"| {loss['format']} | {_pair(loss, 'bits', '.3f')} | {_pair(loss, 'culture', '.3f')} | {_size(loss)} |\n"
        for loss in facts.losses
    )
    note = (
        "\n原模型 → 量化後。位元數在沒有訓練過的臺灣文字上量，愈低愈好；校正文字也是臺灣文字。"
        "Before → after; bits on held-out Taiwan text, lower is better; calibrated on Taiwan text.\n"
    )
    return head + rows + note


def _pair(loss: Mapping[str, Any], key: str, form: str) -> str:
    before, after = loss.get(f"{key}_before"), loss.get(f"{key}_after")
    if before is None or after is None:
        return "沒有量 (not measured)"
    return f"{before:{form}} → {after:{form}}" + (f"（{loss['n']} 題）" if key == "culture" and loss.get("n") else "")


def _size(loss: Mapping[str, Any]) -> str:
    return f"{loss['bytes_before'] / 1e6:,.1f} → {loss['bytes_after'] / 1e6:,.1f} MB"


def _data(facts: ModelFacts) -> str:
    if not facts.uses:
        told = (
            "這裡不知道；見原模型卡。Not known here; see the original card." if not facts.uses_known else "沒有 (none)"
        )
        return f"## 資料 (data)\n\n{told}\n"
    more = "" if facts.uses_known else "\n其餘資料不明。Other data not known.\n"
    return f"## 資料 (data)\n\n| 來源 source | 用途 use | 筆數 rows | 授權 licence | 注意 flags |\n|---|---|---:|---|---|\n{data_table(facts.uses)}{more}"


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


def _settings(facts: ModelFacts) -> str:
    if not facts.settings:
        return ""
    rows = "".join(f"| {name} | {text} |\n" for name, text in facts.settings)
    return f"## 訓練設定 (settings)\n\n| 階段 phase | 設定 settings |\n|---|---|\n{rows}"


def _template(facts: ModelFacts) -> str:
    if not facts.example:
        return ""
    system = f"沒給系統提示時會放進 (default system text)：「{facts.system}」\n\n" if facts.system else ""
    return (
        f"## 對話範本 (template)\n\n換了範本，好模型也會答得差；指紋 (fingerprint) `{facts.template_fingerprint}`。{system}"
        f"\n```\n{facts.example}\n```\n"
    )


def _use(kind: str, files: Sequence[str]) -> str:
    file = files[0] if files else "MODEL.gguf"
    return {
        "gguf": f"llama-cli -m {file} -cnv --jinja",
        "ollama": "ollama create my-model -f Modelfile && ollama run my-model",
        "int8": "pip install 'twllm[quantise]'  # torchao\ntwllm chat 這個資料夾",
        "gptq": "vllm serve 這個資料夾",
        "awq": "vllm serve 這個資料夾",
    }.get(kind, "twllm chat 這個資料夾")


def _limits(facts: ModelFacts, kind: str) -> str:
    more = ""
    if kind in ("gguf", "ollama"):
        more = (
            "使用者打的控制符在 llama.cpp 與 Ollama 裡會成為真的控制符。"
            "There, control tokens that a person types become real ones.\n"
        )
    return (
        "## 限制 (limits)\n\n回答可能有誤，請查證；不可用於醫療、法律等需要專業判斷的決定。可能帶有訓練資料的偏見；沒有做過安全對齊的完整測試。"
        "Answers may be wrong; not for medical, legal or other professional decisions. May carry the biases of its data; not fully tested for safety.\n"
        + more
    )
