"""OASST (Open Assistant) exports → conversations: message trees, threads, and flat messages with `parent_id`.

Source of the form: LAION-AI/Open-Assistant, oasst-data/README.md and schemas.py at 095ec41. A path runs from the prompt to
an answer that no kept answer follows; `paths = "best"` keeps, at each branching, only the best ranked answer (the lowest
`rank`; unranked after ranked; then file order) and every follow-up question. With "all", paths share their first turns,
which are then learned once for each path.

Counted and left out: deleted and review_failed messages (with all below them), not_best answers, tree_state (a tree that moderators stopped),
no_parent (a flat message whose parent is missing), no_answer (a prompt nobody answered), language (a message of the path
is in another language). Not covered: labels (toxicity, quality) as filters; they stay in the tree.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from twllm.corpus.rows import BrokenRow
from twllm.tokens.config import DatasetConfig
from twllm.tokens.conversation import Tally, language_fits
from twllm.tokens.rows import Rows, file_rows

STOPPED = {"aborted_low_grade", "halted_by_moderator", "prompt_lottery_waiting", "initial_prompt_review"}
Node = Mapping[str, Any]


def read_oasst(file: Path, dataset: DatasetConfig, tally: Tally) -> Rows:
    """Rows with `messages` of every path; flat messages of a file are held in memory and put together at its end."""
    flat: dict[str, dict[str, Any]] = {}
    for place, row in file_rows(file):
        if isinstance(row, BrokenRow):
            yield place, row
        elif isinstance(row.get("prompt"), dict):
            yield from _careful(_tree, row["prompt"], row.get("tree_state"), place, file, dataset, tally)
        elif isinstance(row.get("thread"), list):
            yield from _careful(_thread, row, None, place, file, dataset, tally)
        elif row.get("message_id") and "role" in row:
            flat[str(row["message_id"])] = {**row, "replies": [], "place": place}
        else:
            yield place, BrokenRow("unknown_shape", f"不是 OASST 的樹或訊息 (no OASST tree)；欄位：{'、'.join(row)}")
    for root in grown(flat, tally, file):
        yield from _careful(_tree, root, root.get("tree_state"), root["place"], file, dataset, tally)


def _careful(
    reader: Callable[[Node, str, str, DatasetConfig, Tally], Rows],
    node: Node, state: Any, place: str, file: Path, dataset: DatasetConfig, tally: Tally,
) -> Rows:  # fmt: skip
    """The rows of a tree or thread; a stopped one is counted, one of another shape becomes a BrokenRow."""
    where = f"{file}:{place}"
    if isinstance(state, str) and state in STOPPED:
        tally.skip("tree_state", where)
        return
    try:
        yield from list(reader(node, where, place, dataset, tally))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        yield place, BrokenRow("unknown_shape", f"不是 OASST 的樹或訊息 (no OASST tree): {error}")


def grown(flat: dict[str, dict[str, Any]], tally: Tally, file: Path) -> list[dict[str, Any]]:
    """The roots of flat messages, every reply hung under its parent; in file order."""
    roots = []
    for node in flat.values():
        parent = node.get("parent_id")
        if not parent:
            roots.append(node)
        elif str(parent) in flat:
            flat[str(parent)]["replies"].append(node)
        else:
            tally.skip("no_parent", f"{file}:{node['place']}")
    return roots


def _tree(root: Node, where: str, place: str, dataset: DatasetConfig, tally: Tally) -> Rows:
    """Rows of a tree's paths."""
    found = 0
    for path in paths(root, dataset.paths == "best", tally, where):
        found += 1
        if not all(language_fits(node.get("lang"), dataset.languages) for node in path):
            tally.skip("language", where)
            continue
        yield place, _row(path, {})
    if not found and _left_out(root) is None:
        tally.skip("no_answer", where)


def _thread(row: Node, where: str, place: str, dataset: DatasetConfig, tally: Tally) -> Rows:
    """A thread is one path already."""
    path = [node for node in row["thread"] if isinstance(node, Mapping)]
    if not path:
        raise ValueError("an empty thread")
    reason = next((reason for node in path if (reason := _left_out(node))), None)
    if reason is None and not all(language_fits(node.get("lang"), dataset.languages) for node in path):
        reason = "language"
    if reason is not None:
        tally.skip(reason, where)
    else:
        yield place, _row(path, {"id": row.get("thread_id")})


def _left_out(node: Node) -> str | None:
    """Why a message and all below it are left out, or None."""
    if node.get("deleted"):
        return "deleted"
    return "review_failed" if node.get("review_result") is False else None


def paths(root: Node, best: bool, tally: Tally, where: str) -> Iterator[list[Node]]:
    """Every path from the root to a kept answer that no kept answer follows, depth first, without recursion."""
    if (reason := _left_out(root)) is not None:
        tally.skip(reason, where)
        return
    stack: list[list[Node]] = [[root]]
    while stack:
        path = stack.pop()
        onward = [[*path, node] for node in _replies(path[-1], best, tally, where)]
        if path[-1].get("role") == "assistant" and not any(_leads_on(step[-1], best) for step in onward):
            tally.repaired["open_question"] += bool(onward)
            yield path
        else:
            stack.extend(reversed(onward))


def _leads_on(node: Node, best: bool) -> bool:
    """Whether this message is an answer, or a question with a kept answer."""
    return any(n.get("role") == "assistant" for n in (node, *_replies(node, best, None, "")))


def _replies(node: Node, best: bool, tally: Tally | None, where: str) -> list[Node]:
    """The kept replies of a message; with `best`, of the answers only the best ranked."""
    kept: list[Node] = []
    for reply in node.get("replies") or ():
        reason = _left_out(reply)
        if reason is None and str(reply.get("text") or "").strip():
            kept.append(reply)
        elif tally is not None:
            tally.skip(reason or "empty_turn", where)
    answers = [reply for reply in kept if reply.get("role") == "assistant"]
    if best and len(answers) > 1:
        first = min(answers, key=lambda reply: (rank_of(reply) is None, rank_of(reply) or 0))
        kept = [reply for reply in kept if reply is first or reply.get("role") != "assistant"]
        if tally is not None:
            tally.skip("not_best", where, len(answers) - 1)
    return kept


def rank_of(node: Node) -> int | None:
    """The place that people gave an answer among its siblings: 0 is the best; None where nobody ranked."""
    rank = node.get("rank")
    return int(rank) if isinstance(rank, int | float) and not isinstance(rank, bool) else None


def _row(path: list[Node], more: dict[str, Any]) -> dict[str, Any]:
    """A path as a row: its id is the last message's, its rank the last answer's."""
    last = path[-1]
    row: dict[str, Any] = {
        "id": str(more.get("id") or last.get("message_id") or ""),
        "messages": [{"role": str(node.get("role")), "content": str(node.get("text") or "")} for node in path],
        "tree": str(path[0].get("message_id") or ""),
        "rank": rank_of(last),
        "ranks": [rank_of(node) for node in path if node.get("role") == "assistant"],
    }
    if lang := path[0].get("lang"):
        row["lang"] = str(lang)
    models = {str(node["model_name"] or "?") for node in path if node.get("synthetic") and "model_name" in node}
    models |= {"?" for node in path if node.get("synthetic") and "model_name" not in node}
    return row | ({"generator": "、".join(sorted(models))} if models else {})
