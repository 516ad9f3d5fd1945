"""Converted models go to a folder of the test run, not to the user's cache."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWLLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
