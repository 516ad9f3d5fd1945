"""What all routes share: the models that are served, the rating store, the settings, the metrics.

A route never holds an engine: it asks `service.pick(name)`, so that one server can have several models.
Not covered: loading or dropping a model while the server runs.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, cast

from twllm.errors import UserError
from twllm.feedback.access import AccessStore
from twllm.feedback.store import RatingStore
from twllm.serve.engines.decoding.tokens import TokenText
from twllm.serve.engines.interface import Engine
from twllm.serve.errors import ApiError
from twllm.serve.operation.lifecycle import Lifecycle
from twllm.serve.operation.metrics import Metrics
from twllm.serve.operation.places import Places
from twllm.serve.operation.watched import Watched

ANY_MODEL = frozenset({"", "default", "tgi", "dummy"})  # what clients send that were given an address and no name
CONSENT = "我同意這則對話（去除個資後）用來改進模型。"


@dataclass(frozen=True)
class Model:
    """One served model: the name clients ask for, its engine, its card (Markdown), whether it sees images."""

    name: str
    engine: Engine
    card: str = ""
    vision: bool = False

    @cached_property
    def texts(self) -> TokenText:
        """The tokens as text, for log-probabilities."""
        return TokenText(self.engine.tokenizer)


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How a server behaves; every number is chosen, not tuned, unless it says where it is from."""

    max_body_bytes: int = 2_000_000  # text-generation-inference's default
    max_body_with_images: int = 20_000_000  # instead, where a model sees
    max_images: int = 8  # of a request, all its turns together
    max_image_bytes: int = 10_000_000  # of one picture, decoded from base64 or fetched
    image_hosts: tuple[str, ...] = ()  # whose http(s) addresses are fetched; "*": any public one; none: only data URLs
    max_running: int = 128  # requests being answered at once (TGI's max_concurrent_requests)
    max_waiting: int = 128  # requests waiting for one of these places; more are refused with 429
    max_per_client: int = 0  # places (running + waiting) of one key or address; 0: no limit
    queue_timeout_s: float = 60.0  # waited longer: 503
    request_timeout_s: float = 600.0  # a whole answer; longer: 503, or the stream ends with an error event
    grace_s: float = 30.0  # how long running answers may go on after SIGTERM
    max_context: int | None = None  # tokens of prompt + answer, when less than the model's own
    context_policy: Literal["refuse", "drop-oldest"] = "refuse"  # what happens to a chat that does not fit
    api_key: str = ""  # one key for everything, as in TGI and vLLM
    require_keys: bool = False  # keys in the store are asked for (`twllm keys add`)
    metrics_key: bool = False  # /metrics wants a key with the scope "metrics"
    cors_origins: tuple[str, ...] = ()  # "*": every page may call the API
    warm_up: bool = False  # a short answer at the start; not ready before it
    trust_proxy: bool = False  # the client's address is X-Forwarded-For's last entry
    log_text: bool = False  # message texts in the log; off: no text ever
    system: str = ""  # the web chat's system text when the visitor has set none
    consent_text: str = CONSENT
    arena: bool = True  # with two models or more
    examples: tuple[str, ...] = (
        "推薦三個適合帶長輩走的步道，要有椅子可以休息。",
        "「機車」除了交通工具，還可以是什麼意思？",
    )

    @property
    def login(self) -> bool:
        """Whether callers need a key."""
        return bool(self.api_key) or self.require_keys


@dataclass
class Service:
    """The models by name (the first is the default one), and what they share."""

    models: dict[str, Model]
    store: RatingStore
    settings: ServeSettings = field(default_factory=ServeSettings)
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.access = AccessStore(self.store)
        self.places = Places(self.settings.max_running, self.settings.max_waiting, self.settings.max_per_client)
        self.lifecycle = Lifecycle(warm=not self.settings.warm_up)
        for name, model in self.models.items():
            watched = cast(Engine, Watched(model.engine, name, self.metrics))
            self.models[name] = replace(model, engine=watched)
        self._make_gauges()

    def _make_gauges(self) -> None:
        def load(which: int) -> float:
            return sum(_load(model.engine)[which] for model in self.models.values())

        gauge = self.metrics.gauge
        gauge("tgi_batch_current_size", "Requests that the engines are answering", lambda: load(0))
        gauge("tgi_queue_size", "Requests waiting", lambda: load(1) + self.places.num_waiting)
        gauge("twllm_running", "Generation requests that have a place", lambda: self.places.num_running)
        gauge("twllm_waiting", "Generation requests that wait for a place", lambda: self.places.num_waiting)
        gauge("twllm_in_flight", "HTTP requests being answered", lambda: self.lifecycle.in_flight)
        gauge("twllm_draining", "1 while the server is shutting down", lambda: self.lifecycle.draining)

    @property
    def max_body_bytes(self) -> int:
        """Of a request: more where pictures may come."""
        settings = self.settings
        vision = any(model.vision for model in self.models.values())
        return max(settings.max_body_bytes, settings.max_body_with_images) if vision else settings.max_body_bytes

    @classmethod
    def single(cls, engine: Engine, store: RatingStore, name: str, settings: ServeSettings | None = None) -> "Service":
        """A service of one model."""
        model = Model(name, engine, vision=bool(getattr(engine, "vision", False)))
        return cls({name: model}, store, settings or ServeSettings())

    @property
    def default(self) -> Model:
        """The model of requests that name none."""
        return next(iter(self.models.values()))

    def pick(self, name: str | None = None) -> Model:
        """The model called `name`. A server of one model answers to any name; so does the default model to ANY_MODEL.

        Raises:
            ApiError: 404, several models and none of this name.
        """
        if name in self.models:
            return self.models[name]
        if len(self.models) == 1 or name is None or name in ANY_MODEL:
            return self.default
        known = "、".join(self.models)
        raise ApiError(f"沒有叫 {name} 的模型，有：{known} (no such model)", 404, param="model", code="model_not_found")

    def context(self, model: Model) -> int | None:
        """Tokens of prompt and answer together: the engine's limit, or the settings' where that is less."""
        limits = [limit for limit in (model.engine.context, self.settings.max_context) if limit is not None]
        return min(limits, default=None)

    def close(self) -> None:
        """Stop all engines, then the store: ratings that are being written are finished first."""
        for model in self.models.values():
            model.engine.close()
        self.store.close()


def _load(engine: Any) -> tuple[int, int]:
    """An engine's load; (0, 0) where it cannot say, as a server on another machine may not."""
    try:
        return cast(tuple[int, int], engine.load())
    except Exception:
        return 0, 0


def by_name(models: Iterable[Model]) -> dict[str, Model]:
    """Models by name.

    Raises:
        UserError: two of the same name.
    """
    found: dict[str, Model] = {}
    for model in models:
        if model.name in found:
            raise UserError("兩個模型同名 (two models of one name)", model.name, "改一個資料夾的名字")
        found[model.name] = model
    return found
