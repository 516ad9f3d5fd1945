"""Artifact folders: they appear whole or not at all, and each says how it was made.

A stage writes into a sibling `.NAME.partial-*` folder; files are flushed to disk, then one rename makes it visible. A reader
therefore never sees half a folder, also after `kill -9`. `manifest.json` holds the resolved config, the fingerprints of the
inputs, the code version, counts and metrics; `fingerprint` covers what the result depends on (config and inputs) and
nothing that changes from run to run (times, folder names, code version), so it decides whether a stage is up to date.
"""

import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from twllm import __version__
from twllm.errors import UserError

MANIFEST = "manifest.json"
BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.model")  # what a checkpoint folder holds besides its tensors
FULL = (errno.ENOSPC, errno.EDQUOT)


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, no escapes."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)


def fingerprint(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def hash_path(path: Path | str) -> str:
    """Fingerprint of a file's bytes, or of a folder's relative names and bytes (its manifest and dotfiles left out)."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        name = "" if file == path else file.relative_to(path).as_posix()
        if name == MANIFEST or any(part.startswith(".") for part in Path(name).parts):
            continue
        digest.update(name.encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Full disk, missing rights, a file in place of a folder (or the reverse): a UserError that names the place."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        told = re.search(r"\(os error (\d+)\)", str(error))  # safetensors has its own exception
        number = int(told[1]) if told else getattr(error, "errno", None)
        if number in FULL:
            fix = "清出空間（或配額 quota）後用同一個指令重跑；有中斷點就從那裡接續"
            raise UserError("磁碟空間不足 (no space left on device)", path, fix) from error
        if number == errno.EFBIG:
            what = "檔案超過這裡的上限 (file too large)"
            raise UserError(what, path, "FAT32 只到 4 GB，ulimit -f 也有上限：換一個位置") from error
        if not isinstance(error, OSError):
            raise
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            where = error.filename or path
            raise UserError("沒有讀寫權限 (permission denied)", where, "修正權限，或換一個位置") from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            raise UserError(
                "要資料夾的地方是檔案，或相反 (a file where a folder belongs, or the reverse)",
                error.filename or path,
                "換一個路徑，或移開擋住的檔案",
            ) from error
        raise


@contextmanager
def write_folder(path: Path | str) -> Iterator[Path]:
    """Yield a fresh folder to fill; on success it replaces `path` in one rename, on any error it is removed.

    Raises:
        UserError: the disk is full, the folder may not be written, or something that is not ours is in its place.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - `.` gets a name; links are not followed
    with explain_os_errors(path):
        _refuse_foreign(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_partial(path)
        partial = path.parent / f".{path.name}.partial-{os.getpid()}"
        partial.mkdir()
        try:
            yield partial
            _as_umask_says(partial)
            sync_tree(partial)
            if path.exists():
                old = path.parent / f".{path.name}.partial-old-{os.getpid()}"
                path.rename(old)
                partial.rename(path)
                shutil.rmtree(old)
            else:
                partial.rename(path)
            sync(path.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _as_umask_says(folder: Path) -> None:
    """safetensors makes its files readable by their owner alone; a model is served by others, too."""
    if files := list(folder.rglob("*.safetensors")):
        (probe := folder / ".umask").touch()  # os.umask() can only be read by setting it, for all threads
        for file in files:
            file.chmod(stat.S_IMODE(probe.stat().st_mode))
        probe.unlink()


def copy_files(
    folder: Path, out: Path, patterns: Sequence[str] = BESIDE_WEIGHTS, but: Sequence[str] = (MANIFEST,)
) -> None:
    """Copy a folder's files that match one of `patterns` and none of `but` into the folder `out`."""
    for pattern in patterns:
        for file in sorted(folder.glob(pattern)):
            if not any(file.match(name) for name in but):
                shutil.copyfile(file, out / file.name)


def _refuse_foreign(path: Path) -> None:
    """Replacing deletes: only an empty folder or one that twllm made (it has a manifest) may be replaced."""
    if path.is_dir() and ((path / MANIFEST).exists() or not any(path.iterdir())):
        return
    if path.exists() or path.is_symlink():
        raise UserError(
            "這裡已有不是 twllm 產生的東西，不覆蓋 (not made by twllm, not replaced)", path, "換一個 --out，或先移開它"
        )


def remove_partial(path: Path) -> None:
    """Remove what an earlier, killed writer of `path` left behind (it was never visible under its own name)."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        shutil.rmtree(left, ignore_errors=True)


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 file whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file whole or not at all."""
    path = Path(path)
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        try:
            partial.write_bytes(content)
            sync(partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_json(path: Path | str, value: Any) -> None:
    """Pretty UTF-8 JSON, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


def sync(path: Path) -> None:
    """fsync one file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """fsync every file below `folder`, then the folders."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


@cache
def code_version() -> str:
    """`0.1.0+<hash of the package's Python files>`: tells two builds apart, also outside git."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:8]}"


def write_manifest(
    folder: Path, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str], **more: Any
) -> dict[str, Any]:
    """Write `manifest.json`: `fingerprint` covers stage, config and inputs; `more` (counts, metrics, seconds) is told only."""
    manifest = {
        "stage": stage,
        "fingerprint": stage_fingerprint(stage, config, inputs),
        "config": dict(config),
        "inputs": dict(inputs),
        "code_version": code_version(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **more,
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def stage_fingerprint(stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """What a stage's result depends on, as one short hash."""
    return fingerprint({"stage": stage, "config": dict(config), "inputs": dict(inputs)})


def read_manifest(folder: Path | str) -> dict[str, Any] | None:
    """The folder's manifest, or None if there is none (or it is not JSON: such a folder was not made by twllm)."""
    try:
        manifest = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


@contextmanager
def lock(out: Path, file: Path | None = None) -> Iterator[None]:
    """Only one process may run in a folder; the lock (`file`, or in the folder) goes with the process, also after kill -9."""
    file = file or out / ".lock"
    with explain_os_errors(out):
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("a")
    with stream:
        for patience in (0.05, 0.05, 0.0):  # somebody who only looks whether it is locked holds it for a moment
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if not patience:
                    raise UserError(
                        "另一個 twllm 正在用這個資料夾 (folder is in use)", out, "等它結束，或換一個 --out"
                    ) from error
                time.sleep(patience)
        yield


def is_running(out: Path, file: Path | None = None) -> bool:
    """Whether a process holds the folder's lock."""
    try:
        with (file or out / ".lock").open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
