"""What a recipe may say but probably does not mean."""

from __future__ import annotations

from collections.abc import Iterator

from regforge.embedded.english import has_words
from regforge.recipe.checks import is_embedded
from regforge.recipe.class_noun import noun_doubts
from regforge.recipe.defaults import match_of
from regforge.recipe.licenses import terms_of
from regforge.recipe.models import Recipe

# Words that a model knows well: as an identifier they drag their meaning along.
_ORDINARY = frozenset(
    "a an the my your our his her this that one new old it thing object subject item person man "
    "woman girl boy pet special favorite custom token test example photo picture image red green "
    "blue black white small large".split()
)


def warnings(recipe: Recipe) -> list[str]:
    """What to tell the user before a run; none of it keeps the recipe from being carried out."""
    return [*_about_the_subject(recipe), *_about_prompts(recipe), *_about_images(recipe)]


def _about_the_subject(recipe: Recipe) -> Iterator[str]:
    identifier, captions = recipe.subject.identifier, recipe.subject.captions
    if captions == "write" and recipe.subject.images is None:
        yield "subject.captions: write has no effect without subject.images."
    for doubt in noun_doubts(recipe.subject.class_noun):
        yield f"subject.class_noun: {doubt}"
    against = recipe.prompts.sets.get("against", 0) > 0
    if identifier is None and against:
        yield (
            "subject.identifier is left out: the photos' captions are used as they are, so a rare "
            "token in them would go into the regularization captions."
        )
    if identifier is not None and is_ordinary(identifier):
        yield ordinary_identifier(identifier)


def ordinary_identifier(identifier: str) -> str:
    """What to say of an identifier that models know well."""
    return (
        f"subject.identifier: {identifier!r} is an ordinary word, and models already know "
        "what it means. A rare token such as 'sks' learns faster and spoils less."
    )


def is_ordinary(identifier: str) -> bool:
    """Whether an identifier is a word that models know well."""
    from regforge.embedded import phrase_banks

    word = identifier.strip().lower()
    if word in _ORDINARY:
        return True
    return any(
        word in phrase_banks.load().class_nouns(name)
        for name in phrase_banks.load().super_categories
    )


def _about_prompts(recipe: Recipe) -> Iterator[str]:
    prompts = recipe.prompts
    against = prompts.sets.get("against", 0) > 0
    if prompts.match and not against:
        yield "prompts.match has no effect without a share of the `against` set."
    if prompts.against != "varied" and not against:
        yield "prompts.against has no effect without a share of the `against` set."
    matches = match_of(recipe)
    if against and prompts.against == "plain" and prompts.match is None and "size" not in matches:
        yield (
            "prompts.against: plain: the images get their photos' seeds, and not their proportions"
            + (
                ", as an image API draws few sizes."
                if recipe.render.renderer == "hosted"
                else ". Set render.width and render.height for these."
            )
        )
    if "seed" in matches and against and recipe.render.images_per_prompt > 1:
        yield (
            "prompts.match: only the first image of each caption gets the photo's seed, and "
            f"render.images_per_prompt is {recipe.render.images_per_prompt}."
        )
    if prompts.imported is not None and prompts.sets.get("import", 0) <= 0:
        yield "prompts.import has no effect without a share of the `import` set."
    for slot in prompts.slots or ():
        values = [" ".join(value.lower().split()) for value in slot.values or ()]
        repeated = sorted({value for value in values if values.count(value) > 1})
        if repeated:
            yield f"slot {slot.name!r} lists {repeated[0]!r} more than once."


def _about_images(recipe: Recipe) -> Iterator[str]:
    render, alignment = recipe.render, recipe.curate.alignment
    if is_embedded(render.model) and not drawable(recipe.subject.class_noun):
        yield not_drawable(render.model, recipe.subject.class_noun, "render.model")
    if render.negative_prompt and render.guidance_scale <= 1:
        yield "render.negative_prompt has no effect where render.guidance_scale is 1 or less."
    if alignment is not None and is_embedded(alignment.model) and not is_embedded(render.model):
        yield (
            "curate.alignment.model: embedded/judge knows only images of embedded/tinyworld. "
            "Name a CLIP checkpoint for real ones."
        )
    if render.trust_remote_code:
        yield f"render.trust_remote_code runs code that {render.model} brings along."
    if recipe.dataset.license is None:
        terms = terms_of(render.model)
        known = f"; `regforge publish` takes {terms.license}" if terms else ""
        yield (
            "dataset.license is left out, so nobody will know how they may use the images. It "
            f"follows the terms of the rendering model{known}."
        )


def not_drawable(model: str, class_noun: str, key: str) -> str:
    """What to say of a class noun that the embedded pipeline cannot draw; `key` names the model."""
    from regforge.embedded import phrase_banks

    named = phrase_banks.with_article(class_noun)
    return (
        f"{model} has never seen {named}: it draws a small world of stickers. Name another {key} "
        "for real images."
    )


def drawable(class_noun: str) -> bool:
    """Whether the embedded pipeline can draw it."""
    from regforge.embedded import load_vocabulary

    return any(has_words(class_noun, known) for known in load_vocabulary()["class_noun"])
