"""What recipes of every kind are made of: strict sections, and errors in our own words.

Fields marked with `RUNTIME` say how a run is carried out, not what it makes; `digest` leaves them
out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

RUNTIME: dict[str, Any] = {"x-runtime": True}
"""`json_schema_extra` of fields that do not change what is made."""

PROBLEM = "recipe_problem"
"""Type of the validation errors that have their own words; their context names the key."""


def problem_of(key: str, message: str) -> PydanticCustomError:
    """A validation error in our own words, about a key of the section or (empty) its value."""
    return PydanticCustomError(PROBLEM, "{message}", {"key": key, "message": message})


def not_truth(value: object) -> object:
    """The value, unless it is true or false: pydantic reads `count: true` as 1."""
    if isinstance(value, bool):
        raise PydanticKnownError("float_type")
    return value


Share = Annotated[float, Field(ge=0, le=1_000_000), BeforeValidator(not_truth)]
Weight = Annotated[float, Field(gt=0, le=1_000_000), BeforeValidator(not_truth)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, and nothing changes after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[info.field_name or ""].annotation
        return not_truth(value) if kind in (int, float, int | None, float | None) else value


class RecipeDocument(Section):
    """A whole recipe of some kind. It knows the file it was read from, which is no part of it."""

    _source: Path | None = PrivateAttr(default=None)

    @property
    def source(self) -> Path | None:
        """The file it was read from, for messages; no part of what the recipe says."""
        return self._source

    def read_from(self, source: Path) -> Self:
        """The same recipe, knowing the file that it was read from."""
        recipe = self.model_copy()
        recipe._source = source
        return recipe

    def __eq__(self, other: object) -> bool:
        # Two recipes that say the same are equal, wherever they were read from.
        return type(other) is type(self) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]
