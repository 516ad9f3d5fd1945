"""API keys at the door: who may call, how often, and how many tokens a day.

Either one key for everything (`--api-key`, as TGI and vLLM have it), or named keys in the database (`twllm keys add`), or
both, or none. Only the `Authorization: Bearer` header is read: keys in addresses end up in logs. Secrets are compared as
SHA-256 digests, the single key in constant time and stored keys by an index over digests.
A key that was found is believed for CACHE_S seconds, so a revoked one works that much longer.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections import OrderedDict
from datetime import UTC, datetime

from starlette.types import ASGIApp, Receive, Scope, Send

from twllm.feedback.access import SCOPES, Access, AccessStore, day, digest, minute
from twllm.serve.operation.limits import refuse
from twllm.serve.operation.paths import Refusal, scope_of
from twllm.serve.operation.record import CURRENT
from twllm.serve.operation.service import Service

log = logging.getLogger("twllm.serve")
CACHE_S, CACHED_KEYS = 5.0, 4096
MASTER = Access(
    id=0, name="api-key", shown="", scopes=frozenset(SCOPES), rate_per_minute=0, tokens_per_day=0, created="",
    expires="", revoked="",
)  # fmt: skip


class Keys:
    """Finds the key of a request, from the settings, the cache or the database."""

    def __init__(self, api_key: str, store: AccessStore | None) -> None:
        self._master = hashlib.sha256(api_key.encode()).digest() if api_key else None
        self.store = store
        self._cache: OrderedDict[str, tuple[float, Access]] = OrderedDict()

    async def find(self, token: str) -> Access | None:
        """The key, if it is valid now."""
        given = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        if self._master is not None and hmac.compare_digest(given, self._master):
            return MASTER
        if not token or self.store is None:
            return None
        known = self._cache.get(digest(token))
        if known is None or known[0] < time.monotonic():
            access = await asyncio.to_thread(self.store.find, token)
            if access is None:
                return None
            known = (time.monotonic() + CACHE_S, access)
            self._cache[digest(token)] = known
            while len(self._cache) > CACHED_KEYS:
                self._cache.popitem(last=False)
        return known[1] if known[1].valid(datetime.now(UTC)) else None


class Auth:
    """Middleware: 401 without a valid key, 403 without the scope, 429 over the key's limits."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.settings = app, service.settings
        self.keys = Keys(self.settings.api_key, service.access if self.settings.require_keys else None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        needed = None
        if scope["type"] == "http" and self.settings.login:
            needed = scope_of(scope["method"], scope["path"], self.settings.metrics_key)
        if needed is None:
            await self.app(scope, receive, send)
            return
        access = await self.keys.find(bearer(scope))
        refusal = await self._refusal(access, needed)
        if refusal:
            await refuse(refusal, scope, send)
            return
        assert access is not None
        record = CURRENT.get()
        if record:
            record.key, record.client = access.name, f"key:{access.id}"
        try:
            await self.app(scope, receive, send)
        finally:
            used = record.prompt_tokens + record.completion_tokens if record else 0
            if access.tokens_per_day and used:
                await self._charge(access, used)

    async def _refusal(self, access: Access | None, needed: str) -> Refusal | None:
        if access is None:
            return Refusal(401, "需要有效的 API 金鑰 (invalid API key)", "key", "invalid_api_key")
        if not access.allows(needed):
            return Refusal(403, f"這個金鑰沒有 {needed} 權限 (not allowed)", "key", "insufficient_permissions")
        store, now = self.keys.store, datetime.now(UTC)
        if store is None or access is MASTER:
            return None
        limit = access.rate_per_minute
        if limit and await asyncio.to_thread(store.use, access, minute(now), 1) > limit:
            text = f"每分鐘最多 {limit} 次 (rate limit reached)"
            return _later(text, "rate", "rate_limit_exceeded", 60 - now.second)
        limit = access.tokens_per_day
        if limit and await asyncio.to_thread(store.used, access, day(now)) >= limit:
            midnight = 86_400 - (now.hour * 3600 + now.minute * 60 + now.second)
            return _later(
                f"今天的 {limit:,} 個 token 已用完 (daily budget used)", "budget", "insufficient_quota", midnight
            )
        return None

    async def _charge(self, access: Access, tokens: int) -> None:
        assert self.keys.store is not None
        work = asyncio.to_thread(self.keys.store.use, access, day(datetime.now(UTC)), tokens)
        try:
            await asyncio.shield(asyncio.ensure_future(work))
        except Exception as error:  # the answer was given; a lost count must not turn it into an error
            log.error("tokens of a key were not counted: %s", type(error).__name__)


def _later(text: str, reason: str, code: str, seconds: int) -> Refusal:
    return Refusal(429, text, reason, code, type="rate_limit_error", retry_after_s=max(1, seconds))


def bearer(scope: Scope) -> str:
    """The key that the caller sent, '' for none."""
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return bytes(value[7:]).strip().decode("latin-1")
    return ""
