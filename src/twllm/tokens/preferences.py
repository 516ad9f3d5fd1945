"""Rated answers for KTO and DPO: read, paired, and written as shards whose documents come in twos.

Rows are what `twllm feedback export` writes, and the shapes of TRL (KTO {prompt, completion, label}, DPO {prompt, chosen, rejected},
also with the prompt inside the two answers) and LLaMA-Factory (conversations or instruction in place of prompt); a row of messages with a
rating serves both, for DPO where answers to the same prompt were rated up and down. The loss covers the completion only, never
earlier answers of the conversation.
DPO shards hold chosen, rejected, chosen, …. KTO shards hold an answer and, after it, the same prompt with another row's
answer: such mismatched pairs estimate how far the model has moved (arXiv 2402.01306, section 4.1); `labels.npy` holds the label of
each document, 1, -1, or 0 for a mismatched one. Two documents that do not fit into a row together are left out, and counted.
Not covered: a completion with tool calls.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from twllm.artifact import canonical_json
from twllm.errors import UserError
from twllm.tokens.build import check_licences, data_facts
from twllm.tokens.config import DatasetConfig
from twllm.tokens.conversation import Conversation, Tally, label_of, read_dataset
from twllm.tokens.rows import list_files, read_rows
from twllm.tokens.shapes import CONTAINERS, raw_turns, tidy
from twllm.tokens.shards import write_shard
from twllm.tokens.tokenizer import ChatTokenizer

LABELS = "labels.npy"
MAX_PAIRS = 4  # of one prompt, made from rated answers: two people's arguments must not outweigh everything; chosen
Messages = tuple[dict[str, str], ...]
Method = Literal["kto", "dpo"]


@dataclass(frozen=True)
class Answer:
    """A completion of a prompt, and whether people wanted it (+1) or not (-1)."""

    id: str
    prompt: Messages
    completion: Messages
    label: int


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt; `chosen` was preferred."""

    id: str
    prompt: Messages
    chosen: Messages
    rejected: Messages


def read_preferences(dataset: DatasetConfig, method: Method) -> tuple[list[Answer] | list[Pair], dict[str, Any]]:
    """The rows of a data set for `method`, and facts about licences.

    Raises:
        UserError: a row has no rating, label or pair, no licence, or nothing is left.
    """
    rows = [row for file in list_files(dataset.path) for _, row in read_rows(file)]
    shaped = [row for row in rows if "chosen" in row or "label" in row]
    if not shaped:
        return _from_ratings(dataset, method)
    if len(shaped) < len(rows):
        raise UserError("這份資料混了不同的格式 (mixed shapes)", dataset.path, "一個檔案只放一種：ratings、kto 或 dpo")
    kind = "dpo" if "chosen" in shaped[0] else "kto"
    if kind != method:
        fix = f'用 twllm feedback export --format {method} 匯出，或設 feedback.method = "{kind}"'
        raise UserError(f"這份資料是給 {kind} 的 (made for {kind})", dataset.path, fix)
    found, stand_ins, tally = [], [], Tally(rows=len(rows))
    for number, row in enumerate(shaped):
        id = str(row.get("id") or f"{label_of(dataset.path)}/{number}")
        stand_ins.append(
            Conversation((), id=id, license=str(row.get("license") or dataset.license), metadata=dict(row))
        )
        try:
            made = _shaped(id, row, method)
        except ValueError as error:
            if dataset.on_broken == "skip":
                tally.skip("bad_row", id)
                continue
            fix = '修正這一列，或設 on_broken = "skip"；匯出格式見 docs/feedback.md'
            raise UserError(f"不是 {method} 的資料列 (bad row): {error}", f"{dataset.path}: {id}", fix) from error
        if isinstance(made, Pair) and made.chosen == made.rejected:
            tally.skip("same_answer", id)
        else:
            found.append(made)
    check_licences(dataset, stand_ins)
    return found, data_facts(stand_ins, tally)  # type: ignore[return-value]


def _shaped(id: str, row: Mapping[str, Any], method: Method) -> Answer | Pair:
    if method == "dpo":
        prompt, (chosen, rejected) = _split(row, ("chosen", "rejected"))
        return Pair(id, prompt, chosen, rejected)
    if "completion" not in row and (turns := _turns(row)):  # a whole conversation and a label
        row = {"prompt": list(turns[:-1]), "completion": list(turns[-1:]), "label": row.get("label")}
    prompt, (completion,) = _split(row, ("completion",))
    if row.get("label") not in (True, False, -1):  # 1 and 0 are equal to True and False
        raise ValueError(f"label 要是 true 或 false，不是 {row.get('label')!r}")
    return Answer(id, prompt, completion, 1 if row["label"] == 1 else -1)


def _split(row: Mapping[str, Any], keys: Sequence[str]) -> tuple[Messages, tuple[Messages, ...]]:
    """What was asked, and the completions under `keys`. Where a completion begins with what was asked (whole conversations, as in
    ultrafeedback_binarized), that is taken off; where nothing says what was asked, it is what two of them begin with.
    """
    if missing := [key for key in keys if row.get(key) is None]:
        raise ValueError(f"沒有 {'、'.join(missing)} (missing)")
    found = [_messages(row[key], "assistant", key) for key in keys]
    prompt = _asked(row)
    if prompt is None and len(found) == 2:
        same = [one == other for one, other in zip(*found, strict=False)]
        prompt = found[0][: same.index(False) if False in same else len(same)]
        prompt = prompt[:-1] if prompt and prompt[-1]["role"] == "assistant" else prompt
    if not prompt:
        raise ValueError("沒有 prompt (missing)：問題放在 prompt、messages、conversations 或 instruction")
    if prompt[-1]["role"] != "user":
        raise ValueError("prompt 最後一則要是 user (must end with user)")
    bare = tuple(one for one in prompt if one["role"] != "system")  # the completion may have gone without it
    rests = []
    for key, one in zip(keys, found, strict=True):
        whole = next((start for start in (prompt, bare) if one[: len(start)] == start), ())
        rests.append(one[len(whole) :])
        if rests[-1][0]["role"] != "assistant":
            raise ValueError(f"{key} 要從 assistant 開始，或和 prompt 一樣的開頭 (must begin with assistant)")
        tidy_chat([*prompt, *rests[-1]])  # raises where the whole is no conversation
    return prompt, tuple(rests)


def _asked(row: Mapping[str, Any]) -> Messages | None:
    """The prompt of a row: its own column, a list of turns, or Alpaca's instruction and input (LLaMA-Factory's files); None: none is named."""
    found: list[tuple[str, str]] | None = None
    if row.get("prompt") is not None:
        return _messages(row["prompt"], "user", "prompt")
    if turns := _turns(row):
        found = [(turn["role"], turn["content"]) for turn in turns]
    elif row.get("instruction") or row.get("question"):
        found = raw_turns({**row, "output": ".", "answer": "."})[:-1]
    if not found:
        return None
    system = row.get("system")
    if isinstance(system, str) and system.strip() and found[0][0] != "system":
        found = [("system", system), *found]
    return tuple({"role": role, "content": text} for role, text in found)


def _turns(row: Mapping[str, Any]) -> Messages:
    """The turns of a row that holds a list of them; else nothing."""
    key = next((key for key in CONTAINERS if isinstance(row.get(key), list)), "")
    return tuple({"role": role, "content": text} for role, text in raw_turns({key: row[key]})) if key else ()


def _messages(value: Any, role: str, key: str) -> Messages:
    """Messages (one alone, too), or one text that stands for a message of `role`."""
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    listed = [value] if isinstance(value, Mapping) else value
    if not isinstance(listed, list) or not listed or not all(isinstance(one, Mapping) for one in listed):
        raise ValueError(f"{key} 要是文字，或 role 與 content 的訊息 (a text or messages)")
    messages = tuple({"role": said, "content": text} for said, text in raw_turns({"messages": listed}))
    if messages[-1]["role"] != role:
        raise ValueError(f"{key} 最後一則要是 {role} (must end with {role})")
    if not messages[-1]["content"].strip():
        raise ValueError(f"{key} 是空的 (empty)")
    return messages


def _from_ratings(dataset: DatasetConfig, method: Method) -> tuple[list[Answer] | list[Pair], dict[str, Any]]:
    tally = Tally()
    rated = list(read_dataset(dataset, tally))
    check_licences(dataset, rated)
    for row in rated:
        if row.rating not in (1, -1):
            fix = "rating 要是 1 或 -1；用 twllm feedback export 匯出"
            raise UserError("這一筆沒有評分 (row without rating)", f"{dataset.path}: {row.id}", fix)
    answers = [Answer(row.id, row.messages[:-1], row.messages[-1:], row.rating or 0) for row in rated]
    facts = data_facts(rated, tally)
    if method == "kto":
        return answers, facts
    pairs = pair_up(answers)
    if not pairs:
        what = "沒有可比較的一對回答 (no pair): 同一個問題要有 👍 也有 👎 的回答"
        raise UserError(what, dataset.path, '先收集重新產生的回答或擂台的票，或設 feedback.method = "kto"')
    return pairs, facts


def pair_up(answers: Sequence[Answer]) -> list[Pair]:
    """Each wanted answer with each unwanted one to the same prompt, at most MAX_PAIRS of a prompt."""
    groups: dict[str, tuple[list[Answer], list[Answer]]] = defaultdict(lambda: ([], []))
    for answer in answers:
        groups[canonical_json(answer.prompt)][answer.label < 0].append(answer)
    pairs = []
    for wanted, unwanted in groups.values():
        both = [(good, bad) for good in wanted for bad in unwanted if good.completion != bad.completion]
        pairs += [Pair(f"{g.id}>{b.id}", g.prompt, g.completion, b.completion) for g, b in both[:MAX_PAIRS]]
    return pairs


def tokenize_preferences(
    out: Path, datasets: Sequence[DatasetConfig], tokenizer: ChatTokenizer, context: int, method: Method
) -> dict[str, Any]:
    """One shard a dataset (`000`, `001`, …) whose documents belong together in twos; counts for the manifest."""
    facts: dict[str, Any] = {}
    for number, dataset in enumerate(datasets):
        rows, about = read_preferences(dataset, method)
        counts = {"num_rows": len(rows), "num_too_long": 0}
        twos = _dpo_twos(rows) if method == "dpo" else _kto_twos(rows)  # type: ignore[arg-type]
        documents: list[tuple[str, list[int], list[bool] | None]] = []
        labels: list[int] = []
        for two in twos:
            encoded = [(id, *_encode(tokenizer, prompt, completion)) for id, prompt, completion, _ in two]
            if sum(len(ids) for _, ids, _ in encoded) > context or not all(any(mask) for *_, mask in encoded):
                counts["num_too_long"] += 1
                continue
            documents += encoded
            labels += [label for *_, label in two]
        if not documents:
            skipped = "、".join(f"{reason} {count}" for reason, count in about["skipped"].items())
            fix = f"提高 context（現在 {context}）：一對回答要放得進同一列"
            fix = f"檢查資料，全部略過了 (skipped)：{skipped}" if skipped and not counts["num_too_long"] else fix
            raise UserError("沒有放得下的資料 (nothing fits)", dataset.path, fix)
        folder = out / f"{number:03}"
        index = write_shard(folder, documents, tokenizer.vocab_size, method=method, **counts)
        np.save(folder / LABELS, np.asarray(labels, np.int8))
        facts[f"{number:03}"] = {"path": dataset.path, **about, **index}
    return facts


Document = tuple[str, Messages, Messages, int]


def _dpo_twos(pairs: Sequence[Pair]) -> Iterator[tuple[Document, Document]]:
    for pair in pairs:
        yield (
            (f"{pair.id} (chosen)", pair.prompt, pair.chosen, 1),
            (f"{pair.id} (rejected)", pair.prompt, pair.rejected, -1),
        )


def _kto_twos(answers: Sequence[Answer]) -> Iterator[tuple[Document, Document]]:
    """Each answer, and its prompt with the next completion that answers another prompt."""
    for number, answer in enumerate(answers):
        others = (answers[(number + step) % len(answers)] for step in range(1, len(answers)))
        other = next((o for o in others if o.prompt != answer.prompt), None)
        if other is None:
            what = "KTO 要兩個以上不同的問題 (needs two different prompts)"
            raise UserError(what, answer.id, '多收集一些評分，或用 feedback.method = "sft-positive"')
        mismatched = (f"{answer.id} (mismatched)", answer.prompt, other.completion, 0)
        yield (answer.id, answer.prompt, answer.completion, answer.label), mismatched


def _encode(tokenizer: ChatTokenizer, prompt: Messages, completion: Messages) -> tuple[list[int], list[bool]]:
    """Ids of the whole chat, and a mask of the completion's assistant turns: the last ones of the chat."""
    chat = tokenizer.encode_chat(tidy_chat([*prompt, *completion]))
    turns = sum(message["role"] == "assistant" for message in completion)
    starts = [i for i, learned in enumerate(chat.mask) if learned and (i == 0 or not chat.mask[i - 1])]
    if len(starts) < turns:
        return chat.ids, [False] * len(chat.ids)
    first = starts[-turns]
    return chat.ids, [learned and i >= first for i, learned in enumerate(chat.mask)]


def tidy_chat(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The messages as the template takes them."""
    from collections import Counter

    return tidy([(message["role"], message["content"]) for message in messages], Counter())
