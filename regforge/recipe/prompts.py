"""What a dataset recipe can say of its captions: `subject` and `prompts`.

Like `models`: data alone, and the descriptions are the reference documentation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from regforge.hub.address import HubAddress
from regforge.recipe.sections import RUNTIME, Section, Share, Weight, problem_of

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

SlotName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class Subject(Section):
    """The one thing being personalized."""

    class_noun: str = Field(
        min_length=1,
        max_length=80,
        description="What the subject is, as specific as fits: 'ceramic teapot' rather than "
        "'teapot', never 'thing'. An English common noun alone: no article, no name, no "
        "punctuation.",
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
    captions: Literal["files", "auto", "write"] = Field(
        default="files",
        description="`files`: captions come from photos/*.txt or photos/metadata.jsonl. `auto`: "
        "a vision model writes the missing ones (`prompts.llm.vision_model`); they lie in the "
        "run's captions.json. `write`: the same, and they are also written beside the photos, "
        "01.txt for 01.jpg, where training and exports find them; a file that is there stays.",
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
    temperature: float | None = Field(
        default=1.0, ge=0, le=2, description="Sampling temperature; null sends none."
    )
    max_tokens: int | None = Field(
        default=4096,
        ge=16,
        description="Longest reply, in tokens; a longer one counts as failed. null sends none: "
        "replies are as long as the provider lets them be.",
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
        description="Most to spend on a run, in US dollars, all sessions together. The run stops "
        "before it is exceeded.",
        json_schema_extra=RUNTIME,
    )
    input_cost_per_token: float | None = Field(
        default=None,
        ge=0,
        description="Price in US dollars, for models that LiteLLM has no price of. A model on this "
        "machine or in its network (by its address) is free unless one is given.",
        json_schema_extra=RUNTIME,
    )
    output_cost_per_token: float | None = Field(
        default=None,
        ge=0,
        description="Price in US dollars, for models that LiteLLM has no price of. A model on this "
        "machine or in its network (by its address) is free unless one is given.",
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
        "or a path to your own. Left out, the one for the subject's kind. The shipped ones "
        "have three forms each, which captions take turns with.",
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
    photo_share: float = Field(
        default=0.7,
        gt=0,
        lt=1,
        description="Share of photographs among styles from the banks or a language model, where "
        "both photographs and art are there. Styles that you list have `weights` of their own.",
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
    against: Literal["varied", "plain"] = Field(
        default="varied",
        description="What an `against` caption is. `varied`: the photo's caption with another "
        "thing of the class in the subject's place, its attributes from the slots; what the rest "
        "of the caption states is not varied. `plain`: the photo's caption without the "
        "identifier, and nothing else changed; it comes again for each further image of its photo.",
    )
    match: tuple[Literal["size", "seed"], ...] | None = Field(
        default=None,
        description="What an `against` image shares with its photo: the size (its proportions, "
        "with as many pixels as the others), and one seed for all images of the same photo. Left "
        "out: nothing; with `against: plain` the seed, and the size where `render.width` and "
        "`render.height` are given. Further images with the same caption have seeds of their own.",
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
