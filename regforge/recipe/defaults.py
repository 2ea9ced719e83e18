"""What a recipe means where it says nothing: kind, slots, template, shares.

Raise a `RecipeError` where they depend on the kind, and neither the recipe nor the phrase banks
know it.
"""

from __future__ import annotations

from pathlib import Path

from regforge import resources
from regforge.embedded import phrase_banks
from regforge.recipe.models import Recipe
from regforge.recipe.named_files import is_file
from regforge.recipe.problems import Problem, RecipeError
from regforge.recipe.sections import CaptionImport, Kind, PromptSet, Slot

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
    path = resources.templates() / name
    return path if inside and is_file(path) else None


def benchmarks() -> list[str]:
    """The names that `prompts.exclude` takes instead of paths."""
    return sorted(path.stem for path in (resources.templates() / "benchmarks").glob("*.yaml"))


def is_benchmark(name: str) -> bool:
    """Whether an entry of `prompts.exclude` is a benchmark that comes with regforge."""
    return name in benchmarks()
