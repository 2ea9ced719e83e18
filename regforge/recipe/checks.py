"""What is wrong with a dataset recipe as a whole, and what is allowed but probably not meant.

Findings have places and keep a recipe from being used: keys that do not fit together, files that
are not there. Warnings are given before a run and keep nobody from anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from regforge.embedded.phrase_banks import SLOTS
from regforge.files import templates_folder
from regforge.recipe.model_checks import (
    Finding,
    class_noun,
    credentials_in,
    dataset_revision,
    embedded_or_named,
    in_noun,
    is_embedded,
    lora,
    multiple_of_8,
    not_drawable,
    ordinary_identifier,
    photo_folder,
    pipeline,
    quantized_file,
    single_model,
    text_file,
)
from regforge.recipe.models import (
    Recipe,
    bank_kind,
    benchmarks,
    draws_phrases,
    follows_photos,
    is_benchmark,
    kind_wanted,
    match_of,
    template_file,
)
from regforge.recipe.named_files import is_file, is_folder, phrases_in
from regforge.recipe.phrases import cut, no_phrase, noun_doubts
from regforge.recipe.pipelines import (
    CACHED,
    CONTINUED,
    Usual,
    distilled,
    likely_class,
    mismatch,
    unsaid_velocity,
)
from regforge.recipe.problems import Location, one_of, suggestion
from regforge.recipe.rendering import ALL_STEPS, SCHEDULERS, Render, terms_of
from regforge.recipe.sections import Slot
from regforge.recipe.workflows import Role, WorkflowError, read_workflow
from regforge.words import has_words, is_token

_FEWEST_WHOLE = 6
"""Steps of which the deep blocks are computed, in what `render.speed` fills in."""


def findings(recipe: Recipe) -> Iterator[Finding]:
    """Everything that is wrong with a recipe whose single values are right."""
    yield from _subject(recipe)
    yield from _photos(recipe)
    yield from _sets(recipe)
    for number, slot in enumerate(recipe.prompts.slots or ()):
        yield from _slot(recipe, slot, ("prompts", "slots", number))
    yield from _files(recipe)
    yield from _models(recipe)
    yield from _services(recipe)
    yield from _rendering(recipe)


def _subject(recipe: Recipe) -> Iterator[Finding]:
    noun, identifier = recipe.subject.class_noun, recipe.subject.identifier
    noun_at, at = ("subject", "class_noun"), ("subject", "identifier")
    bad = list(class_noun(noun, noun_at))
    yield from bad
    if not bad and recipe.subject.kind is None and bank_kind(noun) is None:
        yield Finding(("subject", "kind"), kind_wanted(recipe), (noun_at,))
    if identifier is None:
        return
    if not identifier.strip():
        yield Finding(at, "must not be blank; leave the line out if there is none")
    elif has_words(noun, identifier):
        yield Finding(at, in_noun(identifier, noun), (noun_at,))
    elif has_words(identifier, noun) and not is_token(identifier):
        yield Finding(at, f"must be the token alone, without the class noun {noun!r}", (noun_at,))


def _photos(recipe: Recipe) -> Iterator[Finding]:
    images, captions, at = recipe.subject.images, recipe.subject.captions, ("subject", "images")
    if images is None:
        return
    yield from photo_folder(images, at)
    llm = recipe.prompts.llm
    if captions != "files" and is_embedded(llm.vision_model or llm.model):
        yield Finding(
            ("subject", "captions"),
            f"`{captions}` needs a model that can see: name one in prompts.llm.vision_model",
            (("prompts", "llm", "model"), ("prompts", "llm", "vision_model"), at),
        )


def _sets(recipe: Recipe) -> Iterator[Finding]:
    sets, taken, at = recipe.prompts.sets, recipe.prompts.imported, ("prompts", "import")
    if sets.get("import", 0) > 0 and taken is None:
        yield Finding(
            ("prompts", "sets", "import"),
            "needs captions to take over: name their dataset in prompts.import.dataset",
            (at,),
        )
    for name in ("captions", "against"):
        if sets.get(name, 0) > 0 and recipe.subject.images is None:
            yield Finding(
                ("prompts", "sets", name),
                "needs the photos of the subject: name their folder in subject.images",
                (("subject", "images"),),
            )
    # Whether a folder is there is asked when it is read: a run that has read it needs it no more.
    if taken is not None and not taken.dataset.strip():
        yield Finding((*at, "dataset"), "must not be blank")
    elif taken is not None:
        yield from dataset_revision(taken.dataset, taken.revision, at)


def _slot(recipe: Recipe, slot: Slot, at: Location) -> Iterator[Finding]:
    llm, subject = recipe.prompts.llm.model, recipe.subject
    if slot.name == "motion" and (subject.kind or bank_kind(subject.class_noun)) == "object":
        yield Finding(
            at,
            "motion is for living things: leave the slot out, or set subject.kind to living",
            (("subject", "kind"), ("subject", "class_noun")),
        )
    about = (("subject", "class_noun"), ("subject", "identifier"))
    phrases = [(value, (*at, "values", n), "") for n, value in enumerate(slot.values or ())]
    if slot.origin == "file" and slot.file is not None:
        found = list(text_file(slot.file, (*at, "file")))
        yield from found
        lines = {} if found else phrases_in(slot.file)
        phrases += [(text, (*at, "file"), f"{slot.file}:{n}: ") for n, text in lines.items()]
    for phrase, place, prefix in phrases:
        if why := no_phrase(phrase, slot.name, subject.class_noun, subject.identifier):
            yield Finding(place, f"{prefix}{cut(phrase)} {why}", about)
    if slot.name in SLOTS:
        return
    known = f"the phrase banks have only {', '.join(SLOTS)}"
    if slot.origin == "bank":
        yield Finding((*at, "from"), f"there is no bank for {slot.name!r}; {known}")
    asks = slot.origin == "llm" and slot.values is None and recipe.prompts.vocabulary is None
    if asks and is_embedded(llm) and draws_phrases(recipe):
        yield Finding(
            at,
            f"needs `values` for the slot {slot.name!r}: {llm} only chooses among phrases, "
            f"and {known}",
            (("prompts", "llm", "model"), ("prompts", "vocabulary")),
        )


def _files(recipe: Recipe) -> Iterator[Finding]:
    prompts = recipe.prompts
    named = prompts.template
    templates: dict[Location, str] = (
        {("prompts", "template"): named} if isinstance(named, str) else {}
    )
    if isinstance(named, tuple):
        templates = {("prompts", "template", n, "file"): each.file for n, each in enumerate(named)}
    for where, template in templates.items():
        if not is_file(template_file(template)):
            shipped = templates_folder()
            names = sorted(p.relative_to(shipped).as_posix() for p in shipped.glob("caption/*.j2"))
            meant = suggestion("/".join(Path(template).parts[-2:]), names)
            yield Finding(where, f"there is no template {template}{meant}")
    if prompts.messages is not None and not is_folder(prompts.messages):
        yield Finding(("prompts", "messages"), f"there is no folder {prompts.messages}")
    if prompts.vocabulary is not None and not is_file(prompts.vocabulary):
        yield Finding(("prompts", "vocabulary"), f"there is no file {prompts.vocabulary}")
    for number, entry in enumerate(prompts.exclude):
        at = ("prompts", "exclude", number)
        if is_file(Path(entry)) and not is_benchmark(entry):
            yield from text_file(Path(entry), at)
        elif not is_benchmark(entry):
            meant = suggestion(Path(entry).name, benchmarks())
            yield Finding(at, f"there is no file {entry}{meant}")


def _models(recipe: Recipe) -> Iterator[Finding]:
    render, alignment, at = recipe.render, recipe.curate.alignment, ("render", "model")
    if render.renderer == "local":
        given = ("vae",) if render.vae else ()
        variant_at = ("render", "variant")
        at_quantize = ("render", "quantize")
        yield from quantized_file(render.model, render.quantize, at_quantize, at)
        yield from pipeline(render.model, render.variant, at, variant_at, given, render.config)
        if render.vae is not None:
            yield from single_model(render.vae, ("render", "vae"))
        for number, each in enumerate(render.lora):
            yield from lora(each.path, ("render", "lora", number, "path"), render)
    elif is_embedded(render.model):
        message = "an image API draws with a LiteLLM image model, such as 'gpt-image-1'"
        yield Finding(at, message, (("render", "renderer"),))
    elif not render.model.strip():
        yield Finding(at, "must not be blank")
    yield from embedded_or_named(recipe.prompts.llm.model, ("prompts", "llm", "model"))
    if alignment is not None:
        yield from single_model(alignment.model, ("curate", "alignment", "model"))


def _services(recipe: Recipe) -> Iterator[Finding]:
    llm, render = recipe.prompts.llm, recipe.render
    addresses = [(("prompts", "llm"), each) for each in (llm.api_base,) if each is not None]
    for section, address in (*addresses, *((("render",), each) for each in render.servers)):
        secret = credentials_in(address)
        if secret is None:
            message = "must be a URL such as http://localhost:8000/v1"
            yield Finding((*section, "api_base"), message)
        elif secret:
            message = "must not hold a password or key; set it in the provider's environment"
            yield Finding((*section, "api_base"), f"{message} variable")
    if llm.max_cost is not None and llm.max_tokens is None:
        at = ("prompts", "llm", "max_cost")
        message = "needs prompts.llm.max_tokens: nobody knows what a reply of any length may cost"
        yield Finding(at, message, (("prompts", "llm", "max_tokens"),))
    yield from _renderer(render)


def _renderer(render: Render) -> Iterator[Finding]:
    """What does not go with who draws."""
    about, named = ("render", "renderer"), f"`renderer: {render.renderer}`"
    for key in ("workflow", "nodes") if render.renderer != "comfyui" else ():
        if getattr(render, key):
            yield Finding(("render", key), "goes with `renderer: comfyui` alone", (about,))
    if render.renderer == "local":
        return
    unknown = ["lora", "vae", "variant", "revision", "config"]
    unknown += ["scheduler"] if render.renderer != "a1111" else []
    unknown += ["steps", "guidance_scale", "api_base"] if render.renderer == "files" else []
    unknown += ["speed", "cache_interval", "guidance_window", "quantize"]
    for key in unknown:
        if getattr(render, key) != Render.model_fields[key].default:
            yield Finding(("render", key), f"does not go with {named}", (about,))
    if render.renderer == "hosted":
        yield from _hosted(render)
    elif render.renderer == "comfyui":
        yield from _workflow(render)
    elif render.renderer == "a1111" and None in (render.width, render.height):
        message = f"is needed with {named}: a checkpoint does not say how large its images are"
        yield Finding(("render", "width" if render.width is None else "height"), message, (about,))


def _hosted(render: Render) -> Iterator[Finding]:
    about = ("render", "renderer")
    if len(render.servers) > 1:
        yield Finding(("render", "api_base"), "takes one URL with `renderer: hosted`", (about,))
    if render.has_negatives and render.api_base is None:
        yield Finding(
            ("render", "negative_prompt"),
            "goes with `renderer: hosted` only for a server of your own (render.api_base)",
            (about, ("render", "api_base")),
        )


def _workflow(render: Render) -> Iterator[Finding]:
    """What is wrong with a workflow of ComfyUI, and what of the recipe does not reach it."""
    at = ("render", "workflow")
    if render.workflow is None:
        message = "is needed with `renderer: comfyui`: a file that ComfyUI's `Export (API)` writes"
        yield Finding(at, message, (("render", "renderer"),))
        return
    try:
        workflow = read_workflow(render.workflow, render.nodes)
    except WorkflowError as error:
        yield Finding(("render", "nodes") if error.role else at, error.message, (at,))
        return
    keys: tuple[Role, ...] = ("width", "height", "steps", "guidance_scale", "negative_prompt")
    for key in keys:
        value = getattr(render, key)
        if workflow.places[key] or key in render.nodes:
            continue
        if key in ("width", "height") and value is None:
            yield Finding(("render", key), "is needed: the workflow says it in no one place", (at,))
        elif value != Render.model_fields[key].default:
            yield Finding(
                ("render", key),
                "reaches no one node of the workflow: leave it out, or name its input in "
                f"render.nodes ({key}: [] where the workflow decides)",
                (at, ("render", "nodes")),
            )


def _rendering(recipe: Recipe) -> Iterator[Finding]:
    yield from multiple_of_8(recipe.render.width, ("render", "width"))
    yield from multiple_of_8(recipe.render.height, ("render", "height"))
    scheduler, repo = recipe.render.scheduler, recipe.dataset.repo_id
    of_diffusers = re.fullmatch(r"[A-Z]\w*Scheduler", scheduler or "")
    known = scheduler in SCHEDULERS or of_diffusers or recipe.render.renderer == "a1111"
    if scheduler is not None and not known:
        options = one_of(SCHEDULERS, scheduler, ", or a diffusers class")
        yield Finding(("render", "scheduler"), f"must be {options}")
    if recipe.render.speed != "exact" and (made_for := distilled(recipe.render.model)):
        yield Finding(
            ("render", "speed"),
            f"does not go with a model that was distilled for few steps: {recipe.render.model} is "
            f"made for {made_for}",
            (("render", "model"),),
        )
    if recipe.render.quantize is not None and recipe.render.offload == "sequential":
        message = "does not go with render.quantize; `group` takes hardly more memory"
        yield Finding(("render", "offload"), message, (("render", "quantize"),))
    if repo is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        yield Finding(("dataset", "repo_id"), f"must look like user/name, not {repo!r}")


# -------------------------------------------------------------------------------------- warnings


def cautions(recipe: Recipe) -> Iterator[str]:
    """What a recipe may say but probably does not mean."""
    yield from _about_the_subject(recipe)
    yield from _about_prompts(recipe)
    yield from _about_images(recipe)


def _about_the_subject(recipe: Recipe) -> Iterator[str]:
    subject = recipe.subject
    if subject.captions == "write" and subject.images is None:
        yield "subject.captions: write has no effect without subject.images."
    for doubt in noun_doubts(subject.class_noun):
        yield f"subject.class_noun: {doubt}"
    if subject.identifier is not None:
        yield from ordinary_identifier(subject.identifier)
    elif follows_photos(recipe):
        yield (
            "subject.identifier is left out: the photos' captions are used as they are, so a rare "
            "token in them would go into the regularization captions."
        )


def _about_prompts(recipe: Recipe) -> Iterator[str]:
    prompts, images = recipe.prompts, recipe.render.images_per_prompt
    plain = prompts.sets.get("captions", 0) > 0
    matches = match_of(recipe, "captions" if plain else "against")
    if not follows_photos(recipe):
        if prompts.match:
            yield "prompts.match has no effect without a share of `captions` or `against`."
    else:
        if plain and prompts.match is None and "size" not in matches:
            hosted = ", as an image API draws few sizes."
            local = ". Set render.width and render.height for these."
            yield (
                "prompts.sets.captions: the images get their photos' seeds, and not their "
                f"proportions{hosted if recipe.render.renderer == 'hosted' else local}"
            )
        if "seed" in matches and images > 1:
            yield (
                "prompts.match: only the first image of each caption gets the photo's seed, and "
                f"render.images_per_prompt is {images}."
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
    yield from not_drawable(render.model, recipe.subject.class_noun, "render.model")
    unsaid = unsaid_velocity(render.model, render.revision, render.config)
    if render.renderer == "local" and unsaid:
        yield f"render.model: {unsaid}"
    if render.renderer == "local" and (
        made_for := mismatch(
            render.model, render.revision, render.steps, render.guidance_scale, render.config
        )
    ):
        name, now = Path(render.model).name, Usual(render.steps, render.guidance_scale)
        yield f"render.steps and render.guidance_scale: {name} is made for {made_for}, not {now}."
    yield from _about_shortcuts(render)
    if render.has_negatives and render.guidance_scale <= 1:
        yield "render.negative_prompt has no effect where render.guidance_scale is 1 or less."
    if render.offload is not None and render.device == "cpu":
        yield "render.offload has no effect with render.device: cpu."
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


def _about_shortcuts(render: Render) -> Iterator[str]:
    """What makes images others than those of the model itself, which are its prior."""
    for key, name in (("model", render.model), *(("lora", each.path) for each in render.lora)):
        if distilled(name):
            yield (
                f"render.{key}: by its name or files {Path(name).name} is distilled for few steps, "
                "and its images are less varied than those of the model that it was made from. "
                "They regularize the training of such a model, and of no other."
            )
    named = render.speed != "exact"
    key, known = ("speed", CACHED) if named else ("cache_interval", CACHED | CONTINUED)
    kind, shorter = likely_class(render.model), named or render.cache_interval > 1
    if shorter and kind not in (None, *known):
        yield (
            f"render.{key} does not go with a {kind}, which {render.model} is by its name. It is "
            "refused once it has been looked at."
        )
    elif shorter and not is_embedded(render.model):
        yield (
            f"render.{key}: {getattr(render, key)} was measured with embedded/tinyworld alone: "
            "look at images of this model before you draw many."
        )
    of_steps = render.cache_interval > 1 or render.guidance_window != ALL_STEPS
    if of_steps and "ancestral" in (render.scheduler or "").lower():
        yield (
            "render.scheduler: an ancestral scheduler draws other images than the model's own, and "
            "worse ones where steps are few; unipc, dpmpp_2m, euler and ddim draw the same."
        )
    whole = -(-render.steps // render.cache_interval)
    if render.cache_interval > 1 and whole < _FEWEST_WHOLE:
        yield (
            f"render.cache_interval: only {whole} of {render.steps} steps are computed whole; with "
            f"fewer than {_FEWEST_WHOLE}, images lost quality where it was measured."
        )
    if render.guidance_window != ALL_STEPS and render.guidance_scale <= 1:
        yield "render.guidance_window has no effect where render.guidance_scale is 1 or less."
