"""Imports point one way along the flow, and what should be light is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import twllm

ROOT = Path(twllm.__file__).parent
# Each folder may import itself and what stands before it in its list; the modules at the top (cli, recipe)
# and what is named commands*.py tie parts together.
ALLOWED = {
    "corpus": {"data", "artifact", "config", "errors"},
    "tokens": {"corpus", "data", "artifact", "config", "errors"},
    "model": {"tokens", "corpus", "data", "artifact", "config", "errors"},
    "train": {"release", "model", "tokens", "corpus", "data", "artifact", "config", "errors", "recipe"},
    "feedback": {"tokens", "corpus", "data", "artifact", "config", "errors"},
    "serve": {"release", "train", "model", "tokens", "corpus", "feedback", "data", "artifact", "config", "errors"},
    "evaluate": {"synth", "serve", "train", "model", "tokens", "corpus", "data", "artifact", "config", "errors"},
    "synth": {"corpus", "tokens", "data", "artifact", "config", "errors"},
    "draw": set(),
    "doctor": {"release", "serve", "feedback", "train", "tokens", "corpus", "artifact", "errors"},
    "export": {"recipe", "release", "evaluate", "serve", "model", "tokens", "corpus", "data", "artifact", "errors"},
    "release": {"recipe", "model", "tokens", "corpus", "data", "artifact", "config", "errors"},
}


def imported(file: Path, package: str = "twllm") -> set[str]:
    """Parts of the package that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{package}."):
            inner = str(node.module).removeprefix(package).split(".")[1:2]
            found |= set(inner) or {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith(f"{package}.")]
            found |= {name.removeprefix(f"{package}.").split(".")[0] for name in names}
    return found - {"__version__"}


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_imports_point_one_way(folder: str) -> None:
    for file in sorted((ROOT / folder).rglob("*.py")):
        if file.name.startswith("commands"):
            continue
        wrong = imported(file) - ALLOWED[folder] - {folder}
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


# The same inside serve/: what stands beside these folders (app, start, commands, …) ties them together.
SERVE = {
    "engines": {"errors"},
    "operation": {"engines", "errors"},
    "api": {"engines", "operation", "errors"},
    "web": {"engines", "operation", "api", "errors"},
}


@pytest.mark.parametrize("folder", sorted(SERVE))
def test_serve_imports_point_one_way(folder: str) -> None:
    for file in sorted((ROOT / "serve" / folder).rglob("*.py")):
        wrong = imported(file, "twllm.serve") - SERVE[folder] - {folder}
        assert not wrong, f"{file.relative_to(ROOT)} imports serve's {wrong}"


@pytest.mark.parametrize(
    "module", ["twllm.corpus.build", "twllm.tokens.build", "twllm.recipe", "twllm.cli", "twllm.pipeline.checks"]
)
def test_no_torch_where_it_is_not_needed(module: str) -> None:
    code = f"import {module}, sys; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_files_stay_readable() -> None:
    lines = {
        file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8").count("\n") for file in ROOT.rglob("*.py")
    }
    assert {name: count for name, count in lines.items() if count > 420} == {}
