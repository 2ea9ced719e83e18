"""The errors of the embedded language model."""

from regforge.errors import RegforgeError


class LanguageModelError(RegforgeError):
    """Something the embedded language model cannot do."""


class LanguageModelMissing(LanguageModelError):
    """The weights (or an optional library) are not installed; the hint is the line that does it."""


class SchemaError(LanguageModelError):
    """The request's JSON schema cannot be satisfied, or uses something we cannot answer."""
