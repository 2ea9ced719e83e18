"""What a dataset recipe can say: one pydantic model a section, one field a key.

The descriptions here are the reference documentation (docs/recipe.md is made from them) and the
JSON schema that editors complete from. Knows nothing about YAML, files or defaults that depend on
other files; `loading` does. A recipe is data: it calls nobody.

Fields marked with `RUNTIME` say how a run is carried out, not what it makes; `digest` leaves them
out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

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

from regforge.hub.address import HubAddress

RUNTIME: dict[str, Any] = {"x-runtime": True}
"""`json_schema_extra` of fields that do not change what is made."""

Kind = Literal["object", "living"]
PromptSet = Literal["naive", "against", "amplify", "import"]

STANDARD_SLOTS = (
    "shape",
    "size",
    "color",
    "texture",
    "material",
    "motion",
    "background",
    "lighting",
    "style",
)
"""Slots that the shipped caption templates know; a recipe's own template may use others."""

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
SlotName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


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


class Subject(Section):
    """The one thing being personalized."""

    class_noun: str = Field(
        min_length=1,
        max_length=80,
        description="What the subject is, as specific as fits: 'ceramic teapot' rather than "
        "'teapot', never 'thing'.",
        examples=["ceramic teapot"],
    )
    kind: Kind | None = Field(
        default=None,
        description="Whether it is alive. Living things get a motion slot, objects do not. Left "
        "out, the phrase banks decide from the class noun.",
    )
    identifier: str | None = Field(
        default=None,
        max_length=40,
        description="The rare token that will stand for the subject, such as 'sks'. It is kept "
        "out of every regularization caption.",
    )
    images: Path | None = Field(
        default=None,
        description="Folder with the photos of the subject, needed for the `against` set. "
        "Relative paths start at the recipe.",
    )
    captions: Literal["files", "auto"] = Field(
        default="files",
        description="`files`: captions come from photos/*.txt or photos/metadata.jsonl. `auto`: "
        "a vision model writes the missing ones (`prompts.llm.vision_model`).",
    )


class Slot(Section):
    """One thing a caption says, and where its phrases come from."""

    name: SlotName = Field(description="Its name, as the caption template uses it.")
    source: Literal["llm", "list", "file", "bank"] | None = Field(
        default=None,
        alias="from",
        description="`llm`: the language model fills it (choosing among `values` if there are "
        "any); `list`: exactly `values`; `file`: a text file with a phrase a line; `bank`: the "
        "phrase banks that come with regforge. Left out: `list` where there are values, `file` "
        "where there is a file, else `llm`.",
    )
    values: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="The phrases, or those to choose among."
    )
    file: Path | None = Field(
        default=None, description="Text file with one phrase a line; # starts a comment."
    )
    weights: tuple[Weight, ...] | None = Field(
        default=None, description="How often each of `values` is used, relative to the others."
    )
    mode: Literal["sample", "grid", "cycle"] = Field(
        default="sample",
        description="`sample`: a seeded, evenly covering design; `grid`: every combination with "
        "the other grid slots in turn; `cycle`: one after the other.",
    )
    count: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="How many phrases to ask of the language model; `prompts.phrases_per_slot` "
        "if left out.",
    )

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

    model: str = Field(
        default="embedded/smollm2-135m",
        min_length=1,
        description="Any LiteLLM model: `gpt-4o-mini`, `anthropic/claude-sonnet-4-5`, "
        "`ollama_chat/llama3.1`, ... The default travels with regforge and only chooses among "
        "curated phrases.",
    )
    api_base: str | None = Field(
        default=None,
        description="URL of an OpenAI-compatible server, for `openai/...` and `hosted_vllm/...`.",
    )
    temperature: float = Field(default=1.0, ge=0, le=2, description="Sampling temperature.")
    max_tokens: int = Field(
        default=4096, ge=16, description="Longest reply, in tokens; a longer one counts as failed."
    )
    vision_model: str | None = Field(
        default=None,
        description="The LiteLLM model for `subject.captions: auto`; `model` if left out.",
    )
    max_concurrency: int = Field(
        default=8,
        ge=1,
        le=1000,
        description="Most calls at the same time.",
        json_schema_extra=RUNTIME,
    )
    rpm: int | None = Field(
        default=None,
        ge=1,
        description="Most calls a minute. Calls wait, they are never rejected.",
        json_schema_extra=RUNTIME,
    )
    tpm: int | None = Field(
        default=None, ge=1, description="Most tokens a minute.", json_schema_extra=RUNTIME
    )
    timeout: float = Field(
        default=120,
        gt=0,
        description="Seconds to wait for a reply before trying again.",
        json_schema_extra=RUNTIME,
    )
    max_attempts: int = Field(
        default=6,
        ge=1,
        le=100,
        description="How often one question is sent when the server is busy, fails or does not "
        "answer.",
        json_schema_extra=RUNTIME,
    )
    max_cost: float | None = Field(
        default=None,
        gt=0,
        description="Most to spend on a run, in US dollars. The run stops before it is exceeded.",
        json_schema_extra=RUNTIME,
    )
    input_cost_per_token: float | None = Field(
        default=None,
        ge=0,
        description="Price in US dollars, for models that LiteLLM has no price of.",
        json_schema_extra=RUNTIME,
    )
    output_cost_per_token: float | None = Field(
        default=None,
        ge=0,
        description="Price in US dollars, for models that LiteLLM has no price of.",
        json_schema_extra=RUNTIME,
    )
    cache: bool = Field(
        default=True,
        description="Keep replies on disk and ask the same question only once.",
        json_schema_extra=RUNTIME,
    )


class CaptionImport(Section):
    """Another dataset, whose captions the `import` set takes over. Its images are not copied."""

    dataset: str = Field(
        min_length=1,
        description="Whose captions to take: a run, a dataset's folder, a folder of images with "
        "captions, a .zip, .tar or .parquet file, or `user/name` on the Hub, also "
        "`user/name@revision`. Relative paths start at the recipe; what lies there is never looked "
        "for on the Hub.",
        examples=["user/name"],
    )
    revision: str | None = Field(
        default=None,
        min_length=1,
        description="Branch, tag or commit on the Hub. The run keeps the captions it has read, "
        "whatever becomes of a branch.",
    )
    caption_column: str | None = Field(
        default=None,
        min_length=1,
        description="Where captions stand, if not in `text`, `caption`, `prompt` or `txt`.",
    )

    @property
    def address(self) -> HubAddress | None:
        """Where it is on the Hub; None for a folder or a file."""
        found = HubAddress.parse(self.dataset)
        return found and found.at(self.revision)


class Prompts(Section):
    """Which captions are made, how many, and how."""

    sets: dict[PromptSet, Share] = Field(
        default={"amplify": 1.0},
        description="Shares of the prompt sets: `naive` (one plain caption), `against` (each "
        "photo's caption without the identifier, its attributes varied), `amplify` (structured "
        "captions over the whole vocabulary), `import` (another dataset's captions). They need not "
        "sum to 1.",
        examples=[{"against": 0.25, "amplify": 0.75}],
    )
    count: int = Field(
        default=2000,
        ge=1,
        description="How many captions. Raising it later adds captions and keeps those there are.",
        # Caption number 7 is the same whether 10 or 10,000 are made.
        json_schema_extra=RUNTIME,
    )
    mode: Literal["vocabulary", "compose"] = Field(
        default="vocabulary",
        description="`vocabulary`: the language model fills each slot once, and a seeded design "
        "combines the phrases. `compose`: it fills all slots of each caption together, which "
        "costs a call every `compose_batch` captions.",
    )
    template: str | None = Field(
        default=None,
        description="Caption template: a shipped one (`caption/object.j2`, `caption/living.j2`) "
        "or a path to your own. Left out, the one for the subject's kind.",
    )
    messages: Path | None = Field(
        default=None,
        description="Folder with your own messages to the language model (`vocabulary.j2`, "
        "`compose.j2`, ...), laid over the shipped ones in templates/llm.",
        json_schema_extra=RUNTIME,
    )
    slots: tuple[Slot, ...] | None = Field(
        default=None,
        description="What a caption says, most important first: names, or mappings with `name`. "
        "Left out: shape, color, texture, background, lighting and style, and for living things "
        "motion as well.",
        examples=[["color", "background", {"name": "style", "values": ["a photo of"]}]],
    )
    phrases_per_slot: int = Field(
        default=40, ge=1, le=1000, description="How many phrases to ask for each slot."
    )
    compatibility: bool = Field(
        default=True,
        description="Find out which phrases do not go together (no swimming in a kitchen), and "
        "draw those again.",
    )
    compose_batch: int = Field(
        default=10, ge=1, le=50, description="Captions per call in `mode: compose`."
    )
    near_duplicates: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Captions that share more than this part of their words count as the same in "
        "`mode: compose` (Jaccard similarity, 0 to 1). Vocabulary captions are compared exactly, "
        "case and punctuation aside.",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=8,
        description="Longest caption in tokens; left out, what the renderer's own text encoder "
        "takes (77 for SD and SDXL).",
    )
    over_limit: Literal["shorten", "refuse"] = Field(
        default="shorten",
        description="A caption over the limit loses its last slots until it fits, or is refused.",
    )
    exclude: tuple[str, ...] = Field(
        default=(),
        description="What captions must not say: `dreambench` (the benchmark's prompts), or "
        "paths to text files with one prompt or phrase a line.",
    )
    vocabulary: Path | None = Field(
        default=None,
        description="A vocabulary.json of an earlier run, perhaps edited, to use instead of "
        "asking the language model.",
    )
    match: tuple[Literal["size", "seed"], ...] = Field(
        default=(),
        description="What an `against` image shares with its photo: the size, and one seed for "
        "all images of the same photo.",
    )
    imported: CaptionImport | None = Field(
        default=None,
        alias="import",
        description="Another dataset, for the `import` set.",
        examples=[{"dataset": "user/name", "revision": "v1"}],
    )
    llm: LanguageModel = Field(
        default_factory=LanguageModel, description="The language model that fills the slots."
    )

    @field_validator("slots", mode="before")
    @classmethod
    def _names_are_slots(cls, slots: object) -> object:
        if isinstance(slots, list | tuple):
            return tuple({"name": slot} if isinstance(slot, str) else slot for slot in slots)
        return slots

    @field_validator("sets")
    @classmethod
    def _sets_make_captions(cls, sets: dict[PromptSet, float]) -> dict[PromptSet, float]:
        if sum(sets.values()) <= 0:
            raise problem_of("", "needs at least one share above 0")
        return sets

    @field_validator("slots")
    @classmethod
    def _slots_are_distinct(cls, slots: tuple[Slot, ...] | None) -> tuple[Slot, ...] | None:
        names = [slot.name for slot in slots or ()]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise problem_of("", f"lists {repeated[0]!r} twice")
        return slots


class Render(Section):
    """Which model draws the images, and how."""

    model: str = Field(
        default="embedded/tinyworld",
        min_length=1,
        description="A diffusers text-to-image repository or folder, `embedded/tinyworld` (in "
        "the package), or, with `renderer: hosted`, a LiteLLM image model.",
    )
    renderer: Literal["local", "hosted"] = Field(
        default="local",
        description="`local`: a diffusers pipeline on this machine. `hosted`: an image API "
        "through LiteLLM.",
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit of the repository."
    )
    variant: str | None = Field(
        default=None, description="Weights variant in the repository, such as `fp16`."
    )
    lora: str | None = Field(
        default=None, description="LoRA weights (repository or file) laid over the model."
    )
    width: int | None = Field(
        default=None, ge=8, le=8192, description="Pixels; the model's own size if left out."
    )
    height: int | None = Field(
        default=None, ge=8, le=8192, description="Pixels; the model's own size if left out."
    )
    steps: int = Field(default=30, ge=1, le=1000, description="Denoising steps.")
    guidance_scale: float = Field(
        default=5.0, ge=0, le=50, description="Classifier-free guidance; 1 or less turns it off."
    )
    scheduler: str | None = Field(
        default=None,
        description="`euler_ancestral`, `euler`, `ddim`, `ddpm`, `dpmpp_2m`, `dpmpp_2m_karras`, "
        "`unipc`, `lms`, `heun`, or a diffusers class name; the model's own if left out.",
    )
    negative_prompt: str = Field(default="", description="What the images should not show.")
    images_per_prompt: int = Field(default=1, ge=1, le=100, description="Images of each caption.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="Precision; `auto` takes the best one for the device."
    )
    format: Literal["webp", "png", "jpeg"] = Field(
        default="webp", description="File format of the images. WebP here is lossless."
    )
    jpeg_quality: int = Field(default=95, ge=1, le=100, description="Only for `format: jpeg`.")
    max_attempts: int = Field(
        default=3,
        ge=1,
        le=20,
        description="How often an image is drawn, with a new seed each time, before its row is "
        "given up.",
    )
    batch_size: (
        Literal["auto"] | Annotated[int, Field(ge=1, le=1024), BeforeValidator(not_truth)]
    ) = Field(
        default="auto",
        description="Images at a time. `auto` finds a good one and halves it when memory runs out.",
        json_schema_extra=RUNTIME,
    )
    device: str | None = Field(
        default=None,
        description="`cuda`, `cuda:1`, `mps`, `cpu`; the best there is if left out.",
        json_schema_extra=RUNTIME,
    )
    compile: bool = Field(
        default=False,
        description="torch.compile the denoiser: slow to start, then faster on a GPU.",
        json_schema_extra=RUNTIME,
    )
    offload: bool = Field(
        default=False,
        description="Keep parts of the model in main memory until used, for small GPUs.",
        json_schema_extra=RUNTIME,
    )
    trust_remote_code: bool = Field(
        default=False, description="Run code that the model's repository brings along."
    )
    api_base: str | None = Field(
        default=None, description="URL of the image server, for `renderer: hosted`."
    )
    max_concurrency: int = Field(
        default=4,
        ge=1,
        le=100,
        description="Calls at the same time, for `renderer: hosted`.",
        json_schema_extra=RUNTIME,
    )


class Alignment(Section):
    """Scores how well an image shows its caption."""

    model: str = Field(
        default="embedded/judge",
        description="A transformers CLIP-like checkpoint (repository or folder), or "
        "`embedded/judge` for pictures of the embedded pipeline.",
    )
    min: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="Images with a lower cosine similarity are drawn again; left out, the score "
        "is only kept.",
    )


class Curate(Section):
    """Which images are not good enough to keep."""

    max_duplicate_distance: int | None = Field(
        default=4,
        ge=0,
        le=32,
        description="Images whose 64-bit perceptual hashes differ in at most this many bits "
        "count as duplicates; null keeps them all. Exact copies are always refused.",
    )
    constant: bool = Field(
        default=True, description="Refuse images that are black or of a single colour."
    )
    nsfw: bool = Field(
        default=True, description="Refuse images that the model's own safety checker flags."
    )
    alignment: Alignment | None = Field(
        default=None, description="Score images against their captions."
    )


class DatasetSection(Section):
    """What the finished dataset says about itself, and where it goes."""

    license: str | None = Field(
        default=None,
        description="Licence of the images, as a Hub identifier (`openrail++`, `cc-by-4.0`, "
        "`other`). It follows the rendering model's terms.",
        json_schema_extra=RUNTIME,
    )
    repo_id: str | None = Field(
        default=None,
        description="Where `regforge publish` puts it on the Hub: `user/name`.",
        json_schema_extra=RUNTIME,
    )
    private: bool = Field(
        default=True,
        description="Whether the Hub repository is private.",
        json_schema_extra=RUNTIME,
    )
    language: str = Field(
        default="en", description="Language of the captions.", json_schema_extra=RUNTIME
    )


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


class Recipe(RecipeDocument):
    """A regularization dataset, declared."""

    version: Literal[1] = Field(default=1, description="Version of the recipe format.")
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$",
        description="Name of the dataset; the run goes to runs/<name>.",
        json_schema_extra=RUNTIME,
    )
    extends: Path | None = Field(
        default=None,
        description="Another recipe to start from; keys given here win.",
        json_schema_extra=RUNTIME,
    )
    subject: Subject = Field(description="The one thing being personalized.")
    prompts: Prompts = Field(default_factory=Prompts, description="Which captions are made.")
    render: Render = Field(default_factory=Render, description="Which model draws the images.")
    curate: Curate = Field(default_factory=Curate, description="Which images are refused.")
    dataset: DatasetSection = Field(
        default_factory=DatasetSection, description="What the dataset says about itself."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Everything random follows from it.")
