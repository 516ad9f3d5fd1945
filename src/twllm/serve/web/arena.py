"""The arena: one prompt, two hidden models, a vote, and only then their names. /api/leaderboard ranks them.

Pairs that have met rarely are drawn more often (chance ∝ 1 / (1 + battles of the pair)); who is side a is a coin toss.
Until the vote nothing tells the models apart: no name, no fingerprint, no header, the same error text for all. A vote in
a battle that asked for a model's name, or heard it, is stored with the flag "identity" and counts nowhere. State is in
the database, so any gateway goes on with a battle.
Not covered: a model that is recognised by its style or its speed; who has several browsers; battles with images.
"""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import StreamingResponse

from twllm.artifact import fingerprint
from twllm.feedback.battles import Battle, BattleError, Battles, Known
from twllm.feedback.leaderboard import leaderboard
from twllm.serve.api.event_stream import STREAM_HEADERS, sse
from twllm.serve.errors import ApiError
from twllm.serve.operation.service import Model, Service
from twllm.serve.web.compare import Chat, Piece, event_of, make_side, together
from twllm.serve.web.ratings import MAX_COMMENT, Body, User, facts_of

MAX_PROMPT = 20_000  # characters; chosen
CHANCE = random.SystemRandom()
ERRORS = {
    "unknown": (404, "找不到這場對戰 (no such battle)"),
    "voted": (409, "這場對戰已經投過票了 (already voted)"),
    "unfinished": (409, "兩邊都答完才能繼續；有一邊沒答完的話請開新的一場 (answers are not complete)"),
}
ASKS_NAME = re.compile(
    r"(你|妳|您)(到底|究竟|真的)?(是|叫)(什麼|甚麼|哪(一)?(個|種|家|款)?)(語言)?(模型|名字|AI|公司|機器人)"
    r"|(你|妳|您)(叫|的)(什麼|甚麼)?名字|(你|妳|您)是(誰|哪位)|(誰|哪(間|家)(公司)?|什麼公司)(訓練|開發|製造|做)(出來)?的?(你|妳|您)"
    r"|(你|妳|您)是(誰|哪(間|家)(公司)?|什麼公司)(訓練|開發|製造|做)|(你|妳|您)的(模型|版本|型號)|(自我介紹|介紹(一下)?(你|妳|您)自己)"
    r"|\b(what|which)('s| is| are)?\s+(your\s+name|you\s+called|(language\s+)?model(\s+are\s+you)?)"
    r"|\bwho\s+(are\s+you|(made|trained|created|built)\s+you)|\byour\s+(model\s+)?name\b",
    re.IGNORECASE,
)
SELF = re.compile(r"(我(是|叫|的名字)|本人是|i\s*am|i['’]m|my\s+name)", re.IGNORECASE)
TAIL = re.compile(r"([-_. ]?(v?\d+(\.\d+)*[bm]?|chat|instruct|base|it|gguf|tiny|mini))+$", re.IGNORECASE)


class BattleRequest(Body):
    """Body of POST /api/arena/battle."""

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]
    system: Annotated[str, Field(max_length=MAX_PROMPT)] = ""
    user: User = ""


class MoreRequest(Body):
    """Body of POST /api/arena/battle/{id}/more."""

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]
    user: User = ""


class VoteRequest(Body):
    """Body of POST /api/arena/vote."""

    battle: Annotated[str, Field(max_length=64)]
    vote: Literal["a", "b", "tie", "bad"]
    comment: Annotated[str, Field(max_length=MAX_COMMENT)] = ""
    consent: bool = False
    user: User = ""


def arena_routes(service: Service) -> APIRouter:
    """The router of a service; without two models there is a leaderboard and no battle."""
    router = APIRouter()
    battles = Battles(service.store)

    @router.post("/api/arena/battle")
    async def battle(body: BattleRequest) -> StreamingResponse:
        models = await asyncio.to_thread(draw, service, battles)
        system = [{"role": "system", "content": body.system}] if body.system.strip() else []
        chats = {side: [*system, {"role": "user", "content": body.prompt}] for side in models}
        user = service.store.pseudonym(body.user)
        sides = _sides(service, models, chats)
        known = {side: known_of(model) for side, model in models.items()}
        id = await asyncio.to_thread(battles.begin, user, known)
        return _stream(_write(battles, id, user, 1, sides, chats))

    @router.post("/api/arena/battle/{id}/more")
    async def more(id: str, body: MoreRequest) -> StreamingResponse:
        user = service.store.pseudonym(body.user)
        found = await asyncio.to_thread(_explained, battles.get, id, user)
        models = _same_models(service, found)
        chats = {side: [*chat, {"role": "user", "content": body.prompt}] for side, chat in found.chats.items()}
        if found.voted or found.turns < found.claimed:
            raise _error("voted" if found.voted else "unfinished")
        sides = _sides(service, models, chats)  # a prompt that does not fit must not use up the turn
        turn, _ = await asyncio.to_thread(_explained, battles.claim, id, user)
        return _stream(_write(battles, id, user, turn, sides, chats))

    @router.post("/api/arena/vote")
    def vote(body: VoteRequest) -> dict[str, Any]:
        found: Battle = _explained(battles.get, body.battle, service.store.pseudonym(body.user))
        if found.turns == 0 or (found.turns < found.claimed and found.age_s() < service.settings.request_timeout_s):
            raise _error("unfinished")
        flag = "identity" if names_heard(found) else ""
        text = fingerprint(service.settings.consent_text)
        _explained(battles.vote, found, body.vote, body.comment, body.consent, flag, text)
        names = {side: {"name": model.name} for side, model in found.models.items()}
        return {"stored": True, "counted": not flag, **names}

    @router.get("/api/leaderboard")
    def ranking() -> dict[str, Any]:
        return leaderboard(service.store)

    return router


def draw(service: Service, battles: Battles) -> dict[str, Model]:
    """Two models for side a and b.

    Raises:
        ApiError: 404, there is no arena here.
    """
    models = list(service.models.values())
    if len(models) < 2 or not service.settings.arena:
        raise ApiError("這個伺服器沒有擂台：至少要兩個模型 (no arena here)", 404, code="no_arena")
    met = battles.counts()
    pairs = [(one, other) for i, one in enumerate(models) for other in models[i + 1 :]]
    weights = [1 / (1 + met[frozenset((known_of(one), known_of(other)))]) for one, other in pairs]
    pair = list(CHANCE.choices(pairs, weights)[0])
    CHANCE.shuffle(pair)
    return {"a": pair[0], "b": pair[1]}


def known_of(model: Model) -> Known:
    """The model as the store knows it."""
    facts = facts_of(model)
    return Known(facts["model"], facts["model_fingerprint"], facts["template_fingerprint"])


def _same_models(service: Service, found: Battle) -> dict[str, Model]:
    """The battle's models, if they are still the same ones."""
    models = {side: service.models.get(known.name) for side, known in found.models.items()}
    if any(model is None or known_of(model) != found.models[side] for side, model in models.items()):
        raise ApiError("這場對戰的模型已經換掉了，請開新的一場 (models changed)", 409, code="unfinished")
    return {side: model for side, model in models.items() if model is not None}


def _sides(service: Service, models: dict[str, Model], chats: dict[str, Chat]) -> dict[str, Any]:
    try:
        return {side: make_side(service, model, chats[side]) for side, model in models.items()}
    except ApiError as error:  # its text would tell the model's context length
        raise ApiError("對話太長了 (too long)", param="prompt", code="context_length_exceeded") from error


async def _write(
    battles: Battles, id: str, user: str, turn: int, sides: dict[str, Any], chats: dict[str, Chat]
) -> AsyncIterator[str]:
    """The stream of one turn; a side's answer is stored before its end is told."""
    yield sse({"battle": id, "turn": turn})
    texts: dict[str, list[str]] = {side: [] for side in sides}
    async for piece in together(sides):
        texts[piece.side].append(piece.text)
        if piece.finish_reason is not None and not piece.failed:
            chat = [*chats[piece.side], {"role": "assistant", "content": "".join(texts[piece.side])}]
            try:
                await asyncio.to_thread(battles.answer, id, user, turn, piece.side, chat, piece.finish_reason)
            except Exception:
                piece = Piece(piece.side, failed=True)
        yield event_of("side", piece)
    yield "data: [DONE]\n\n"


def _stream(events: AsyncIterator[str]) -> StreamingResponse:
    return StreamingResponse(events, media_type="text/event-stream", headers=STREAM_HEADERS)


def _explained(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except BattleError as error:
        raise _error(error.reason) from error


def _error(reason: str) -> ApiError:
    status, message = ERRORS[reason]
    return ApiError(message, status, param="battle", code=reason)


# -- does the battle tell the names? --------------------------------------------------------------------------------


def names_heard(found: Battle) -> bool:
    """Whether the person asked who the models are, or a text holds one of their names.

    A whole name counts anywhere; a family name ("taiwan-llm" of "taiwan-llm-7b-v2") where a model speaks of itself.
    """
    said = [message for chat in found.chats.values() for message in chat]
    asked = [message["content"] for message in said if message["role"] != "assistant"]
    if any(ASKS_NAME.search(text) for text in asked):
        return True
    return any(_names(known.name, message["content"]) for message in said for known in found.models.values())


def _names(name: str, text: str) -> bool:
    whole, family = _plain(name), _plain(TAIL.sub("", name))
    plain = _plain(text)
    if len(whole) >= 5 and whole in plain:
        return True
    about_self = "".join(_plain(part) for part in re.split(r"[。！？!?\n]", text) if SELF.search(part))
    return any(len(word) >= 2 and word in about_self for word in (whole, family))


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).lower()
