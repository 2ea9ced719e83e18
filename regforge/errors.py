"""The errors that regforge raises on purpose.

Whatever a user can cause (a typo in a recipe, a missing file, a model that cannot be reached) is
raised as a `RegforgeError` with one clear sentence. The command line prints that sentence and
exits with the error's code; a traceback is always a bug in regforge. Third-party exceptions are
turned into these where they enter the package, so that callers need to know only this module.
"""

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class RegforgeError(Exception):
    """Something the user can put right.

    Attributes:
        message: What is wrong, in one sentence.
        exit_code: What the process exits with when nobody catches the error.
        hint: What to do about it, or None where the message says it all.
    """

    exit_code: int = EXIT_FAILED

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
