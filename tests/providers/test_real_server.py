"""A real server of the OpenAI interface: `transformers serve`, with the embedded model's weights.

So small a model rarely answers in JSON; what is looked at here is the way there and back.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from llm_setup import KEY, Bench, Color, questions

from regforge.embedded.language_model.smollm import SmolLM
from regforge.files import cache_folder
from regforge.providers.errors import UnreachableModel

pytestmark = pytest.mark.slow


class Served(NamedTuple):
    url: str
    model: str
    process: "subprocess.Popen[bytes]"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = SmolLM(cache_folder() / "language-model")
    model.log_probabilities("A cat", ["sits"])  # unpacks the weights
    folder = cache_folder() / "language-model" / "weights" / model.digest[:16]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", "--host", "127.0.0.1", "--port", port, "--device", "cpu"]
    log = (tmp_path_factory.mktemp("served") / "log").open("wb")
    with log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                if httpx.get(f"{url}/health").is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield Served(f"{url}/v1", str(folder), process)
        process.kill()


def test_questions_are_answered_or_the_reply_stands_in_the_ledger(
    bench: Bench, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes any key, and leaves `response_format` out of account."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    more = {"model": f"openai/{served.model}", "max_tokens": 24, "max_attempts": 2}
    client = bench.client(served.url, flying=False, cache=False, timeout=300, **more)
    (answer,) = client.ask(questions(1))
    assert isinstance(answer, Color) or bench.ledger[-1]["raw"]
    assert client.usage.prompt_tokens > 0
    assert all(0 < entry["completion_tokens"] <= 24 for entry in bench.log)
    assert client.usage.cost == 0
    assert KEY not in bench.all_text()


def test_a_model_that_it_has_not_is_named(bench: Bench, served: Served) -> None:
    """It says no more than 500, so it is asked again."""
    with pytest.raises(UnreachableModel, match="500"):
        bench.client(served.url, model="openai/no/such-model", cache=False).ask(questions(1))
    assert bench.reasons.count("(500)") > 1


def test_a_server_that_was_stopped_is_unreachable(bench: Bench, served: Served) -> None:
    served.process.kill()
    served.process.wait()
    with pytest.raises(UnreachableModel):
        bench.client(served.url, cache=False).ask(questions(1))
