"""Fixtures of the prompts stage's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from llm_setup import Bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bench of the test's own, with no keys in the environment."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    made = Bench(tmp_path)
    yield made
    made.close()
