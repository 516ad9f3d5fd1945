"""What a checkpoint folder says of a model beside its weights: tokenizer and template, end ids, defaults, its fingerprint. No torch."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twllm.artifact import fingerprint, read_manifest
from twllm.errors import UserError
from twllm.serve.engines.interface import Sampling
from twllm.tokens.contract import require_trained_template
from twllm.tokens.tokenizer import ChatTokenizer

EDGE_BYTES = 1 << 20  # of each weight file, at both ends, in a fingerprint: chosen; 14 GB would take ten seconds


@dataclass(frozen=True)
class Facts:
    """What is known of a model apart from its weights."""

    tokenizer: ChatTokenizer
    context: int | None
    model_fingerprint: str
    defaults: Sampling
    end_ids: frozenset[int]


def read_facts(folder: Path, *, allow_template_mismatch: bool = False) -> Facts:
    """All of it but the context, which engines know.

    Raises:
        UserError: see `load_tokenizer`, `read_generation_config`.
    """
    config = read_generation_config(folder)
    tokenizer = load_tokenizer(folder, allow_template_mismatch=allow_template_mismatch)
    ends = end_ids(tokenizer, config)
    return Facts(tokenizer, None, model_fingerprint(folder), default_sampling(config), ends)


def read_generation_config(folder: Path) -> dict[str, Any]:
    """`generation_config.json`, {} where there is none.

    Raises:
        UserError: it is not JSON.
    """
    file = folder / "generation_config.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, TypeError) as error:
        raise UserError(f"JSON 壞了 (broken JSON): {error}", file, "重新下載或刪除這個檔案") from error


def end_ids(tokenizer: ChatTokenizer, config: dict[str, Any]) -> frozenset[int]:
    """Ids that end an answer: the tokenizer's end token and any in generation_config's `eos_token_id` (int or list)."""
    more = config.get("eos_token_id")
    return frozenset({tokenizer.eos_id, *(more if isinstance(more, list) else [] if more is None else [more])})


def default_sampling(config: dict[str, Any]) -> Sampling:
    """The maker's settings where `do_sample` is on, else greedy (what vLLM takes as its defaults, too)."""
    penalty = config.get("repetition_penalty") or 1.0
    if not config.get("do_sample"):
        return Sampling(repetition_penalty=penalty)
    given = {key: config[key] for key in ("temperature", "top_p", "top_k") if config.get(key) is not None}
    return Sampling(**{"temperature": 1.0, "repetition_penalty": penalty, **given})


def load_tokenizer(folder: Path, *, allow_template_mismatch: bool = False) -> ChatTokenizer:
    """The checkpoint's tokenizer, refused when its chat template is not the one the model was trained with.

    What the trained template was, the folder says (tokens/contract.py); where it does not, nothing is refused.

    Raises:
        UserError: no tokenizer, no chat template, or another template than the trained one.
    """
    tokenizer = ChatTokenizer.load(folder)
    if not tokenizer.template:
        raise UserError(
            "這個模型沒有對話範本 (no chat template)", folder, "放入 chat_template.jinja；基礎模型要先微調才能對話"
        )
    require_trained_template(folder, tokenizer, allow_mismatch=allow_template_mismatch)
    return tokenizer


def model_fingerprint(folder: Path) -> str:
    """Which model this is: the manifest's fingerprint, else a hash of every file's name, size, first and last MiB.

    It tells models apart in ratings and results; it does not prove that no byte in the middle of a weight file changed.
    """
    manifest = read_manifest(folder)
    if manifest and manifest.get("fingerprint"):
        return str(manifest["fingerprint"])
    parts = []
    for file in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        size = file.stat().st_size
        with file.open("rb") as stream:
            digest = hashlib.sha256(stream.read(EDGE_BYTES))
            stream.seek(max(0, size - EDGE_BYTES))
            digest.update(stream.read(EDGE_BYTES))
        parts.append([file.name, size, digest.hexdigest()])
    return fingerprint(parts)
