"""What a reader passes through: files entered, functions and hops of three commands.

A file counts as entered when one of its functions runs (imports do not count), a hop is a call from
a function of one file of regforge to a function of another. Digests and checks of a recipe are
counted too: a run needs one of each.

    python benchmarks/routes.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import regforge

REPO = Path(__file__).resolve().parent.parent
PACKAGE = str(Path(regforge.__file__).parent) + "/"
ROUTES: dict[str, tuple[str, ...]] = {
    "prompts": ("prompts", "recipes/quickstart.yaml", "--set", "prompts.count=8"),
    "run": ("run", "recipes/quickstart.yaml", "--set", "prompts.count=8"),
    "train": (
        *("train", "recipes/train-quickstart.yaml", "--set", "optimizer.steps=2"),
        *("--set", "regularization.dataset={run}", "--set", "validation.every=0"),
    ),
}
COUNTED = ("checked", "_covered")  # of a recipe: its check, and what goes into its digest


class Route:
    """The functions of regforge that ran, and the hops between its files."""

    def __init__(self) -> None:
        self.functions: set[CodeType] = set()
        self.hops = 0
        self.calls: Counter[str] = Counter()

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        """Called by the interpreter; see `sys.setprofile`."""
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE):
            return
        if code.co_name == "<module>" or not code.co_flags & 2:  # a class body has no fast locals
            return
        caller = frame.f_back
        while caller and not caller.f_code.co_filename.startswith(PACKAGE):
            caller = caller.f_back
        if caller and (caller.f_code.co_name == "<module>" or not caller.f_code.co_flags & 2):
            return  # while a module is imported, to make a constant
        self.functions.add(code)
        if code.co_name in COUNTED:
            self.calls[code.co_name] += 1
        if caller and caller.f_code.co_filename != code.co_filename:
            self.hops += 1

    def files(self) -> list[str]:
        """Files entered, relative to the package."""
        return sorted({code.co_filename.removeprefix(PACKAGE) for code in self.functions})


def trace(words: list[str]) -> None:
    """Run one command here and print what it passed through as JSON."""
    from regforge.cli import main

    route = Route()
    threading.setprofile(route.profile)
    sys.setprofile(route.profile)
    try:
        sys.argv = ["regforge", *words]
        main()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    facts = {
        "files": route.files(),
        "functions": len(route.functions),
        "hops": route.hops,
        "calls": route.calls,
    }
    print(json.dumps(facts))


def main() -> None:
    """Trace the three commands, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", action="store_true", help="list the files of each route")
    parser.add_argument("--trace", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.trace:
        trace(asked.trace)
        return
    print(f"{'':8} {'files':>6} {'functions':>10} {'hops':>7}  checks and digests")
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        for name, words in ROUTES.items():
            out = f"{folder}/train" if name == "train" else run
            filled = [word.format(run=run) for word in words]
            done = subprocess.run(
                [sys.executable, __file__, "--trace", *filled, "--out", out],
                cwd=REPO,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                check=True,
            )
            found = json.loads(done.stdout.splitlines()[-1])
            calls = ", ".join(f"{key} {number}" for key, number in found["calls"].items())
            files = found["files"]
            print(f"{name:8} {len(files):6} {found['functions']:10} {found['hops']:7}  {calls}")
            if asked.files:
                print("".join(f"         {file}\n" for file in files))


if __name__ == "__main__":
    main()
