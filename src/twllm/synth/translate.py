"""`twllm synth translate`: every message of an English or Simplified set, into Taiwan Mandarin, one request a message.

The translator sees the messages before it with their translations, so that terms stay the same in a row. Messages without
words (code alone, a number, an address) are copied. A row keeps its id, source and licence and says what it was translated
from and by whom. With `samples` > 1 a message that a filter finds fault with is asked for again with another seed.
Not covered: other source languages; Latin letters count as English. Taste: filters see what was lost, not how it reads.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from twllm.artifact import hash_path
from twllm.corpus.check import check_text, marked_characters
from twllm.synth.client import Client, RequestFailed
from twllm.synth.config import FilterConfig, TranslateConfig
from twllm.synth.filters import Fault, Message, Rules, first_fault, prose
from twllm.synth.prompts import Prompts
from twllm.synth.run import Outcome
from twllm.synth.selfplay import unstated_license
from twllm.tokens.conversation import Conversation, list_files, read_conversations


@dataclass(frozen=True)
class _Failed(Exception):
    fault: Fault


class Translate:
    """The task for `make_rows`.

    Raises:
        UserError: no such source.
    """

    stage = "synth-translate"

    def __init__(self, source: str, config: TranslateConfig, prompts: Prompts, model: str) -> None:
        self.source, self._config, self.prompts, self.model = source, config, prompts, model
        self.files = list_files(source)
        self.rules = Rules(config.filters, prompts)
        self.num_jobs: int | None = None

    def config(self) -> TranslateConfig:
        """The settings that the rows depend on."""
        return self._config

    def filters(self) -> FilterConfig:
        """The limits of the filters."""
        return self._config.filters

    def inputs(self) -> Mapping[str, str]:
        """Hashes of the files."""
        return {f"{number} {file.name}": hash_path(file) for number, file in enumerate(self.files)}

    def jobs(self) -> Iterator[Conversation]:
        """The rows in file order."""
        yield from islice(read_conversations(self.source), self._config.max_rows)

    async def work(self, job: Conversation, client: Client) -> Outcome:
        """Translate one row, message by message, until its first fault."""
        row = self._row(job)
        done: list[dict[str, str]] = row["messages"]
        language = self._config.language if self._config.language != "auto" else language_of(job)
        if language not in self.prompts.translate.languages:
            row["messages"] = list(job.messages)
            return Outcome(
                row, Fault("source_language", f"{language}: 不是英文或簡體中文 (neither English nor Simplified)")
            )
        row["translated_from"] = language
        for at, message in enumerate(job.messages):
            try:
                text = await self._message(job, at, done, language, client)
            except _Failed as failed:
                return Outcome(row, Fault(failed.fault.reason, f"message {at}: {failed.fault.detail}"))
            done.append({"role": message["role"], "content": text})
        return Outcome(row, parts=("\n".join(message["content"] for message in done),))

    async def _message(
        self, job: Conversation, at: int, done: list[dict[str, str]], language: str, client: Client
    ) -> str:
        """The translation of one message, the first sample that no filter finds fault with."""
        message = job.messages[at]
        if not any(map(str.isalpha, prose(message["content"]))):
            return message["content"]
        fault = Fault("empty", "no sample")
        for sample in range(self._config.samples):
            try:
                answer = await client.ask(self._prompt(job, at, done, language), sample, **self._settings(sample))
            except RequestFailed as error:
                raise _Failed(Fault("endpoint", str(error))) from None
            said = Message(
                message["role"], answer.text, answer.finish_reason, answer.refusal, source=message["content"], language=language
            )  # fmt: skip
            found = first_fault(said, self.rules)
            if found is None:
                return answer.text
            fault = found
        raise _Failed(fault)

    def _prompt(self, job: Conversation, at: int, done: list[dict[str, str]], language: str) -> list[dict[str, str]]:
        """What to do, the messages before with their translations, and the message."""
        prompts = self.prompts.translate
        system = prompts.system.replace("{language}", prompts.languages[language])
        messages = [{"role": "system", "content": system}]
        for earlier in range(max(0, at - self._config.context_messages), at):
            messages.append({"role": "user", "content": self._wrapped(job.messages[earlier]["content"])})
            messages.append({"role": "assistant", "content": done[earlier]["content"]})
        return [*messages, {"role": "user", "content": self._wrapped(job.messages[at]["content"])}]

    def _wrapped(self, text: str) -> str:
        return self.prompts.translate.text.replace("{text}", text)

    def _settings(self, sample: int) -> dict[str, Any]:
        config = self._config
        return {"temperature": config.temperature, "max_tokens": config.max_tokens, "seed": config.seed + sample}

    def _row(self, job: Conversation) -> dict[str, Any]:
        kept = dict(job.metadata) | ({"rating": job.rating} if job.rating is not None else {})
        return {
            "id": job.id,
            "messages": [],
            "source": job.source,
            "license": job.license or self._config.license or unstated_license(self.model),
            "translated_from": "",
            "translated_by": f"twllm synth translate: {self.model}",
        } | {key: value for key, value in kept.items() if key not in ("translated_from", "translated_by")}


def language_of(conversation: Conversation) -> str:
    """en, zh-CN, or what else it is, of all messages together.

    >>> language_of(Conversation(({"role": "user", "content": "这是什么？"}, {"role": "assistant", "content": "软件。"})))
    'zh-CN'
    """
    text = prose("\n".join(message["content"] for message in conversation.messages))
    check = check_text(text)
    letters = sum(map(str.isalpha, text))
    latin = sum(char.isascii() and char.isalpha() for char in text)
    if check.n_han * 10 >= 3 * max(letters, 1):
        mainland = check.simplified or not marked_characters(text).telling or check.verdict in ("zh-CN", "mixed")
        return "zh-CN" if mainland else check.verdict
    return "en" if latin * 2 >= max(letters, 1) else "other"
