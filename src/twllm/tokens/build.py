"""Documents and conversations → token shards."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from twllm.errors import UserError
from twllm.tokens.config import DatasetConfig
from twllm.tokens.conversation import Conversation, Tally, read_dataset
from twllm.tokens.shards import TokenShard, write_shard
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.tokens.unmarked import PROBE

BATCH = 1000  # documents tokenised at a time, on all cores


def text_shard(folder: Path, documents: Iterable[tuple[str, str]], tokenizer: ChatTokenizer) -> dict[str, Any]:
    """(id, text) → `<BOS> text <EOS>`, every token learned. The index also counts characters, for bits per character."""
    chars = 0

    def encoded() -> Iterator[tuple[str, list[int], None]]:
        nonlocal chars
        for names, texts in _batches(documents):
            for name, text, ids in zip(names, texts, tokenizer.encode_batch(texts), strict=True):
                chars += len(text)
                yield name, [*([] if tokenizer.bos_id is None else [tokenizer.bos_id]), *ids, tokenizer.eos_id], None

    index = write_shard(folder, encoded(), tokenizer.vocab_size)
    return _add_facts(folder, index, num_chars=chars)


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[tuple[list[str], list[str]]]:
    names: list[str] = []
    texts: list[str] = []
    for name, text in documents:
        names.append(name)
        texts.append(text)
        if len(names) == BATCH:
            yield names, texts
            names, texts = [], []
    if names:
        yield names, texts


def tokenize_corpus(out: Path, corpus: Path, labels: Sequence[str], tokenizer: ChatTokenizer) -> dict[str, Any]:
    """One shard a source (`000`, `001`, …, in the recipe's order) and one `held_out` shard over all of them."""
    from twllm.corpus.build import read_documents

    facts: dict[str, Any] = {}
    for number, label in enumerate(labels):
        documents = ((d.id, d.text) for d in read_documents(corpus) if d.source == label)
        facts[f"{number:03}"] = {"source": label, **text_shard(out / f"{number:03}", documents, tokenizer)}
    facts["held_out"] = text_shard(
        out / "held_out", ((d.id, d.text) for d in read_documents(corpus, "held_out")), tokenizer
    )
    return facts


def tokens_by_source(folder: Path, labels: Sequence[str]) -> dict[str, int]:
    """Tokens of each source in a folder that `tokenize_corpus` filled, by name."""
    return {label: int(TokenShard(folder / f"{n:03}").index["num_tokens"]) for n, label in enumerate(labels)}


def chat_shard(
    folder: Path,
    conversations: Iterable[Conversation],
    tokenizer: ChatTokenizer,
    context: int,
    *,
    may_be_empty: bool = False,
    where: str = "",
) -> dict[str, Any]:
    """Conversations → chat ids with the loss on the assistant's tokens.

    A conversation longer than `context` is cut after its last whole turn that fits, and counted; one whose first answer
    does not fit is left out, and counted.
    """
    if tokenizer.template and not tokenizer.marked and not any(tokenizer.encode_chat(PROBE).mask):
        known = "chatml" if "<|im_start|>" in tokenizer.template else "taiwan-llm-v2"
        raise UserError(
            "看不出對話範本裡哪些是助理說的話 (no {% generation %}, and an answer does not follow its prompt)",
            "chat_template",
            f"在範本裡加上 {{% generation %}}，或換內建的範本：--template {known}",
        )
    counts = {"num_conversations": 0, "num_shortened": 0, "num_too_long": 0}

    def encoded() -> Iterator[tuple[str, list[int], list[bool]]]:
        for conversation in conversations:
            counts["num_conversations"] += 1
            messages = list(conversation.messages)
            chat = tokenizer.encode_chat(messages)
            whole = len(chat.ids)
            while len(chat.ids) > context and len(messages) > 2:
                messages = _without_last_turn(messages)
                chat = tokenizer.encode_chat(messages)
            if len(chat.ids) > context or not any(chat.mask):
                counts["num_too_long"] += 1
                continue
            counts["num_shortened"] += len(chat.ids) < whole
            yield conversation.id, chat.ids, chat.mask

    index = write_shard(folder, encoded(), tokenizer.vocab_size)
    if not index["num_documents"] and not may_be_empty:
        raise UserError("沒有可訓練的對話 (no conversation fits)", where or folder.name, _why_none(counts, context))
    return _add_facts(folder, index, **counts)


def _why_none(counts: dict[str, int], context: int) -> str:
    if not counts["num_conversations"]:
        return "檔案裡沒有對話 (no rows); 檢查資料"
    return f"{counts['num_too_long']} 筆都放不進 context（現在 {context}）：提高 context，或檢查資料"


def _without_last_turn(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Drop the last user message and everything after it."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    return messages[:last] if last > 0 else messages[:1]


def _add_facts(folder: Path, index: dict[str, Any], **facts: Any) -> dict[str, Any]:
    from twllm.artifact import write_json

    index |= facts
    write_json(folder / "index.json", index)
    return index


def load_rated(
    path: str | Path, format: str = "messages", *, dataset: DatasetConfig | None = None, tally: Tally | None = None
) -> list[Conversation]:
    """Conversations rated +1 (of `dataset` where it is given, with all its settings).

    Raises:
        UserError: a row carries no rating, or none is positive.
    """
    found = dataset or DatasetConfig.model_validate({"path": str(path), "format": format})
    rows = list(read_dataset(found, tally))
    if any(row.rating not in (1, -1) for row in rows):
        bad = next(row.id for row in rows if row.rating not in (1, -1))
        raise UserError(
            "這一筆沒有評分 (row without rating)",
            f"{path}: {bad}",
            "rating 要是 1 或 -1；用 twllm feedback export 匯出",
        )
    positive = [row for row in rows if row.rating == 1]
    if not positive:
        raise UserError("沒有好評的回答可學 (no positive rating)", path, "先收集 👍，或把 feedback.enabled 設為 false")
    return positive


def split_held_out(
    conversations: Sequence[Conversation], share: float
) -> tuple[list[Conversation], list[Conversation]]:
    """(train, held out), by a hash of the id: the same conversation always falls on the same side."""
    held = [
        c
        for c in conversations
        if int(hashlib.sha256(c.id.encode("utf-8", "surrogatepass")).hexdigest()[:8], 16) / 2**32 < share
    ]
    chosen = {id(c) for c in held}
    return [c for c in conversations if id(c) not in chosen], held


def tokenize_chats(
    out: Path,
    datasets: Sequence[DatasetConfig],
    tokenizer: ChatTokenizer,
    context: int,
    held_out: float,
    method: str | None,
) -> dict[str, Any]:
    """The shards of a chat phase; `method` is the feedback phase's (None: SFT)."""
    if method in ("kto", "dpo"):
        from twllm.tokens.preferences import tokenize_preferences

        return tokenize_preferences(out, datasets, tokenizer, context, "kto" if method == "kto" else "dpo")
    return tokenize_datasets(out, datasets, tokenizer, context, held_out, rated=method is not None)


def tokenize_datasets(
    out: Path, datasets: Sequence[DatasetConfig], tokenizer: ChatTokenizer, context: int, held_out: float, rated: bool
) -> dict[str, Any]:
    """One shard a dataset (`000`, `001`, …) and, with `held_out` > 0, one `held_out` shard over all of them."""
    facts: dict[str, Any] = {}
    kept: list[Conversation] = []
    for number, dataset in enumerate(datasets):
        tally = Tally()
        if rated:
            rows = load_rated(dataset.path, dataset=dataset, tally=tally)
        else:
            rows = list(read_dataset(dataset, tally))
        check_licences(dataset, rows)
        train, held = split_held_out(rows, held_out)
        kept += held
        if rows and not train:
            fix = "把 held_out 調小，或多給一些資料"
            raise UserError(f"held_out = {held_out} 保留了全部的對話 (all are held out)", dataset.path, fix)
        shard = chat_shard(out / f"{number:03}", train, tokenizer, context, where=dataset.path)
        facts[f"{number:03}"] = {"path": dataset.path, **data_facts(rows, tally), **shard}
    if kept:
        facts["held_out"] = chat_shard(out / "held_out", kept, tokenizer, context, may_be_empty=True)
    return facts


def check_licences(dataset: DatasetConfig, rows: Iterable[Conversation]) -> None:
    """Refuse a conversation that has no licence, neither its own nor the data set's.

    Raises:
        UserError: there is one; it is named.
    """
    if unlicensed := next((row.id for row in rows if not row.license), None):
        fix = '在資料列加 "license"，或在配方的 datasets 加 license = "…"（twllm train：--license …）'
        raise UserError("對話沒有授權條款 (no licence)", f"{dataset.path}: {unlicensed}", fix)


def data_facts(rows: Iterable[Conversation], tally: Tally) -> dict[str, Any]:
    """What the model card and the manifest tell of a data set: rows by licence, by the model that wrote them, left out."""
    licences, generators = Counter[str](), Counter[str]()
    for row in rows:
        licences[row.license] += 1
        if row.generator:
            generators[row.generator] += 1
    return {
        "licenses": dict(licences.most_common()),
        "generators": dict(generators.most_common()),
        "skipped": dict(tally.skipped.most_common()),
        "repaired": dict(tally.repaired.most_common()),
    }
