"""FastChat's server logs and LMSYS arena rows → conversations.

A log line is one event: `chat` (or `regenerate`) with `state`, a vote `upvote`/`downvote` on it (→ rating +1/-1), or an arena vote
with two `states`: the winner's conversation is kept, both at a tie, none where both were bad. A conversation is logged
again at every turn; its last event counts, and its rating is kept. Rows of the arena data sets (`conversation_a`,
`conversation_b`, `winner`) are treated alike. People's addresses (`ip`) are not kept. The training file
(dummy_conversation.json) is ShareGPT-shaped and needs no reader. Source of the form: lm-sys/FastChat,
fastchat/serve/monitor/clean_chat_data.py (0283a0b) and clean_battle_data.py (01e89b4).

Counted and left out: superseded (an earlier event of a conversation), other_event, both_bad, server_error (an error text in
place of an answer), no_answer (nothing after the model's name). Not covered: pictures.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from twllm.corpus.rows import BrokenRow
from twllm.tokens.config import DatasetConfig
from twllm.tokens.conversation import Tally
from twllm.tokens.rows import Rows, file_rows

RATINGS = {"upvote": 1, "downvote": -1}
CHATS = {"chat", "regenerate", *RATINGS}
WINNERS = {"leftvote": (0,), "rightvote": (1,), "tievote": (0, 1), "bothbad_vote": ()}
NAMED = {"model_a": (0,), "model_b": (1,), "tie": (0, 1), "tie (bothbad)": ()}
ERRORS = ("network error due to high traffic", "$moderation$ your input violates", "api request error")


def read_fastchat(file: Path, dataset: DatasetConfig, tally: Tally) -> Rows:
    """One row a conversation, at the place of its last event; the file's conversations are held in memory."""
    last: dict[str, tuple[str, dict[str, Any]]] = {}
    for place, row in file_rows(file):
        if isinstance(row, BrokenRow):
            yield place, row
            continue
        where = f"{file}:{place}"
        try:
            events = list(_events(row, where, tally))
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            yield place, BrokenRow("unknown_shape", f"不是 FastChat 的紀錄 (no FastChat event): {error}")
            continue
        for found in events:
            key = str(found["id"]) if found.get("id") else where
            if key in last:
                tally.skip("superseded", f"{file}:{last[key][0]}")
                found["rating"] = found.get("rating") or last[key][1].get("rating")
            last.pop(key, None)
            last[key] = (place, found)
    for place, row in last.values():
        if any(error in text for text in _answers(row) for error in ERRORS):
            tally.skip("server_error", f"{file}:{place}")
        else:
            yield place, row


def _events(row: Mapping[str, Any], where: str, tally: Tally) -> Iterator[dict[str, Any]]:
    """The conversations an event or row speaks of."""
    kind = str(row.get("type") or row.get("winner") or "")
    if isinstance(row.get("state"), Mapping) and kind in (*CHATS, ""):
        yield _state(row["state"], row.get("model"), row, RATINGS.get(kind))
        return
    if isinstance(row.get("states"), list) and kind in WINNERS:
        sides = [(state, state.get("model_name")) for state in row["states"]]
        chosen = WINNERS[kind]
    elif "conversation_a" in row and kind in NAMED:
        sides = [({"messages": row[f"conversation_{s}"], "conv_id": f"{row.get('question_id', '')}/{s}"}, row.get(f"model_{s}")) for s in "ab"]  # fmt: skip
        chosen = NAMED[kind]
    elif "conversation" in row or "messages" in row:
        yield dict(row)
        return
    else:
        tally.skip("other_event", where)
        return
    if not chosen:
        tally.skip("both_bad", where)
    for side in chosen:
        yield {**_state(sides[side][0], sides[side][1], row, None), "vote": kind}


def _state(state: Mapping[str, Any], model: Any, row: Mapping[str, Any], rating: int | None) -> dict[str, Any]:
    """A served conversation as a row: its messages from `offset` on, which stand in turns whatever the roles are called."""
    offset = state.get("offset")
    told = list(state.get("messages") or ())[offset if isinstance(offset, int) else 0 :]
    messages = [
        dict(turn) if isinstance(turn, Mapping) else {"role": ("user", "assistant")[i % 2], "content": turn[1]}
        for i, turn in enumerate(told)
    ]
    found: dict[str, Any] = {"messages": messages, "id": state.get("conv_id"), "model": str(model or "")}
    if system := state.get("system_message") or state.get("system"):
        found["system"] = system
    if language := row.get("language"):
        found["language"] = language
    for key in ("license", "source", "tstamp"):
        if row.get(key) is not None:
            found[key] = row[key]
    return found | ({"rating": rating} if rating is not None else {})


def _answers(row: Mapping[str, Any]) -> list[str]:
    turns = row.get("messages") or row.get("conversation")
    return (
        []
        if not isinstance(turns, list)
        else [str(turn.get("content") or "").lower() for turn in turns if isinstance(turn, Mapping)]
    )
