"""An open feedback database: the engine, the key, migrations at opening, errors explained.

SQLite runs in WAL mode with synchronous=FULL: what was committed is on disk and survives `kill -9` and a power cut, at
the price of one fsync a transaction, about a millisecond on an SSD. PostgreSQL (`pip install 'twllm[postgres]'`) is
durable by default and lets several gateways share one database. Deleted text is overwritten (secure_delete).
Not covered: other databases; backups and PostgreSQL's archived WAL, which keep erased text until they are rotated.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, inspect, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from twllm.errors import UserError
from twllm.feedback.key import ENV, MIN_SECRET_CHARS, Key, file_secret
from twllm.feedback.tables import messages, models, ratings, settings
from twllm.tokens.template import clean_text

SCHEMA = "0003"  # the newest migration
BUSY_TIMEOUT_MS = 10_000  # how long a writer waits for another one; chosen
LOCK = 0x7477_6C6C  # PostgreSQL's advisory lock for migrations; any number that is ours
PAGE = 500  # values in one IN (…), rows read at a time


class StoreError(UserError):
    """The database cannot be opened, read or written."""


def database_url(db: str | Path) -> str:
    """A SQLAlchemy URL as it is; a path becomes a SQLite URL."""
    given = str(db)
    return given if "://" in given else f"sqlite:///{Path(given).expanduser()}"


def now() -> str:
    """UTC, ISO 8601 with milliseconds: sorts as text."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Database:
    """Any number of threads and processes may use one database."""

    def __init__(self, db: str | Path, *, create: bool = True) -> None:
        """Open `db` (a path or a SQLAlchemy URL) and bring its tables up to date; they are made unless `create` is False.

        Raises:
            StoreError: no such file (with `create` False), not a database, damaged, written by a newer twllm, or its key
                is missing or another one.
        """
        self.where = str(db)
        with self.explain():
            url = make_url(database_url(db))
            if url.drivername in ("postgresql", "postgres"):
                url = url.set(drivername="postgresql+psycopg")
            self.where = url.render_as_string(hide_password=True)
            self.dialect = url.get_backend_name()
            self._file: Path | None = None  # of SQLite
            self._key = self._open_key(url, create)
            self.engine = self._open_engine(url)
            self._model_ids: dict[tuple[str, str, str], int] = {}
            try:
                self._prepare(create)
            except BaseException:
                self.engine.dispose()
                raise

    @property
    def key(self) -> Key:
        """The key of user pseudonyms.

        Raises:
            StoreError: there is none (a PostgreSQL database opened for reading).
        """
        if self._key is None and self._file:
            self._key = Key(file_secret(self._file))
        if self._key is None:
            what = f"沒有設定 {ENV} (no feedback secret)"
            fix = f"export {ENV}=… ，至少 {MIN_SECRET_CHARS} 個字，所有伺服器用同一個；可用 openssl rand -hex 32 產生"
            raise StoreError(what, self.where, fix)
        return self._key

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection in a read transaction."""
        with self.explain(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection in a transaction that is on disk when the block ends; SQLite has one writer at a time."""
        with (
            self.explain(),
            self.engine.connect().execution_options(twllm_write=True) as connection,
            connection.begin(),
        ):
            yield connection

    def insert(self, table: Any) -> Any:
        """INSERT that can do nothing where the row is already there (`.on_conflict_do_nothing()`)."""
        return postgresql.insert(table) if self.dialect == "postgresql" else sqlite.insert(table)

    def model_id(self, connection: Connection, name: str, fingerprint: str, template: str) -> int:
        """The row of a model, made at its first use."""
        which = (name, fingerprint, template)
        if which not in self._model_ids:
            values = {"name": name, "fingerprint": fingerprint, "template_fingerprint": template}
            connection.execute(self.insert(models).values(values).on_conflict_do_nothing())
            same = [models.c[key] == value for key, value in values.items()]
            found = int(connection.execute(select(models.c.id).where(*same)).scalar_one())
            event.listen(connection, "commit", lambda _: self._model_ids.__setitem__(which, found), once=True)
            return found
        return self._model_ids[which]

    def put_messages(self, connection: Connection, user_hash: str, chat: Sequence[dict[str, str]]) -> str:
        """Store a conversation and return the address of its last message, '' for an empty one."""
        chain = self.key.chain(user_hash, chat)
        if chain:
            shared = {"user_hash": user_hash, "created": now()}
            connection.execute(self.insert(messages).on_conflict_do_nothing(), [row | shared for row in chain])
        return str(chain[-1]["hash"]) if chain else ""

    def chats(self, connection: Connection, leaves: Sequence[str]) -> dict[str, list[dict[str, str]]]:
        """The conversations that end with these messages: one query for each step towards the first messages."""
        known: dict[str, tuple[str, dict[str, str]]] = {"": ("", {})}
        wanted = {leaf for leaf in leaves if leaf}
        while wanted:
            batch = sorted(wanted)[:PAGE]
            query = select(messages.c.hash, messages.c.parent, messages.c.role, messages.c.content)
            for row in connection.execute(query.where(messages.c.hash.in_(batch))):
                known[row.hash] = (row.parent, {"role": row.role, "content": row.content})
            for missing in set(batch) - known.keys():
                known[missing] = ("", {})
            wanted = (wanted | {known[address][0] for address in batch}) - known.keys()
        found: dict[str, list[dict[str, str]]] = {}
        for leaf in leaves:
            chat, at = [], leaf
            while at:
                at, message = known[at]
                chat += [message] if message else []
            found[leaf] = chat[::-1]
        return found

    def close(self) -> None:
        """Give back all connections."""
        self.engine.dispose()

    # -- opening ------------------------------------------------------------------------------------------------

    def _open_key(self, url: URL, create: bool) -> Key | None:
        if secret := os.environ.get(ENV, "").strip():
            if len(secret) < MIN_SECRET_CHARS:
                raise StoreError(f"{ENV} 太短 (too short)", ENV, f"至少 {MIN_SECRET_CHARS} 個字：openssl rand -hex 32")
            return Key(secret.encode())
        if self.dialect != "sqlite":
            return None
        if url.database in (None, "", ":memory:"):
            return Key(os.urandom(32))
        self._file = Path(str(url.database))
        self._prepare_file(self._file, create)
        return Key(file_secret(self._file)) if create else None  # reading makes no key

    def _prepare_file(self, file: Path, create: bool) -> None:
        if create:
            file.parent.mkdir(parents=True, exist_ok=True)
        elif not file.is_file():
            raise StoreError(
                "找不到評分資料庫 (no ratings database)", file, "先用 twllm serve 收集評分，或用 --db 指到正確的檔案"
            )
        elif _first_bytes(file) != b"SQLite format 3\0":  # sqlite would make a database of an almost empty file
            raise StoreError("這個檔案不是評分資料庫 (not a database)", file, "用 --db 指到 twllm serve 寫的資料庫")

    def _open_engine(self, url: URL) -> Engine:
        if self.dialect not in ("sqlite", "postgresql"):
            raise StoreError(f"不支援這種資料庫 (not supported): {self.dialect}", self.where, "用 SQLite 或 PostgreSQL")
        engine = create_engine(url, pool_pre_ping=self.dialect != "sqlite")
        if self.dialect == "sqlite":
            event.listen(engine, "connect", _make_durable)
            event.listen(engine, "begin", _begin)
        return engine

    def _prepare(self, create: bool) -> None:
        with self.reading() as connection:
            found = schema_of(connection)
        if found is None and not create:
            raise StoreError(
                "這個資料庫裡沒有評分 (no ratings table)", self.where, "用 --db 指到 twllm serve 寫的資料庫"
            )
        if found != SCHEMA:
            self._migrate()
        if create:
            self.check_key()

    def _migrate(self) -> None:
        """From whatever version to the newest, in one transaction: a kill in the middle leaves the old version."""
        with self.writing() as connection:
            if self.dialect == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
            found = schema_of(connection)  # again: another process may have been faster
            if found == SCHEMA:
                return
            if found is not None and found > SCHEMA:
                what = f"資料庫的版本比程式新 (schema {found} > {SCHEMA})"
                raise StoreError(what, self.where, "升級 twllm，或換一個 --db")
            rows = connection.execute(text("SELECT count(*) FROM ratings")).scalar() if found else 0
            _run_alembic(connection, self.key, found)
        if found:
            note = f"評分資料庫已從版本 {int(found)} 更新到 {int(SCHEMA)}，{rows} 筆評分都在 (migrated): {self.where}"
            print(note, file=sys.stderr)

    def check_key(self) -> None:
        """Refuse another key than the database's: everybody would be stored under other names, and nobody found.

        Raises:
            StoreError: it is another one.
        """
        with self.reading() as connection:
            known = connection.execute(select(settings.c.value).where(settings.c.key == "key")).scalar()
        if known is None:
            with self.writing() as connection:
                values = {"key": "key", "value": self.key.check}
                connection.execute(self.insert(settings).values(values).on_conflict_do_nothing())
                known = connection.execute(select(settings.c.value).where(settings.c.key == "key")).scalar()
        if known != self.key.check:
            what = "使用者代號的金鑰和這個資料庫的不同 (another feedback secret)"
            fix = f"放回原來的 .key 檔或 {ENV}；真的遺失了就執行 twllm feedback new-key（舊評分從此無法依編號刪除）"
            raise StoreError(what, self.where, fix)

    @contextmanager
    def explain(self) -> Iterator[None]:
        """Errors of the database driver become a StoreError that names the database."""
        try:
            yield
        except DBAPIError as error:
            what = f"評分資料庫無法使用 (database error): {error.orig}"
            raise StoreError(what, self.where, "檢查磁碟空間與權限；檔案若已損壞，換一個 --db 並從備份還原") from error
        except (OSError, ArgumentError, NoSuchModuleError, ImportError) as error:
            what = f"無法開啟評分資料庫 (cannot open): {error}"
            fix = "給一個可寫入的路徑，或 SQLAlchemy 的 URL（PostgreSQL 要 pip install 'twllm[postgres]'）"
            raise StoreError(what, self.where, fix) from error


def schema_of(connection: Connection) -> str | None:
    """The version of the tables, such as "0001"; None where there are none of ours."""
    tables = set(inspect(connection).get_table_names())
    if "alembic_version" in tables:
        found = connection.execute(text("SELECT max(version_num) FROM alembic_version")).scalar()
        if found:
            return str(found)
    if "ratings" not in tables:
        return None
    old = (
        connection.execute(text("SELECT max(version) FROM schema_version")).scalar()
        if "schema_version" in tables
        else 1
    )
    return f"{int(old or 1):04}"


def _run_alembic(connection: Connection, key: Key, found: str | None) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes.update(connection=connection, key=key)
    if found == "0001":
        command.stamp(config, "0001")  # made before migrations were kept
    command.upgrade(config, SCHEMA)


def count_ratings(connection: Connection) -> int:
    """Number of rows, also those that a later click replaced."""
    return connection.execute(select(func.count()).select_from(ratings)).scalar() or 0


def _first_bytes(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(16)


def _make_durable(connection: Any, record: object) -> None:
    connection.isolation_level = None  # the driver begins no transactions by itself: `_begin` does
    for pragma in (f"busy_timeout={BUSY_TIMEOUT_MS}", "journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "foreign_keys=ON"):  # fmt: skip
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("twllm_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")  # never an upgrade that finds the lock taken


def clean(value: Any) -> Any:
    """Text that no database refuses: lone surrogates become U+FFFD, NUL (not allowed in PostgreSQL) goes."""
    if isinstance(value, str):
        return clean_text(value).replace("\0", "")
    if isinstance(value, list):
        return [{key: clean(text) for key, text in message.items()} for message in value]
    return value


def dump(value: Any) -> str:
    """Readable JSON for a text column."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
