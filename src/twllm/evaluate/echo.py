"""Log-likelihoods from a server: /v1/completions with prompt ids, echo and logprobs, as lm-evaluation-harness's local-completions asks.

The reply has for every prompt token its log-probability, so a choice costs one prompt of the request (a server tells only the best
tokens of a place, and A to D need not be among them). Ids are made by the tokenizer folder that is named, else by the server's
/tokenize (plain text only). Known: vLLM, llama.cpp's Python server and `twllm serve` answer so; OpenAI's API, TGI and Ollama do not.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twllm.errors import UserError
from twllm.evaluate.ask import Pair, Question, encode_questions, split
from twllm.serve.engines.interface import Score
from twllm.tokens.tokenizer import ChatTokenizer

FIX = "對數機率要伺服器的 /v1/completions 支援 echo 與 logprobs（vLLM、twllm serve）；不支援就用 --by generation"
Send = Callable[
    [str, str, dict[str, Any]], dict[str, Any]
]  # (method, path from the server's root, body) → reply, {}: too long


class EchoScorer:
    """Scores choices over one server. Threads: any number may call `pairs` and `scores`."""

    def __init__(self, send: Send, model: str, where: str, tokenizer: str | Path | None) -> None:
        """Load the tokenizer folder, if one is named.

        Raises:
            UserError: it holds no tokenizer.
        """
        self._send, self._model, self._where = send, model, where
        self._tokenizer = ChatTokenizer.load(tokenizer) if tokenizer else None

    @property
    def template_fingerprint(self) -> str:
        """Of the named tokenizer; '' where the server's own is used."""
        return self._tokenizer.template_fingerprint if self._tokenizer else ""

    def pairs(self, question: Question) -> list[Pair]:
        """The ids of each choice's context and continuation.

        Raises:
            UserError: there is no tokenizer to make them with.
        """
        if self._tokenizer:
            return encode_questions(self._tokenizer, [question])[0]
        if question.way == "chat":
            raise UserError(
                "經對話範本問對數機率，要有分詞器 (a tokenizer is needed)", self._where, "加上 --tokenizer 模型資料夾"
            )
        whole = question.prompt + question.prefix
        context = self._tokenize(whole.rstrip())
        return [split(context, self._tokenize(whole + choice)) for choice in question.choices]

    def scores(self, question: Question) -> list[Score] | None:
        """One score a choice, None where the question is too long for the model.

        Raises:
            UserError: the server does not tell log-probabilities of a prompt.
        """
        pairs = self.pairs(question)
        body = {
            "model": self._model, "prompt": [context + continuation for context, continuation in pairs],
            "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1234,
        }  # fmt: skip
        reply = self._send("POST", "/v1/completions", body)
        if not reply:
            return None
        try:
            choices = sorted(reply["choices"], key=lambda choice: int(choice["index"]))
            return [self._score(choice["logprobs"], pair) for choice, pair in zip(choices, pairs, strict=True)]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            what = f"伺服器沒有給提示的對數機率 (no log-probabilities of the prompt)：{type(error).__name__}: {error}"
            raise UserError(what, self._where, FIX) from error

    def _score(self, logprobs: dict[str, Any], pair: Pair) -> Score:
        """The continuation's share of a reply."""
        (context, continuation), values = pair, logprobs["token_logprobs"]
        if len(values) not in (len(context) + len(continuation), len(context) + len(continuation) + 1):
            raise ValueError(f"{len(values)} log-probabilities for {len(context) + len(continuation)} prompt tokens")
        places = slice(len(context), len(context) + len(continuation))
        said = [float(value) for value in values[places]]
        best: Sequence[dict[str, float]] = logprobs["top_logprobs"][places]
        return Score(sum(said), all(value >= max(top.values()) for value, top in zip(said, best, strict=True)))

    def _tokenize(self, text: str) -> list[int]:
        """Ids by the server, its begin token once (vLLM's request)."""
        try:
            reply = self._send("POST", "/tokenize", {"model": self._model, "prompt": text, "add_special_tokens": True})
            return [int(id) for id in reply["tokens"]]
        except (UserError, KeyError, TypeError, ValueError) as error:
            what = f"伺服器沒有 /tokenize，不知道提示的詞元 (no way to make prompt ids)：{error}"
            raise UserError(what, self._where, "加上 --tokenizer 模型或分詞器資料夾") from error
