"""Generated pages are up to date: `make docs` changes nothing."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_data_page_is_fresh() -> None:
    spec = importlib.util.spec_from_file_location("docs_build", DOCS / "build.py")
    assert spec and spec.loader
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    assert (DOCS / "data.md").read_text(encoding="utf-8") == build.markdown(), "run `make docs`"
    for picture in ("data-topics.png", "data-lengths.png"):
        assert (DOCS / picture).stat().st_size > 5000
