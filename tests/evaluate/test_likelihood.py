"""Choices by log-likelihood: lm-evaluation-harness's numbers item by item, any batch size, resuming, servers that can and cannot."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from starlette.testclient import TestClient

from twllm.errors import UserError
from twllm.evaluate.ask import Question, encode_questions
from twllm.evaluate.kinds import Options, Session
from twllm.evaluate.kinds.likelihood import by_likelihood, likelihood, question_of
from twllm.evaluate.model import HttpModel, LocalModel, is_close
from twllm.evaluate.responses import ResponseFile
from twllm.evaluate.runner import evaluate_model
from twllm.evaluate.sources import read_items
from twllm.evaluate.task import Task, find_tasks, tasks
from twllm.evaluate.tmmluplus import subjects
from twllm.feedback.store import RatingStore
from twllm.serve.app import create_app
from twllm.serve.engines.interface import Score
from twllm.serve.engines.torch.engine import TorchEngine
from twllm.serve.operation.service import Service
from twllm.tokens.tokenizer import ChatTokenizer

QUESTIONS = [
    Question("問題：台灣最高的山？\n答案：", ("A", "B", "C", "D")),
    Question("問題：台灣的首都？\n答案： ", ("玉山", "臺北", "臺北市信義區")),
    Question("台灣最高的山？", ("A", "B", "臺北"), way="chat"),
    Question("台灣最高的山？", ("A", "B"), prefix=" 答案： ", way="chat"),
]


@pytest.fixture(scope="module")
def local(tiny_checkpoint: Path) -> LocalModel:
    return LocalModel(tiny_checkpoint, 8, "fp32")


@pytest.fixture
def plus(tmp_path: Path) -> Path:
    """Two subjects of TMMLU+ in its layout, written for the tests."""
    folder = tmp_path / "plus" / "data"
    folder.mkdir(parents=True)
    rows = 'question,A,B,C,D,answer\n 玉山在哪裡？,南投,臺北,金門,"澎湖, 馬公",A\n合歡山呢？,花蓮,臺南,屏東,基隆,A\n'
    (folder / "accounting_test.csv").write_text(rows + "太平山呢？,臺中,宜蘭,嘉義,高雄,B\n", encoding="utf-8")
    (folder / "accounting_train.csv").write_text(rows, encoding="utf-8")
    (folder / "tve_design_test.csv").write_text(rows, encoding="utf-8")
    return folder.parent


def scores(model: Any, questions: Sequence[Question]) -> list[Any]:
    found = dict(pair for piece in model.scores(questions) for pair in piece)
    return [found[number] for number in range(len(questions))]


def run(model: Any, task: Task, items: list[Any], file: Path, **change: Any) -> dict[str, Any]:
    return likelihood(task, items, Session(model, ResponseFile(file), Options(**change)))


# -- ids ------------------------------------------------------------------------------------------------------------


def test_text_has_one_begin_token_and_the_whole_texts_ids(tiny_tokenizer: ChatTokenizer) -> None:
    for question in QUESTIONS[:2]:
        for choice, (context, continuation) in zip(
            question.choices, encode_questions(tiny_tokenizer, [question])[0], strict=True
        ):
            assert context + continuation == tiny_tokenizer.encode(question.prompt + choice, bos=True)
            assert context.count(tiny_tokenizer.controls[tiny_tokenizer.bos]) == 1
            assert tiny_tokenizer.decode(continuation).strip() == choice


def test_chat_choice_is_what_the_model_learns_to_say(tiny_tokenizer: ChatTokenizer) -> None:
    question = QUESTIONS[2]
    for choice, (context, continuation) in zip(
        question.choices, encode_questions(tiny_tokenizer, [question])[0], strict=True
    ):
        chat = [{"role": "user", "content": question.prompt}, {"role": "assistant", "content": choice}]
        assert [*context, *continuation, tiny_tokenizer.eos_id] == tiny_tokenizer.encode_chat(chat).ids
        assert tiny_tokenizer.decode(continuation) == f" {choice}"


# -- against lm-evaluation-harness ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_lm_eval_finds_the_same_item_by_item(tiny_checkpoint: Path, local: LocalModel, plus: Path) -> None:
    """Its hf backend on texts that begin with the begin token: our tokenizer files add none by themselves."""
    pytest.importorskip("accelerate")
    api, hf = pytest.importorskip("lm_eval.api.instance"), pytest.importorskip("lm_eval.models.huggingface")
    task = tasks()["tmmluplus"]
    questions = [*QUESTIONS[:2], *(question_of(task, item, "text") for item in read_items(task, "", plus))]
    lm = hf.HFLM(pretrained=str(tiny_checkpoint), device="cpu", dtype="float32", batch_size=4)
    asked = [("<s>" + q.prompt, choice) for q in questions for choice in q.choices]
    theirs = lm.loglikelihood(
        [api.Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in asked], disable_tqdm=True
    )
    ours = [score for row in scores(local, questions) for score in row]
    assert [score.logprob for score in ours] == pytest.approx([logprob for logprob, _ in theirs], abs=1e-5)
    assert [score.greedy for score in ours] == [greedy for _, greedy in theirs]


def test_tmmluplus_prompts_are_lm_evals(plus: Path) -> None:
    """Against the description and template in lm-eval's own files, where it is installed."""
    spec = pytest.importorskip("lm_eval")
    yaml = pytest.importorskip("yaml")
    folder = Path(spec.__file__).parent / "tasks/tmmluplus/default"
    for subject, facts in subjects().items():
        config = yaml.safe_load((folder / f"tmmluplus_{subject}.yaml").read_text(encoding="utf-8"))
        assert config["description"] == f"以下為{facts.title}的單選題，請提供正確答案的選項。\n\n"
        assert config["tag"] == f"tmmluplus_{facts.field}_tasks"
    template = yaml.safe_load(
        (folder / "_tmmluplus_template_yaml").read_text(encoding="utf-8").replace("!function", "")
    )
    jinja = pytest.importorskip("jinja2").Template(template["doc_to_text"], keep_trailing_newline=True)
    first = read_items(tasks()["tmmluplus"], "", plus)[0]
    text = jinja.render(question=first.question, choices=first.choices)
    assert first.prompt == f"以下為{subjects()['accounting'].title}的單選題，請提供正確答案的選項。\n\n{text}"


def test_tmmluplus_counts_and_examples(plus: Path, local: LocalModel, tmp_path: Path) -> None:
    task = tasks()["tmmluplus"]
    items = read_items(task, "", plus)
    assert [item.id for item in items] == [
        "accounting/0",
        "accounting/1",
        "accounting/2",
        "tve_design/0",
        "tve_design/1",
    ]
    block = run(local, task, items, tmp_path / "r.jsonl")
    marks = [row["correct"] for row in block["items"]]
    assert block["micro"]["score"] == block["score"] == sum(marks) / 5
    assert block["macro"]["score"] == pytest.approx((sum(marks[:3]) / 3 + sum(marks[3:]) / 2) / 2)
    assert {name: field["n"] for name, field in block["fields"].items()} == {"other": 5}
    with pytest.raises(UserError, match="examples"):
        read_items(tasks()["tmmluplus@fiveshot"], "", plus)
    two = tasks()["tmmluplus@fiveshot"].model_copy(update={"options": {"shots": 2, "delimiter": " "}})
    with pytest.raises(UserError, match="tve_design_train"):
        read_items(two, "", plus)
    (plus / "data/tve_design_test.csv").unlink()
    shown = read_items(two, "", plus)[2].prompt
    assert shown.count("Answer:") == 3
    assert "D. 澎湖, 馬公\nAnswer: A\n\n合歡山呢？" in shown
    assert shown.endswith("太平山呢？\nA. 臺中\nB. 宜蘭\nC. 嘉義\nD. 高雄\nAnswer:")
    (plus / "data/accounting_test.csv").write_text("question,A,B,C,D,answer\n問,1,2,3,4,E\n", encoding="utf-8")
    with pytest.raises(UserError, match="answer 'E'"):
        read_items(task, "", plus)


# -- marks ----------------------------------------------------------------------------------------------------------


class Scripted:
    """A model with given log-likelihoods; breaks after `budget` questions."""

    fingerprint, template_fingerprint, precision = "m", "t", "fp32"

    def __init__(self, values: Callable[[Question], list[float]], budget: int = 1000) -> None:
        self.values, self.budget, self.asked = values, budget, []  # type: ignore[var-annotated]

    def scores(self, questions: Sequence[Question]) -> Iterator[list[tuple[int, list[Score] | None]]]:
        for number, question in enumerate(questions):
            if len(self.asked) == self.budget:
                raise KeyboardInterrupt
            self.asked.append(question.prompt)
            yield [(number, [Score(value, False) for value in self.values(question)])]


def test_acc_and_acc_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """-2 for one character against -3 for three: the sum prefers the first, the mean per character the second."""
    task = tasks()["ttqa"]
    item = read_items(task, "", _ttqa(tmp_path))[0]
    monkeypatch.setattr("twllm.evaluate.kinds.likelihood.candidates", lambda task, item: ["正", "負面啊"])
    right = item.model_copy(update={"references": ("負面啊",)})
    block = run(Scripted(lambda q: [-2.0, -3.0]), task, [right], tmp_path / "r.jsonl")
    assert (block["acc"], block["acc_norm"], block["items"][0]["answer"]) == (0.0, 1.0, "正")
    tie = run(
        Scripted(lambda q: [-2.0, -2.0]), task, [item.model_copy(update={"references": ("正",)})], tmp_path / "t.jsonl"
    )
    assert (tie["acc"], tie["close"]) == (1.0, 1)  # of equal ones the first


def _ttqa(folder: Path) -> Path:
    rows = {str(i): {"question": f"第{i}題？", "choices": ["甲", "乙", "丙", "丁"], "answer": i % 4} for i in range(7)}
    (folder / "TTQA").mkdir(exist_ok=True)
    (folder / "TTQA/TTQA_mc.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def test_closeness_is_by_sum_and_by_character() -> None:
    assert not is_close([Score(-1.0, False), Score(-1.2, False)], "AB")
    assert is_close([Score(-1.0, False), Score(-1.04, False)], "AB")
    assert is_close([Score(-1.0, False), Score(-3.03, False)], ["甲", "甲乙丙"])
    assert not is_close([Score(-1.0, False)], "A")


def test_close_choices_are_decided_in_fp32(tiny_checkpoint: Path, local: LocalModel) -> None:
    half = LocalModel(tiny_checkpoint, 8, "bf16")
    assert half.precision == "bf16"
    mixed = LocalModel(tiny_checkpoint, 8)
    mixed._engine = half._engine
    assert mixed.precision == "bf16, close choices in fp32"
    exact, rough, decided = (scores(model, QUESTIONS) for model in (local, half, mixed))
    assert rough != exact
    mixed_rows = 0
    for question, a, b, c in zip(QUESTIONS, exact, rough, decided, strict=True):
        close = is_close(b, question.choices)
        assert [s.logprob for s in c] == pytest.approx([s.logprob for s in (a if close else b)], abs=1e-5)
        mixed_rows += close
    every = [Question(f"第{i}題：", ("A", "B", "C")) for i in range(40)]
    best = [[max(range(3), key=lambda k, row=row: row[k].logprob) for row in scores(m, every)] for m in (local, mixed)]
    assert best[0] == best[1]


# -- runs -----------------------------------------------------------------------------------------------------------


def evaluate(model: Path, out: Path, **change: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"suites": ["ttqa", "tmmlu"], "by": "likelihood", "precision": "fp32"}
    return evaluate_model(str(model), out=out, **{**settings, **change})


@pytest.mark.parametrize("ask", ["text", "chat"])
def test_batch_size_changes_nothing(tiny_checkpoint: Path, tceval: Path, tmp_path: Path, ask: str) -> None:
    results = [
        evaluate(tiny_checkpoint, tmp_path / f"{size}.json", data=tceval, batch_size=size, ask=ask)
        for size in (1, 2, 32)
    ]
    first = results[0]["ttqa_likelihood"]
    assert (first["asked"], first["by"], first["n"], len(first["items"])) == (ask, "likelihood", 2, 2)
    assert first["template_fingerprint"] == results[0]["meta"]["template_fingerprint"]
    for other in results[1:]:
        for suite in ("ttqa_likelihood", "tmmlu_likelihood"):
            for a, b in zip(results[0][suite]["items"], other[suite]["items"], strict=True):
                assert a["loglikelihoods"] == pytest.approx(b["loglikelihoods"], abs=1e-5)
                assert {**a, "loglikelihoods": 0} == {**b, "loglikelihoods": 0}


def test_resumed_asks_only_what_is_missing(tmp_path: Path) -> None:
    task = by_likelihood(find_tasks(["ttqa"]), "likelihood")[0][0]
    items = read_items(task, "", _ttqa(tmp_path))
    whole = run(Scripted(lambda q: [-4, -3, -2, -1]), task, items, tmp_path / "w.jsonl")
    file = tmp_path / "r.jsonl"
    cut = Scripted(lambda q: [-4, -3, -2, -1], budget=3)
    with pytest.raises(KeyboardInterrupt):
        run(cut, task, items, file)
    again = Scripted(lambda q: [-4, -3, -2, -1])
    assert run(again, task, items, file) == whole
    assert sorted(cut.asked + again.asked) == sorted(item.prompt for item in items)
    changed = Scripted(lambda q: [-1, -2, -3, -4])
    changed.fingerprint = "other"
    run(changed, task, items, file)
    assert len(changed.asked) == len(items)


def test_too_long_is_wrong_and_told(tiny_checkpoint: Path, tceval: Path, tmp_path: Path) -> None:
    file = tceval / "TMMLU/subjects/國際法/data.csv"
    file.write_text(",content.A,content.Q\n0,A," + "很長的題目。" * 200 + "\n", encoding="utf-8")
    block = evaluate(tiny_checkpoint, tmp_path / "r.json", suites=["tmmlu"], data=tceval)["tmmlu_likelihood"]
    assert block["too_long"] == 1
    (row,) = [row for row in block["items"] if row["id"] == "國際法/0"]
    assert (row["too_long"], row["correct"], row["loglikelihoods"], row["answer"]) == (True, False, [], "")


def test_what_cannot_be_asked_so_is_told(tmp_path: Path, tceval: Path) -> None:
    missing = tmp_path / "none"  # whoever reaches the model gets another message
    with pytest.raises(UserError, match="no choices"):
        evaluate(missing, tmp_path / "r.json", suites=["drcd"], data=tceval)
    with pytest.raises(UserError, match="--by maybe"):
        evaluate(missing, tmp_path / "r.json", data=tceval, by="maybe")
    with pytest.raises(UserError, match="--ask song"):
        evaluate(missing, tmp_path / "r.json", data=tceval, ask="song")
    with pytest.raises(UserError, match="fp8"):
        evaluate(missing, tmp_path / "r.json", data=tceval, precision="fp8")
    able, left = by_likelihood(find_tasks(["drcd", "ttqa"]), "likelihood")
    assert ([task.label for task in able], list(left)) == (["ttqa_likelihood"], ["drcd"])


# -- servers --------------------------------------------------------------------------------------------------------


def test_our_server_tells_the_same(tiny_checkpoint: Path, local: LocalModel, tmp_path: Path) -> None:
    engine = TorchEngine(tiny_checkpoint, threads=1, precision="fp32")
    store = RatingStore(f"sqlite:///{tmp_path / 'r.db'}")
    long = Question("很長的題目。" * 200, ("A", "B"))
    with TestClient(create_app(Service.single(engine, store, "tiny"))) as client:
        with_folder = HttpModel("http://testserver", 8, cast(httpx.Client, client), tokenizer=tiny_checkpoint)
        found = scores(with_folder, [*QUESTIONS, long])
        by_server = scores(HttpModel("http://testserver", 8, cast(httpx.Client, client)), QUESTIONS[:2])
        with pytest.raises(UserError, match="--tokenizer"):
            scores(HttpModel("http://testserver", 8, cast(httpx.Client, client)), QUESTIONS[2:3])
    for a, b in zip(scores(local, QUESTIONS), found, strict=False):
        assert [s.logprob for s in a] == pytest.approx([s.logprob for s in b], abs=1e-4)
        assert [s.greedy for s in a] == [s.greedy for s in b]
    assert [[s.logprob for s in row] for row in by_server] == [
        pytest.approx([s.logprob for s in row], abs=1e-6) for row in found[:2]
    ]
    assert found[-1] is None


def scripted(reply: Callable[[dict[str, Any]], httpx.Response]) -> httpx.Client:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        return reply(json.loads(request.content))

    return httpx.Client(transport=httpx.MockTransport(handler))


def echo(body: dict[str, Any]) -> httpx.Response:
    """A server that finds every token equally likely."""
    choices = [
        {
            "index": i,
            "logprobs": {
                "token_logprobs": [None] + [-1.0] * len(ids),
                "top_logprobs": [None] + [{"x": -1.0}] * len(ids),
            },
        }
        for i, ids in enumerate(body["prompt"])
    ]
    return httpx.Response(200, json={"choices": choices[::-1]})


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (lambda body: httpx.Response(200, json={"choices": [{"index": 0, "text": "A"}]}), "no log-probabilities"),
        (lambda body: httpx.Response(200, json={"choices": [{"index": i, "logprobs": {"token_logprobs": [-1.0], "top_logprobs": [{}]}} for i in range(4)]}), "no log-probabilities"),
        (lambda body: httpx.Response(400, json={"error": {"message": "echo is not supported"}}), "echo is not supported"),
    ],
)  # fmt: skip
def test_servers_without_prompt_logprobs(tiny_checkpoint: Path, reply: Any, says: str) -> None:
    model = HttpModel("http://x", 8, scripted(reply), tokenizer=tiny_checkpoint)
    with pytest.raises(UserError, match=says):
        scores(model, QUESTIONS[:1])


def test_server_without_tokenize(tiny_checkpoint: Path) -> None:
    model = HttpModel("http://x", 8, scripted(lambda body: httpx.Response(404, json={})))
    with pytest.raises(UserError, match="--tokenizer"):
        scores(model, QUESTIONS[:1])


def test_endpoint_that_dies_half_way(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was answered before it died is stored; the second run asks the rest, nothing twice."""
    monkeypatch.setattr("twllm.evaluate.model.time.sleep", lambda seconds: None)
    task = by_likelihood(find_tasks(["ttqa"]), "likelihood")[0][0]
    items, file = read_items(task, "", _ttqa(tmp_path)), tmp_path / "r.jsonl"
    answered: list[list[int]] = []

    def dying(body: dict[str, Any]) -> httpx.Response:
        if len(answered) >= 3:
            return httpx.Response(503)
        answered.append(body["prompt"][0])
        return echo(body)

    def healthy(body: dict[str, Any]) -> httpx.Response:
        answered.append(body["prompt"][0])
        return echo(body)

    with pytest.raises(UserError, match="503"):
        run(HttpModel("http://x", 8, scripted(dying), tokenizer=tiny_checkpoint), task, items, file)
    assert len(file.read_text(encoding="utf-8").splitlines()) == 3
    block = run(HttpModel("http://x", 8, scripted(healthy), tokenizer=tiny_checkpoint), task, items, file)
    assert block["n"] == len(items) == len(answered) == len({tuple(ids) for ids in answered})
