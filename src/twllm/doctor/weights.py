"""Weight files: all there, whole, of the shapes the config names; with `--deep` also free of NaN. safetensors only.

Only headers are read, so that a 140 GB model takes a second; `check_numbers` reads everything.
"""

import importlib.util
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twllm.doctor.findings import Finding

if TYPE_CHECKING:
    from twllm.doctor.folder import Folder

LIBRARIES = {  # what opens quantised weights: quant_method → packages
    "torchao": ("torchao",),
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel",),
    "compressed-tensors": ("compressed_tensors",),
    "bitsandbytes": ("bitsandbytes",),
}
MOST_HEADER = 100_000_000  # bytes, safetensors' own limit


def read_header(file: Path) -> dict[str, Any]:
    """Names → {dtype, shape, data_offsets} of a safetensors file.

    Raises:
        ValueError: not a safetensors file, or shorter than its header says.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else MOST_HEADER + 1
        if length > MOST_HEADER:
            raise ValueError("不是 safetensors 檔 (no header)")
        header: dict[str, Any] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if size != 8 + length + end:
        raise ValueError(f"大小 {size:,}，應該是 {8 + length + end:,}：沒下載完 (truncated)")
    return header


def check_weights(folder: "Folder") -> Iterator[Finding]:
    """Files, headers, the embedding's rows, the precision."""
    files = sorted(folder.path.glob("*.safetensors"))
    if not files:
        other = [p.name for p in sorted(folder.path.glob("*.bin")) + sorted(folder.path.glob("*.pt"))]
        seen = f"只有 pickle：{'、'.join(other[:3])}" if other else "沒有權重檔 (no weights)"
        why = "pickle 載入時會執行任意程式，twllm 不讀" if other else ""
        yield Finding("weights", "fault", seen, why, "轉存成 safetensors" if other else "重新下載 *.safetensors")
        return
    if not folder.config:
        yield Finding("weights", "fault", "沒有 config.json", "不知道是什麼模型", "放回 config.json")
        return
    header: dict[str, Any] = {}
    for file in files:
        try:
            header |= read_header(file)
        except (OSError, ValueError) as error:
            yield Finding("weights", "fault", f"{file.name}：{error}", "載入會失敗", "重新下載這個檔案")
            return
    yield from _check_index(folder, header)
    yield from _check_shapes(folder, header)


def _check_index(folder: "Folder", header: dict[str, Any]) -> Iterator[Finding]:
    index = folder.path / "model.safetensors.index.json"
    if not index.is_file():
        return
    named = json.loads(index.read_text(encoding="utf-8")).get("weight_map") or {}
    missing = sorted({file for file in named.values() if not (folder.path / file).is_file()})
    lost = sorted(set(named) - set(header))
    if missing or lost:
        seen = f"少了 {'、'.join(missing[:3])}" if missing else f"索引裡的 {lost[0]} 等 {len(lost)} 個張量不在檔案裡"
        yield Finding("weights", "fault", seen, "缺的權重會是亂數", "重新下載缺的檔案")


def _check_shapes(folder: "Folder", header: dict[str, Any]) -> Iterator[Finding]:
    config = folder.config.get("text_config") or folder.config
    rows = {
        name: t["shape"][0] for name, t in header.items() if name.endswith(("embed_tokens.weight", "lm_head.weight"))
    }
    wrong = {name: count for name, count in rows.items() if config.get("vocab_size") not in (None, count)}
    if wrong:
        name, count = next(iter(wrong.items()))
        seen = f"{name} 有 {count:,} 列，config.json 寫 {config['vocab_size']:,}"
        yield Finding("weights", "fault", seen, "權重和設定不是同一個模型", "放回同一版的 config.json")
        return
    total = sum(_count(t["shape"]) for t in header.values())
    kinds = sorted({t["dtype"] for t in header.values()})
    method = (folder.config.get("quantization_config") or {}).get("quant_method")
    yield Finding("weights", "ok", f"{total:,} 個參數，{'、'.join(kinds)}")
    if method:
        why = "量化過的權重答得和原模型不完全一樣"
        yield Finding("precision", "warning", f"量化 (quantised): {method}", why, "要比對就用原始精度")
        needs = [name for name in LIBRARIES.get(str(method), ()) if importlib.util.find_spec(name) is None]
        if needs:
            seen = f"這台機器沒有 {'、'.join(needs)} (library missing)"
            yield Finding(
                "machine", "warning", seen, "transformers 與 torch 引擎在這裡開不了它", f"pip install {' '.join(needs)}"
            )


def check_numbers(folder: "Folder") -> Iterator[Finding]:
    """Reads every tensor: NaN and infinities."""
    from safetensors import safe_open

    bad = []
    for file in sorted(folder.path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict)
                tensor = tensors.get_tensor(name)
                if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
                    bad.append(name)
    if bad:
        seen = f"{bad[0]} 等 {len(bad)} 個張量有 NaN 或無限大"
        yield Finding("weights", "fault", seen, "回答會是亂碼或空白", "換一個訓練中較早的檢查點")
    else:
        yield Finding("weights", "ok", "數值都是有限的 (all finite)")


def _count(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
