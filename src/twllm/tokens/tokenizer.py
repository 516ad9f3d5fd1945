"""A Hugging Face tokenizer folder as we use it: plain text and chats to ids, ids to text, streams that never cut a character.

Built on `tokenizers` alone, so that corpus and data work needs neither torch nor transformers. A folder with only
`tokenizer.model` (Llama-2) is read through transformers' AutoTokenizer (needs protobuf; `LlamaTokenizer(vocab_file=…)` in
transformers 5 silently gives three tokens).
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from twllm.artifact import fingerprint
from twllm.errors import UserError, require_file
from twllm.tokens.template import CONTROL_TOKENS, Messages, Rendered, clean_text, load_template, render
from twllm.tokens.unmarked import PROBE, is_marked, learned_spans

TEMPLATE_FILE = "chat_template.jinja"


@dataclass(frozen=True)
class Encoded:
    """Token ids and, for each, whether the loss covers it (True: the model learns to say this token)."""

    ids: list[int]
    mask: list[bool]


class ChatTokenizer:
    """Tokenizer + chat template + special tokens of one folder. Thread-safe for encoding and decoding."""

    def __init__(
        self, backend: Tokenizer, template: str = "", bos: str = "<s>", eos: str = "</s>", pad: str = ""
    ) -> None:
        self.backend, self.template, self.bos, self.eos, self.pad = backend, template, bos, eos, pad or eos
        backend.no_truncation()
        backend.no_padding()
        self._plain = Tokenizer.from_str(backend.to_str())  # a second one, in which control tokens are plain text
        self._plain.encode_special_tokens = True
        added = backend.get_added_tokens_decoder()
        self.controls = {token.content: id for id, token in added.items() if token.special}
        self.control_ids = frozenset(self.controls.values())
        self.marked = is_marked(template)
        self._control = re.compile("|".join(map(re.escape, sorted(self.controls, key=len, reverse=True))))

    # -- folders ------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, folder: str | Path) -> "ChatTokenizer":
        """Read a tokenizer folder (or any checkpoint folder that holds one).

        Raises:
            UserError: there is no tokenizer in the folder.
        """
        folder = require_file(folder, "找不到模型或分詞器資料夾 (no such folder)")
        if not folder.is_dir():
            raise UserError("這是檔案，不是資料夾 (a file, not a folder)", folder, "指到放分詞器或模型的資料夾")
        config = _read_json(folder / "tokenizer_config.json")
        if (folder / "tokenizer.json").is_file():
            backend = _read_backend(folder / "tokenizer.json")
        elif (folder / "tokenizer.model").is_file():
            from transformers import AutoTokenizer

            backend = AutoTokenizer.from_pretrained(str(folder)).backend_tokenizer
        else:
            names = sorted(p.name for p in folder.iterdir())[:8]
            fix = "放入 tokenizer.json，或先執行 twllm tokenizer train"
            raise UserError(
                "這個資料夾沒有分詞器 (no tokenizer)",
                f"{folder}（{'有 ' + '、'.join(names) if names else '空資料夾'}）",
                fix,
            )
        template = folder / TEMPLATE_FILE
        source = template.read_text(encoding="utf-8") if template.is_file() else config.get("chat_template") or ""
        bos, eos, pad = (_token_text(config.get(f"{name}_token")) for name in ("bos", "eos", "pad"))
        return cls(backend, source, bos, eos or "</s>", pad)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` for transformers and everyone else."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos or None,
            "eos_token": self.eos,
            "pad_token": self.pad,
            "clean_up_tokenization_spaces": False,
            "add_bos_token": False,
            "model_max_length": 1_000_000,
        }
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )
        if self.template:
            (folder / TEMPLATE_FILE).write_text(self.template, encoding="utf-8")

    def with_template(self, name: str) -> "ChatTokenizer":
        """A copy that uses a shipped template.

        A begin or end token that the vocabulary has and the model knows is kept (Llama-3's, say), unless the template writes
        its own end token; what is missing is added at the vocabulary's end.
        """
        backend = Tokenizer.from_str(self.backend.to_str())
        source = load_template(name)
        bos, eos, *more = CONTROL_TOKENS[name]
        bos = self.bos if self.bos in self.controls or not self.bos else bos  # a base without one goes on without
        eos = self.eos if self.eos in self.controls and eos not in source else eos
        missing = [t for t in (bos, eos, *more) if t and backend.token_to_id(t) is None]
        backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in missing])
        return ChatTokenizer(backend, source, bos, eos, self.pad)

    def with_own_end(self) -> "ChatTokenizer":
        """A copy whose end token is the one that ends the template's answers: base models often name another (Qwen2's, Llama-3's), at which
        a trained model would not stop.
        """
        end = self.answer_end
        if end in (None, self.eos_id) or "eos_token" in self.template:
            return self
        name = next(name for name, id in self.controls.items() if id == end)
        return ChatTokenizer(self.backend, self.template, self.bos, name, self.pad)

    # -- facts --------------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def needed_rows(self) -> int:
        """Rows an embedding must have for what can turn up: added tokens past the pieces only where the template or the ends use them."""
        used = [id for name, id in self.controls.items() if name in (self.bos, self.eos) or name in self.template]
        return max(self.backend.get_vocab_size(with_added_tokens=False), *(id + 1 for id in used), 0)

    @property
    def bos_id(self) -> int | None:
        """Id of the begin token, None where the tokenizer has none."""
        return self.backend.token_to_id(self.bos) if self.bos else None

    @property
    def eos_id(self) -> int:
        """Id of the end token, which ends each answer and each document."""
        id = self.backend.token_to_id(self.eos)
        if id is None:
            raise UserError(
                "詞彙裡沒有結束符 (end token not in the vocabulary)",
                self.eos,
                "檢查 tokenizer_config.json 的 eos_token",
            )
        return id

    @property
    def answer_end(self) -> int | None:
        """Id of the control token that the template ends an answer with; None where that cannot be told."""
        if not self.template:
            return None
        try:
            found = self.encode_chat(PROBE)
        except UserError:  # a template of other roles
            return None
        last = next((id for id, learned in zip(found.ids[::-1], found.mask[::-1], strict=True) if learned), None)
        return last if last in self.control_ids else None

    @property
    def pad_id(self) -> int:
        """Id used for padding (the end token where no pad token is named)."""
        id = self.backend.token_to_id(self.pad)
        return self.eos_id if id is None else id

    @property
    def template_fingerprint(self) -> str:
        """Hash of everything that decides how a chat becomes ids: template, BOS and end token."""
        return fingerprint([self.template, self.bos, self.eos])

    # -- ids ----------------------------------------------------------------------------------------------------

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Ids of plain text; control tokens in it are taken as the characters they are. `bos` puts the begin token first."""
        ids: list[int] = self._plain.encode(clean_text(text), add_special_tokens=False).ids
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts, on all cores."""
        return [e.ids for e in self._plain.encode_batch([clean_text(t) for t in texts], add_special_tokens=False)]

    def render(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Rendered:
        """The chat as text with marked spans (see `template.render`)."""
        if not self.template:
            raise UserError(
                "這個分詞器沒有對話範本 (no chat template)",
                "tokenizer",
                "選一個：配方的 [template]，或 --template taiwan-llm-v2（也有 taiwan-llm-v1、chatml）",
            )
        return render(
            self.template,
            messages,
            add_generation_prompt=add_generation_prompt,
            bos_token=self.bos,
            eos_token=self.eos,
            tools=tools,
            control=self._control if self.controls else None,
        )

    def encode_chat(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = False,
        begin_answer: str = "",
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Encoded:
        """Ids and loss mask of a chat. Only the template's own control tokens become control ids, the typed ones stay text.

        A token is learned when it begins inside a `{% generation %}` span (without such: unmarked.py). `begin_answer`: what an answer is made to begin with,
        tokenised together with the chat before it (typed text; only with `add_generation_prompt`).
        """
        rendered = self.render(messages, add_generation_prompt=add_generation_prompt, tools=tools)
        if begin_answer:
            whole = rendered.text + begin_answer
            typed = (*rendered.typed, (len(rendered.text), len(whole)))
            rendered = replace(rendered, text=whole, typed=typed)
        encoding = self.backend.encode(rendered.text, add_special_tokens=False)
        ids, offsets = encoding.ids, encoding.offsets
        own = self._own_controls(rendered)
        if sum(id in self.control_ids for id in ids) != len(own):  # somebody typed a control token
            ids, offsets = self._encode_between(rendered.text, own)
        spans = rendered.learned
        if not self.marked and self.controls and not add_generation_prompt:
            spans = learned_spans(rendered, messages, self.render, self._control)
        return Encoded(list(ids), _inside(offsets, spans))

    def _own_controls(self, rendered: Rendered) -> list[tuple[int, int, int]]:
        """(start, end, id) of the control tokens that lie wholly in text the template wrote."""
        found, start = [], 0
        for low, high in [*rendered.typed, (len(rendered.text), 0)]:
            hits = self._control.finditer(rendered.text, start, low) if self.controls else ()
            found += [(hit.start(), hit.end(), self.controls[hit[0]]) for hit in hits]
            start = high
        return found

    def _encode_between(
        self, text: str, own: Iterable[tuple[int, int, int]]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode the stretches between our own control tokens as plain text: the same ids, minus the forgery."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        start = 0
        for low, high, id in [*own, (len(text), len(text), -1)]:
            if low > start:
                piece = self._plain.encode(text[start:low], add_special_tokens=False)
                ids += piece.ids
                offsets += [(a + start, b + start) for a, b in piece.offsets]
            if id >= 0:
                ids.append(id)
                offsets.append((low, high))
            start = high
        return ids, offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control tokens left out."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def stream(self, context: Sequence[int] = ()) -> "StreamDecoder":
        """A decoder for one answer that arrives id by id; `context`: the ids before it, where a space may hang on them."""
        return StreamDecoder(self, context)


class StreamDecoder:
    """Turns ids into text pieces whose concatenation is `decode(all ids)`; a piece never ends inside a character.

    Keeps a short window of ids: text is given out once it no longer ends in U+FFFD, the sign of unfinished UTF-8.
    """

    def __init__(self, tokenizer: ChatTokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = list(context)
        self._start, self._read = (
            0,
            len(self._ids),
        )  # window of ids: [start, read) is context already given out, [read, …) is new

    def push(self, id: int) -> str:
        """The text that this id completes, often one character, '' while a character is unfinished."""
        self._ids.append(id)
        before = self._tokenizer.decode(self._ids[self._start : self._read])
        after = self._tokenizer.decode(self._ids[self._start :])
        if after.endswith("\ufffd") or len(after) <= len(before):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return after[len(before) :]

    def finish(self) -> str:
        """What is left at the end (U+FFFD for bytes that never became a character)."""
        before = self._tokenizer.decode(self._ids[self._start : self._read])
        return self._tokenizer.decode(self._ids[self._start :])[len(before) :]


def _inside(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """For each token's (start, end), whether it starts in one of the ascending spans."""
    mask, span = [], 0
    for start, _ in offsets:
        while span < len(spans) and start >= spans[span][1]:
            span += 1
        mask.append(span < len(spans) and start >= spans[span][0])
    return mask


def _token_text(value: Any) -> str:
    return str(value.get("content", "")) if isinstance(value, dict) else str(value or "")


def _read_backend(path: Path) -> Tokenizer:
    try:
        backend: Tokenizer = Tokenizer.from_file(str(path))
        return backend
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"分詞器檔壞了 (broken tokenizer.json): {error}", path, "重新下載或重建這個檔案") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise UserError(f"JSON 壞了 (broken JSON): {error}", path, "重新下載或重建這個檔案") from error
