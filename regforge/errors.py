"""The errors that regforge raises on purpose, and the exit codes.

Whatever a user can cause is raised as a `RegforgeError` with one clear sentence, which the command
line prints; a traceback is always a bug in regforge. Third-party exceptions are turned into these
where they enter the package.
"""

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class RegforgeError(Exception):
    """Something the user can put right: one sentence, and a hint where that does not say it all."""

    exit_code: int = EXIT_FAILED
    """Of the process, when nobody catches the error."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """The message, and below it the hint if there is one."""
        message = super().__str__()
        return f"{message}\n{self.hint}" if self.hint else message


class Interrupted(RegforgeError):
    """Somebody pressed Ctrl-C; the message says what was kept and how to go on."""

    exit_code = EXIT_INTERRUPTED
