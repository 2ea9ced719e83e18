"""What a dataset recipe can say, one field a key, and what it means where it says nothing.

`sections` has its smaller parts. What depends on the kind raises a `RecipeError` where neither the
recipe nor the phrase banks know it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from regforge.embedded import phrase_banks
from regforge.files import templates_folder
from regforge.recipe.named_files import is_file
from regforge.recipe.problems import Problem, RecipeError
from regforge.recipe.rendering import Render
from regforge.recipe.sections import (
    CaptionImport,
    Kind,
    LanguageModel,
    PromptSet,
    RecipeDocument,
    Runtime,
    Section,
    Share,
    Slot,
    Subject,
    TemplateShare,
    problem_of,
)


class Prompts(Section):
    """Which captions are made, how many, and how."""

    sets: dict[PromptSet, Share] = Field(
        default={"amplify": 1.0}, examples=[{"against": 0.25, "amplify": 0.75}]
    )
    """Shares of the prompt sets: `naive` (one plain caption), `captions` (each photo's caption
    without the identifier), `against` (the same with another thing of the class in the subject's
    place, its attributes varied), `amplify` (structured captions over the whole vocabulary),
    `import` (another dataset's captions). They need not sum to 1."""
    count: Runtime[int] = Field(default=2000, ge=1, le=100_000_000)
    """How many captions. Raising it later adds captions and keeps those there are."""
    mode: Literal["vocabulary", "compose"] = "vocabulary"
    """`vocabulary`: the language model fills each slot once, and a seeded design combines the
    phrases. `compose`: it fills all slots of each caption together, which costs a call every
    `compose_batch` captions."""
    template: str | tuple[TemplateShare, ...] | None = None
    """Caption template: a shipped one (`caption/object.j2`, `caption/living.j2`;
    `caption/sentences.j2` for models that read long captions, `caption/tags.j2` for those trained
    on tags) or a path to your own; or a list of them with shares. Left out, the one for the
    subject's kind. The shipped ones have two or three forms each, which captions take turns
    with."""
    messages: Runtime[Path | None] = None
    """Folder with your own messages to the language model (`vocabulary.j2`, `compose.j2`, ...),
    laid over the shipped ones in templates/llm."""
    slots: tuple[Slot, ...] | None = Field(
        default=None,
        examples=[["color", "background", {"name": "style", "values": ["a photo of"]}]],
    )
    """What a caption says, most important first: names, or mappings with `name`. Left out: shape,
    color, texture, background, lighting and style, and for living things motion as well; shape,
    color, texture and motion each in half of the captions (`presence: 0.5`)."""
    phrases_per_slot: int = Field(default=40, ge=1, le=1000)
    """How many phrases to ask for each slot."""
    photo_share: float = Field(default=0.7, gt=0, lt=1)
    """Share of photographs among styles from the banks or a language model, where both photographs
    and art are there. Styles that you list have `weights` of their own."""
    compatibility: bool = True
    """Find out which phrases do not go together (no swimming in a kitchen), and draw those
    again."""
    compose_batch: int = Field(default=10, ge=1, le=50)
    """Captions per call in `mode: compose`."""
    near_duplicates: float = Field(default=0.9, gt=0, le=1)
    """Captions that share more than this part of their words count as the same in `mode: compose`
    (Jaccard similarity, 0 to 1). Vocabulary captions are compared exactly, case and punctuation
    aside."""
    max_tokens: int | None = Field(default=None, ge=8)
    """Longest caption in tokens; left out, what the renderer's own text encoder takes (77 for SD
    and SDXL)."""
    over_limit: Literal["shorten", "refuse"] = "shorten"
    """A caption over the limit loses its last slots until it fits, or is refused."""
    exclude: tuple[str, ...] = ()
    """What captions must not say: `dreambench` (the benchmark's prompts), or paths to text files
    with one prompt or phrase a line."""
    vocabulary: Path | None = None
    """A vocabulary.json of an earlier run, perhaps edited, to use instead of asking the language
    model."""
    match: tuple[Literal["size", "seed"], ...] | None = None
    """What images of the sets `captions` and `against` share with their photo: the size (its
    proportions, with as many pixels as the others), and one seed for all images of the same photo.
    Left out: `against` nothing; `captions` the seed, and the size where `render.width` and
    `render.height` are given. Further images with the same caption have seeds of their own."""
    imported: CaptionImport | None = Field(
        default=None, alias="import", examples=[{"dataset": "user/name", "revision": "v1"}]
    )
    """Another dataset, for the `import` set."""
    llm: LanguageModel = Field(default_factory=LanguageModel)
    """The language model that fills the slots."""

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

    @field_validator("template")
    @classmethod
    def _templates_make_captions(
        cls, template: str | tuple[TemplateShare, ...] | None
    ) -> str | tuple[TemplateShare, ...] | None:
        if isinstance(template, tuple) and not sum(each.share for each in template):
            raise problem_of("", "needs at least one share above 0")
        return template

    @field_validator("slots")
    @classmethod
    def _slots_are_distinct(cls, slots: tuple[Slot, ...] | None) -> tuple[Slot, ...] | None:
        names = [slot.name for slot in slots or ()]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise problem_of("", f"lists {repeated[0]!r} twice")
        return slots


class Alignment(Section):
    """Scores how well an image shows its caption."""

    model: str = "embedded/judge"
    """A transformers CLIP-like checkpoint (repository or folder), or `embedded/judge` for images of
    the embedded pipeline."""
    min: float | None = Field(default=None, ge=-1, le=1)
    """Images with a lower cosine similarity are drawn again; left out, the score is only kept."""


class Curate(Section):
    """Which images are not good enough to keep."""

    max_duplicate_distance: int | None = Field(default=4, ge=0, le=32)
    """Images whose 64-bit perceptual hashes differ in at most this many bits count as duplicates;
    null keeps them all. Exact copies are always refused."""
    constant: bool = True
    """Refuse images that are black or of a single colour."""
    nsfw: bool = True
    """Refuse images that the model's own safety checker flags."""
    alignment: Alignment | None = None
    """Score images against their captions."""


class DatasetSection(Section):
    """What the finished dataset says about itself, and where it goes."""

    license: Runtime[str | None] = None
    """Licence of the images, as a Hub identifier (`openrail++`, `cc-by-4.0`, `other`). It follows
    the rendering model's terms."""
    repo_id: Runtime[str | None] = None
    """Where `regforge publish` puts it on the Hub: `user/name`."""
    private: Runtime[bool] = True
    """Whether the Hub repository is private."""
    language: Runtime[str] = "en"
    """Language of the captions."""


class Recipe(RecipeDocument):
    """A regularization dataset, declared."""

    version: Literal[1] = 1
    """Version of the recipe format."""
    name: Runtime[str] = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    """Name of the dataset; the run goes to runs/<name>."""
    extends: Runtime[Path | None] = None
    """Another recipe to start from; keys given here win."""
    subject: Subject
    """The one thing being personalized."""
    subjects: Runtime[Path | tuple[dict[str, Any], ...] | None] = None
    """Several things, each with a run of its own in runs/<name>/<subject>, as if it had a recipe of
    its own: a list of what `subject` may say, a `name` (the folder of its photos by default, else
    the class noun) and a `count` in place of `prompts.count`; or a folder of folders with photos,
    in which a `subject.json` may say `class_noun`, `identifier` and `kind`. What `subject` says
    holds for all of them. `{subject}` in `dataset.repo_id` is the name."""
    prompts: Prompts = Field(default_factory=Prompts)
    """Which captions are made."""
    render: Render = Field(default_factory=Render)
    """Which model draws the images."""
    curate: Curate = Field(default_factory=Curate)
    """Which images are refused."""
    dataset: DatasetSection = Field(default_factory=DatasetSection)
    """What the dataset says about itself."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Everything random follows from it."""

    @property
    def image_count(self) -> int:
        """How many images it asks for."""
        return self.prompts.count * self.render.images_per_prompt


# ---------------------------------------------------------------------------------------- defaults

OBJECT_SLOTS = ("shape", "color", "texture", "background", "lighting", "style")
LIVING_SLOTS = ("shape", "color", "texture", "motion", "background", "lighting", "style")
PRESENCE = dict.fromkeys(("shape", "color", "texture", "motion"), 0.5)
"""How often captions say what belongs to the thing: the class without it stays what it is."""
_SETS: tuple[PromptSet, ...] = ("naive", "captions", "against", "amplify", "import")


def kind_of(recipe: Recipe) -> Kind:
    """`object` or `living`: what the recipe says, else what the phrase banks say."""
    kind = recipe.subject.kind or bank_kind(recipe.subject.class_noun)
    if kind is None:
        raise RecipeError([Problem.at(None, ("subject", "kind"), kind_wanted(recipe))])
    return kind


def bank_kind(class_noun: str) -> Kind | None:
    """What the phrase banks say of a class noun; None if none of them knows it."""
    try:
        return phrase_banks.kind(phrase_banks.super_category(class_noun))
    except phrase_banks.UnknownClassNoun:
        return None


def kind_wanted(recipe: Recipe) -> str:
    """Why a recipe has to say its kind."""
    noun = recipe.subject.class_noun
    return f"is needed: no phrase bank knows {noun!r}, so write `kind: object` or `kind: living`"


def shares_of(recipe: Recipe) -> dict[PromptSet, float]:
    """The share of each prompt set that is used; they sum to 1."""
    sets = recipe.prompts.sets
    total = sum(sets.values())
    return {name: sets[name] / total for name in _SETS if sets.get(name, 0) > 0}


def slots_of(recipe: Recipe) -> tuple[Slot, ...]:
    """The slots of the captions, most important first; none where all captions are `naive`."""
    if set(shares_of(recipe)) == {"naive"}:
        return ()
    if recipe.prompts.slots is not None:
        return recipe.prompts.slots
    names = LIVING_SLOTS if kind_of(recipe) == "living" else OBJECT_SLOTS
    return tuple(Slot(name=name, presence=PRESENCE.get(name, 1)) for name in names)


def drawn_slots(recipe: Recipe) -> tuple[Slot, ...]:
    """The slots that need phrases; none where no prompt set draws any.

    Imported captions have slots as well, but bring their phrases along.
    """
    return slots_of(recipe) if draws_phrases(recipe) else ()


def draws_phrases(recipe: Recipe) -> bool:
    """Whether some prompt set draws phrases from a vocabulary."""
    return not set(shares_of(recipe)) <= {"naive", "captions", "import"}


def follows_photos(recipe: Recipe) -> bool:
    """Whether some prompt set makes captions of those of the photos."""
    return not {"captions", "against"}.isdisjoint(shares_of(recipe))


def match_of(recipe: Recipe, prompt_set: str) -> frozenset[str]:
    """What an image of a set shares with its photo, `size` and `seed`, with the default filled in.

    The set `captions` is for images that differ from the photo's in the identifier alone. An image
    API draws few sizes, and without `render.width` and `render.height` nobody knows the area.
    """
    if recipe.prompts.match is not None:
        return frozenset(recipe.prompts.match)
    if prompt_set != "captions":
        return frozenset()
    render = recipe.render
    sized = render.width and render.height and render.renderer != "hosted"
    return frozenset(("size", "seed") if sized else ("seed",))


def import_of(recipe: Recipe) -> CaptionImport | None:
    """Whose captions are taken over; None if the `import` set has no share."""
    return recipe.prompts.imported if "import" in shares_of(recipe) else None


def templates_of(recipe: Recipe) -> list[TemplateShare]:
    """The caption templates and their shares, none of which is 0."""
    named = recipe.prompts.template or f"caption/{kind_of(recipe)}.j2"
    listing = [TemplateShare(file=named)] if isinstance(named, str) else named
    return [each for each in listing if each.share]


def template_file(name: str) -> Path:
    """Where a caption template lies; it need not exist."""
    return shipped_template(name) or Path(name)


def shipped_template(name: str) -> Path | None:
    """The file of a template that comes with regforge, or None if there is none of that name."""
    # "./caption/object.j2" is a path of the user's.
    inside = not Path(name).is_absolute() and not {".", ".."} & set(name.split("/"))
    path = templates_folder() / name
    return path if inside and is_file(path) else None


def benchmarks() -> list[str]:
    """The names that `prompts.exclude` takes instead of paths."""
    return sorted(path.stem for path in (templates_folder() / "benchmarks").glob("*.yaml"))


def is_benchmark(name: str) -> bool:
    """Whether an entry of `prompts.exclude` is a benchmark that comes with regforge."""
    return name in benchmarks()
