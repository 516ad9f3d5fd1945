"""Every answer that was paid for, stored before it is used, so that nothing is asked twice and a run can be replayed.

One SQLite file, write-ahead log with synchronous = FULL: an answer is on disk when `put` returns, also when the machine
loses power. Costs about 4 ms an answer on an ordinary disk, next to seconds for the answer itself. Each request is noted
before it is sent; one whose answer never came (kill -9, timeout, cut connection) may have been paid for, so the budget
counts it at its worst case. A key covers the whole request body and the sample number, not the address: a server may
move, and a model is known by its name. The file is locked while a run uses it.
Not covered: two models of one name at two addresses (use two --out folders).
"""

import hashlib
import json
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twllm.artifact import canonical_json, explain_os_errors
from twllm.errors import UserError

FILE = "answers.sqlite"
SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY, response TEXT NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, time REAL NOT NULL);
CREATE TABLE IF NOT EXISTS failures (key TEXT PRIMARY KEY, detail TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sent (
  id INTEGER PRIMARY KEY, key TEXT NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class Stored:
    """One answer as the server sent it (JSON), and what it cost."""

    response: dict[str, Any]
    tokens_in: int
    tokens_out: int
    time: float


def request_key(body: dict[str, Any], sample: int) -> str:
    """What an answer is stored under."""
    return hashlib.sha256(canonical_json({"body": body, "sample": sample}).encode("utf-8", "surrogatepass")).hexdigest()


class Cache:
    """The answers in `folder`; made if need be. Close it, or use it as a context.

    Raises:
        UserError: another run is using it, or the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        with explain_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(self.path, timeout=0, isolation_level=None)  # every statement its own commit
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")  # the kernel drops the lock with the process
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(SCHEMA)
            self._db.execute("DELETE FROM sent WHERE id < 0")  # writes nothing, but takes the lock now
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                what = "另一個執行中的 twllm 正在用這份快取 (cache in use by another run)"
                raise UserError(what, folder, "等它結束，或換一個 --out") from error
            raise UserError(f"打不開快取 (cannot open the cache)：{error}", self.path, "檢查權限與磁碟空間") from error
        except sqlite3.DatabaseError as error:
            raise UserError(f"快取檔損壞 (damaged cache)：{error}", self.path, "移開這個檔案後重跑") from error

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Fold the log into the file."""
        self._db.close()

    def get(self, key: str) -> Stored | None:
        """The stored answer, if there is one."""
        row = self._db.execute(
            "SELECT response, tokens_in, tokens_out, time FROM answers WHERE key = ?", (key,)
        ).fetchone()
        return Stored(json.loads(row[0]), row[1], row[2], row[3]) if row else None

    def note_sent(self, key: str, tokens_in: int, tokens_out: int) -> int:
        """A request is about to be sent that costs this much at worst; the number to settle it by."""
        values = (key, tokens_in, tokens_out)
        cursor = self._db.execute("INSERT INTO sent (key, tokens_in, tokens_out) VALUES (?, ?, ?)", values)
        return int(cursor.lastrowid or 0)

    def settle(self, sent: int) -> None:
        """That request cost nothing."""
        self._db.execute("DELETE FROM sent WHERE id = ?", (sent,))

    def put(self, key: str, response: dict[str, Any], tokens_in: int, tokens_out: int, sent: int) -> Stored:
        """Store an answer for good and settle its request; when this returns it is on disk."""
        stored = Stored(response, tokens_in, tokens_out, time.time())
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.execute(
                "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)",
                (key, json.dumps(response), tokens_in, tokens_out, stored.time),  # ASCII: lone surrogates survive
            )
            self._db.execute("DELETE FROM sent WHERE id = ?", (sent,))
            self._db.execute("DELETE FROM failures WHERE key = ?", (key,))
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        return stored

    def put_failure(self, key: str, detail: str) -> None:
        """This request is given up; a replay gives it up too."""
        self._db.execute("INSERT OR REPLACE INTO failures VALUES (?, ?)", (key, detail))

    def failure(self, key: str) -> str | None:
        """Why the request was given up; None if it was not."""
        row = self._db.execute("SELECT detail FROM failures WHERE key = ?", (key,)).fetchone()
        return str(row[0]) if row else None

    def forget_failures(self, keys: list[str] | None = None) -> None:
        """Try these again the next time; None: all."""
        if keys is None:
            self._db.execute("DELETE FROM failures")
        else:
            self._db.executemany("DELETE FROM failures WHERE key = ?", [(key,) for key in keys])

    def paid(self) -> tuple[int, int]:
        """(tokens in, tokens out) of all answers."""
        return self._sum("answers")

    def unknown(self) -> tuple[int, int]:
        """(tokens in, tokens out) at worst of the requests whose answer never came."""
        return self._sum("sent")

    def _sum(self, table: str) -> tuple[int, int]:
        row = self._db.execute(f"SELECT COALESCE(SUM(tokens_in), 0), COALESCE(SUM(tokens_out), 0) FROM {table}")
        tokens_in, tokens_out = row.fetchone()
        return int(tokens_in), int(tokens_out)
