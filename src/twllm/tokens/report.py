"""What a conversation data set holds: rows, turns, characters, licences, sources, and what was left out or put right.

Every row is read as training would read it, with `on_broken = "skip"`, so all trouble is counted at once and the first
place of each kind is named.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from twllm import data
from twllm.corpus.licences import DataUse
from twllm.corpus.store import read_funnel
from twllm.errors import UserError
from twllm.tokens.config import DatasetConfig
from twllm.tokens.conversation import Conversation, Tally, label_of, read_dataset
from twllm.tokens.rows import list_files

if TYPE_CHECKING:
    from rich.table import Table

SHOWN_SOURCES = 12


@dataclass
class DatasetReport:
    """Counts of one data set."""

    name: str
    conversations: int = 0
    turns: int = 0
    user_chars: int = 0
    assistant_chars: int = 0
    rated: Counter[int] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    generators: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    tally: Tally = field(default_factory=Tally)

    def add(self, conversation: Conversation) -> None:
        """Count one conversation."""
        self.conversations += 1
        for message in conversation.messages:
            if message["role"] == "assistant":
                self.turns += 1
                self.assistant_chars += len(message["content"])
            elif message["role"] == "user":
                self.user_chars += len(message["content"])
        self.licences[conversation.license] += 1
        self.sources[conversation.source] += 1
        if conversation.generator:
            self.generators[conversation.generator] += 1
        if conversation.rating is not None:
            self.rated[conversation.rating] += 1

    @property
    def use(self) -> DataUse:
        return DataUse(self.name, "", dict(self.licences), dict(self.generators))


def dataset_report(dataset: DatasetConfig) -> DatasetReport:
    """Read a whole data set and count.

    Raises:
        UserError: nothing is there, or a file is not of the format that was named.
    """
    report = DatasetReport(label_of(dataset.path))
    for conversation in read_dataset(dataset.model_copy(update={"on_broken": "skip"}), report.tally):
        report.add(conversation)
    return report


def is_corpus(path: str) -> bool:
    """Whether this is a folder that `corpus build` wrote.

    Raises:
        UserError: it is a folder with neither a corpus nor a conversation file.
    """
    folder = data.resolve(path)
    if not folder.is_dir():
        return False
    try:
        read_funnel(folder)
        return True
    except UserError:
        pass
    try:
        list_files(path)
    except UserError as error:
        if any(list(folder.rglob(f"*.{suffix}")) for suffix in ("yml", "yaml", "xml")):
            return False  # told by --format
        what = "不是語料資料夾，也沒有對話檔 (not a corpus folder, no conversation files)"
        raise UserError(what, folder, "給 twllm corpus build 的輸出，或對話資料的檔案、資料夾、twllm:NAME") from error
    return False


def count_table(reports: list[DatasetReport]) -> "Table":
    """Conversations, turns, characters, ratings."""
    from rich.markup import escape
    from rich.table import Table

    names = ("資料 data", "對話 conversations", "回合 turns", "問的字 user chars", "答的字 assistant chars", "👍／👎")
    table = Table(*names, title="對話資料 (conversation data)")
    for column in table.columns[1:]:
        column.justify = "right"
    for r in reports:
        rated = f"{r.rated[1]:,}／{r.rated[-1]:,}" if r.rated else ""
        numbers = (f"{n:,}" for n in (r.conversations, r.turns, r.user_chars, r.assistant_chars))
        table.add_row(escape(r.name), *numbers, rated)
    return table


def trouble_table(reports: list[DatasetReport]) -> "Table | None":
    """What was left out and what was put right, by reason; None where nothing was."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        "資料 data",
        "怎麼了 what",
        "原因 reason",
        "次數 times",
        "例如 for example",
        title="略過與修整 (left out, put right)",
    )
    table.columns[3].justify = "right"
    for r in reports:
        for kind, counts in (("略過 left out", r.tally.skipped), ("修整 put right", r.tally.repaired)):
            for reason, count in counts.most_common():
                if count:
                    example = r.tally.examples.get(reason, "") if counts is r.tally.skipped else ""
                    shown = f"{example.rsplit('/', 1)[-1]}"
                    table.add_row(escape(r.name), kind, reason, f"{count:,}", escape(shown))
    return table if table.row_count else None


def source_table(reports: list[DatasetReport]) -> "Table | None":
    """Where rows say they come from; None where every data set has one source only."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("資料 data", "來源 source", "對話 conversations", title="來源 (sources)")
    for r in reports:
        if len(r.sources) > 1:
            for name, count in r.sources.most_common(SHOWN_SOURCES):
                table.add_row(escape(r.name), escape(name), f"{count:,}")
            if (rest := len(r.sources) - SHOWN_SOURCES) > 0:
                table.add_row(escape(r.name), f"…另有 {rest} 個 (more)", "")
    return table if table.row_count else None


def print_reports(datasets: list[DatasetConfig]) -> None:
    """Print the funnel and licences of each built corpus, then the tables of all conversation data sets together.

    Raises:
        UserError: see `is_corpus` and `dataset_report`.
    """
    from rich.console import Console

    from twllm.corpus.report import corpus_licences, funnel_table, licence_table

    console, reports = Console(), []
    for dataset in datasets:
        path = dataset.path
        if is_corpus(path):
            console.print(funnel_table(path))
            console.print(licence_table([corpus_licences(path)], f"授權 (licences)：{path}"))
        else:
            reports.append(dataset_report(dataset))
    if reports:
        console.print(count_table(reports))
        console.print(licence_table([report.use for report in reports], "授權 (licences)"))
        for table in (source_table(reports), trouble_table(reports)):
            if table is not None:
                console.print(table)
