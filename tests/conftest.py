"""What every test shares: no network, the place of the checkout, and a few seconds saved."""

import functools
import gc
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer.main
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from browser import Browser
    from hub_server import LoopbackHub
    from shell import Shell

# Set before any test imports a library that reads them; subprocesses inherit them.
os.environ["HF_HUB_OFFLINE"] = (
    "1"  # a test that needs the Hub should fail everywhere, not only offline
)
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # litellm asks GitHub for prices otherwise
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is no reason for a property to fail.
settings.register_profile(
    "regforge", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("regforge")

# A shell that starts the tests in the background has them ignore Ctrl-C, which some test.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Nobody cuts the power while tests run, and what a process wrote outlives it without this.
os.fsync = lambda _: None
# The commands are built anew each time one runs; here that is thousands of times.
typer.main.get_command = functools.cache(typer.main.get_command)


# Processes that end soon need not look for garbage often.
gc.set_threshold(50_000)


def pytest_collection_finish() -> None:
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Have the collector look no more at what imported libraries consist of: a million objects."""
    before = len(sys.modules)
    result = yield
    if len(sys.modules) > before + 100:
        gc.collect()
        gc.freeze()
    return result


@pytest.fixture(scope="session")
def repo() -> Path:
    """The top of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[LoopbackHub]":
    """A Hub on this machine, to which this process is redirected, logged in as `me`."""
    from hub_server import LoopbackHub, redirect

    with LoopbackHub() as server:
        redirect(monkeypatch, server, tmp_path_factory.mktemp("hf-home"))
        yield server


@pytest.fixture
def shell(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> "Shell":
    """Commands, typed in an empty folder."""
    from shell import Shell

    monkeypatch.chdir(tmp_path)
    return Shell(monkeypatch, capfd)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Browser]":
    from browser import Browser

    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()
