"""The template contract: a checkpoint carries the fingerprint of the chat template it was trained with.

It stands in `manifest.json` (`metrics.template_fingerprint`) and once more in `config.json` (`twllm.template_fingerprint`), so
that it survives a copy of the model files alone; transformers, vLLM and TGI ignore the key. Serving, chatting, evaluating
and exporting refuse a folder whose template is another one: the wrong template is the commonest reason why a good model
answers badly, and nothing else tells.
"""

import json
import logging
from pathlib import Path
from typing import Any

from twllm.artifact import read_manifest
from twllm.errors import UserError
from twllm.tokens.tokenizer import ChatTokenizer

KEY = "twllm"  # in config.json
log = logging.getLogger("twllm")


class TemplateMismatch(UserError):
    """The folder's chat template is not the one the model was trained with."""


def trained_fingerprint(folder: Path) -> str | None:
    """Fingerprint of the template the checkpoint was trained with; None where the folder does not say."""
    metrics = (read_manifest(folder) or {}).get("metrics") or {}
    found = metrics.get("template_fingerprint") or _config(folder).get("template_fingerprint")
    return str(found) if found else None


def require_trained_template(folder: Path, tokenizer: ChatTokenizer, *, allow_mismatch: bool = False) -> None:
    """Refuse a tokenizer whose template is not the trained one; with `allow_mismatch` warn loudly instead.

    A folder that does not say what it was trained with is accepted.

    Raises:
        TemplateMismatch: both fingerprints are named.
    """
    trained = trained_fingerprint(folder)
    if trained is None or trained == tokenizer.template_fingerprint:
        return
    error = TemplateMismatch(
        f"對話範本和訓練時不同 (chat template mismatch)：訓練 {trained}，現在 {tokenizer.template_fingerprint}",
        folder / "chat_template.jinja",
        "放回訓練時的分詞器檔案；twllm doctor 會說明差在哪裡；確定要用就加上 --allow-template-mismatch",
    )
    if not allow_mismatch:
        raise error
    log.warning("%s；回答會比訓練時差 (answers will be worse)", error.what)


def check_same_tokenizer(teacher: ChatTokenizer, student: ChatTokenizer, where: str) -> None:
    """A teacher's ids mean what the student's mean, and text is cut the same way (train/distill.py).

    Raises:
        UserError: it is not so.
    """
    theirs, ours = (t.backend.get_vocab(with_added_tokens=True) for t in (teacher, student))
    differing = [text for text in theirs.keys() | ours.keys() if theirs.get(text) != ours.get(text)]
    probe = "台灣 Taiwan 2024 年，「拍謝」ㄅㄆㄇ！\n  def f(x): return x"
    if differing or teacher.encode(probe) != student.encode(probe):
        shown = "、".join(repr(text) for text in sorted(differing)[:3]) or "切法不同 (cut differently)"
        raise UserError(
            f"老師的分詞器和模型的不一樣 (the teacher has another tokenizer)：{shown}",
            where,
            "換同一個分詞器的老師，例如剪下來之前的模型；擴充過詞彙時，老師也要擴充過",
        )


def default_system(tokenizer: ChatTokenizer) -> str:
    """The system text that the template puts in where a chat has none; '' where it puts none.

    Found by rendering, not by reading the template: what stands before the first user turn without a system message and
    goes away with an empty one.
    """
    turn = [{"role": "user", "content": "\ue000"}]
    try:
        without = tokenizer.render(turn, add_generation_prompt=True).text
        empty = tokenizer.render([{"role": "system", "content": "\ue001"}, *turn], add_generation_prompt=True).text
    except UserError:
        return ""
    before, _, after = empty.partition("\ue001")
    lead = without.partition("\ue000")[0]
    tail = after.partition("\ue000")[0]
    if not lead.startswith(before) or not lead.endswith(tail) or len(lead) < len(before) + len(tail):
        return ""
    return lead[len(before) : len(lead) - len(tail)]


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get(KEY)
    except (OSError, ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}
