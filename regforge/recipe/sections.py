"""What recipes of every kind are made of, and what a dataset recipe says of subject and captions.

The texts below the fields are the reference documentation and what the JSON schema tells editors.
A recipe is data: it calls nobody, and knows nothing of YAML.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from regforge.hub.errors import HubAddress

T = TypeVar("T")
Runtime = Annotated[T, Field(json_schema_extra={"x-runtime": True})]
"""Marks fields that say how a run is carried out, not what it makes: the digest leaves them out."""

UNION = "one of: "
"""How tags begin that pydantic puts into the location of an error below a union."""

PROBLEM = "recipe_problem"
"""Type of the validation errors that have their own words; their context names the key."""

RARE = "ohwx"
"""An identifier to begin with: a single token of CLIP, and no word. `sks`, which DreamBooth made
usual, is a rifle to Stable Diffusion."""

Kind = Literal["object", "living"]
Quantize = Literal["int8", "nf4"]
PromptSet = Literal["naive", "captions", "against", "amplify", "import"]

STANDARD_SLOTS = tuple(
    "shape size color texture material motion background lighting style quality".split()
)
"""Slots that the shipped caption templates know; a recipe's own template may use others."""

SlotName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


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
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[info.field_name or ""].annotation
        return not_truth(value) if kind in (int, float, int | None, float | None) else value


class RecipeDocument(Section):
    """A whole recipe of some kind.

    It also knows the file it was read from, whether it was checked, the dataset recipe that it
    names, and in a run its digest, so that each is found out once. None of that is part of what it
    says.
    """

    _source: Path | None = PrivateAttr(default=None)
    _checked: bool = PrivateAttr(default=False)
    _digest: str | None = PrivateAttr(default=None)
    _dataset: tuple[str, Any] | None = PrivateAttr(default=None)  # its name, and the recipe
    _subject_name: str = PrivateAttr(default="")  # where it is one of several

    @property
    def folder(self) -> Path:
        """Where its run goes by default: runs/<name>, of several subjects runs/<name>/<subject>."""
        name: str = getattr(self, "name")  # noqa: B009 (every recipe has one)
        subject = self._subject_name
        return (
            Path("runs") / name.removesuffix(f"-{subject}") / subject
            if subject
            else Path("runs") / name
        )

    @property
    def source(self) -> Path | None:
        """The file it was read from, for messages."""
        return self._source

    @property
    def is_checked(self) -> bool:
        """Whether it is known to be sound."""
        return self._checked

    @property
    def digest(self) -> str | None:
        """What the digest was when the run began; None outside of runs."""
        return self._digest

    def known(self, *, source: Path | None = None, digest: str | None = None) -> Self:
        """The same recipe, known to be sound, with what else is known of it now."""
        recipe = self.model_copy()
        recipe._checked, recipe._source, recipe._digest = True, source or self._source, digest
        return recipe

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy; with other values it is another recipe, neither checked nor digested."""
        copy = super().model_copy(update=update, deep=deep)
        if update:
            copy._checked, copy._digest = False, None
        return copy

    def __eq__(self, other: object) -> bool:
        # Two recipes that say the same are equal, wherever they were read from.
        return type(other) is type(self) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]


class Subject(Section):
    """The one thing being personalized."""

    class_noun: str = Field(min_length=1, max_length=80, examples=["ceramic teapot"])
    """What the subject is, as specific as fits: 'ceramic teapot' rather than 'teapot', never
    'thing'. An English common noun alone: no article, no name, no punctuation."""
    kind: Kind | None = None
    """Whether it is alive. Living things get a motion slot, objects do not. Left out, the phrase
    banks decide from the class noun."""
    identifier: str | None = Field(default=None, max_length=40)
    """The rare token that will stand for the subject, such as 'ohwx'. It is kept out of every
    regularization caption."""
    images: Path | None = None
    """Folder with the photos of the subject, needed for the sets `captions` and `against`.
    Relative paths start at the recipe."""
    captions: Literal["files", "auto", "write"] = "files"
    """`files`: captions come from photos/*.txt or photos/metadata.jsonl; `{}` in them stands for
    identifier and class noun. `auto`: a vision model writes the missing ones
    (`prompts.llm.vision_model`); they lie in the run's captions.json. `write`: the same, and they
    are also written beside the photos, 01.txt for 01.jpg, where training and exports find them; a
    file that is there stays."""


class Slot(Section):
    """One thing a caption says, and where its phrases come from."""

    name: SlotName
    """Its name, as the caption template uses it."""
    source: Literal["llm", "list", "file", "bank"] | None = Field(default=None, alias="from")
    """`llm`: the language model fills it (choosing among `values` if there are any); `list`:
    exactly `values`; `file`: a text file with a phrase a line; `bank`: the phrase banks that come
    with regforge. Left out: `list` where there are values, `file` where there is a file, else
    `llm`."""
    values: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The phrases, or those to choose among."""
    file: Path | None = None
    """Text file with one phrase a line; # starts a comment."""
    weights: tuple[Weight, ...] | None = None
    """How often each of `values` is used, relative to the others."""
    mode: Literal["sample", "grid", "cycle"] = "sample"
    """`sample`: a seeded, evenly covering design; `grid`: every combination with the other grid
    slots in turn; `cycle`: one after the other."""
    count: int | None = Field(default=None, ge=1, le=1000)
    """How many phrases to ask of the language model; `prompts.phrases_per_slot` if left out."""
    presence: float = Field(default=1, ge=0, le=1)
    """The share of the captions that say this slot. In the others it is left out before the image
    is drawn, so that caption, image and row agree: the class without a colour keeps the colours
    that the model gives it. Slots are left out independently of one another. In `against` captions
    this holds for the slots that they vary."""

    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> Slot:
        if self.origin == "list" and self.values is None:
            raise problem_of("from", "`from: list` needs `values`")
        if self.origin == "file" and self.file is None:
            raise problem_of("from", "`from: file` needs `file`")
        if self.file is not None and self.origin != "file":
            raise problem_of("file", "goes with `from: file` alone")
        if self.origin in ("file", "bank") and self.values is not None:
            raise problem_of("values", f"does not go with `from: {self.origin}`")
        if self.weights is None:
            return self
        if self.origin != "list":
            raise problem_of("weights", "goes with a list of `values` alone")
        if len(self.weights) != len(self.values or ()):
            count = len(self.values or ())
            raise problem_of(
                "weights", f"needs {count} numbers, one for each value, not {len(self.weights)}"
            )
        if self.mode != "sample":
            raise problem_of("weights", f"does not go with `mode: {self.mode}`")
        return self

    @property
    def origin(self) -> Literal["llm", "list", "file", "bank"]:
        """Where the phrases come from, with the default filled in."""
        if self.source is not None:
            return self.source
        if self.values is not None:
            return "list"
        return "file" if self.file is not None else "llm"


class LanguageModel(Section):
    """Which language model fills the slots, and how it may be used."""

    model: str = Field(default="embedded/smollm2-135m", min_length=1)
    """Any LiteLLM model: `gpt-4o-mini`, `anthropic/claude-sonnet-4-5`, `ollama_chat/llama3.1`, ...
    The default travels with regforge and only chooses among curated phrases."""
    api_base: str | None = None
    """URL of an OpenAI-compatible server, for `openai/...` and `hosted_vllm/...`."""
    temperature: float | None = Field(default=1.0, ge=0, le=2)
    """Sampling temperature; null sends none."""
    max_tokens: int | None = Field(default=4096, ge=16)
    """Longest reply, in tokens; a longer one counts as failed. null sends none: replies are as long
    as the provider lets them be."""
    vision_model: str | None = None
    """The LiteLLM model for `subject.captions: auto`; `model` if left out."""
    max_concurrency: Runtime[int] = Field(default=8, ge=1, le=1000)
    """Most calls at the same time."""
    rpm: Runtime[int | None] = Field(default=None, ge=1)
    """Most calls a minute. Calls wait, they are never rejected."""
    tpm: Runtime[int | None] = Field(default=None, ge=1)
    """Most tokens a minute."""
    timeout: Runtime[float] = Field(default=120, gt=0)
    """Seconds to wait for a reply before trying again."""
    max_attempts: Runtime[int] = Field(default=6, ge=1, le=100)
    """How often one question is sent when the server is busy, fails or does not answer."""
    max_cost: Runtime[float | None] = Field(default=None, gt=0)
    """Most to spend on a run, in US dollars, all sessions together. The run stops before it is
    exceeded."""
    input_cost_per_token: Runtime[float | None] = Field(default=None, ge=0)
    """Price in US dollars, for models that LiteLLM has no price of. A model on this machine or in
    its network (by its address) is free unless one is given."""
    output_cost_per_token: Runtime[float | None] = Field(default=None, ge=0)
    """Price in US dollars, for models that LiteLLM has no price of. A model on this machine or in
    its network (by its address) is free unless one is given."""
    cache: Runtime[bool] = True
    """Keep replies on disk and ask the same question only once."""


class TemplateShare(Section):
    """One of several caption templates."""

    file: str = Field(min_length=1)
    """A shipped one or a path to your own."""
    share: Share = 1.0
    """How many of the captions are written with it, relative to the others; about, since the
    phrases of a caption decide."""


class CaptionImport(Section):
    """Another dataset, whose captions the `import` set takes over. Its images are not copied."""

    dataset: str = Field(min_length=1, examples=["user/name"])
    """Whose captions to take: a run, a dataset's folder, a folder of images with captions, a .zip,
    .tar or .parquet file, or `user/name` on the Hub, also `user/name@revision`. Relative paths
    start at the recipe; what lies there is never looked for on the Hub."""
    revision: str | None = Field(default=None, min_length=1)
    """Branch, tag or commit on the Hub. The run keeps the captions it has read, whatever becomes of
    a branch."""
    caption_column: str | None = Field(default=None, min_length=1)
    """Where captions stand, if not in `text`, `caption`, `prompt` or `txt`."""

    @property
    def address(self) -> HubAddress | None:
        """Where it is on the Hub; None for a folder or a file."""
        found = HubAddress.parse(self.dataset, dataset=True)
        return found and found.at(self.revision)
