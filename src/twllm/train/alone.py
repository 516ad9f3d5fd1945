"""`twllm train PHASE`: one phase on its own, a checkpoint folder in and one out, resumable like a run."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from twllm import data as shipped
from twllm.artifact import fingerprint, hash_path, write_folder, write_manifest
from twllm.errors import UserError
from twllm.tokens.build import tokenize_chats, tokenize_corpus
from twllm.tokens.conversation import read_conversations
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.config import FeedbackConfig, MachineConfig, OptimConfig, PretrainConfig, SftConfig
from twllm.train.watch_config import WatchConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PHASES: dict[str, type[OptimConfig]] = {"pretrain": PretrainConfig, "sft": SftConfig, "feedback": FeedbackConfig}


def train_alone(
    phase: str, model: str, sources: list[str], out: Path, sets: list[str], machine: Path | None, template: str | None, licence: str, show: int,
    find_lr: bool = False,
) -> None:  # fmt: skip
    """Tokenise `sources`, train from `model`, write `out`; `find_lr`: only look for a learning rate, `out` gets curve and picture.

    Raises:
        UserError: bad model, data or settings.
    """
    from twllm.model.hub import fetch
    from twllm.recipe import load_machine, parse_settings, validate
    from twllm.train import distributed
    from twllm.train.phase import start_model, train_phase

    settings = parse_settings(sets)
    watch = validate(WatchConfig, settings.pop("watch", {}), "--set watch")
    if phase != "pretrain":
        settings["datasets"] = [{"path": source, "license": licence} for source in sources]
    config = validate(PHASES[phase], settings, "--set")
    start = fetch(model)
    tokenizer = ChatTokenizer.load(start)
    tokenizer = tokenizer.with_template(template) if template else tokenizer
    if show:
        show_masks(sources, tokenizer, show)
        return
    inputs = {"model": hash_path(start), **{source: hash_path(shipped.resolve(source)) for source in sources}}
    if isinstance(config, PretrainConfig | SftConfig) and config.teacher:
        inputs["teacher"] = hash_path(fetch(config.teacher.model, config.teacher.revision))
    facts = config.model_dump(mode="json") | {"template": tokenizer.template_fingerprint}
    inputs |= {
        text: hash_path(shipped.resolve(text)) for text in (config.forgetting.texts if config.forgetting else ())
    }
    work = out.parent / f".{out.name}.work-{fingerprint([phase, facts, inputs])}"

    def begin() -> "PreTrainedModel":
        return start_model(None, str(start), None, tokenizer, config.context, config.seed)

    if find_lr:
        _find_rate(phase, config, sources, licence, tokenizer, begin(), out, inputs, load_machine(machine))
        return
    weights, settings_of = [1.0] * len(sources), load_machine(machine)
    distributed.start(settings_of)
    with distributed.shared_folder(out) as folder:
        tokens = work / "tokens"

        def tokenize() -> None:
            if not tokens.is_dir():  # whole where it is there, and `work` is named by everything it depends on
                with write_folder(tokens) as shards:
                    _tokenize(phase, config, sources, licence, tokenizer, shards)

        distributed.from_main(tokenize)
        metrics = train_phase(
            phase, config, weights, begin(), tokenizer, tokens, folder, work, settings_of, begin, watch
        )
        if distributed.is_main():
            write_manifest(folder, phase, facts, inputs, metrics=metrics)
    if not distributed.is_main():
        return
    shutil.rmtree(work)
    Console(stderr=True).print(f"[green]✓[/] {out}  loss {metrics['loss']:.4f}")


def _find_rate(
    phase: str, config: OptimConfig, sources: list[str], licence: str, tokenizer: ChatTokenizer, model: "PreTrainedModel", out: Path,
    inputs: dict[str, str], machine: MachineConfig,
) -> None:  # fmt: skip
    """Everything but the picture, the curve and the table is gone afterwards."""
    from twllm.train.lr_finder import find_rate, write_found
    from twllm.train.phase import make_trainer

    with TemporaryDirectory(prefix="twllm-lr-") as folder:
        tokens = Path(folder) / "tokens"
        tokens.mkdir()
        _tokenize(phase, config, sources, licence, tokenizer, tokens)
        weights = [1.0] * len(sources)
        trainer = make_trainer(phase, config, weights, model, tokenizer, tokens, Path(folder) / "work", machine)
        write_found(find_rate(trainer), out, phase, inputs, config.model_dump(mode="json"))


def _tokenize(
    phase: str, config: OptimConfig, sources: list[str], licence: str, tokenizer: ChatTokenizer, out: Path
) -> None:
    if isinstance(config, SftConfig | FeedbackConfig):
        held_out, method = getattr(config, "held_out", 0.0), getattr(config, "method", None)
        tokenize_chats(out, config.datasets, tokenizer, config.context, held_out, method)
        return
    from twllm.corpus.build import build_corpus
    from twllm.corpus.config import CorpusConfig, CorpusSource

    if not licence and not all(source.startswith(shipped.PREFIX) for source in sources):
        raise UserError("語料要說明授權條款 (licence needed)", "--data", '加上 --license "CC BY 4.0" 之類的說明')
    corpus = CorpusConfig(
        sources=tuple(CorpusSource(path=source, license=licence or "CC-BY-4.0") for source in sources)
    )
    built = out / "corpus"
    built.mkdir()
    build_corpus(corpus, built)
    tokenize_corpus(out, built, [source.label for source in corpus.sources], tokenizer)


def show_masks(sources: list[str], tokenizer: ChatTokenizer, count: int) -> None:
    """Print the first conversations token by token: green = the loss covers it."""
    console = Console(highlight=False)
    for source in sources:
        for number, conversation in enumerate(read_conversations(source)):
            if number == count:
                break
            chat = tokenizer.encode_chat(conversation.messages)
            text, decoder = Text(), tokenizer.stream()
            for id, learned in zip(chat.ids, chat.mask, strict=True):
                control = next((name for name, value in tokenizer.controls.items() if value == id), None)
                text.append(control or decoder.push(id), style="bold green" if learned else "dim")
                text.append("·", style="bright_black")
            console.print(
                f"[bold]{escape(conversation.id)}[/]  {len(chat.ids)} 個詞元，學 {sum(chat.mask)} 個 (tokens, learned)"
            )
            console.print(text, "\n")
