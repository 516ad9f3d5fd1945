"""`twllm synth selfplay`: two roles of a chat model talk, a user with a persona and a topic, and an assistant.

As in the Taiwan-LLM paper (arXiv 2311.17487, figure 1), where a model asks and answers. Both sides see the dialogue from
their own side: what the user's role wrote is "assistant" to itself. A message that a filter finds fault with ends its
dialogue at once, so no more is paid for it. Dialogue i is the same for the same seed, whatever else is asked for.
Not covered: tools, several assistants, a judge's opinion of the answers (filters see faults, not quality).
"""

import hashlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from twllm.synth.client import Client, RequestFailed
from twllm.synth.config import FilterConfig, SelfplayConfig
from twllm.synth.filters import Fault, Message, Rules, first_fault
from twllm.synth.prompts import Prompts, topic_leaves
from twllm.synth.run import Outcome


@dataclass(frozen=True)
class Plan:
    """One dialogue to be: number, topic, persona, turns."""

    number: int
    topic: str
    persona: str
    num_turns: int


def draw(*parts: object) -> random.Random:
    """A random generator that depends on these parts alone."""
    return random.Random(hashlib.sha256("/".join(map(str, parts)).encode()).digest())


def plan_of(number: int, config: SelfplayConfig, topics: list[str], personas: tuple[str, ...]) -> Plan:
    """What dialogue `number` will be. Every topic has its turn before one comes again."""
    order = draw(config.seed, "topics", number // len(topics)).sample(topics, len(topics))
    chance = draw(config.seed, "plan", number)
    turns = chance.randint(config.min_turns, max(config.min_turns, config.max_turns))
    return Plan(number, order[number % len(topics)], chance.choice(personas), turns)


def request_seed(seed: int, number: int, turn: int, role: str) -> int:
    """The `seed` field of one request: 31 bits, its own for every message."""
    return draw(seed, "request", number, turn, role).getrandbits(31)


class Selfplay:
    """The task for `make_rows`.

    Raises:
        UserError: a topic that the tree does not have.
    """

    stage = "synth-selfplay"

    def __init__(self, config: SelfplayConfig, prompts: Prompts, model: str) -> None:
        self._config, self.prompts, self.model = config, prompts, model
        self.topics = topic_leaves(config.topics, prompts.topics.skip)
        self.num_jobs: int | None = config.num_dialogues
        self.rules = Rules(config.filters, prompts)

    def config(self) -> SelfplayConfig:
        """The settings that the rows depend on."""
        return self._config

    def filters(self) -> FilterConfig:
        """The limits of the filters."""
        return self._config.filters

    def inputs(self) -> Mapping[str, str]:
        """Hash of the topics."""
        return {"topics": hashlib.sha256("\n".join(self.topics).encode()).hexdigest()[:16]}

    def jobs(self) -> Iterator[Plan]:
        """The dialogues in order."""
        for number in range(self._config.num_dialogues):
            yield plan_of(number, self._config, self.topics, self.prompts.personas.names)

    async def work(self, job: Plan, client: Client) -> Outcome:
        """Play one dialogue until its last turn or its first fault."""
        messages: list[dict[str, str]] = []
        row = self._row(job, messages)
        for turn in range(job.num_turns):
            for role in ("user", "assistant"):
                try:
                    answer = await client.ask(self._prompt(role, job, messages), **self._settings(role, job, turn))
                except RequestFailed as error:
                    return Outcome(row, Fault("endpoint", f"message {len(messages)}: {error}"))
                before = tuple(messages)
                messages.append({"role": role, "content": answer.text})
                said = Message(role, answer.text, answer.finish_reason, answer.refusal, job.topic, before)
                if fault := first_fault(said, self.rules):
                    return Outcome(row, Fault(fault.reason, f"message {len(before)}: {fault.detail}"))
        size = sum(len(message["content"]) for message in messages if message["role"] == "assistant")
        if size < self._config.filters.min_dialogue_chars and "length" not in self._config.filters.off:
            return Outcome(row, Fault("length", f"answers have {size} characters together"))
        texts = [message["content"] for message in messages]
        return Outcome(row, parts=("\n".join(texts), "\n".join(texts[:2])))  # the whole; the first question and answer

    def _row(self, job: Plan, messages: list[dict[str, str]]) -> dict[str, Any]:
        return {
            "id": f"selfplay-{self._config.seed}-{job.number:06d}",
            "messages": messages,
            "source": f"twllm synth selfplay: {self.model}",
            "license": self._config.license or unstated_license(self.model),
            "topic": job.topic,
            "persona": job.persona,
        }

    def _prompt(self, role: str, job: Plan, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """The dialogue as this role sees it."""
        prompts = self.prompts.selfplay
        if role == "assistant":
            return [{"role": "system", "content": prompts.assistant}, *messages]
        system = prompts.user.replace("{persona}", job.persona).replace("{topic}", job.topic)
        seen = [{"role": "user", "content": prompts.opening}]
        other = {"user": "assistant", "assistant": "user"}
        seen += [{"role": other[message["role"]], "content": message["content"]} for message in messages]
        return [{"role": "system", "content": system}, *seen]

    def _settings(self, role: str, job: Plan, turn: int) -> dict[str, Any]:
        config, user = self._config, role == "user"
        return {
            "model": config.user_model if user and config.user_model else self.model,
            "temperature": config.temperature_user if user else config.temperature_assistant,
            "max_tokens": config.max_tokens_user if user else config.max_tokens_assistant,
            "seed": request_seed(config.seed, job.number, turn, role),
        }


def unstated_license(model: str) -> str:
    """What a row says when nobody said under which licence the model's output may be used."""
    return f"未指明 (unspecified)：{model} 的輸出，依該模型的條款"
