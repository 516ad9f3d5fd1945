"""A folder to the hub, or to any server of its protocol (HF_ENDPOINT): one commit, or none.

Large files go first, one at a time; a file whose SHA-256 the server has is not sent again, so that after a broken connection the same
command goes on where it stopped, and nobody sees half a model: the commit comes last. Repositories are private unless asked otherwise.
The token is HF_TOKEN or `hf auth login`'s, never an option: options end up in shell histories. Our `manifest.json` and hidden files stay here.
Not covered: deleting files that an earlier commit had, pull requests.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from twllm.errors import UserError, require_file

LEFT = {"manifest.json"}


@dataclass(frozen=True)
class Upload:
    """What is, or in a dry run would be, sent: names with sizes, and the address of the commit."""

    files: dict[str, int]
    url: str = ""

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(self.files.values())


def files_of(folder: Path) -> dict[str, int]:
    """The files that go to the hub, by name in the repository.

    Raises:
        UserError: no such folder, nothing in it, or no model card.
    """
    require_file(folder, "找不到資料夾 (no such folder)")
    found = {
        name: path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (name := path.relative_to(folder).as_posix()) not in LEFT
        if not any(part.startswith(".") for part in Path(name).parts)
    }
    if "README.md" not in found:
        raise UserError("沒有模型卡，不上傳 (no README.md)", folder, "用 twllm export 產生的資料夾")
    return found


def push(
    folder: Path, repository: str, *, private: bool = True, revision: str | None = None, dry_run: bool = False,
    message: str = "twllm export", tell: Callable[[str], None] = lambda text: None,
) -> Upload:  # fmt: skip
    """Send the folder to `repository` (owner/name); a dry run asks nothing of the server.

    Raises:
        UserError: a bad name, no or a wrong token, no right to write there, or the connection broke; run again to go on.
    """
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UserError("hub 的名稱要寫成 擁有者/名稱 (owner/name)", repository, "例如 my-lab/taiwan-chat-7b")
    files = files_of(folder)
    if dry_run:
        return Upload(files)
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if not get_token():
        raise UserError("沒有 hub 的金鑰 (no token)", repository, "設定 HF_TOKEN，或先執行 hf auth login")
    try:
        return Upload(files, _send(HfApi(), folder, repository, files, private, revision, message, tell))
    except HFValidationError as error:
        raise UserError(f"hub 不接受這個名稱 (bad name): {error}", repository, "只用英數字、-、_、.") from error
    except _broken_off(HfHubHTTPError) as error:
        raise _explained(error, repository) from error


def _send(
    api: Any, folder: Path, repository: str, files: dict[str, int], private: bool, revision: str | None, message: str,
    tell: Callable[[str], None],
) -> str:  # fmt: skip
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    api.create_repo(repository, private=private, exist_ok=True)
    if revision:
        api.create_branch(repository, branch=revision, exist_ok=True)
    additions = []
    for number, name in enumerate(sorted(files, key=lambda name: files[name]), 1):
        tell(f"[{number}/{len(files)}] {name}（{files[name] / 1e6:,.1f} MB）")
        addition = CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name)
        api.preupload_lfs_files(repository, [addition], revision=revision, num_threads=1, free_memory=False)
        additions.append(addition)
    commit = api.create_commit(repository, additions, commit_message=message, revision=revision, num_threads=1)
    return str(commit.commit_url)


def _broken_off(error: type[Exception]) -> tuple[type[Exception], ...]:
    """What an upload that fails raises: the client goes through httpx or, newer, httpx2, and wraps what breaks in RuntimeError."""
    found: list[type[Exception]] = [error, OSError, ValueError, RuntimeError]
    for name in ("httpx", "httpx2"):
        with suppress(ImportError):
            found.append(import_module(name).HTTPError)
    return tuple(found)


def _explained(error: Exception, repository: str) -> UserError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    first = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
    if status == 401:
        return UserError(f"hub 不認這把金鑰 (token refused): {first}", repository, "換一把有 write 權限的 HF_TOKEN")
    if status == 403:
        return UserError(f"沒有寫入的權限 (no right to write): {first}", repository, "檢查擁有者名稱與金鑰的權限")
    return UserError(f"上傳中斷 (upload broke off): {first}", repository, "同一個指令重跑；傳完的檔案不會再傳")
