"""Evaluation speed: ours against lm-evaluation-harness's hf backend, same model, questions, ids and machine, in one run.

Choices: TTQA and TMMLU by log-likelihood of the letters, through the chat template or (`--way text`) as plain text; DRCD: greedy answers
through the chat template. Both sides start from a loaded model and the items in memory, and end with marks (ours with stored
answers too). lm-eval runs as it comes (the checkpoint's dtype, fp32) with the best batch size of BATCHES, looked for on the same questions first; beside it in bf16, which it
does only when told. Ours runs as it comes (bf16 where the CPU multiplies it, close choices decided in fp32) and, for answers,
in fp32, where both write the same text; bf16 writes other text where a random model hesitates, so it is told apart.
The model has random weights in the shape of recipes/mini.toml (25 M, 16,000 pieces), the tokenizer is trained on the questions and
our conversations. Begin token: written into lm-eval's prompts, whose tokenizer adds none (INTERFACES: it must be there once).

    python benchmarks/eval_speed.py --data TC-EVAL-FOLDER --drcd DRCD_test.json    # needs: pip install -e '.[bench]'
"""

import argparse
import itertools
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")
BATCHES = (1, 2, 4, 8, 16)  # tried for lm-eval
PROBE = 16  # questions of each task, in the search for its batch size
CONTEXT = 2048


def make_checkpoint(folder: Path, size: str, vocab_size: int, texts: list[str]) -> None:
    """A random Llama and a tokenizer: both sides start from this folder."""
    from twllm.model.build import build, save
    from twllm.tokens.config import TokenizerConfig
    from twllm.tokens.conversation import read_conversations
    from twllm.tokens.train import train_tokenizer

    sources = ("twllm:taiwan_instruction", "twllm:taiwan_facts")
    texts = texts + [m["content"] for source in sources for row in read_conversations(source) for m in row.messages]
    config = TokenizerConfig(vocab_size=vocab_size, min_frequency=1, max_piece_chars=6)
    tokenizer = train_tokenizer(texts, config, "taiwan-llm-v2")
    save(build(size, tokenizer, CONTEXT, 0), tokenizer, folder)


def read(args: argparse.Namespace) -> tuple[dict[Any, list[Any]], list[Any]]:
    """Items by choice task, evenly thinned out to --limit, and the first --drcd-limit DRCD questions (their paragraphs whole)."""
    from twllm.evaluate.kinds.likelihood import by_likelihood
    from twllm.evaluate.sources import read_items
    from twllm.evaluate.task import find_tasks, tasks

    wanted, _ = by_likelihood(find_tasks(["ttqa", "tmmlu"], "strict"), "likelihood")
    choices = {task: read_items(task, "", args.data) for task in wanted}
    total = sum(map(len, choices.values()))
    if args.limit and args.limit < total:
        for task, items in choices.items():
            count = max(1, round(len(items) * args.limit / total))
            choices[task] = [items[i * len(items) // count] for i in range(count)]
    drcd = tasks()["drcd@strict"]
    return choices, read_items(drcd, "", None, args.drcd)[: args.drcd_limit or None]


# -- ours -----------------------------------------------------------------------------------------------------------


def our_choices(model: Any, choices: dict[Any, list[Any]], way: str) -> tuple[float, dict[str, str]]:
    """Seconds, and the letter by item id, through the kind that `twllm eval` runs."""
    from twllm.evaluate.kinds import Options, Session
    from twllm.evaluate.kinds.likelihood import likelihood
    from twllm.evaluate.responses import ResponseFile

    with tempfile.TemporaryDirectory() as folder:
        session = Session(model, ResponseFile(Path(folder) / "r.jsonl"), Options(more={"ask": way}))
        start = time.perf_counter()
        blocks = [likelihood(task, items, session) for task, items in choices.items()]
        seconds = time.perf_counter() - start
    return seconds, {
        f"{block['task']['name']}/{row['id']}": row["answer"] for block in blocks for row in block["items"]
    }


def our_answers(model: Any, items: Sequence[Any], max_new_tokens: int) -> tuple[float, list[str]]:
    """Seconds, and the answers in the items' order."""
    from twllm.evaluate.kinds.generate import answer_items
    from twllm.evaluate.responses import ResponseFile

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        answers, _ = answer_items(model, items, ResponseFile(Path(folder) / "r.jsonl"), max_new_tokens, 128)
        seconds = time.perf_counter() - start
    return seconds, [answers[(item.task, item.id)].output for item in items]


# -- lm-evaluation-harness ------------------------------------------------------------------------------------------


def lm_task(name: str, rows: list[dict[str, Any]], config: dict[str, Any]) -> Any:
    """A task of lm-eval over rows in memory."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    data = Dataset.from_list(rows)
    return ConfigurableTask(
        config={
            "task": name, "custom_dataset": lambda **_: {"test": data}, "test_split": "test", "doc_to_text": "prompt",
            "target_delimiter": "", **config,
        }
    )  # fmt: skip


def choice_tasks(choices: dict[Any, list[Any]], tokenizer: Any, way: str) -> list[Any]:
    """lm-eval's multiple choice over the same ids: plain text, or the chat as rendered and the template's space before a letter."""
    from twllm.evaluate.kinds.likelihood import question_of
    from twllm.serve.engines.decoding.text import answer_lead

    def text(question: Any) -> str:
        chat = [{"role": "user", "content": question.prompt}]
        whole = (
            tokenizer.render(chat, add_generation_prompt=True).text
            if way == "chat"
            else tokenizer.bos + question.prompt
        )
        return str(whole + question.prefix)

    lead = answer_lead(tokenizer) if way == "chat" else ""

    made = []
    for task, items in choices.items():
        questions = [question_of(task, item, way) for item in items]
        rows = [
            {
                "id": item.id,
                "prompt": text(q),
                "answers": [lead + choice for choice in q.choices],
                "gold": q.choices.index(item.references[0]),
            }
            for item, q in zip(items, questions, strict=True)
        ]
        metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
        config = {
            "output_type": "multiple_choice",
            "doc_to_choice": "answers",
            "doc_to_target": "gold",
            "metric_list": metrics,
        }
        made.append(lm_task(task.name, rows, config))
    return made


def answer_task(items: Sequence[Any], render: Callable[[Any], str], max_new_tokens: int) -> Any:
    """lm-eval's generate_until over the same chats; nothing but the end token stops an answer, as with us."""
    rows = [{"id": item.id, "prompt": render(item), "target": item.references[0]} for item in items]
    limits = {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": max_new_tokens}
    metrics = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    config = {
        "output_type": "generate_until",
        "doc_to_target": "target",
        "generation_kwargs": limits,
        "metric_list": metrics,
    }
    return lm_task("drcd", rows, config)


def run_lm(lm: Any, made: list[Any], batch_size: int, limit: int | None = None) -> tuple[float, dict[str, Any]]:
    """Seconds, and lm-eval's samples by task."""
    from lm_eval import simple_evaluate

    lm.batch_size_per_gpu = batch_size
    start = time.perf_counter()
    results = simple_evaluate(lm, tasks=made, limit=limit, bootstrap_iters=0, log_samples=True, verbosity="ERROR")
    return time.perf_counter() - start, results["samples"]


def best_batch(lm: Any, made: list[Any]) -> int:
    """The batch size with which lm-eval is fastest on the first questions."""
    return min(BATCHES, key=lambda size: run_lm(lm, made, size, limit=PROBE)[0])


def open_lm(folder: Path, dtype: str) -> Any:
    """The hf backend on the checkpoint."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype=dtype, batch_size=1)


def letters(samples: dict[str, Any]) -> dict[str, str]:
    """The most likely choice by item id."""
    found = {}
    for name, rows in samples.items():
        for row in rows:
            likelihoods = [float(logprob) for logprob, _ in row["filtered_resps"]]
            found[f"{name}/{row['doc']['id']}"] = row["doc"]["answers"][likelihoods.index(max(likelihoods))].strip()
    return found


def texts_of(samples: dict[str, Any]) -> list[str]:
    """The answers in the items' order."""
    return [row["resps"][0][0].strip() for row in sorted(samples["drcd"], key=lambda row: row["doc_id"])]


# -- both -----------------------------------------------------------------------------------------------------------


def compare_choices(folder: Path, choices: dict[Any, list[Any]], args: argparse.Namespace) -> dict[str, Any]:
    """Questions a second of both, and how many answers agree."""
    from twllm.evaluate.model import LocalModel
    from twllm.tokens.tokenizer import ChatTokenizer

    ours, theirs, half = LocalModel(folder, 8), open_lm(folder, "auto"), open_lm(folder, "bfloat16")
    count = sum(map(len, choices.values()))
    made = choice_tasks(choices, ChatTokenizer.load(folder), args.way)
    sizes = {id(lm): best_batch(lm, made) for lm in (theirs, half)}
    our_choices(
        ours, {task: items[:32] for task, items in choices.items()}, args.way
    )  # the second model is loaded here, too
    times: dict[str, list[float]] = {"ours": [], "lm-eval": [], "lm-eval bf16": []}
    for _ in range(args.rounds):
        seconds, said = our_choices(ours, choices, args.way)
        times["ours"].append(seconds)
        for name, lm in (("lm-eval", theirs), ("lm-eval bf16", half)):
            seconds, samples = run_lm(lm, made, sizes[id(lm)])
            times[name].append(seconds)
            if lm is theirs:
                reference = letters(samples)
            else:
                other = letters(samples)
    speed = {name: round(count / statistics.median(values), 2) for name, values in times.items()}
    return {
        "questions": count, "questions_s": speed, "precision": ours.precision,
        "lm_eval_batch": sizes[id(theirs)], "lm_eval_bf16_batch": sizes[id(half)],
        "equal": sum(said[key] == reference[key] for key in reference),
        "lm_eval_bf16_equal": sum(other[key] == reference[key] for key in reference),
    }  # fmt: skip


def compare_answers(folder: Path, items: Sequence[Any], args: argparse.Namespace) -> dict[str, Any]:
    """Questions a second of both, and how many answers agree."""
    from twllm.evaluate.model import LocalModel
    from twllm.tokens.tokenizer import ChatTokenizer

    tokenizer, new = ChatTokenizer.load(folder), args.max_new_tokens
    made = [answer_task(items, lambda item: tokenizer.render(item.messages, add_generation_prompt=True).text, new)]
    theirs, half = open_lm(folder, "auto"), open_lm(folder, "bfloat16")
    sizes = {id(lm): min((4, 8, 16), key=lambda s, lm=lm: run_lm(lm, made, s, limit=16)[0]) for lm in (theirs, half)}
    runs = {"ours": LocalModel(folder, new, "fp32"), "ours bf16": LocalModel(folder, new, "bf16")}
    times: dict[str, list[float]] = {"ours": [], "ours bf16": [], "lm-eval": [], "lm-eval bf16": []}
    said: dict[str, list[str]] = {}
    for model in runs.values():
        our_answers(model, items[:4], 4)
    for _ in range(args.rounds):
        for name, model in runs.items():
            seconds, said[name] = our_answers(model, items, new)
            times[name].append(seconds)
        for name, lm in (("lm-eval", theirs), ("lm-eval bf16", half)):
            seconds, samples = run_lm(lm, made, sizes[id(lm)])
            times[name].append(seconds)
            said[name] = texts_of(samples)
    return {
        "questions": len(items), "questions_s": {n: round(len(items) / statistics.median(t), 2) for n, t in times.items()},
        "lm_eval_batch": sizes[id(theirs)], "max_new_tokens": new, "different_answers": len(set(said["ours"])),
        **{f"{name}_equal".replace(" ", "_").replace("-", "_"): sum(a == b for a, b in zip(said[name], said["lm-eval"], strict=True)) for name in ("ours", "ours bf16", "lm-eval bf16")},
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="TC-Eval data folder (TTQA, TMMLU)")
    parser.add_argument("--drcd", type=Path, required=True, help="DRCD_test.json")
    parser.add_argument("--size", default="mini")
    parser.add_argument("--vocab-size", type=int, default=16000)
    parser.add_argument("--limit", type=int, default=200, help="choice questions; 0: all")
    parser.add_argument("--drcd-limit", type=int, default=40, help="0: all")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--way", choices=("text", "chat"), default="chat", help="how choices are asked")
    parser.add_argument("--only", choices=("choice", "generate"))
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    choices, drcd = read(args)
    found: dict[str, Any] = {"size": args.size, "way": args.way, "threads": args.threads}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(
            folder, args.size, args.vocab_size, [item.prompt for item in [*itertools.chain(*choices.values()), *drcd]]
        )
        if args.only != "generate":
            found["choice"] = compare_choices(folder, choices, args)
            speed = found["choice"]["questions_s"]
            found["ratio_choice"] = round(speed["ours"] / speed["lm-eval"], 2)
            found["ratio_choice_both_bf16"] = round(speed["ours"] / speed["lm-eval bf16"], 2)
        if args.only != "choice":
            found["generate"] = compare_answers(folder, drcd, args)
            speed = found["generate"]["questions_s"]
            found["ratio_generate"] = round(speed["ours"] / speed["lm-eval"], 2)
            found["ratio_generate_bf16"] = round(speed["ours bf16"] / speed["lm-eval"], 2)
            found["ratio_generate_both_bf16"] = round(speed["ours bf16"] / speed["lm-eval bf16"], 2)
    same = [
        found[part][key] == found[part]["questions"]
        for part, key in (("choice", "equal"), ("generate", "ours_equal"))
        if part in found
    ]
    found["answers_equal"] = all(same)
    print("RESULT " + json.dumps(found, ensure_ascii=False))


if __name__ == "__main__":
    main()
