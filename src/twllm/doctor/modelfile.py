"""An Ollama Modelfile: does its Go template write what the model was trained with, and do its parameters answer as the original does?

The template is rendered here (release/go_template.py) for chats of many shapes. The GGUF file that FROM names is checked, too.
Not covered: ADAPTER, MESSAGE, and templates with parts of Go that the renderer does not know (told as unknown).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twllm.doctor.findings import Finding
from twllm.doctor.gguf import check_gguf
from twllm.errors import UserError, require_file
from twllm.release.ollama import differences, read_modelfile, sampling, stops
from twllm.tokens.tokenizer import ChatTokenizer

LEAST_CONTEXT = 2048  # Ollama's own default in older versions


def check_modelfile(file: Path, reference: Path | None = None) -> list[Finding]:
    """Findings of a Modelfile; `reference` is the checkpoint folder it should answer like.

    Raises:
        UserError: no such file, or it cannot be read.
    """
    require_file(file)
    told = read_modelfile(file)
    findings = [*_check_source(file, told)]
    findings += _check_template(told, reference)
    if reference is not None:
        findings += _check_parameters(told, reference)
    model = file.parent / str(told.get("FROM", ""))
    if model.suffix == ".gguf" and model.is_file():
        for finding in check_gguf(model, reference):
            double = finding.kind == "bos" and finding.level == "warning"
            if double and not _writes_bos(told, reference):
                continue  # Ollama uses the Modelfile's template, which writes none
            findings.append(finding)
    return findings


def _check_source(file: Path, told: dict[str, Any]) -> Iterator[Finding]:
    source = str(told.get("FROM", ""))
    if not source:
        yield Finding("weights", "fault", "沒有 FROM", "Ollama 不知道是哪個模型", "加上 FROM ./模型.gguf")
    elif source.endswith(".gguf") and not (file.parent / source).is_file():
        yield Finding(
            "weights", "fault", f"FROM 的檔案不在：{source}", "ollama create 會失敗", "把 GGUF 放回那裡，或改 FROM"
        )


def _check_template(told: dict[str, Any], reference: Path | None) -> Iterator[Finding]:
    template = told.get("TEMPLATE")
    if not template:
        why = "Ollama 會拿 GGUF 裡的範本去猜一個最像的"
        yield Finding("template", "fault", "Modelfile 沒有 TEMPLATE", why, "用 twllm export --format ollama 重寫")
        return
    if reference is None:
        yield Finding("template", "unknown", "有 TEMPLATE；給 --reference 才能比對 (no reference given)")
        return
    tokenizer = ChatTokenizer.load(reference)
    try:
        wrong = differences(tokenizer, template, str(told.get("SYSTEM", "")))
    except UserError as error:
        yield Finding("template", "unknown", error.what, "這裡不會算這個範本，無從比對", error.fix)
        return
    if not wrong:
        yield Finding("template", "ok", "TEMPLATE 與 SYSTEM 寫出和參考模型同樣的提示")
        return
    seen, right = wrong[0]
    at = next((i for i, (a, b) in enumerate(zip(seen, right, strict=False)) if a != b), min(len(seen), len(right)))
    what = f"第 {at} 字起不同：{seen[at : at + 20]!r}，應該是 {right[at : at + 20]!r}"
    yield Finding("template", "fault", what, "模型沒看過這種提示", "用 twllm export --format ollama 重寫 Modelfile")


def _check_parameters(told: dict[str, Any], reference: Path) -> Iterator[Finding]:
    given = told["parameters"]
    file = reference / "generation_config.json"
    generation = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if lost := [text for text in stops(ChatTokenizer.load(reference), generation) if text not in given.get("stop", [])]:
        yield Finding(
            "end_token",
            "warning",
            f"沒有 PARAMETER stop {lost[0]!r}",
            "GGUF 的 EOS 不對時會停不下來",
            f'加上 PARAMETER stop "{lost[0]}"',
        )
    expected = sampling(generation)
    other = {name: value for name, value in expected.items() if float(given.get(name, ["nan"])[0]) != float(value)}
    if other:
        seen = "、".join(
            f"{name} {given.get(name, ['Ollama 的預設'])[0]}，原模型是 {value:g}" for name, value in other.items()
        )
        yield Finding("sampling", "fault", seen, "沒寫溫度的請求會答得不一樣", "改成原模型的數字")
    else:
        yield Finding("sampling", "ok", "、".join(f"{name} {value:g}" for name, value in expected.items()))
    context = int(given.get("num_ctx", ["0"])[0])
    if not context:
        why = f"Ollama 的預設可能只有 {LEAST_CONTEXT:,}"
        yield Finding("context", "warning", "沒有 PARAMETER num_ctx", why, "加上 PARAMETER num_ctx")


def _writes_bos(told: dict[str, Any], reference: Path | None) -> bool:
    return reference is None or ChatTokenizer.load(reference).bos in str(told.get("TEMPLATE", ""))
