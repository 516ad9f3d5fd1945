"""judge_pair and judge_single: the model answers, a judge compares with another's answers in both orders, or rates each turn.

Everything that can be wrong (judge's address, key, the other's answers) is found before the first question is asked.
Answers of both sides are stored like any others; the judge's replies in `NAME.judge`, paid once.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twllm.errors import UserError
from twllm.evaluate.judge import Judge, open_judge
from twllm.evaluate.judged import pair_block, single_block
from twllm.evaluate.kinds import Options, Session, check, kind
from twllm.evaluate.kinds.generate import answer_items
from twllm.evaluate.model import HttpModel, Model, open_model
from twllm.evaluate.responses import ResponseFile
from twllm.evaluate.task import Item, Response, Task
from twllm.evaluate.turns import AnswerFile, Turns, is_answer_file, turn_item


@check("judge_single")
def check_judge(task: Task, items: list[Item], options: Options) -> None:
    """The judge is named, and its settings make sense."""
    open_judge(options.more, str(task.options["prompts"]), Path())


@check("judge_pair")
def check_pair(task: Task, items: list[Item], options: Options) -> None:
    """So is the opponent; its file has all answers."""
    check_judge(task, items, options)
    _opponent_file(items, options)


@kind("judge_pair")
def judge_pair(task: Task, items: list[Item], session: Session) -> dict[str, Any]:
    """Ours against the answers of `against`, each question judged in both orders."""
    judge, options = _judge(task, session), session.options
    opponent: Model = _opponent_file(items, options) or open_model(options.more["against"], options.max_new_tokens)
    ours, too_long = _ask(task, items, session)
    theirs = opponent.turns(items) if isinstance(opponent, AnswerFile) else _ask_other(opponent, items, session)
    return pair_block(task, items, ours, theirs, judge) | {
        "too_long": too_long,
        "opponent": {"name": str(options.more["against"]), "fingerprint": opponent.fingerprint},
    }


@kind("judge_single")
def judge_single(task: Task, items: list[Item], session: Session) -> dict[str, Any]:
    """The model's turns one after another, each rated 1 to 10."""
    judge = _judge(task, session)
    answers, too_long = _ask(task, items, session)
    return single_block(task, items, answers, judge) | {"too_long": too_long}


# -- asking -------------------------------------------------------------------------------------------------------


def _judge(task: Task, session: Session) -> Judge:
    stem = session.file.path.name.removesuffix(".responses.jsonl")
    wanted, allowed = int(task.options["max_new_tokens"]), session.options.max_new_tokens
    judge = open_judge(session.options.more, str(task.options["prompts"]), session.file.path.with_name(f"{stem}.judge"))
    if allowed < wanted and not isinstance(session.model, AnswerFile):
        told = f"注意：{task.name} 通常讓回答到 {wanted} 個詞元，現在是 {allowed}"
        print(f"{told} (answers will be cut; --max-new-tokens {wanted})", file=sys.stderr)
    return judge


def _opponent_file(items: Sequence[Item], options: Options) -> AnswerFile | None:
    """The file that `against` names, with answers to all items; None where it names a model.

    Raises:
        UserError: nobody is named, the file is not there or lacks answers.
    """
    against = str(options.more.get("against") or "")
    if not against:
        fix = "例如 --against model_answer/gpt-3.5-turbo.jsonl，或另一個模型、網址"
        raise UserError("兩兩比較要有對手 (--against is needed)", "--against", fix)
    if not is_answer_file(against):
        return None
    file = AnswerFile(Path(against))
    file.turns(items)
    return file


def _ask(task: Task, items: Sequence[Item], session: Session) -> tuple[Turns, int]:
    """The answers of the session's model, and how many turns did not fit into it."""
    if isinstance(session.model, AnswerFile):
        return session.model.turns(items), 0
    answers, responses, reused = _ask_turns(session.model, items, session.file, session)
    session.reused += reused
    session.kept += responses
    return answers, sum(row.too_long for row in responses)


def _ask_other(model: Model, items: Sequence[Item], session: Session) -> Turns:
    """The other model's answers, in a file of their own."""
    stem = session.file.path.name.removesuffix(".responses.jsonl")
    file = ResponseFile(session.file.path.with_name(f"{stem}.against.responses.jsonl"))
    answers, responses, _ = _ask_turns(model, items, file, session)
    file.keep(responses)
    if isinstance(model, HttpModel):
        model.close()
    return answers


def _ask_turns(
    model: Model, items: Sequence[Item], file: ResponseFile, session: Session
) -> tuple[Turns, list[Response], int]:
    """(answers, responses, how many were stored before): all first turns, then all second ones with the first answers in them.

    After a turn that does not fit, the later ones of that question are not asked either; their answers are empty.
    """
    answers: Turns = [[] for _ in items]
    responses: list[Response] = []
    reused = 0
    for _ in range(max(len(item.turns) for item in items)):
        turns = [turn_item(item, said) for item, said in zip(items, answers, strict=True)]
        lost = {row.id.rpartition("/")[0] for row in responses if row.too_long}
        asked = [turn for turn, item in zip(turns, items, strict=True) if item.id not in lost]
        options = session.options
        found, stored = answer_items(model, asked, file, options.max_new_tokens, options.batch_size)
        reused += stored
        for turn, said in zip(turns, answers, strict=True):
            unasked = Response(task=turn.task, id=turn.id, output="", prompt=turn.prompt, too_long=True)
            row = found.get((turn.task, turn.id), unasked)
            responses.append(row)
            said.append(row.output)
    return answers, responses, reused
