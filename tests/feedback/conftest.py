"""Databases to test on: SQLite, and a PostgreSQL that is started for the test run (skipped where there is none)."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from twllm.feedback.key import ENV

NOBODY = 65534


def _as_nobody(command: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return command
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Path]:
    """A running PostgreSQL; its folder is the socket's. Without fsync: these tests do not pull the plug."""
    initdb, server = shutil.which("initdb"), shutil.which("postgres")
    if not initdb or not server or (os.getuid() == 0 and not shutil.which("setpriv")):
        pytest.skip("no PostgreSQL here (apt-get install postgresql)")
    pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp(prefix="twllm-pg-"))
    if os.getuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    data, env = str(folder / "data"), {**os.environ, "LC_ALL": "C.UTF-8"}
    made = [initdb, "-D", data, "-U", "twllm", "--auth=trust", "--no-sync", "--encoding=UTF8"]
    subprocess.run(_as_nobody(made), check=True, capture_output=True, cwd="/", env=env)
    options = {"listen_addresses": "", "unix_socket_directories": folder, "fsync": "off", "shared_buffers": "16MB"}
    flags = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
    with subprocess.Popen(
        _as_nobody([server, "-D", data, *flags]), cwd="/", env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            _wait(folder)
            yield folder
        finally:
            process.send_signal(signal.SIGQUIT)  # at once: the data is thrown away
            process.wait(20)
            shutil.rmtree(folder, ignore_errors=True)


def _wait(folder: Path) -> None:
    import psycopg

    end = time.monotonic() + 20
    while True:
        try:
            psycopg.connect(f"host={folder} user=twllm dbname=postgres").close()
            return
        except psycopg.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def new_database(folder: Path) -> str:
    """The URL of a fresh, empty PostgreSQL database."""
    import psycopg

    name = f"t{uuid.uuid4().hex[:12]}"
    with psycopg.connect(f"host={folder} user=twllm dbname=postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return f"postgresql://twllm@/{name}?host={folder}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / '評分' / 'ratings.db'}"
    monkeypatch.setenv(ENV, "測試用的金鑰 for tests only 0123456789")
    return new_database(request.getfixturevalue("postgres"))
