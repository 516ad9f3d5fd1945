"""A checkpoint folder: does everything in it fit together? Headers are read, no weights, unless asked.

Every check is a function `(Folder) -> findings` in CHECKS. A check that fails to read its file says so and the others go on.
Adapter folders: adapter.py. Not covered: quantisation libraries' own files.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twllm.doctor.findings import Finding
from twllm.errors import UserError, require_file
from twllm.tokens.contract import TemplateMismatch, default_system, require_trained_template, trained_fingerprint
from twllm.tokens.tokenizer import ChatTokenizer

LEAST_VOCABULARY = 300  # 256 bytes and some: below that it is transformers' three-token trap (INTERFACES: LlamaTokenizer(vocab_file=…))
# fmt: off
ROUND_TRIP = ("台灣的首都是臺北。", "ㄅㄆㄇㄈㄉㄊㄋㄌ ˊˇˋ˙", "𠮷野家的𡘙、𣎴", "全形ＡＢＣ１２３，。！？「」", "🧋🇹🇼👩‍👩‍👧", "pip install twllm==0.1\n\tif x:", "Tâi-oân-uē")
# fmt: on
TURNS = [
    {"role": "system", "content": "系統"},
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "你好！"},
    {"role": "user", "content": "再見"},
]


@dataclass
class Folder:
    """A folder and what could be read of it."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    tokenizer: ChatTokenizer | None = None
    broken: list[Finding] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Folder":
        """Read the small files.

        Raises:
            UserError: there is no such folder.
        """
        path = require_file(path, "找不到模型資料夾 (no such model folder)")
        if not path.is_dir():
            raise UserError("這是檔案，不是模型資料夾 (a file)", path, "指到資料夾、.gguf 檔或 http(s) 網址")
        folder = cls(path)
        folder.config = folder._json("config.json", "weights")
        folder.generation = folder._json("generation_config.json", "sampling")
        folder.tokenizer_config = folder._json("tokenizer_config.json", "tokenizer")
        try:
            folder.tokenizer = ChatTokenizer.load(path)
            _ = folder.tokenizer.eos_id
        except UserError as error:
            folder.tokenizer = None
            folder.broken.append(Finding("tokenizer", "fault", error.what, "沒有它就不能對話", error.fix))
        return folder

    def _json(self, name: str, kind: str) -> dict[str, Any]:
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self.broken.append(Finding(kind, "fault", f"{name} 讀不進來 (unreadable): {error}", fix="重新下載這個檔案"))
            return {}


def check_folder(path: Path, *, deep: bool = False) -> list[Finding]:
    """All findings of a checkpoint folder; `deep` reads the weights, too (NaN, infinities).

    Raises:
        UserError: there is no such folder.
    """
    from twllm.doctor.weights import check_numbers, check_weights

    folder = Folder.read(path)
    if (path / "adapter_config.json").is_file() and not folder.config:
        from twllm.doctor.adapter import check_adapter

        return check_adapter(path)
    findings = [*folder.broken]
    for check in (check_weights, *CHECKS, *((check_numbers,) if deep else ())):
        findings += check(folder)
    return findings


def check_tokenizer(folder: Folder) -> Iterator[Finding]:
    """Size, round trips, and the limit below which transformers cuts prompts."""
    if (tokenizer := folder.tokenizer) is None:
        return
    size, rows = tokenizer.vocab_size, folder.config.get("vocab_size")
    if size < LEAST_VOCABULARY:
        why = "transformers 5 用 LlamaTokenizer(vocab_file=…) 存檔會只剩三個詞元"
        yield Finding("tokenizer", "fault", f"只有 {size} 個詞元 (pieces)", why, "用 AutoTokenizer 從原始資料夾重存")
    if rows and size > rows:
        why = "多出來的詞元沒有向量，一用到就出錯或亂碼"
        yield Finding("tokenizer", "fault", f"詞彙 {size:,} 大於嵌入的 {rows:,} 列", why, "用和權重同一版的分詞器")
    lost = [text for text in ROUND_TRIP if tokenizer.decode(tokenizer.encode(text)).strip() != text.strip()]
    if lost:
        why = "這些字進得去、出不來：提示被改寫，或回答缺字 (text is changed on its way)"
        yield Finding(
            "tokenizer", "warning", f"還原後不同 (lossy): {'、'.join(lost)}", why, "看正規化器與未知詞元的設定"
        )
    elif size >= LEAST_VOCABULARY and not (rows and size > rows):
        yield Finding("tokenizer", "ok", f"{size:,} 個詞元，注音、擴充漢字、表情符號都能還原")


def check_template(folder: Folder) -> Iterator[Finding]:
    """The template is there, renders, and is the trained one, in both places where it may stand."""
    if (tokenizer := folder.tokenizer) is None:
        return
    if not tokenizer.template:
        fix = "放入 chat_template.jinja；基礎模型要先微調才能對話"
        yield Finding("template", "fault", "沒有對話範本 (no chat template)", "各家伺服器會自己猜一個", fix)
        return
    inside = folder.tokenizer_config.get("chat_template")
    if inside and inside != tokenizer.template and (folder.path / "chat_template.jinja").is_file():
        why = "有的程式讀 tokenizer_config.json，有的讀 chat_template.jinja：同一個資料夾兩種提示"
        yield Finding(
            "template", "fault", "兩個地方的範本不同 (two different templates)", why, "刪掉不是訓練時用的那個"
        )
    try:
        require_trained_template(folder.path, tokenizer)
    except TemplateMismatch as error:
        yield Finding("template", "fault", error.what, "模型沒看過這種提示，會答非所問或停不下來", error.fix)
        return
    try:
        tokenizer.render(TURNS, add_generation_prompt=True)
    except UserError as error:
        yield Finding("template", "warning", error.what, "系統提示或多輪對話會被拒絕", "換成支援 system 與多輪的範本")
    else:
        trained = trained_fingerprint(folder.path)
        told = "和訓練時相同 (the trained one)" if trained else "資料夾沒寫訓練時的範本，無從比對 (not recorded)"
        yield Finding("template", "ok" if trained else "unknown", f"{tokenizer.template_fingerprint} {told}")
    system = default_system(tokenizer)
    yield Finding("system", "ok", f"沒給系統提示時用：「{system[:40]}…」" if system else "範本沒有預設的系統提示")


def check_bos(folder: Folder) -> Iterator[Finding]:
    """Exactly one begin token, and a warning where a server that renders to text would put a second one."""
    tokenizer = folder.tokenizer
    if tokenizer is None or not tokenizer.template or tokenizer.bos_id is None:
        return
    try:
        text = tokenizer.render(TURNS[1:2], add_generation_prompt=True).text
    except UserError:
        return
    ids = tokenizer.encode_chat(TURNS[1:2], add_generation_prompt=True).ids
    count = ids.count(tokenizer.bos_id)
    again = tokenizer.backend.encode(text, add_special_tokens=True).ids.count(tokenizer.bos_id)
    if count > 1:
        yield Finding("bos", "fault", f"範本寫了 {count} 個起始符", "訓練時只有一個", "範本或分詞器只留一處加 BOS")
    elif again > count and count:
        why = "範本和分詞器都會加 BOS：先轉成文字再分詞的程式（llama.cpp、TGI 的 /generate）會有兩個"
        yield Finding("bos", "warning", f"轉成文字再分詞會有 {again} 個 BOS", why, "用 /v1/chat/completions，或送詞元")
    else:
        yield Finding("bos", "ok", f"{count} 個 {tokenizer.bos}")


def check_end(folder: Folder) -> Iterator[Finding]:
    """The token that ends an answer in the template is one at which servers stop."""
    tokenizer = folder.tokenizer
    if tokenizer is None or not tokenizer.template:
        return
    more = folder.generation.get("eos_token_id", folder.config.get("eos_token_id"))
    stops = {*(more if isinstance(more, list) else [] if more is None else [more])}
    try:
        learned = tokenizer.encode_chat(TURNS[1:3])
    except UserError:
        return
    ends = [id for id, mask in zip(learned.ids, learned.mask, strict=True) if mask and id in tokenizer.control_ids]
    names = {id: token for token, id in tokenizer.controls.items()}
    if ends and ends[-1] not in stops | {tokenizer.eos_id}:
        why = "回答結束了，伺服器卻不知道，會一直寫下去"
        fix = f'generation_config.json 的 "eos_token_id" 加上 {ends[-1]}'
        yield Finding("end_token", "fault", f"範本以 {names[ends[-1]]} 結束，停止符裡沒有它", why, fix)
    elif ends and stops and ends[-1] not in stops:
        why = "只看 config 的引擎（vLLM、TGI）不會停"
        fix = f'generation_config.json 的 "eos_token_id" 加上 {ends[-1]}'
        yield Finding("end_token", "fault", f"範本以 {names[ends[-1]]} 結束，設定寫的是 {sorted(stops)}", why, fix)
    elif not ends and trained_fingerprint(folder.path):
        yield Finding("end_token", "warning", "範本的回答後面沒有結束符", "模型學不到在哪裡停", "範本加上 eos_token")
    else:
        yield Finding("end_token", "ok", f"{tokenizer.eos} ({tokenizer.eos_id})")


def check_sampling(folder: Folder) -> Iterator[Finding]:
    """What a request that says nothing gets."""
    keys = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "max_length")
    given = {key: folder.generation[key] for key in keys if folder.generation.get(key) is not None}
    told = "、".join(f"{key} {value}" for key, value in given.items()) or "貪婪 (greedy)"
    sampled = bool(folder.generation.get("do_sample"))
    yield Finding("sampling", "ok", f"預設：{'抽樣，' if sampled else ''}{told}")
    short = folder.generation.get("max_new_tokens") or folder.generation.get("max_length")
    if short and short < 256:
        why = "沒寫 max_tokens 的請求會被截斷"
        yield Finding("max_tokens", "warning", f"預設最多 {short} 個詞元", why, "從 generation_config.json 拿掉")


def check_context(folder: Folder) -> Iterator[Finding]:
    """The model's limit, and a tokenizer that cuts below it."""
    limit = (folder.config.get("text_config") or folder.config).get("max_position_embeddings")
    cut = folder.tokenizer_config.get("model_max_length")
    if limit and cut and cut < limit:
        why = "transformers 系的程式會把較長的提示截掉 (truncated without a word)"
        fix = f'tokenizer_config.json 的 "model_max_length" 改成 {limit}'
        yield Finding("context", "warning", f"模型 {limit:,}，分詞器只到 {cut:,}", why, fix)
    elif limit:
        scaling = folder.config.get("rope_scaling") or folder.config.get("rope_parameters") or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        yield Finding("context", "ok", f"{limit:,} 個詞元" + ("" if kind == "default" else f"，RoPE {kind}"))


def check_licence(folder: Folder) -> Iterator[Finding]:
    """The model card names a licence."""
    card = folder.path / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace")[:4000] if card.is_file() else ""
    if "license:" in text:
        yield Finding("licence", "ok", text.split("license:", 1)[1].splitlines()[0].strip() or "?")
    else:
        yield Finding("licence", "unknown", "模型卡沒寫授權 (no licence in README.md)", "散布前要先弄清楚")


CHECKS: tuple[Callable[[Folder], Iterator[Finding]], ...] = (
    check_tokenizer, check_template, check_bos, check_end, check_sampling, check_context, check_licence,
)  # fmt: skip
