"""Whatever is killed, wherever, goes on: equal results, no folder locked, nothing left behind.

Commands run in processes of their own, and kill themselves before their N-th operation on a file
below --out, or at a random moment. With

    REGFORGE_KILLS=all pytest -n 0 tests/test_kills.py

it is 100 random kills of `run`, 20 of `train`, and one before each of the first 40 file operations
of `run`, `train`, `export` and `evaluate`; else a sample of them.
And one that is killed again each time it goes on.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import Forked
from training import training_runs

pytestmark = pytest.mark.slow

ALL = os.environ.get("REGFORGE_KILLS") == "all"
KILLS = [(n,) for n in (range(1, 41) if ALL else (13, 21, 34))] + [(1, 2, 3, 5, 8)]
"""Before which operations a command is killed, one time after the other."""
RANDOM = {"run": 100 if ALL else 2, "train": 20 if ALL else 1}

# --------------------------------------------------------------------------------- in the process


def kill(out: str, before: int | None, after: float | None) -> None:
    """Kill this process before an operation on a file, or after so many seconds."""
    counter = [0]

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if changes_files(event, arguments, out):
            counter[0] += 1
            if counter[0] == before:
                os.kill(os.getpid(), signal.SIGKILL)

    if before is not None:
        sys.addaudithook(count)
    if after is not None:
        timer = threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()


def changes_files(event: str, arguments: tuple[Any, ...], below: str) -> bool:
    """Whether an audit event (docs.python.org/3/library/audit_events.html) is about to do so."""
    if event == "open":
        path, _, flags = arguments
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
            return False
    elif event in {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate"}:
        path = arguments[0]
        if isinstance(arguments[-1], int) and arguments[-1] not in (-1, 0o777):  # of rmtree
            return True
    else:
        return False
    return isinstance(path, str | os.PathLike) and str(path).startswith(below)


# ------------------------------------------------------------------------------------------ tests


def ran(
    words: Sequence[object], out: Path, *, before: int | None = None, after: float | None = None
) -> int:
    """Exit code of a command; -9 if it was killed."""
    return Forked(*words, "--out", out, first=partial(kill, str(out), before, after)).wait()


def finished(words: Sequence[object], out: Path) -> dict[str, Any]:
    """Run a command to its end; what lies in its folder then."""
    session = Forked(*words, "--out", out)
    assert session.wait() == 0, session.err
    return contents(out)


def contents(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        assert not path.name.startswith(".unfinished-"), name
        assert path.name != ".lock"
        if path.is_file():
            found[name] = said_by(path, out)
    return found


def said_by(path: Path, out: Path) -> Any:
    """What must be the same each time: digests, without time, place, and what was logged."""
    if path.name in {"log.jsonl", "ledger.jsonl", "state.json", "report.html", "loss.svg"}:
        return ...
    content = path.read_bytes().replace(str(out).encode(), b"OUT")
    if path.name == "evaluation.json":
        content = json.dumps(without_seconds(json.loads(content))).encode()
    return hashlib.sha256(content).hexdigest()


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_seconds(each) for key, each in value.items() if "second" not in key}
    return [without_seconds(each) for each in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory, repo: Path) -> dict[str, list[object]]:
    """Small ones, by name, without --out."""
    top = tmp_path_factory.mktemp("commands")
    os.environ["REGFORGE_CACHE"] = str(top / "cache")
    cat = str(repo / "examples/subjects/cat")
    model = training_runs.sd(top / "model")
    (top / "reg").mkdir()
    for number, photo in enumerate(sorted(Path(cat).glob("*.png"))[:3]):
        shutil.copy(photo, top / "reg" / f"{number}.png")
        (top / "reg" / f"{number}.txt").write_text(f"a cat on a table, number {number}")
    dataset = {
        "name": "small",
        "subject": {"class_noun": "cat", "identifier": "sks", "images": cat},
        "prompts": {
            "count": 10,
            "sets": {"against": 1, "amplify": 3, "import": 1},
            "import": {"dataset": "reg"},
            "slots": [
                {"name": "color", "values": ["red", "blue", "black", "white", "pink"]},
                {"name": "background", "values": ["on a beach", "in a forest", "in a city"]},
                {"name": "style", "values": ["a photo of", "a pencil sketch of"]},
            ],
        },
        # One step gives blurs that resemble one another: some are refused and drawn again.
        "render": {"model": model, "steps": 1, "batch_size": 4, "max_attempts": 2},
        "curate": {"max_duplicate_distance": 2},
    }
    (top / "dataset.yaml").write_text(yaml.safe_dump(dataset))
    training = {
        "name": "cat",
        "base_model": model,
        "subject": {"images": cat, "identifier": "sks", "class_noun": "cat"},
        "regularization": {"dataset": str(top / "reg")},
        "method": {"rank": 4},
        "data": {"resolution": 32, "crops_per_image": 2},
        "optimizer": {"steps": 6, "lr": 1e-3},
        "checkpoint": {"every": 2, "keep": 1, "snapshots": [3]},
        "validation": {"prompts": ["a photo of a sks cat"], "every": 3, "steps": 1},
        "device": "cpu",
    }
    (top / "training.yaml").write_text(yaml.safe_dump(training))
    (top / "suite.txt").write_text("a {} on a beach\n")
    to = "--to kohya --family sdxl --to webdataset --root /data"
    export = f"export {top}/made {to} --subject {cat}"
    judge = "--structure-encoder embedded/judge --alignment-encoder embedded/judge"
    evaluate = f"evaluate {top}/trained --suite {top}/suite.txt --samples 1 {judge}"
    return {
        "run": ["run", top / "dataset.yaml", "-q"],
        "train": ["train", top / "training.yaml", "-q"],
        "evaluate": [*evaluate.split(), "--steps", 1, "--no-text", "-q"],
        "export": [*export.split()],
    }


@pytest.fixture(scope="module")
def whole(
    commands: dict[str, list[object]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[dict[str, Any], float]]:
    """By command: what it makes if nobody kills it, and in how many seconds."""
    top, found = Path(str(commands["run"][1])).parent, {}
    for name, place in (("run", "made"), ("train", "trained"), ("evaluate", "e"), ("export", "x")):
        start = time.monotonic()
        found[name] = finished(commands[name], top / place), time.monotonic() - start
    return found


@pytest.mark.parametrize("numbers", KILLS, ids=str)
@pytest.mark.parametrize("name", ["run", "train", "export", "evaluate"])
def test_killed_before_operations_on_files(
    name: str, numbers: tuple[int, ...], commands: Any, whole: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for number in numbers:
        assert ran(commands[name], out, before=number) == -signal.SIGKILL
    assert finished(commands[name], out) == whole[name][0]


@pytest.mark.parametrize(
    ("name", "number"), [(name, n) for name, count in RANDOM.items() for n in range(count)]
)
def test_killed_at_any_moment(
    name: str, number: int, commands: Any, whole: Any, tmp_path: Path
) -> None:
    moment = random.Random(f"{name} {number}").uniform(0, whole[name][1])
    code = ran(commands[name], tmp_path / "out", after=moment)
    assert code in (-signal.SIGKILL, 0), "it may have been faster this time"
    assert finished(commands[name], tmp_path / "out") == whole[name][0]
