"""Who wrote something, without knowing who: keyed hashes whose secret is kept apart from the database.

The browser makes up a random number. Stored is HMAC-SHA256(secret, SHA-256(number)): whoever has only the database can
neither find the number nor try out numbers. The inner hash is what version 1 stored, so migrated rows keep their person.
The secret is $TWLLM_FEEDBACK_SECRET (all gateways of one database share it), else the file `NAME.key` beside a SQLite
database, made on first use and readable by its owner only. Losing it loses the link from a browser to its older rows.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twllm.artifact import sync

ENV = "TWLLM_FEEDBACK_SECRET"
MIN_SECRET_CHARS = 16


class Key:
    """The secret and what it is good for."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def _hash(self, kind: str, *parts: str) -> str:
        data = "\0".join([kind, *parts]).encode("utf-8", "surrogatepass")  # no part but the last may hold a NUL
        return hmac.new(self._secret, data, "sha256").hexdigest()

    def pseudonym(self, user: str) -> str:
        """The name under which `user` (the browser's number) is stored; '' for nobody."""
        return self.again(hashlib.sha256(user.encode("utf-8", "replace")).hexdigest()[:32]) if user else ""

    def again(self, plain_hash: str) -> str:
        """The pseudonym of a user that version 1 stored as a plain hash."""
        return self._hash("user", plain_hash)[:32] if plain_hash else ""

    def chain(self, user_hash: str, messages: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
        """Rows of the messages table, each linked to the one before."""
        rows: list[dict[str, Any]] = []
        for message in messages:
            parent = rows[-1]["hash"] if rows else ""
            address = self._hash("message", user_hash, parent, message["role"], message["content"])
            rows.append({"hash": address, "parent": parent, "role": message["role"], "content": message["content"]})
        return rows

    @property
    def check(self) -> str:
        """Tells two secrets apart; kept in the database, so that a wrong one is noticed."""
        return self._hash("check")[:16]


def secret_file(database: Path) -> Path:
    """Where the secret of a SQLite file is kept."""
    return database.with_name(database.name + ".key")


def file_secret(database: Path) -> bytes:
    """The secret beside a SQLite database, made if there is none; of several processes that make one, one wins."""
    file = secret_file(database)
    if not file.exists():
        mine = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}")
        descriptor = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(mine, file)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            mine.replace(file)
        finally:
            mine.unlink(missing_ok=True)
        sync(file.parent)
    return file.read_bytes().strip()
