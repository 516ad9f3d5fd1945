"""A LoRA adapter folder: can it be merged, does it fit the base it names, does it bring another template?

The adapter's tensors are read (they are small), of the base only the headers, and only where it is a folder on this machine.
"""

from collections.abc import Iterator
from pathlib import Path

from twllm.doctor.findings import Finding
from twllm.doctor.weights import read_header
from twllm.errors import UserError
from twllm.release.merge import Changes, read_adapter_config
from twllm.tokens.contract import TemplateMismatch, require_trained_template
from twllm.tokens.tokenizer import ChatTokenizer


def check_adapter(folder: Path, base: Path | None = None) -> list[Finding]:
    """Findings of an adapter folder; `base` None: the one it names.

    Raises:
        UserError: there is no such folder.
    """
    try:
        config = read_adapter_config(folder)
    except UserError as error:
        return [Finding("weights", "fault", error.what, "不能併進底模", error.fix)]
    named = str(base or config.get("base_model_name_or_path") or "")
    told = f"LoRA 轉接器，底模是 {named or '（沒寫）'} (an adapter, not a model)"
    if not named or not Path(named).is_dir():
        why = "單獨不能回答，而底模不在這台機器上，無從比對"
        return [Finding("weights", "fault", told, why, "twllm export 轉接器 --base 底模 --out 資料夾；再檢查合併後的")]
    return [*_check_fit(folder, Path(named), config, told), *_check_template(folder, Path(named))]


def _check_fit(folder: Path, base: Path, config: dict, told: str) -> Iterator[Finding]:  # type: ignore[type-arg]
    try:
        changes = Changes(folder, config, base)
        header = {
            name: entry for file in sorted(base.glob("*.safetensors")) for name, entry in read_header(file).items()
        }
    except (UserError, OSError, ValueError) as error:
        yield Finding("weights", "fault", getattr(error, "what", str(error)), "不能併進底模", getattr(error, "fix", ""))
        return
    missing = sorted({*changes.parts, *changes.saved} - set(header))
    wrong = [
        name for name in changes.shapes() if name in header and changes.shapes()[name] != tuple(header[name]["shape"])
    ]
    if missing or wrong:
        seen = f"底模沒有 {missing[0]}" if missing else f"{wrong[0]} 的形狀和底模不同"
        yield Finding("weights", "fault", seen, "這不是它訓練時的底模", "找回訓練時的底模（詞彙擴充過的要用擴充過的）")
    else:
        rank = f"，rank {config.get('r')}，改 {len(changes.parts) + len(changes.saved)} 個張量"
        yield Finding("weights", "ok", told + rank, "要單獨用就先合併：twllm export 轉接器 --out 資料夾")


def _check_template(folder: Path, base: Path) -> Iterator[Finding]:
    """The tokenizer that the merged model will have."""
    own = (folder / "tokenizer.json").is_file()
    try:
        tokenizer = ChatTokenizer.load(folder if own else base)
        require_trained_template(base, tokenizer)
    except TemplateMismatch as error:
        why = "轉接器帶了自己的範本；它若是用這個範本訓練的就沒錯"
        yield Finding("template", "warning", error.what, why, "確認訓練時用的範本；匯出時 --allow-template-mismatch")
        return
    except UserError as error:
        yield Finding("tokenizer", "fault", error.what, "沒有它就不能對話", error.fix)
        return
    yield Finding(
        "template", "ok" if tokenizer.template else "unknown", "轉接器自己的分詞器" if own else "用底模的分詞器"
    )
