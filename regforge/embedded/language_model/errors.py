"""The errors of the embedded language model."""

from regforge.errors import RegforgeError


class LanguageModelError(RegforgeError):
    """Something the embedded language model cannot do."""


class LanguageModelMissing(LanguageModelError):
    """The weights are not installed; the hint is the line that installs them."""


class SchemaError(LanguageModelError):
    """The request's JSON schema is not one of choices."""
