"""Whether a folder holds a model that sees; no torch."""

import json
from pathlib import Path


def is_seeing(folder: Path) -> bool:
    """Whether the folder holds such a model (its config says so)."""
    try:
        return bool(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") == "llava")
    except (OSError, ValueError, AttributeError):
        return False
