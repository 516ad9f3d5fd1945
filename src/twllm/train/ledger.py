"""Which documents a model saw at which step: `ledger.bin` beside a phase's logs, append-only, one block a step.

The first line is JSON (shards with their document counts). A block is its step, its size and a CRC, then zlib-compressed int32
rows (row of the step, shard, document, first token, tokens). Blocks hold what was drawn, so the ledger can be read without the data;
on resume, blocks of lost steps are cut off, missing ones are made again, and the last one is held against what the data gives now.
Price: about 5 bytes a document (0.5 % of its tokens' size). All processes' rows are in it; process 0 writes it.
"""

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twllm.errors import UserError

if TYPE_CHECKING:
    from twllm.tokens.pack import Row
    from twllm.train.data import PackedData

NAME = "ledger.bin"
HEAD = struct.Struct("<III")  # step, bytes, CRC-32
Entries = NDArray[np.int32]  # (pieces, 5)


class Ledger:
    """Writes the ledger of one phase, from `step` (steps done) on."""

    def __init__(self, file: Path, data: "PackedData", rows_per_step: int, step: int) -> None:
        self.data, self.rows_per_step, self.file = data, rows_per_step, file
        file.parent.mkdir(parents=True, exist_ok=True)
        shards = [{"name": _shard_name(shard.folder), "documents": len(shard)} for shard in data.shards]
        head = (json.dumps({"version": 1, "shards": shards, "seed": data.seed}, ensure_ascii=False) + "\n").encode()
        kept = self._keep(head, step)
        self._stream = file.open("ab")
        if not kept and not file.stat().st_size:
            self._stream.write(head)
        for missing in range(kept + 1, step + 1):
            self.write(missing)

    def _keep(self, head: bytes, step: int) -> int:
        """Cut the file behind block `step`; returns the last block kept.

        Raises:
            UserError: it was written over other data.
        """
        if not self.file.exists():
            return 0
        with self.file.open("rb") as stream:
            same = stream.read(len(head)) == head
        if not same or not step:
            self.file.unlink()
            return 0
        end, last, entries = len(head), 0, None
        for number, found, stop in blocks(self.file):
            if number > step:
                break
            end, last, entries = stop, number, found
        with self.file.open("r+b") as stream:
            stream.truncate(end)
        if entries is not None and not np.array_equal(entries, self.entries(last)):
            what = f"資料和第 {last} 步時不同 (the data are not what this run has seen)"
            raise UserError(what, self.file, "還原資料，或刪除這個資料夾重新訓練")
        return last

    def entries(self, step: int) -> Entries:
        """What step number `step` (from 1) draws."""
        return as_entries(self.data, self.data.rows((step - 1) * self.rows_per_step, self.rows_per_step))

    def write(self, step: int) -> None:
        """Append step number `step` (from 1)."""
        packed = zlib.compress(self.entries(step).tobytes(), 6)
        self._stream.write(HEAD.pack(step, len(packed), zlib.crc32(packed)) + packed)
        self._stream.flush()

    def close(self) -> None:
        """No more steps."""
        self._stream.close()


def _shard_name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def as_entries(data: "PackedData", rows: "Sequence[Row]") -> Entries:
    """(row, shard, document in the shard, first token, tokens) of each piece."""
    found = np.array([(r, 0, *piece) for r, row in enumerate(rows) for piece in row.pieces], np.int64).reshape(-1, 5)
    shard = np.searchsorted(data.first, found[:, 2], "right") - 1
    found[:, 1] = shard
    found[:, 2] -= data.first[shard]
    return found.astype(np.int32)


def blocks(file: Path) -> Iterator[tuple[int, Entries, int]]:
    """(step, entries, where the block ends) of each whole block; what a crash cut is left out."""
    with file.open("rb") as stream:
        stream.readline()
        while len(head := stream.read(HEAD.size)) == HEAD.size:
            step, size, crc = HEAD.unpack(head)
            packed = stream.read(size)
            if len(packed) < size or zlib.crc32(packed) != crc:
                return
            yield step, np.frombuffer(zlib.decompress(packed), np.int32).reshape(-1, 5), stream.tell()


def read_header(file: Path) -> dict[str, Any]:
    """The shards."""
    with file.open("rb") as stream:
        return dict(json.loads(stream.readline()))


def document_names(tokens: Path, wanted: set[int]) -> dict[int, str]:
    """Names of these documents of a shard folder; nothing where the shard is gone."""
    file = tokens / "names.jsonl"
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8") as lines:
        return {number: str(json.loads(line)) for number, line in enumerate(lines) if number in wanted}


def tell(folder: Path, step: int | None, document: str | None) -> None:
    """Print what a step saw, or which steps saw a document.

    Raises:
        UserError: no ledger, no such step, no such document.
    """
    file = folder / NAME
    if not file.is_file():
        raise UserError("沒有帳本 (no ledger)", folder, "這個階段由較舊的 twllm 訓練，或還沒開始")
    shards = read_header(file)["shards"]
    if document is None and step is None:
        steps = [number for number, _, _ in blocks(file)]
        print(f"{file}：第 1 到 {max(steps, default=0)} 步，{len(shards)} 個分片 (steps, shards)")
        return
    places = [_find_shard(folder, shard["name"]) for shard in shards]
    if document is not None:
        _print_steps(file, places, document)
        return
    entries = next((found for number, found, _ in blocks(file) if number == step), None)
    if entries is None:
        raise UserError(f"帳本沒有第 {step} 步 (no such step)", file, "不給 --step 看有哪些步")
    names = [
        document_names(place, set(entries[entries[:, 1] == number, 2].tolist())) for number, place in enumerate(places)
    ]
    print("列 row\t分片 shard\t文件 document\t起 first\t詞元 tokens\t名稱 name")
    for row, shard, number, first, tokens in entries.tolist():
        print(row, shards[shard]["name"], number, first, tokens, names[shard].get(number, "?"), sep="\t")


def _find_shard(folder: Path, name: str) -> Path:
    """A shard folder near the phase's: the run's own tokens, or those of a phase that runs alone."""
    places = [folder / name, folder.parent / name, folder.parent.parent / name]
    return next((place for place in places if place.is_dir()), places[0])


def _print_steps(file: Path, places: Sequence[Path], document: str) -> None:
    wanted: set[tuple[int, int]] = set()
    for shard, place in enumerate(places):
        if not (place / "names.jsonl").is_file():
            continue
        with (place / "names.jsonl").open(encoding="utf-8") as lines:
            wanted |= {(shard, number) for number, line in enumerate(lines) if json.loads(line) == document}
    if not wanted:
        raise UserError("沒有這份文件，或分片不在了 (no such document, or the shards are gone)", document, "檢查名稱")
    for number, entries, _ in blocks(file):
        hits = [e for e in entries.tolist() if (e[1], e[2]) in wanted]
        if hits:
            print(f"第 {number} 步 (step)：", "、".join(f"{e[3]}–{e[3] + e[4]}" for e in hits))
