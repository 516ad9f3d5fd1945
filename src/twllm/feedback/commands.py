"""`twllm feedback`: stats, export, leaderboard, delete, expire, new-key."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from twllm.errors import UserError

app = typer.Typer(no_args_is_help=True, help="使用者回饋 (feedback).")
Db = Annotated[str, typer.Option("--db", help="評分資料庫：檔案路徑或 SQLAlchemy URL")]


class Format(StrEnum):
    """Export formats; a test holds them equal to export.FORMATS."""

    ratings = "ratings"
    sft_positive = "sft-positive"
    kto = "kto"
    dpo = "dpo"


def _db_url(db: str) -> str:
    return db if "://" in db else f"sqlite:///{Path(db).resolve().as_posix()}"


@app.command()
def export(
    db: Db,
    out: Annotated[Path, typer.Option("--out", help="輸出的 .jsonl，或資料夾（附報告與 manifest）")],
    format: Annotated[Format, typer.Option(help="ratings（預設，sft-positive 與 kto 都讀）、sft-positive、kto、dpo")] = Format.ratings,
    all_: Annotated[bool, typer.Option("--all", help="沒有同意用於訓練的也匯出 (ignore consent)")] = False,
    per_user: Annotated[int, typer.Option(help="每人最多幾筆；0 不限 (cap per person)", min=0)] = 100,
    burst: Annotated[int, typer.Option(help="每人一分鐘超過幾次就不算；0 不限", min=0)] = 30,
    same: Annotated[int, typer.Option(help="按了這麼多次、每次都一樣、也沒說原因的人不算；0 不限", min=0)] = 30,
    min_gap: Annotated[float, typer.Option(help="離上一次不到幾秒就不算；0 不限", min=0)] = 1.0,
    min_chars: Annotated[int, typer.Option(help="回答至少幾個字", min=0)] = 2,
) -> None:  # fmt: skip
    """把 👍👎 與擂台的票匯出成 feedback 階段讀的資料，並說明略過了什麼 (ratings and votes → training rows)."""
    from twllm.feedback.export import REASONS, export_feedback
    from twllm.feedback.guards import Limits

    limits = Limits(per_user=per_user, burst=burst, same=same, min_gap_s=min_gap, min_chars=min_chars)
    report = export_feedback(_db_url(db), out, format.value, consent_only=not all_, limits=limits)
    print("、".join(f"{key} {report[key]}" for key in ("rows", "up", "down", "opinions") if key in report))
    for reason, count in report["left_out"].items():
        print(f"  {count:>6} {REASONS.get(reason, reason)}")
    for kind, count in report["scrubbed"].items():
        print(f"  {count:>6} 遮去 (scrubbed) {kind}")
    if not report["rows"]:
        print("沒有可用的資料；評分要勾選同意，或加 --all (nothing to use; people must consent, or use --all)")


@app.command()
def stats(
    db: Db, plot: Annotated[Path | None, typer.Option("--plot", help="也畫成 PNG (picture)")] = None
) -> None:  # fmt: skip
    """評分統計：依模型、日期、原因，與意見是否一致 (counts by model, day, reason; agreement)."""
    from twllm.feedback.stats import plot as draw
    from twllm.feedback.stats import stats as count

    found = count(_db_url(db))
    for key, value in found.items():
        if isinstance(value, dict) and key != "agreement":
            print(f"{key}:")
            for name, counts in value.items():
                print(f"  {name}: {_line(counts)}")
        else:
            print(f"{key}: {_line(value)}")
    if plot:
        draw(found, plot)


def _line(value: Any) -> str:
    return "、".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


@app.command()
def leaderboard(db: Db) -> None:
    """擂台排名與 95 % 區間 (arena ratings with intervals)."""
    from rich.console import Console
    from rich.table import Table

    from twllm.feedback.leaderboard import leaderboard as rank
    from twllm.feedback.store import RatingStore

    with RatingStore(_db_url(db), create=False) as store:
        found = rank(store)
    table = Table(
        "模型 model", "分數 rating", "95 %", "場 battles", "勝 won", "負 lost", "平 tied", title=found["method"]
    )
    for row in found["models"]:
        counts = [str(row[key]) for key in ("battles", "wins", "losses", "ties")]
        table.add_row(row["name"], f"{row['rating']:.0f}", f"{row['low']:.0f} – {row['high']:.0f}", *counts)
    Console().print(table)


@app.command()
def delete(
    db: Db,
    user: Annotated[str, typer.Option(help="瀏覽器的編號（聊天頁面可看到），或資料庫裡的代號")],
) -> None:
    """刪除一個人的評分、投票與對話，只留下刪除紀錄 (erase one person's ratings, votes and text)."""
    from twllm.feedback.store import RatingStore

    with RatingStore(_db_url(db), create=False) as store:
        counts = store.erase(user, "operator")
    if not any(counts.values()):
        raise UserError("這個人沒有資料 (nothing stored of this user)", db, "確認編號；換過金鑰的話舊資料對不上了")
    print(f"已刪除 (erased)：{_line(counts)}")


@app.command()
def expire(db: Db, days: Annotated[float, typer.Option(help="保留天數 (retention)", min=0)]) -> None:
    """刪除超過保留期限的資料 (erase what is older)."""
    from twllm.feedback.store import RatingStore

    with RatingStore(_db_url(db), create=False) as store:
        print(f"已刪除 (erased)：{_line(store.expire(days))}")


@app.command("new-key")
def new_key(db: Db) -> None:
    """金鑰真的遺失時，接受現在的金鑰；舊評分從此無法依編號刪除 (accept the present key, the old one is lost)."""
    from twllm.feedback.store import RatingStore

    with RatingStore(_db_url(db), create=False) as store:
        store.new_key()
    print("已改用現在的金鑰 (done)")
