"""Data sets through the `datasets` library (extra `data`), streamed: nothing is stored but what the library caches of its listing.

A shard of the data set is a part, so a set of one file runs on one core. Rows without an id are named by shard and row.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from twllm.corpus.config import HubConfig
from twllm.corpus.document import Document, Dropped
from twllm.errors import UserError

if TYPE_CHECKING:
    from twllm.corpus.read import Reading


def open_hub(hub: HubConfig) -> Any:
    """The streamed data set.

    Raises:
        UserError: the library is not installed, or the set cannot be opened.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "需要 datasets 套件 (package missing)", f"hub: {hub.name}", "pip install 'twllm[data]'"
        ) from error
    files = list(hub.data_files) or None
    try:
        return datasets.load_dataset(
            hub.name, hub.subset, split=hub.split, revision=hub.revision, data_files=files, streaming=True
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        told = " ".join(str(error).split())[:300]
        raise UserError(
            f"打不開資料集 (cannot be opened): {told}", f"hub: {hub.name}", "檢查名稱、split 與網路"
        ) from error


def count_shards(hub: HubConfig) -> int:
    """How many shards the data set has."""
    return int(open_hub(hub).num_shards)


def read_shard(number: int, reading: "Reading") -> Iterator[Document | Dropped]:
    """The documents of one shard."""
    hub = reading.source.hub
    assert hub
    opened = open_hub(hub)
    shard = opened.shard(num_shards=opened.num_shards, index=number) if opened.num_shards > 1 else opened
    rows = ((f"{number}:{place}", row) for place, row in enumerate(shard, 1))
    yield from reading.rows(rows, hub.name)
