"""`regforge check` of recipes that an enemy wrote: a sentence within seconds, nothing else touched.

All 1,000: REGFORGE_HOSTILE=all pytest -m slow tests/recipe/test_hostile_recipes.py. The message of
a failure has the recipe's number; `hostile(number, ...)` writes it again.
"""

import importlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_recipes import hostile, lay_out

from regforge import cli
from regforge.files import recipes_folder

SECONDS = 10
"""Of this process's own work, so that a busy machine fails nothing; of waiting, six times that."""
FEW, CHUNK = 20, 100
ALL = os.environ.get("REGFORGE_HOSTILE") == "all"  # or 300 of them, as in CI

_WATCHED = {
    *("os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"),
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect"),
    *("socket.getaddrinfo", "shutil.rmtree", "shutil.copyfile"),
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _Watch:
    """What Python is asked to do beside computing, while it is on; hooks cannot be taken off."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(arguments[0], str | bytes):
            path, flags = os.fsdecode(arguments[0]), arguments[2]
            if path != os.devnull and (flags & _WRITING or "canary-7f3a" in os.path.realpath(path)):
                self.seen.append(f"open {path} {flags:o}")
        elif event in _WATCHED:
            self.seen.append(f"{event} {arguments}"[:200])


_WATCH = _Watch()


class TooSlowError(BaseException):
    """Nothing between the command and the test catches it."""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    lay_out(tmp_path)
    monkeypatch.setenv("REGFORGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "work"
    _WATCH.on = False


def checked(words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[object, str]:
    """The exit code of `regforge check`, and all that it printed."""
    console = io.TextIOWrapper(io.BytesIO(), "utf-8")
    code: object = None
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", console)
        patch.setattr(sys, "stderr", console)
        patch.setattr(sys, "argv", ["regforge", "check", *words])
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        except Exception as error:
            code = repr(error)
    assert isinstance(console.buffer, io.BytesIO)
    return code, console.buffer.getvalue().decode()


def check_all(numbers: range, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = sorted(recipes_folder().glob("*.yaml"))
    for name in ("quickstart", "objects-sdxl"):  # load what is heavy, of which some writes
        checked([str(recipes_folder() / f"{name}.yaml")], monkeypatch)
    importlib.import_module("diffusers")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of what is imported on the way

    def too_slow(*_: object) -> None:
        raise TooSlowError

    guards = (signal.SIGALRM, signal.SIGPROF)
    before = [signal.signal(guard, too_slow) for guard in guards]
    try:
        for number in numbers:
            made = hostile(number, work, recipes)
            what = f"recipe {number}: {made.story}"
            _WATCH.seen.clear()
            _WATCH.on = True
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.setitimer(signal.ITIMER_REAL, 6 * SECONDS)
            try:
                code, printed = checked(made.words, monkeypatch)
            except TooSlowError:
                pytest.fail(f"over {SECONDS} s: {what}")
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
                _WATCH.on = False
            assert code in (0, 1, 2), what
            assert "Traceback" not in printed, what
            assert "CANARY" not in printed, what
            assert _WATCH.seen == [], what
            assert code == 0 or printed.startswith(("error: ", "Usage: ")), what + printed[:200]
            for path in work.glob("*r*"):
                if path.suffix == ".yaml" or path.name in ("r", made.words[0][2:]):
                    path.unlink()
    finally:
        for guard, handler in zip(guards, before, strict=True):
            signal.signal(guard, handler)


@pytest.mark.timeout(300)
def test_a_few_hostile_recipes(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_all(range(FEW), work, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("start", range(0, 1000 if ALL else 300, CHUNK))
def test_a_thousand_hostile_recipes(
    start: int, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_all(range(start or FEW, start + CHUNK), work, monkeypatch)
