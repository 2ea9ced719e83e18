"""What a run of a recipe would do: counts, calls, cost, time, and a few captions. Touches nothing.

No model is loaded and nobody is asked, the Hub neither: only servers of one's own are, what they
have. Where the language model has not spoken yet, phrases of the banks stand in for its own, so the
sample captions show the form, not the final words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.display import Displayed
from regforge.embedded import phrase_banks
from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.forge.prompting import open_import, photos_of
from regforge.journal import Journal, Reporter
from regforge.recipe import (
    Recipe,
    Slot,
    checked,
    drawn_slots,
    import_of,
    kind_of,
    recipe_digest,
    recipe_warnings,
    shares_of,
)
from regforge.recipe.memory import Memory, estimate
from regforge.recipe.pipelines import Usual, described, folder_here
from regforge.runs import RunFolder
from regforge.words import counted, dollars, duration, listed

if TYPE_CHECKING:
    from regforge.images import Engine
    from regforge.images.renderer import ModelIdentity
    from regforge.prompts.imported import ImportedCaptions
    from regforge.prompts.vocabulary import Vocabulary

SAMPLES = 5
_MOST_TRIED = 10_000
"""Combinations of phrases that are tried before the samples are given up."""
_MOST_LOOKED_AT = 200
"""Images of a dataset on this machine whose captions may be among the samples."""


class PriceUnknown(RegforgeError):
    """What a run may cost is limited, and nobody knows what it costs."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Plan(Displayed):
    """What a run would do.

    Attributes:
        done: What is there already, in words; empty for a new run.
        sets: Captions of each prompt set.
        slots: Where each slot's phrases come from, in words.
        imported: Whose captions are taken over, in words, or None.
        language_model: Its LiteLLM id, or None if nobody has to be asked.
        tokens: About how many, in and out.
        cost: About how much calls and images come to in US dollars; None if unknown.
        images_cost: What the images of an image service are of it, refused ones left out.
        size: Such as `96 x 96`, or in words.
        steps: Denoising steps; None if the model is not told. `guidance_scale` likewise.
        shortcuts: What the steps leave out, such as `{"Cache interval": "2"}`.
        memory: What rendering takes of a GPU; None if none is used, or unknown.
        seconds: About how long rendering takes; None if unknown.
        stand_ins: Slots whose sample phrases are not the language model's yet.
    """

    name: str
    digest: str
    folder: Path
    done: str
    subject: str
    sets: Mapping[str, int]
    slots: Mapping[str, str]
    imported: str | None
    language_model: str | None
    calls: int
    tokens: int
    cost: float | None
    calls_cost: float | None
    images_cost: float | None
    model: str
    images: int
    size: str
    hosted: bool
    steps: int | None
    guidance_scale: float | None
    shortcuts: dict[str, str]
    memory: Memory | None
    seconds: float | None
    token_limit: str
    captions: list[str]
    stand_ins: list[str]
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        memory = self.memory and self.memory.as_dict()
        return asdict(self) | {"folder": str(self.folder), "memory": memory}

    def as_text(self) -> str:
        """For people."""
        sets = ", ".join(f"{count} {name}" for name, count in self.sets.items())
        calls = f"{self.calls} calls, about {self.tokens:,} tokens, {_money(self.calls_cost)}"
        steps = "" if self.steps is None else f"{self.steps} steps, "
        if self.guidance_scale is not None:
            steps = f"{Usual(self.steps or 0, self.guidance_scale)}, "
        steps += "".join(f"{name.lower()} {value}, " for name, value in self.shortcuts.items())
        price = f"{_money(self.images_cost)}, " if self.hosted else ""
        time = "time unknown until the first batch"
        if self.seconds is not None:
            time = f"about {duration(self.seconds)}"
        rows = [
            ("subject", self.subject),
            ("captions", f"{sum(self.sets.values())}: {sets}"),
            *(("slots", f"{name:<11} {origin}") for name, origin in self.slots.items()),
            ("import", self.imported),
            ("language model", self.language_model),
            ("language model", self.language_model and calls),
            ("caption limit", self.token_limit),
            ("rendering", f"{self.model}, {steps}{self.size}"),
            ("rendering", f"{self.images} images, {price}{time}"),
            ("memory", self.memory and str(self.memory)),
            ("run folder", f"{self.folder}{self.done}"),
        ]
        lines, before = [f"{self.name} is a sound recipe ({self.digest[:12]}).", ""], ""
        for label, text in rows:
            if text:
                lines.append(f"  {'' if label == before else label:<16} {text}")
            before = label
        lines += ["", "Sample captions:", *(f"  {caption}" for caption in self.captions)]
        if self.stand_ins:
            lines.append(
                f"  ({listed(self.stand_ins)}: other phrases stand in for those that the language "
                "model will give)"
            )
        return "\n".join((*lines, *(f"\nwarning: {each}" for each in self.warnings)))


def _money(cost: float | None) -> str:
    if cost is None:
        return "cost unknown"
    return f"about {dollars(cost)}" if cost else "free"


def make_plan(
    recipe: Recipe,
    out: Path | None = None,
    *,
    engine: Engine = "local",
    workers: int | None = None,
) -> Plan:
    """Look a recipe over.

    Args:
        recipe: What would be made.
        out: The run's folder; `runs/<name>` if left out.
        engine: Where its images would be drawn; see `run`.
        workers: As of `run`.

    Raises:
        RegforgeError: Something in it cannot work: a template, a photo, a slot that can only say
            what is excluded.
    """
    from regforge.images import require_engine
    from regforge.images.loading import look_over
    from regforge.images.renderer import is_sent, seconds_per_image
    from regforge.prompts.captions import instance_caption
    from regforge.prompts.filling import plan_calls
    from regforge.prompts.sampling import apportion
    from regforge.prompts.tokens import token_budget
    from regforge.prompts.writing import photo_notes, write_prompts
    from regforge.providers.language_model import estimate_cost

    recipe = checked(recipe)
    chosen = recipe.render
    require_engine(chosen, engine, workers)
    here = folder_here(chosen.model, chosen.revision, chosen.config)
    if chosen.renderer == "local" and here is not None:
        look_over(chosen, here)
    folder = RunFolder(out or recipe.folder)
    render, llm, subject = recipe.render, recipe.prompts.llm, recipe.subject
    vocabulary, stand_ins, notes = _vocabulary(recipe, folder)
    budget = token_budget(render, recipe.prompts.max_tokens)
    imported, examples = _imported(recipe, folder)
    undescribed: list[Path] = []

    def describe(photos: Sequence[Path]) -> Mapping[str, str]:
        undescribed.extend(photos)
        named = instance_caption(subject.identifier, subject.class_noun)
        return {photo.name: f"{named} <as the vision model sees it>" for photo in photos}

    photos = photos_of(recipe, describe)
    vocabulary_mode = recipe.prompts.model_copy(update={"mode": "vocabulary"})
    prompts = write_prompts(
        recipe.model_copy(update={"prompts": vocabulary_mode}),
        vocabulary,
        budget=budget,
        photos=photos,
        imported=examples,
        count=min(SAMPLES, recipe.prompts.count),
        enumerable=_MOST_TRIED,
    )
    captions = [prompt.text for prompt in prompts]
    shares = {str(name): share for name, share in shares_of(recipe).items()}
    sets = Counter(islice(apportion(shares), recipe.prompts.count))
    calls = plan_calls(recipe, photos=len(undescribed))
    calls_cost: float | None = 0.0
    if calls.calls:
        calls_cost = estimate_cost(llm, calls.prompt_tokens, calls.completion_tokens)
    check_price(recipe)
    who, absent = _asked(recipe)
    images = recipe.image_count
    price, speed = _image_price(recipe), seconds_per_image(render)
    memory = estimate(render)
    images_cost = None if price is None else price * images
    return Plan(
        name=recipe.name,
        digest=recipe_digest(recipe),
        folder=folder.path,
        done=_done(folder, recipe, images),
        subject=f"{subject.class_noun} ({kind_of(recipe)})"
        + (f", identifier {subject.identifier}" if subject.identifier else ""),
        sets={name: sets[name] for name in shares},
        slots={
            slot.name: _origin(slot, vocabulary, stand_ins, recipe) for slot in drawn_slots(recipe)
        },
        imported=imported,
        language_model=llm.model if calls.calls else None,
        calls=calls.calls,
        tokens=calls.prompt_tokens + calls.completion_tokens,
        cost=None if calls_cost is None or images_cost is None else calls_cost + images_cost,
        calls_cost=calls_cost,
        images_cost=images_cost,
        model=described(render.model, render.config) if who is None else who.model,
        images=images,
        size=_size(recipe),
        hosted=render.renderer == "hosted",
        steps=render.steps if is_sent(render, "steps", who) else None,
        guidance_scale=render.guidance_scale if is_sent(render, "guidance_scale", who) else None,
        shortcuts=render.shortcuts,
        memory=memory,
        seconds=None if speed is None else speed * images,
        token_limit=f"{budget.limit} tokens, counted by {budget.source}",
        captions=captions,
        stand_ins=sorted(stand_ins),
        warnings=[
            *recipe_warnings(recipe),
            *notes,
            *photo_notes(recipe, photos),
            *_not_ready(recipe, here, asks=calls.calls > 0),
            *absent,
            *_about_money(recipe, calls_cost, images_cost),
            *(memory.warnings if memory else ()),
        ],
    )


# --------------------------------------------------------------------------------------- captions


class _Notes(Reporter):
    """Keeps what would be said on the way, for the plan to say."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line.removeprefix("warning: "))


def _vocabulary(recipe: Recipe, folder: RunFolder) -> tuple[Vocabulary, set[str], list[str]]:
    """The run's vocabulary if there is one, or one with stand-ins.

    Returns:
        The vocabulary, the names of the slots with stand-ins, and what there is to say of it.
    """
    from regforge.prompts.filling import fill_vocabulary
    from regforge.prompts.vocabulary import Vocabulary

    if folder.vocabulary.is_file() and folder.digest == recipe_digest(recipe):
        return Vocabulary.load(folder.vocabulary), set(), []
    stand_ins, slots = set[str](), list[Slot]()
    for slot in drawn_slots(recipe):
        if slot.origin != "llm" or recipe.prompts.vocabulary:
            slots.append(slot)
            continue
        stand_ins.add(slot.name)
        if not slot.values and slot.name in phrase_banks.SLOTS:
            slots.append(Slot.model_validate({"name": slot.name, "from": "bank"}))
        else:
            values = slot.values or (f"{slot.name} to be asked for",)
            slots.append(Slot(name=slot.name, values=values))
    prompts = recipe.prompts.model_copy(update={"slots": tuple(slots), "mode": "vocabulary"})
    stand_in = recipe.model_copy(update={"prompts": prompts})
    nobody: Any = None  # no slot is left for a language model to fill
    notes = _Notes()
    filled = fill_vocabulary(stand_in, nobody, journal=Journal(None), reporter=notes)
    return filled, stand_ins, notes.lines


def _imported(recipe: Recipe, folder: RunFolder) -> tuple[str | None, ImportedCaptions | None]:
    """Whose captions are taken over, in words, and captions to show."""
    from regforge.prompts.imported import ImportedCaption, ImportedCaptions

    taken = import_of(recipe)
    if taken is None:
        return None, None
    if folder.imported.is_file() and folder.digest == recipe_digest(recipe):
        there = ImportedCaptions.load(folder.imported)
        return f"captions of {there.dataset}, as they lie in {folder.imported.name}", there
    stand_ins = [ImportedCaption(f"<imported caption {n}>") for n in range(1, SAMPLES + 1)]
    if taken.address is not None:
        text = f"captions of {taken.address} on the Hub, which the run will read"
        return text, ImportedCaptions(str(taken.address), stand_ins)
    dataset = open_import(taken)
    images = dataset.examples(images=False)
    found = [ImportedCaption.of(example) for example in islice(images, _MOST_LOOKED_AT)]
    if len(found) == _MOST_LOOKED_AT:  # there may be more than those that were looked at
        found += stand_ins
    return f"captions of {taken.dataset}", ImportedCaptions(dataset.name, found)


def _origin(slot: Slot, vocabulary: Vocabulary, stand_ins: set[str], recipe: Recipe) -> str:
    """Such as `12 values` or `40 phrases from the language model`."""
    known = len(vocabulary.slots.get(slot.name, ()))
    share = "" if slot.presence == 1 else f", in {100 * slot.presence:.0f} % of the captions"
    if slot.name in stand_ins:
        if slot.values:
            return f"the language model chooses among {len(slot.values)} values{share}"
        count = slot.count or recipe.prompts.phrases_per_slot
        return f"up to {count} phrases from the language model{share}"
    phrases = counted(known, "phrase")
    source = {
        "list": counted(known, "value"),
        "file": f"{phrases} from {slot.file.name if slot.file else ''}",
        "bank": f"{phrases} from the banks",
        "llm": f"{phrases} from the language model",
    }
    weights = ", weighted" if slot.weights else ""
    mode = "" if slot.mode == "sample" else f", {slot.mode}"
    return f"{source[vocabulary.origins.get(slot.name, 'list')]}{weights}{mode}{share}"


# ------------------------------------------------------------------------------------------ money


def _image_price(recipe: Recipe) -> float | None:
    """US dollars for an image, by today's list; None if unknown."""
    from regforge.images.services import SIDE, image_price

    render = recipe.render
    if render.renderer != "hosted":
        return render.cost_per_image or 0.0
    return image_price(render, render.width or SIDE, render.height or SIDE)


def check_price(recipe: Recipe) -> None:
    """See that `render.max_cost` can be kept, before anything is paid for.

    Raises:
        PriceUnknown: Nobody knows what an image costs.
    """
    if recipe.render.max_cost is not None and _image_price(recipe) is None:
        raise PriceUnknown(
            f"The price of {recipe.render.model} is unknown, so render.max_cost cannot be kept.",
            hint="Set render.cost_per_image, or leave out render.max_cost.",
        )


def _about_money(
    recipe: Recipe, calls_cost: float | None, images_cost: float | None
) -> Iterator[str]:
    """What keeps a run from being paid for."""
    llm, render = recipe.prompts.llm, recipe.render
    if llm.max_cost is not None and calls_cost is None:
        yield (
            f"The price of {llm.model} is unknown, so prompts.llm.max_cost cannot be kept and the "
            "run will stop before the first call. Set prompts.llm.input_cost_per_token and "
            "prompts.llm.output_cost_per_token."
        )
    for key, most, cost in (
        ("prompts.llm.max_cost", llm.max_cost, calls_cost),
        ("render.max_cost", render.max_cost, images_cost),
    ):
        if most is not None and cost is not None and cost > most:
            needed = f"about {dollars(cost)}, so it will stop before its end"
            yield f"{key} is {dollars(most)}, and the run needs {needed}."


def _asked(recipe: Recipe) -> tuple[ModelIdentity | None, list[str]]:
    """What servers of one's own say of themselves, and what keeps them from drawing."""
    from regforge.images import open_renderer
    from regforge.images.renderer import RenderError

    if recipe.render.renderer not in ("comfyui", "a1111"):
        return None, []
    notes = _Notes()
    try:
        renderer = open_renderer(recipe.render, journal=Journal(None), reporter=notes)
    except RenderError as error:
        return None, [f"{error.message} {error.hint or ''}".rstrip()]
    renderer.close()
    return renderer.identity, notes.lines


def _not_ready(recipe: Recipe, here: Path | None, *, asks: bool) -> Iterator[str]:
    """Models that are reached over the network, and what keeps them from being reached."""
    from huggingface_hub import constants

    from regforge.providers.chat import ChatModel
    from regforge.providers.library import not_ready

    llm, render = recipe.prompts.llm, recipe.render
    named = []
    if asks:
        named.append(("prompts.llm", "model", llm.model))
    if asks and recipe.subject.captions != "files" and llm.vision_model:
        named.append(("prompts.llm", "vision_model", llm.vision_model))
    if render.renderer == "hosted":
        named.append(("render", "model", render.model))
    elif render.renderer == "local" and here is None and constants.HF_HUB_OFFLINE:
        yield (
            f"render.model: {render.model} is not on this machine, and HF_HUB_OFFLINE is set, so "
            "it cannot be downloaded. Unset HF_HUB_OFFLINE."
        )
    for section, key, model in named:
        base = render.server if section == "render" else ChatModel(llm).base_of(model)
        if problem := not_ready(section, model, base):
            yield f"{section}.{key}: {problem[0]} {problem[1]}"


# ------------------------------------------------------------------------------------- the folder


def _size(recipe: Recipe) -> str:
    from regforge.images.services import SIDE

    render = recipe.render
    if render.renderer == "hosted":
        return f"{render.width or SIDE} x {render.height or SIDE}"
    return f"{render.width} x {render.height}" if render.width else "the model's own size"


def images_in(folder: RunFolder) -> int:
    """How many images the finished dataset in a run's folder has; 0 without one."""
    from regforge.dataset.store import ParquetError, count_rows

    try:
        return sum(count_rows(path) for path in folder.dataset.glob("data/*.parquet"))
    except ParquetError:
        return 0


def _done(folder: RunFolder, recipe: Recipe, wanted: int) -> str:
    if (refusal := folder.refusal(recipe)) is not None:
        why = refusal.message.removeprefix(f"{folder.path} ").rstrip(".")
        return f" ({why}; choose another with --out)"
    if folder.digest != recipe_digest(recipe):
        return ""
    there = images_in(folder)
    if there > wanted:
        return f" (finished with {there:,} images; `run` does not make it smaller)"
    if there == wanted:
        return " (finished)"
    shards = len(list(folder.shards.glob("*.parquet")))
    return f" (begun: {shards} shards are there; `run` goes on)"
