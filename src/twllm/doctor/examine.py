"""A server against its reference: serve the reference folder on this machine, ask both the same, compare.

The reference may be a folder (needs memory for the model) or a URL of a server known to be right, ours or vLLM (both tell
the ids of a rendered chat). Without a reference only what a server must do by itself is checked.
"""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twllm.doctor.diagnose import diagnose, self_checks
from twllm.doctor.findings import Finding
from twllm.doctor.probe import ANSWER, NEUTRAL, QUESTION, Observations, Plan, Server, observe, read_facts


def examine(url: str, reference: str | None, *, key: str = "", model: str = "") -> list[Finding]:
    """Findings about the server at `url`; `reference` is a folder or a URL, `key` and `model` are the server's.

    Raises:
        UserError: one of them cannot be reached, loaded, or does not answer.
    """
    server = Server(url, key=key, model=model)
    try:
        if reference is None:
            seen = observe(server, make_plan(server))
            return [*_told(seen), *self_checks(seen)]
        with reference_server(reference) as right:
            plan = make_plan(right)
            expected = observe(right, plan)
        return diagnose(observe(server, plan), expected, plan)
    finally:
        server.close()


@contextmanager
def reference_server(reference: str) -> Iterator[Server]:
    """The reference as a server: the URL itself, or the folder served on the loopback address until the end of the block."""
    if reference.startswith(("http://", "https://")):
        server = Server(reference)
        try:
            yield server
        finally:
            server.close()
        return
    with serve_folder(Path(reference)) as url:
        server = Server(url)
        try:
            yield server
        finally:
            server.close()


@contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """Our own server for a checkpoint folder, on a free port of 127.0.0.1; yields its URL."""
    import uvicorn

    from twllm.errors import require_file
    from twllm.feedback.store import RatingStore
    from twllm.serve.app import create_app
    from twllm.serve.engines.torch.engine import TorchEngine
    from twllm.serve.operation.service import Service
    from twllm.serve.start import bind

    require_file(folder, "找不到參考模型 (no such reference)")
    with bind("127.0.0.1", 0) as socket, tempfile.TemporaryDirectory() as temporary:
        store = RatingStore(Path(temporary) / "ratings.db")
        app = create_app(Service.single(TorchEngine(folder), store, folder.resolve().name))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def make_plan(server: Server) -> Plan:
    """What to ask, out of the reference's own template and answers; emptier where it tells less."""
    facts = read_facts(server)
    server.model = server.model or facts.get("model") or "default"
    controls = tuple(token for token in (facts.get("bos"), facts.get("eos")) if token) or ("<s>", "</s>")
    asked = [{"role": "user", "content": QUESTION}]
    answer = server.ask(asked, **NEUTRAL) or server.ask(asked, temperature=0)
    text = answer.text if answer else ""
    prompt_ids = _ids(server, {"messages": asked, "add_generation_prompt": True})
    told = server.post("/detokenize", {"tokens": prompt_ids}) if prompt_ids else None
    return Plan(
        system=str(facts.get("system") or ""),
        controls=controls,
        prompt=str((told or {}).get("prompt") or ""),
        prompt_ids=tuple(prompt_ids),
        answer_ids=tuple(_ids(server, {"prompt": text, "add_special_tokens": False})[:ANSWER]) if text else (),
    )


def _ids(server: Server, body: dict[str, object]) -> list[int]:
    found = server.post("/tokenize", body)
    tokens = found.get("tokens") if isinstance(found, dict) else None
    return tokens if isinstance(tokens, list) and all(isinstance(id, int) for id in tokens) else []


def _told(seen: Observations) -> Iterator[Finding]:
    """What a lone server says of itself."""
    names = {"model": "模型", "engine": "引擎", "precision": "精度", "model_fingerprint": "模型指紋"}
    told = "、".join(f"{label} {seen.facts[key]}" for key, label in names.items() if key in seen.facts)
    yield Finding("server", "ok", told or seen.url)
    if "template_fingerprint" in seen.facts:
        trained = seen.facts.get("trained_template_fingerprint")
        if trained and trained != seen.facts["template_fingerprint"]:
            yield Finding(
                "template",
                "fault",
                f"訓練 {trained}，現在 {seen.facts['template_fingerprint']}",
                "不是訓練時的範本",
                "放回訓練時的分詞器檔案",
            )
        else:
            yield Finding("template", "ok" if trained else "unknown", seen.facts["template_fingerprint"])
    else:
        fix = "twllm doctor URL --reference 模型資料夾"
        yield Finding("template", "unknown", "沒有參考模型，不知道該是什麼樣子 (no reference)", fix=fix)
    if "context" in seen.facts:
        yield Finding("context", "ok", f"{seen.facts['context']:,} 個詞元")
    sampled = len(set(seen.unasked)) > 1
    yield Finding("sampling", "ok", "沒寫溫度時" + ("會抽樣" if sampled else "每次都一樣 (greedy)"))
