"""Speed of the corpus path against datatrove's own blocks, near duplicates against exact Jaccard, memory as the input grows.

    python benchmarks/corpus_speed.py --data ../shared/data/prose --trove PYTHON [--mb 500] [--warc-mb 200] [--trove-mb 500]

PYTHON is one whose environment has datatrove[processing], spacy, jieba and trafilatura (benchmarks/corpus_trove.py runs there).
The text is what DATA has, cut into pages of up to 3,000 characters at line ends; beyond its size, pages are put together anew
from lines of other pages (said in the output), and one page in ten gets a copy with known edits. The WARC has HTML pages around the
same text. Both sides read and write the same files, in one process, one core; counted is CPU time (user + system) of that process, so that a
busy machine does not count. datatrove's LanguageFilter is left out (its model must be downloaded); ours tells language, script
and region all the same. `--trove-mb` gives datatrove a part of the input, its time is scaled.
The last line is `RESULT {json}`.
"""

import argparse
import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

PAGE_CHARS = 3000

OURS = ("normalize", "region", "privacy")  # region: language, script, region and all rules of quality
JACCARD = 0.75
SAMPLE = 1500
HERE = Path(__file__).resolve()


# -- input ------------------------------------------------------------------------------------------------------


def pages(folder: Path) -> Iterator[str]:
    """Real pages: texts cut at line ends."""
    with ExitStack() as opened:
        files = sorted(folder.glob("*.jsonl.gz"))
        yield from cut([opened.enter_context(gzip.open(file, "rt", encoding="utf-8")) for file in files])


def cut(streams: list[Any]) -> Iterator[str]:
    """The texts of the streams in turn, a line from each, cut into pages."""
    while streams:
        for stream in tuple(streams):
            line = stream.readline()
            if not line:
                streams.remove(stream)
                continue
            page, size = list[str](), 0
            for part in json.loads(line)["text"].split("\n"):
                if page and size + len(part) > PAGE_CHARS:
                    yield "\n".join(page)
                    page, size = [], 0
                page.append(part)
                size += len(part) + 1
            if size > 100:
                yield "\n".join(page)


def more_pages(folder: Path) -> Iterator[str]:
    """The real pages, then pages of lines of other pages, for ever."""
    yield from pages(folder)
    step = 0
    while True:
        step += 1
        block = list[list[str]]()
        for text in pages(folder):
            block.append(text.split("\n"))
            if len(block) == 997:
                for number in range(997):
                    picked = [block[(number + place * (step * 7 + 1)) % 997] for place in range(len(block[number]))]
                    yield "\n".join(lines[place % len(lines)] for place, lines in enumerate(picked))
                block = []


def edited(rng: random.Random, text: str) -> str:
    """A copy as the web makes them: lines away, moved or put in, characters changed, boilerplate around."""
    lines = text.split("\n")
    kind = rng.randrange(5)
    if kind == 0:
        return "".join(char for char in text if rng.random() > 0.012)
    if kind == 1:
        return "\n".join(line for line in lines if rng.random() > 0.08)
    if kind == 2:
        cut = rng.randrange(len(lines))
        return "\n".join((*lines[cut:], *lines[:cut]))
    if kind == 3:
        return "\n".join(("首頁 > 新聞 > 生活", *lines, "按讚、分享、訂閱電子報", "版權所有，未經同意請勿轉載"))
    return "".join(rng.choice("的了是在") if rng.random() < 0.012 else char for char in text)


def write_rows(folder: Path, out: Path, megabytes: float) -> dict[str, int]:
    """The .jsonl file; real and put-together bytes."""
    rng, told, number = random.Random(1), {"real": 0, "again": 0, "copies": 0, "pages": 0}, 0
    real = sum(1 for _ in pages(folder))
    with out.open("w", encoding="utf-8") as lines:
        size = 0
        for text in more_pages(folder):
            host = hashlib.blake2b(str(number // 500).encode(), digest_size=3).hexdigest()
            rows = [{"id": f"p{number}", "text": text, "url": f"https://{host}.tw/{number}"}]
            if rng.random() < 0.1:
                rows.append({"id": f"p{number}c", "text": edited(rng, text), "url": f"https://copy.tw/{number}"})
            for row in rows:
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                bytes_ = len(row["text"].encode())
                size += bytes_
                told["copies" if row["id"].endswith("c") else "real" if number < real else "again"] += bytes_
            told["pages"] += len(rows)
            number += 1
            if size >= megabytes * 1e6:
                return told
    return told


PAGE = """<!DOCTYPE html><html lang="zh-Hant-TW"><head><meta charset="utf-8"><title>{title}</title><style>.a{{color:red}}</style></head>
<body><header><nav><ul>{menu}</ul></nav></header><main><article><h1>{title}</h1>{body}</article>
<aside><h3>延伸閱讀</h3><ul>{menu}</ul></aside></main><footer><p>版權所有 © 2024</p></footer><script>var x = {{}};</script></body></html>"""


def write_warc(folder: Path, out: Path, megabytes: float) -> None:
    """Pages as HTML in a .warc.gz; `megabytes` of HTML."""
    import io

    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    menu = "".join(
        f'<li><a href="/{name}">{name}</a></li>' for name in ("首頁", "政治", "生活", "財經", "體育", "娛樂")
    )
    size = 0
    with out.open("wb") as stream:
        writer = WARCWriter(stream, gzip=True)
        for number, text in enumerate(more_pages(folder)):
            lines = [line.replace("&", "&amp;").replace("<", "&lt;") for line in text.split("\n") if line.strip()]
            body = "".join(f'<p class="a">{line}</p>\n' for line in lines)
            html = PAGE.format(title=lines[0][:30] if lines else "頁", menu=menu, body=body).encode()
            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1")
            record = writer.create_warc_record(
                f"https://web.tw/{number}", "response", payload=io.BytesIO(html), http_headers=headers
            )
            writer.write_record(record)
            size += len(html)
            if size >= megabytes * 1e6:
                return


# -- ours, in a process of its own --------------------------------------------------------------------------------


def ours(kind: str, source: str, out: str) -> dict[str, float]:
    """Seconds of each step."""
    from twllm.corpus.dedup_file import dedup_files

    if kind == "dedup":
        start = time.process_time()
        dedup_files([Path(source)], Path(out), workers=1)
        return {"dedup": time.process_time() - start}
    from twllm.corpus.build import build_folder
    from twllm.corpus.config import CorpusConfig, CorpusSource

    steps = {"filter": OURS, "warc": (), "all": (*OURS, "boilerplate", "near_dedup")}[kind]
    _need_privacy()
    config = CorpusConfig(sources=(CorpusSource(path=source, license="-", name="web"),), steps=steps, max_held_out=0)
    facts = build_folder(config, Path(out))
    assert facts
    return dict(facts["seconds"])


def _need_privacy() -> None:
    from twllm.corpus.privacy import scrub
    from twllm.corpus.steps import map_step, names

    if "privacy" not in names():
        map_step("privacy")(lambda config: lambda text: scrub(text)[0])
        names.cache_clear()


def child(command: list[str]) -> dict[str, Any]:
    """Run a command: its last line as JSON, CPU and wall seconds, peak memory (MB)."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        lines = output.read().strip().splitlines()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed ({process.returncode}); run it by hand")
    steps = json.loads(lines[-1])
    return {"steps": steps.pop("steps", steps), "cpu": usage.ru_utime + usage.ru_stime, "wall": time.perf_counter() - start,
            "mb": steps.get("peak_mb", usage.ru_maxrss / 1024)}  # fmt: skip


def run_ours(kind: str, source: Path, out: Path) -> dict[str, Any]:
    """Ours in a fresh process."""
    return child([sys.executable, str(HERE), "--child", kind, str(source), str(out)])


def peak_mb() -> float:
    """Of this process since its start (ru_maxrss would count what its parent had)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


# -- near duplicates ----------------------------------------------------------------------------------------------


def our_clusters(folder: Path) -> list[list[str]]:
    """Ids that are together."""
    rows = map(json.loads, (folder / "clusters.jsonl").read_text(encoding="utf-8").splitlines())
    return [[row["kept"]["id"], *(member["id"] for member in row["members"])] for row in rows]


def trove_clusters(folder: Path, ids: list[str]) -> list[list[str]]:
    """Ids that are together."""
    import numpy as np

    found: dict[int, list[str]] = {}
    for file in (folder / "clusters").glob("*.clusters"):
        for place, cluster in np.fromfile(file, "<u4").reshape(-1, 2).tolist():
            found.setdefault(cluster, []).append(ids[place])
    return list(found.values())


def jaccard(left: str, right: str) -> float:
    """Exact, and neither side's measure: of the sets of five characters as written, white space left out."""
    sets = []
    for text in (left, right):
        plain = "".join(text.split())
        sets.append({plain[at : at + 5] for at in range(max(1, len(plain) - 4))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def judge(texts: dict[str, str], clusters: dict[str, list[list[str]]]) -> dict[str, dict[str, float]]:
    """Precision and recall of each side. Precision: a sampled document that goes has one in its cluster that is truly
    alike. Recall: of pairs that are truly alike (the edited copies, and what either side put together), how many are."""
    rng = random.Random(2)
    groups = {
        side: {name: number for number, ids in enumerate(every) for name in ids} for side, every in clusters.items()
    }
    pairs = {(name[:-1], name) for name in texts if name.endswith("c")}
    for every in clusters.values():
        pairs |= {(ids[0], other) for ids in rng.sample(every, min(len(every), SAMPLE)) for other in ids[1:5]}
    sample = rng.sample(sorted(pairs), min(len(pairs), 2 * SAMPLE))
    alike = [(a, b) for a, b in sample if jaccard(texts[a], texts[b]) >= JACCARD]
    result = {}
    for side, group in groups.items():
        together = sum(a in group and group[a] == group.get(b) for a, b in alike)
        gone = [(ids, other) for ids in clusters[side] for other in ids[1:]]
        right = [
            max(jaccard(texts[other], texts[one]) for one in ids[:20] if one != other) >= JACCARD - 0.1
            for ids, other in rng.sample(gone, min(len(gone), SAMPLE))
        ]
        result[side] = {
            "recall": round(together / max(1, len(alike)), 4),
            "precision": round(sum(right) / max(1, len(right)), 4),
            "removed": len(gone),
            "pairs": len(alike),
        }
    return result


def first_rows(source: Path, out: Path, megabytes: float) -> float:
    """The first lines of a file; megabytes written."""
    size = 0
    with source.open("rb") as lines, out.open("wb") as stream:
        for line in lines:
            stream.write(line)
            size += len(line)
            if size >= megabytes * 1e6:
                break
    return size / 1e6


def table(rows: Iterable[tuple[str, str, float, float]]) -> None:
    """side, step, seconds, MB/s."""
    print("\n| 誰 | 步驟 | 秒 | MB/s |\n| --- | --- | ---: | ---: |")
    for side, step, seconds, rate in rows:
        print(f"| {side} | {step} | {seconds:.2f} | {rate:.2f} |")
    print(flush=True)


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All of it."""
    source, warcs = work / "in.jsonl", work / "warc"
    warcs.mkdir()
    print("input:", write_rows(args.data, source, args.mb), flush=True)
    write_warc(args.data, warcs / "pages.warc.gz", args.warc_mb)
    small, small_warc = work / "small.jsonl", work / "warc-small"
    small_warc.mkdir()
    full_mb = source.stat().st_size / 1e6
    trove_mb = first_rows(source, small, args.trove_mb or args.mb * 2)
    trove_warc_mb = min(args.warc_mb, args.trove_mb or args.warc_mb)
    write_warc(args.data, small_warc / "pages.warc.gz", trove_warc_mb)
    sizes = {"filter": (full_mb, trove_mb), "dedup": (full_mb, trove_mb), "warc": (args.warc_mb, trove_warc_mb)}
    rows, rate, result = [], {}, dict[str, Any]()
    for kind, (mine, theirs) in sizes.items():
        ours_run = run_ours(kind, warcs / "pages.warc.gz" if kind == "warc" else source, work / f"ours-{kind}")
        command = [args.trove, str(HERE.with_name("corpus_trove.py")), kind]
        trove_run = child([*command, str(small_warc if kind == "warc" else small), str(work / f"trove-{kind}")])
        for side, found, megabytes in (("ours", ours_run, mine), ("datatrove", trove_run, theirs)):
            rows += [(side, f"{kind}: {name}", s, megabytes / s) for name, s in found["steps"].items() if s > 0.001]
            rows.append((side, f"{kind}: CPU", found["cpu"], megabytes / found["cpu"]))
            rate[side, kind] = megabytes / found["cpu"]
        result[f"ratio_{kind}"] = round(rate["ours", kind] / rate["datatrove", kind], 2)
        print(
            f"{kind}: {result[f'ratio_{kind}']} times, peak MB {ours_run['mb']:.0f} / {trove_run['mb']:.0f}", flush=True
        )
    table(rows)
    whole = {side: 1 / sum(1 / rate[side, kind] for kind in ("filter", "dedup")) for side in ("ours", "datatrove")}
    result |= {"ratio_datatrove": round(whole["ours"] / whole["datatrove"], 2), "mb_s_core": round(whole["ours"], 2)}
    result["near_duplicates"] = compare(work, small)
    result["steps"] = {f"{side} {step}": round(speed, 2) for side, step, _, speed in rows}
    return result


def compare(work: Path, small: Path) -> dict[str, dict[str, float]]:
    """Near duplicates of both sides in the same file."""
    run_ours("dedup", small, work / "ours-same")
    every = [json.loads(line) for line in small.read_text(encoding="utf-8").splitlines()]
    texts = {row["id"]: row["text"] for row in every}
    sides = {"ours": our_clusters(work / "ours-same"), "datatrove": trove_clusters(work / "trove-dedup", list(texts))}
    found = judge(texts, sides)
    print("near duplicates:", found, flush=True)
    return found


def growth(args: argparse.Namespace, work: Path) -> dict[str, float]:
    """Peak memory of the whole path (filters, boilerplate, near duplicates in one build) at 1×, 4×, 16×."""
    found = {}
    for times in (1, 4, 16):
        source = work / "grown.jsonl"
        write_rows(args.data, source, args.grow_mb * times)
        run = run_ours("all", source, work / f"grown-{times}")
        found[f"peak_rss_mb_{times}x"] = round(run["mb"], 1)
        print(f"{times}×: {args.grow_mb * times:.0f} MB, {run['cpu']:.1f} s, peak {run['mb']:.0f} MB", flush=True)
        source.unlink()
    return found


def main() -> None:
    """Measure and print; the last line is `RESULT {json}`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/prose"))
    parser.add_argument("--trove", default=os.environ.get("TROVE_PYTHON", sys.executable))
    parser.add_argument("--mb", type=float, default=500)
    parser.add_argument("--warc-mb", type=float, default=200)
    parser.add_argument("--trove-mb", type=float, default=None, help="give datatrove so much; its time is scaled")
    parser.add_argument(
        "--grow-mb", type=float, default=None, help="1× of the memory measurement; default: a quarter of --mb"
    )
    parser.add_argument(
        "--work", type=Path, default=None, help="folder for input and results; default: a temporary one"
    )
    parser.add_argument("--child", nargs=3, metavar=("KIND", "SOURCE", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps({"steps": ours(*args.child), "peak_mb": peak_mb()}))
        return
    args.grow_mb = args.grow_mb or args.mb / 4
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        result = measure(args, Path(folder)) | growth(args, Path(folder))
    print("RESULT " + json.dumps(result | {"mb": args.mb, "trove_mb": args.trove_mb or args.mb}, ensure_ascii=False))


if __name__ == "__main__":
    main()
