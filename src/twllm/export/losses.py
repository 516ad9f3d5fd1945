"""What quantisation cost: bits per character on held-out Taiwan text and the culture score, of the original and of the copy.

The text is the shipped page of `no_harm` (zh_tw), which is measured and never trained on; the questions are from `twllm:culture`. A folder
is asked through transformers itself, which opens every kind of quantised weights whose library is there, a GGUF file through llama.cpp
(bits only). What cannot be opened here is told as not measured, never left out.
Price: a 1.3 M model with 100 questions takes seconds, 7B on a CPU hours: `--no-scores` leaves it out.
"""

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twllm import data
from twllm.errors import UserError
from twllm.tokens.tokenizer import ChatTokenizer

TEXT = "twllm:no_harm"  # its page in zh_tw
QUESTIONS = 100  # of the culture suite, evenly spread; chosen
ANSWER_TOKENS = 64  # evaluate_model's own
log = logging.getLogger("twllm")


class PlainModel:
    """A folder in transformers, weights as they are stored: what `evaluate` asks, and what `bits` reads the text with."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging as transformers_logging

        from twllm.model.hub import fetch
        from twllm.serve.engines.checkpoint import end_ids, model_fingerprint, read_generation_config

        transformers_logging.disable_progress_bar()
        folder = fetch(str(folder))
        self.tokenizer = ChatTokenizer.load(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True).eval()
        self.context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.end_ids = end_ids(self.tokenizer, read_generation_config(folder))
        self.fingerprint, self.template_fingerprint = model_fingerprint(folder), self.tokenizer.template_fingerprint

    def __call__(self, chats: Sequence[list[dict[str, str]]]) -> list[str | None]:
        """Greedy answers."""
        from twllm.serve.engines.torch.padded import decode_batch

        prompts = [self.tokenizer.encode_chat(chat, add_generation_prompt=True).ids for chat in chats]
        room = [
            ANSWER_TOKENS if self.context is None else min(ANSWER_TOKENS, self.context - len(ids)) for ids in prompts
        ]
        answers = decode_batch(self.model, prompts, room, self.end_ids)
        return [
            self.tokenizer.decode(ids).strip() if left > 0 else None for ids, left in zip(answers, room, strict=True)
        ]


def measure_folder(folder: Path, work: Path, questions: int = QUESTIONS) -> dict[str, Any]:
    """`bits` per character, `culture` score and `n`; without a chat template, or with 0 questions, the bits only."""
    from twllm.evaluate.bits import Windows, text_bits

    model = PlainModel(folder)
    read = [text_bits(model, text, Windows(1024, 512)) for text in held_out()]
    found: dict[str, Any] = {"bits": sum(text.bits for text in read) / sum(text.chars for text in read)}
    if questions and model.tokenizer.template:
        found |= _culture(model, work, questions)
    return found


def _culture(model: PlainModel, work: Path, questions: int) -> dict[str, Any]:
    from twllm.evaluate.kinds import Options, Session, find_kind
    from twllm.evaluate.responses import ResponseFile
    from twllm.evaluate.sources import read_items
    from twllm.evaluate.task import find_tasks

    (task,) = find_tasks(["culture"])
    items = read_items(task, "twllm:culture", None)
    items = [items[i * len(items) // questions] for i in range(questions)] if questions < len(items) else items
    options = Options("twllm:culture", None, questions, ANSWER_TOKENS, 32, "", {})
    block = find_kind(task.kind)(task, items, Session(model, ResponseFile(work / "culture.jsonl"), options))
    return {"culture": block["score"], "n": block["n"]}


def measure_gguf(file: Path, folder: Path) -> dict[str, Any]:
    """`bits` per character of a GGUF file in llama.cpp; `folder` is the checkpoint it came from."""
    from twllm.serve.engines.cpu.llamacpp import LlamaCppRunner

    tokenizer = ChatTokenizer.load(folder)
    start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    runner = LlamaCppRunner(
        file, precision="q8_0", slots=1
    )  # the one that does not repack: repacked blocks crash on AMX (0.3.36)
    bits, chars = 0.0, 0
    try:
        for text in held_out():
            ids = [start, *tokenizer.encode(text)][: runner.context]
            bits -= math.fsum(runner.prompt_logprobs([ids], 1)[0].given) / math.log(2)
            chars += len(tokenizer.decode(ids[1:]))
    finally:
        runner.close()
    return {"bits": bits / chars}


def loss_row(name: str, before: dict[str, Any], after: dict[str, Any], sizes: tuple[int, int]) -> dict[str, Any]:
    """One row of the card."""
    row: dict[str, Any] = {"format": name, "bytes_before": sizes[0], "bytes_after": sizes[1]}
    for key in ("bits", "culture"):
        row[f"{key}_before"], row[f"{key}_after"] = before.get(key), after.get(key)
    return row | ({"n": after["n"]} if "n" in after else {})


def try_measuring(measure: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """The measurement, or {} with a warning where a library for this kind of weights is missing or cannot run here."""
    try:
        return measure(*given)
    except (ImportError, RuntimeError, NotImplementedError, ValueError, UserError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        log.warning("量不到量化後的分數 (not measured)：%s", first)
        return {}


def held_out() -> list[str]:
    """The page, one text a paragraph."""
    lines = (data.resolve(TEXT) / "zh_tw.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]
