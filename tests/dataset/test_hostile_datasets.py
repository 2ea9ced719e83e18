"""Datasets of enemies, through every command that reads one: no traceback, no hang, no leak.

All 200: REGFORGE_HOSTILE=all pytest -m slow tests/dataset/test_hostile_datasets.py
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hostile import CANARY, write_hostile, write_secrets
from layouts import items, with_text_files, write
from shell import Shell

COUNT = 200
ALL = os.environ.get("REGFORGE_HOSTILE") == "all"  # or a quarter of them, as in CI
MOST_SECONDS = 10.0

IMPORTING = """\
name: taken
subject: {{class_noun: cat, identifier: null}}
prompts:
  count: 2
  sets: {{import: 1}}
  import: {{dataset: {dataset}}}
"""


class Watch:
    """Notes which files Python opens below the secrets, and which it writes outside of a folder."""

    def __init__(self) -> None:
        self.secret = self.allowed = ""
        self.seen: list[str] = []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if (
            event != "open"
            or not self.allowed
            or not isinstance(args[0], str | bytes | os.PathLike)
        ):
            return
        path = os.path.realpath(os.fsdecode(args[0]))
        writes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        outside = not path.startswith((self.allowed, "/dev/", "/proc/")) and not _is_cache(path)
        if path.startswith(self.secret) or (writes and outside):
            self.seen.append(path)


def _is_cache(path: str) -> bool:
    return path.endswith(".pyc") or "__pycache__" in path


WATCH = Watch()
sys.addaudithook(WATCH)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: Shell) -> Iterator[Path]:
    """An empty home to work in; a folder of secrets lies beside it."""
    del shell  # it chooses another folder to work in
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("CANARY", CANARY)
    monkeypatch.setenv("REGFORGE_CACHE", str(home / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(home))
    write_secrets(tmp_path / "secret")
    monkeypatch.chdir(home)
    WATCH.secret, WATCH.allowed = str(tmp_path / "secret"), str(home)
    WATCH.seen.clear()
    yield home
    WATCH.allowed = ""


@contextmanager
def at_most(seconds: float, what: str) -> Iterator[None]:
    """Fails where the block takes longer on the processor, and stops what waits for ever."""

    def stop(*_: object) -> None:
        raise TimeoutError(what)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 12 * seconds)
    start = time.process_time()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.process_time() - start < seconds, what


def commands(named: Path) -> Iterator[list[object]]:
    good = Path("good")
    yield ["audit", named, "--class-noun", "cat", "--identifier", "sks", "--json"]
    to = [word for name in ("imagefolder", "webdataset", "kohya") for word in ("--to", name)]
    cat = ["--class-noun", "cat", "--family", "sdxl"]
    yield ["export", named, *to, "--out", "out", *cat, "--check"]
    Path("taken.yaml").write_text(IMPORTING.format(dataset=f'"{named}"'), errors="surrogateescape")
    yield ["prompts", "taken.yaml", "--out", "taken"]
    yield ["audit", good, "--class-noun", "cat", "--subject", named]
    yield ["export", good, "--to", "kohya", "--out", "own", *cat, "--subject", named]


def attack(number: int, home: Path, shell: Shell, seed: int = 0) -> None:
    """Every command on one dataset."""
    WATCH.allowed = ""
    named, kind = write_hostile(number, home / "theirs", home.parent / "secret", seed)
    write(home / "good", with_text_files(items("a cat", "a good cat")))
    WATCH.allowed = str(home)
    before = sorted(path for path in home.parent.rglob("*") if home not in path.parents)
    for words in commands(named.relative_to(home)):
        what = f"{number} ({kind}): {' '.join(map(str, words))}"
        with at_most(MOST_SECONDS, what):
            code = shell(*words)
        assert code in (0, 1, 2), what
        assert "Traceback" not in shell.err, what
        assert code == 0 or shell.err.startswith(("error", "\r")) or "error:" in shell.err, what
        assert CANARY not in shell.out + shell.err, what
    assert WATCH.seen == [], f"{number} ({kind})"
    WATCH.allowed = ""
    made = (home / name for name in ("out", "taken", "own"))
    for path in (path for folder in made for path in folder.rglob("*")):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), f"{number} ({kind}): {path}"
    after = sorted(path for path in home.parent.rglob("*") if home not in path.parents)
    assert after == before, f"{number} ({kind})"


SOME = [0, 1, 2, 7, 8, 10, 14, 16, 17, 19, 20, 133]


@pytest.mark.parametrize("number", SOME)
def test_some_hostile_datasets(number: int, home: Path, shell: Shell) -> None:
    attack(number, home, shell)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [n for n in range(COUNT if ALL else COUNT // 4) if n not in SOME]
)
def test_all_other_hostile_datasets(number: int, home: Path, shell: Shell) -> None:
    attack(number, home, shell)


def test_the_watch_sees_what_it_should(home: Path) -> None:
    (home.parent / "secret" / "secret.txt").read_text()
    (home / "own.txt").write_text("own")
    (home.parent / "outside.txt").write_text("outside")
    assert WATCH.seen == [
        str(home.parent / "secret" / "secret.txt"),
        str(home.parent / "outside.txt"),
    ]
