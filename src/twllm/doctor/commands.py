"""`twllm doctor [MODEL|URL|FILE.gguf|Modelfile]`."""

from pathlib import Path
from typing import Annotated

import typer

from twllm.errors import UserError


def doctor(
    target: Annotated[
        str | None,
        typer.Argument(
            help="模型或轉接器資料夾、.gguf 檔、Modelfile、伺服器網址；不給就看這台機器", metavar="MODEL|URL"
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="該答得一樣的原模型：資料夾或網址 (what it should answer like)")
    ] = None,
    api_key: Annotated[str, typer.Option(envvar="TWLLM_API_KEY", help="伺服器的金鑰 (key)")] = "",
    model: Annotated[str, typer.Option(help="伺服器上的模型名稱；預設第一個 (model name)")] = "",
    deep: Annotated[bool, typer.Option("--deep", help="也讀權重的數值 (read all weights)")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="印 JSON")] = False,
) -> None:
    """為什麼這份模型答得和展示的不一樣：範本、系統提示、BOS、結束符、抽樣、精度、上下文 (why does it answer differently?).

    有問題就以 1 結束 (exit code 1 when a fault is found).
    """
    from twllm.doctor.findings import as_json as to_json
    from twllm.doctor.findings import has_fault, show

    findings = _find(target, reference, api_key, model, deep)
    name = target or "這台機器 (this machine)"
    if as_json:
        print(to_json(name, findings))
    else:
        show(name, findings)
    if has_fault(findings):
        raise typer.Exit(1)


def _find(target: str | None, reference: str | None, key: str, model: str, deep: bool) -> list:  # type: ignore[type-arg]
    if target is None:
        from twllm.doctor.environment import check_machine

        return check_machine(Path.cwd())
    if target.startswith(("http://", "https://")):
        from rich.console import Console

        from twllm.doctor.examine import examine

        with Console(stderr=True).status("問伺服器同樣的問題 (asking the same questions)"):
            return examine(target, reference, key=key, model=model)
    if target.endswith(".gguf"):
        from twllm.doctor.gguf import check_gguf

        return check_gguf(Path(target), _folder(reference))
    if (files := _exported(Path(target))) is not None:
        from twllm.doctor.gguf import check_gguf
        from twllm.doctor.modelfile import check_modelfile

        reading = {True: check_modelfile, False: check_gguf}
        return [finding for file in files for finding in reading["Modelfile" in file.name](file, _folder(reference))]
    from twllm.doctor.folder import check_folder

    findings = check_folder(Path(target), deep=deep)
    if reference is None:
        return findings
    from twllm.doctor.examine import examine, serve_folder

    with serve_folder(Path(target)) as url:
        return [*findings, *examine(url, reference)]


def _exported(target: Path) -> list[Path] | None:
    """A Modelfile, or a folder of nothing but one or GGUF files; None for everything else."""
    if target.is_file() and "Modelfile" in target.name:
        return [target]
    if target.is_dir() and not any((target / name).is_file() for name in ("config.json", "adapter_config.json")):
        return [target / "Modelfile"] if (target / "Modelfile").is_file() else sorted(target.glob("*.gguf")) or None
    return None


def _folder(reference: str | None) -> Path | None:
    if reference is not None and "://" in reference:
        raise UserError("GGUF 檔要和資料夾比 (needs a folder)", reference, "--reference 模型資料夾")
    return None if reference is None else Path(reference)
