"""A model's folder: a local one as it is, a hub name downloaded once (safetensors, config, tokenizer files and the card only)."""

from collections.abc import Sequence
from pathlib import Path

from twllm.errors import UserError, require_file

PATTERNS = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "README.md"]


def fetch(model: str, revision: str | None = None, patterns: Sequence[str] = PATTERNS) -> Path:
    """The local folder of a model; of a hub model, the files that match `patterns` are downloaded.

    Raises:
        UserError: no such folder, or the hub cannot be reached and the model is not in the local cache.
    """
    if Path(model).exists() or model.startswith((".", "/")) or model.count("/") != 1:
        return require_file(model, "找不到模型資料夾 (no such model)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"下載不到這個模型 (hub): {first}", model, "檢查名稱、網路與 HF_TOKEN，或給本機資料夾"
        ) from error
