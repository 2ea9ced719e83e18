"""Runs `regforge` in this process, as people type it."""

import sys

import pytest

from regforge import cli


class Shell:
    """Runs commands in this process; keeps what they printed in `out` and `err`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capfd = capfd
        self.out = self.err = ""

    def __call__(self, *words: object) -> int:
        """Run `regforge` with these words; returns the exit code."""
        self._monkeypatch.setattr(sys, "argv", ["regforge", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        self.out, self.err = self._capfd.readouterr()
        return code
