"""What a dataset recipe can say, one field a key, and what it means where it says nothing.

`sections` has its smaller parts. What depends on the kind raises a `RecipeError` where neither the
recipe nor the phrase banks know it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from regforge.embedded import phrase_banks
from regforge.files import templates_folder
from regforge.recipe.named_files import is_file
from regforge.recipe.pipelines import UNDISTILLED, usual
from regforge.recipe.problems import Problem, RecipeError
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
    not_truth,
    problem_of,
)


class Prompts(Section):
    """Which captions are made, how many, and how."""

    sets: dict[PromptSet, Share] = Field(
        default={"amplify": 1.0}, examples=[{"against": 0.25, "amplify": 0.75}]
    )
    """Shares of the prompt sets: `naive` (one plain caption), `against` (each photo's caption
    without the identifier, its attributes varied), `amplify` (structured captions over the whole
    vocabulary), `import` (another dataset's captions). They need not sum to 1."""
    count: Runtime[int] = Field(default=2000, ge=1)
    """How many captions. Raising it later adds captions and keeps those there are."""
    mode: Literal["vocabulary", "compose"] = "vocabulary"
    """`vocabulary`: the language model fills each slot once, and a seeded design combines the
    phrases. `compose`: it fills all slots of each caption together, which costs a call every
    `compose_batch` captions."""
    template: str | None = None
    """Caption template: a shipped one (`caption/object.j2`, `caption/living.j2`) or a path to your
    own. Left out, the one for the subject's kind. The shipped ones have three forms each, which
    captions take turns with."""
    messages: Runtime[Path | None] = None
    """Folder with your own messages to the language model (`vocabulary.j2`, `compose.j2`, ...),
    laid over the shipped ones in templates/llm."""
    slots: tuple[Slot, ...] | None = Field(
        default=None,
        examples=[["color", "background", {"name": "style", "values": ["a photo of"]}]],
    )
    """What a caption says, most important first: names, or mappings with `name`. Left out: shape,
    color, texture, background, lighting and style, and for living things motion as well."""
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
    against: Literal["varied", "plain"] = "varied"
    """What an `against` caption is. `varied`: the photo's caption with another thing of the class
    in the subject's place, its attributes from the slots; what the rest of the caption states is
    not varied. `plain`: the photo's caption without the identifier, and nothing else changed; it
    comes again for each further image of its photo."""
    match: tuple[Literal["size", "seed"], ...] | None = None
    """What an `against` image shares with its photo: the size (its proportions, with as many pixels
    as the others), and one seed for all images of the same photo. Left out: nothing; with `against:
    plain` the seed, and the size where `render.width` and `render.height` are given. Further images
    with the same caption have seeds of their own."""
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

    @field_validator("slots")
    @classmethod
    def _slots_are_distinct(cls, slots: tuple[Slot, ...] | None) -> tuple[Slot, ...] | None:
        names = [slot.name for slot in slots or ()]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise problem_of("", f"lists {repeated[0]!r} twice")
        return slots


class Lora(Section):
    """LoRA weights laid over the model."""

    path: str = Field(min_length=1)
    """A .safetensors file, a folder with one, or a repository (`user/name`)."""
    scale: float = Field(default=1.0, ge=-10, le=10)
    """What the LoRA is multiplied with; 1 is as trained."""


def _listed(value: object) -> object:
    """`lora: path` and `lora: {path: ...}` as lists of one."""
    if value is None:
        return ()
    entries = list(value) if isinstance(value, list | tuple) else [value]
    return [{"path": each} if isinstance(each, str) else each for each in entries]


ALL_STEPS = (0.0, 1.0)
Part = Annotated[float, Field(ge=0, le=1), BeforeValidator(not_truth)]


def _rising(window: tuple[float, float]) -> tuple[float, float]:
    if window[0] >= window[1]:
        raise problem_of("", "must begin before it ends, such as [0.33, 1]")
    return window


PRESETS: dict[str, dict[str, Any]] = {
    "balanced": {"scheduler": "unipc", "steps": 15, "cache_interval": 2},
    "fast": {
        "scheduler": "unipc",
        "steps": 12,
        "cache_interval": 2,
        "guidance_window": (0.33, 1.0),
    },
}
"""What `render.speed` fills in. Nothing that draws another distribution is ever in these: other
guidance, noise on the way (ancestral schedulers), distilled LoRAs."""


class Render(Section):
    """Which model draws the images, and how."""

    model: str = Field(default="embedded/tinyworld", min_length=1)
    """A diffusers text-to-image repository or folder, `embedded/tinyworld` (in the package), or,
    with `renderer: hosted`, a LiteLLM image model. A relative path starts at the recipe; of a
    folder, what it holds counts, not its name."""
    renderer: Literal["local", "hosted"] = "local"
    """`local`: a diffusers pipeline on this machine. `hosted`: an image API through LiteLLM."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    variant: str | None = None
    """Weights variant in the repository, such as `fp16`."""
    lora: Annotated[
        tuple[Lora, ...],
        BeforeValidator(_listed, json_schema_input_type=str | Lora | list[str | Lora] | None),
    ] = ()
    """LoRA weights laid over the model: a path or repository, `{path, scale}`, or a list of these.
    Of a file, what it holds counts, not its name."""
    vae: str | None = Field(default=None, min_length=1)
    """Another autoencoder in place of the model's own: a repository such as
    `madebyollin/sdxl-vae-fp16-fix`, or a folder. Some draw black in float16."""
    width: int | None = Field(default=None, ge=8, le=8192)
    """Pixels; the model's own size if left out."""
    height: int | None = Field(default=None, ge=8, le=8192)
    """Pixels; the model's own size if left out."""
    steps: int = Field(default=UNDISTILLED.steps, ge=1, le=1000)
    """Denoising steps. Left out, 30, or what a distilled model is made for, where its name on the
    Hub or its folder says that it is one: 4 for SDXL-Turbo or FLUX.1-schnell, 9 for
    Z-Image-Turbo."""
    guidance_scale: float = Field(default=UNDISTILLED.guidance_scale, ge=0, le=50)
    """Classifier-free guidance; 1 or less turns it off. Left out, 5.0, or what a distilled model is
    made for: mostly none."""
    speed: Literal["exact", "balanced", "fast"] = "exact"
    """What the keys mean that are left out. `balanced`: `scheduler: unipc`, `steps: 15`,
    `cache_interval: 2`. `fast`: the same with `steps: 12` and `guidance_window: [0.33, 1]`. For
    Stable Diffusion 1.x, 2.x and XL; models that were distilled for few steps are refused."""
    cache_interval: int = Field(default=1, ge=1, le=10)
    """Compute the deep blocks of the UNet at every so many steps, and keep what they gave in
    between (DeepCache); 1 computes every step whole. For Stable Diffusion 1.x, 2.x and XL."""
    guidance_window: Annotated[tuple[Part, Part], AfterValidator(_rising)] = ALL_STEPS
    """From and up to which part of the steps there is guidance, 0 to 1. It changes where the deep
    blocks are computed. For Stable Diffusion 1.x to 3, XL and Qwen-Image."""
    scheduler: str | None = None
    """`euler_ancestral`, `euler`, `ddim`, `ddpm`, `dpmpp_2m`, `dpmpp_2m_karras`, `unipc`, `lms`,
    `heun`, or a diffusers class name; the model's own if left out."""
    negative_prompt: str = ""
    """What the images should not show."""
    images_per_prompt: int = Field(default=1, ge=1, le=100)
    """Images of each caption."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision; `auto` takes the best one for the device."""
    format: Literal["webp", "png", "jpeg"] = "webp"
    """File format of the images. WebP here is lossless."""
    jpeg_quality: int = Field(default=95, ge=1, le=100)
    """Only for `format: jpeg`."""
    max_attempts: int = Field(default=3, ge=1, le=20)
    """How often an image is drawn, with a new seed each time, before its row is given up."""
    batch_size: Runtime[
        (Literal["auto"] | Annotated[int, Field(ge=1, le=1024), BeforeValidator(not_truth)])
    ] = "auto"
    """Images at a time. `auto` finds a good one and halves it when memory runs out."""
    device: Runtime[str | None] = None
    """`cuda`, `cuda:1`, `mps`, `cpu`; the best there is if left out."""
    compile: Runtime[bool] = False
    """torch.compile the denoiser: slow to start, then faster on a GPU."""
    offload: Runtime[bool] = False
    """Keep parts of the model in main memory until used, for small GPUs."""
    trust_remote_code: bool = False
    """Run code that the model's repository brings along."""
    api_base: str | None = None
    """URL of the image server, for `renderer: hosted`."""
    max_concurrency: Runtime[int] = Field(default=4, ge=1, le=100)
    """Calls at the same time, for `renderer: hosted`."""
    rpm: Runtime[int | None] = Field(default=None, ge=1)
    """Most calls a minute, for `renderer: hosted`. Calls wait, they are never rejected."""
    max_cost: Runtime[float | None] = Field(default=None, gt=0)
    """Most to spend on the images of a run, in US dollars, all sessions together, for `renderer:
    hosted`. The run stops before it is exceeded."""
    cost_per_image: Runtime[float | None] = Field(default=None, ge=0)
    """Price in US dollars, for `renderer: hosted` and models that LiteLLM has no price of. A server
    on this machine or in its network is free unless one is given."""

    @model_validator(mode="before")
    @classmethod
    def _as_the_model_is_made(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("renderer") == "hosted":
            return given
        model = given.get("model")
        made_for = usual(model) if isinstance(model, str) else None
        preset = PRESETS.get(str(given.get("speed")), {})
        return {**(made_for._asdict() if made_for else {}), **preset, **given}

    @property
    def shortcuts(self) -> dict[str, str]:
        """What steps leave out, as files of images and rows call it; empty if nothing."""
        start, stop = self.guidance_window
        named = {
            "Cache interval": (self.cache_interval > 1, f"{self.cache_interval}"),
            "Guidance window": (self.guidance_window != ALL_STEPS, f"{start:g}-{stop:g}"),
        }
        return {name: value for name, (used, value) in named.items() if used}


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


# ---------------------------------------------------------------------------------------- defaults

OBJECT_SLOTS = ("shape", "color", "texture", "background", "lighting", "style")
LIVING_SLOTS = ("shape", "color", "texture", "motion", "background", "lighting", "style")
_SETS: tuple[PromptSet, ...] = ("naive", "against", "amplify", "import")


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
    return tuple(Slot(name=name) for name in names)


def drawn_slots(recipe: Recipe) -> tuple[Slot, ...]:
    """The slots that need phrases; none where no prompt set draws any.

    Imported captions have slots as well, but bring their phrases along.
    """
    return slots_of(recipe) if draws_phrases(recipe) else ()


def draws_phrases(recipe: Recipe) -> bool:
    """Whether some prompt set draws phrases from a vocabulary."""
    plain = recipe.prompts.against == "plain"
    return not set(shares_of(recipe)) <= {"naive", "import", *(["against"] if plain else [])}


def match_of(recipe: Recipe) -> frozenset[str]:
    """What an `against` image shares with its photo, `size` and `seed`, with the default filled in.

    Plain captions are for images that differ from the photo's in the identifier alone. An image API
    draws few sizes, and without `render.width` and `render.height` nobody knows the area.
    """
    if recipe.prompts.match is not None:
        return frozenset(recipe.prompts.match)
    if recipe.prompts.against != "plain":
        return frozenset()
    render = recipe.render
    sized = render.width and render.height and render.renderer != "hosted"
    return frozenset(("size", "seed") if sized else ("seed",))


def import_of(recipe: Recipe) -> CaptionImport | None:
    """Whose captions are taken over; None if the `import` set has no share."""
    return recipe.prompts.imported if "import" in shares_of(recipe) else None


def template_name(recipe: Recipe) -> str:
    """The caption template as the recipe names it: a shipped one, or the path of a file."""
    return recipe.prompts.template or f"caption/{kind_of(recipe)}.j2"


def template_file(recipe: Recipe) -> Path:
    """Where the caption template lies; it need not exist."""
    name = template_name(recipe)
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
