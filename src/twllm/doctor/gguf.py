"""A GGUF file (llama.cpp, Ollama): what its metadata says, and whether that is what the checkpoint it came from says.

Needs the `gguf` package (extra `llamacpp`). Tensors are not read, only their types.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twllm.artifact import fingerprint
from twllm.doctor.findings import Finding
from twllm.errors import UserError, require_file
from twllm.tokens.contract import default_system
from twllm.tokens.tokenizer import ChatTokenizer

EXACT = {"F32", "F16", "BF16"}


def check_gguf(file: Path, reference: Path | None = None) -> list[Finding]:
    """Findings of a GGUF file; `reference` is the checkpoint folder it should answer like.

    Raises:
        UserError: no such file, not GGUF, or the `gguf` package is missing.
    """
    require_file(file)
    facts = read_gguf(file)
    tokenizer = ChatTokenizer.load(reference) if reference else None
    return [
        *_check_fingerprint(facts),
        *_check_template(facts, tokenizer),
        *_check_bos(facts, tokenizer),
        *_check_end(facts, tokenizer),
        *_check_vocabulary(facts, tokenizer),
        *_check_precision(facts),
        *_check_context(facts, reference),
    ]


def read_gguf(file: Path) -> dict[str, Any]:
    """Metadata by name (arrays as lists) and `types`: tensor types, counted."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UserError("看 GGUF 要裝 gguf 套件 (package missing)", file, "pip install 'twllm[llamacpp]'") from error
    try:
        reader = GGUFReader(str(file))
    except (ValueError, OSError, IndexError) as error:
        raise UserError(f"不是 GGUF 檔，或沒下載完 (not GGUF): {error}", file, "重新下載或重新匯出") from error
    facts: dict[str, Any] = {name: value.contents() for name, value in reader.fields.items()}
    facts["types"] = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    return facts


def _check_template(facts: dict[str, Any], tokenizer: ChatTokenizer | None) -> Iterator[Finding]:
    template = facts.get("tokenizer.chat_template")
    if not template:
        why = "llama.cpp 會改用 ChatML 或自己猜"
        yield Finding(
            "template", "fault", "檔案裡沒有對話範本 (no chat template)", why, "用 twllm export --format gguf 重匯"
        )
        return
    if tokenizer is None:
        yield Finding("template", "unknown", "有範本；給 --reference 才能比對 (no reference given)")
        return
    carried = ChatTokenizer(tokenizer.backend, template, tokenizer.bos, tokenizer.eos)
    if same_prompts(carried, tokenizer):
        yield Finding("template", "ok", "和參考模型寫出同樣的提示")
    elif default_system(carried) != default_system(tokenizer):
        seen = f"預設系統提示是「{default_system(carried)[:30]}」"
        yield Finding("system", "fault", seen, f"參考是「{default_system(tokenizer)[:30]}」", "重新匯出 GGUF")
    else:
        yield Finding(
            "template", "fault", "寫出的提示和參考模型不同 (another template)", "模型沒看過這種提示", "重新匯出 GGUF"
        )


def _check_fingerprint(facts: dict[str, Any]) -> Iterator[Finding]:
    """The template in the file is the trained one, as `twllm export` wrote it down."""
    trained, pieces = facts.get("twllm.template_fingerprint"), facts.get("tokenizer.ggml.tokens") or []
    if not trained:
        return
    bos, eos = (facts.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    end = pieces[eos] if eos is not None and eos < len(pieces) else ""
    begins = [pieces[bos]] if bos is not None and bos < len(pieces) else ["", "<s>"]  # one that is in no vocabulary
    prints = [fingerprint([facts.get("tokenizer.chat_template") or "", begin, end]) for begin in begins]
    found = trained if trained in prints else prints[0]
    if found == trained:
        yield Finding("template", "ok", f"{trained} 和訓練時相同 (the trained one)")
    else:
        seen = f"對話範本和訓練時不同 (chat template mismatch)：訓練 {trained}，現在 {found}"
        yield Finding(
            "template", "fault", seen, "有人改過檔案裡的範本、BOS 或 EOS", "用 twllm export --format gguf 重匯"
        )


def same_prompts(one: ChatTokenizer, other: ChatTokenizer) -> bool:
    """Whether two templates write the same text for chats with and without a system text, of one and several turns."""
    turn = [{"role": "user", "content": "問"}]
    more = [*turn, {"role": "assistant", "content": "答"}, *turn]
    chats = [turn, more, [{"role": "system", "content": "系統"}, *more]]
    return all(_told(one, chat) == _told(other, chat) for chat in chats)


def _told(tokenizer: ChatTokenizer, chat: list[dict[str, str]]) -> str | None:
    try:
        return tokenizer.render(chat, add_generation_prompt=True).text
    except UserError:
        return None


def _check_bos(facts: dict[str, Any], tokenizer: ChatTokenizer | None) -> Iterator[Finding]:
    adds, bos = facts.get("tokenizer.ggml.add_bos_token"), facts.get("tokenizer.ggml.bos_token_id")
    writes = "bos_token" in str(facts.get("tokenizer.chat_template"))
    if tokenizer is not None and tokenizer.bos_id is not None and bos is not None and bos != tokenizer.bos_id:
        yield Finding(
            "bos", "fault", f"BOS 是 {bos}，參考是 {tokenizer.bos_id}", "提示的第一個詞元不同", "重新匯出 GGUF"
        )
    elif adds and writes and "twllm.template_fingerprint" in facts:
        yield Finding("bos", "ok", "由分詞加 BOS；llama.cpp 會拿掉範本寫的那個，Ollama 用 Modelfile 的範本")
    elif adds and writes:
        why = "範本寫了 BOS，分詞時又加一次；新版 llama.cpp 會去掉一個並警告，舊版與 Ollama 不會"
        yield Finding("bos", "warning", "add_bos_token 是 true，範本也寫 BOS", why, "add_bos_token 設成 false")
    elif adds and tokenizer is not None and tokenizer.template and not _begins(tokenizer):
        why = "訓練時的對話沒有 BOS，llama.cpp 卻會加"
        yield Finding(
            "bos", "fault", "add_bos_token 是 true (an extra BOS)", why, "add_bos_token 設成 false，或重新匯出 GGUF"
        )
    elif tokenizer is not None and not adds and not writes and _begins(tokenizer):
        fix = "tokenizer.ggml.add_bos_token 設成 true"
        yield Finding("bos", "fault", "沒有地方會加 BOS (no BOS)", "訓練時每段對話都以 BOS 開頭", fix)


def _begins(tokenizer: ChatTokenizer) -> bool:
    """Whether the reference's prompts begin with a begin token."""
    first = tokenizer.encode_chat([{"role": "user", "content": "問"}]).ids[:1]
    return tokenizer.bos_id is not None and first == [tokenizer.bos_id]


def _check_end(facts: dict[str, Any], tokenizer: ChatTokenizer | None) -> Iterator[Finding]:
    end = facts.get("tokenizer.ggml.eos_token_id")
    if tokenizer is not None and end != tokenizer.eos_id:
        fix = f"tokenizer.ggml.eos_token_id 改成 {tokenizer.eos_id}"
        yield Finding("end_token", "fault", f"EOS 是 {end}，參考是 {tokenizer.eos_id}", "回答結束了還會寫下去", fix)
    else:
        yield Finding("end_token", "ok", f"EOS {end}")


def _check_vocabulary(facts: dict[str, Any], tokenizer: ChatTokenizer | None) -> Iterator[Finding]:
    pieces = facts.get("tokenizer.ggml.tokens") or []
    if tokenizer is not None and len(pieces) < tokenizer.vocab_size:
        seen = f"{len(pieces):,} 個詞元，參考有 {tokenizer.vocab_size:,}"
        yield Finding("tokenizer", "fault", seen, "少掉的詞元會被拆開或變成未知", "用同一個分詞器重新匯出")
    else:
        kind = f"{facts.get('tokenizer.ggml.model')}/{facts.get('tokenizer.ggml.pre', '')}"
        yield Finding("tokenizer", "ok", f"{len(pieces):,} 個詞元（{kind}）")


def _check_precision(facts: dict[str, Any]) -> Iterator[Finding]:
    types = facts["types"]
    rough = {name: count for name, count in types.items() if name not in EXACT}
    told = "、".join(f"{name}×{count}" for name, count in types.most_common())
    if rough:
        yield Finding("precision", "warning", told, "量化過：答得和原模型不完全一樣", "要比對就用 BF16 或 F16 檔")
    else:
        yield Finding("precision", "ok", told)


def _check_context(facts: dict[str, Any], reference: Path | None) -> Iterator[Finding]:
    from twllm.doctor.folder import Folder

    limit = facts.get(f"{facts.get('general.architecture')}.context_length")
    trained = Folder.read(reference).config.get("max_position_embeddings") if reference else None
    if trained and limit and limit < trained:
        yield Finding("context", "fault", f"{limit:,}，參考是 {trained:,}", "長對話會被截斷或拒絕", "重新匯出 GGUF")
    else:
        why = "Ollama 預設 num_ctx 只有 2,048 到 4,096，Modelfile 要寫 PARAMETER num_ctx"
        yield Finding("context", "ok", f"{limit:,} 個詞元" if limit else "沒寫", why)
