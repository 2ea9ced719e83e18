"""What is known of pipelines before any is loaded: by class, by name, by the files of a folder.

Which of them can be trained, how distilled ones are drawn with, and what their calls mean. Facts
of classes are diffusers' (0.42); steps and guidance are those of the models' own cards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from regforge.embedded import EMBEDDED_FOLDERS
from regforge.files import expanded, read_text
from regforge.hub.errors import HubAddress
from regforge.recipe.named_files import MODEL_INDEX, is_file, is_folder, pipeline_class

TRAINABLE = {
    "StableDiffusionPipeline": "stable_diffusion.StableDiffusion",
    "StableDiffusionXLPipeline": "stable_diffusion.StableDiffusionXL",
    "StableDiffusion3Pipeline": "stable_diffusion.StableDiffusion3",
}
"""The classes of pipelines that can be trained, and each one's family in `training.families`."""

TRAINS = "Stable Diffusion 1.x, 2.x, XL and 3 can be trained, and embedded/tinyworld"

GUIDED_FROM_ZERO = frozenset({"Krea2Pipeline", "ZImagePipeline", "ZImageOmniPipeline"})
"""Pipelines whose `guidance_scale` is what is added to 1: they draw with 1 + it, and 0 is off."""

ALONE = frozenset({"GlmImagePipeline"})
"""Pipelines in which one seed serves a whole batch, so that images are drawn one by one."""

CACHED = frozenset({"StableDiffusionPipeline", "StableDiffusionXLPipeline"})
"""Pipelines with a `UNet2DConditionModel` that is called once a step (`render.cache_interval`)."""

WINDOWED = CACHED | {"StableDiffusion3Pipeline", "QwenImagePipeline"}
"""Pipelines whose denoiser gets [without the caption, with it] along the batch, or is called for
each of these within `cache_context` (`render.guidance_window`). Others have another order, or do
not tell the two apart."""

READS = {
    "BriaFibo2Pipeline": 4096,
    "ErnieImagePipeline": 512,
    "Flux2KleinPipeline": 490,
    "Flux2Pipeline": 460,
    "HunyuanDiTPipeline": 256,
    "HunyuanImagePipeline": 1000,
    "Kandinsky3Pipeline": 128,
    "LongCatImagePipeline": 512,
    "Lumina2Pipeline": 220,
    "NucleusMoEImagePipeline": 1024,
    "ZImageOmniPipeline": 490,
    "ZImagePipeline": 490,
}
"""Tokens of a caption that pipelines read, where their calls have no `max_sequence_length`, or a
system prompt or chat template takes a part of it."""


class Usual(NamedTuple):
    """Denoising steps and guidance scale that a model was made for."""

    steps: int
    guidance_scale: float

    def __str__(self) -> str:
        guidance = f"guidance {self.guidance_scale:g}" if self.guidance_scale > 1 else "no guidance"
        return f"{self.steps} steps, {guidance}"


UNDISTILLED = Usual(30, 5.0)

MOST_OF_DISTILLED = 9
"""Steps that a model distilled for few of them takes at most."""

_FOUR, _EIGHT = Usual(4, 1.0), Usual(8, 1.0)
_EMBEDDED_GUIDANCE = Usual(4, 8.0)  # of latent consistency models, an input like any other

_BY_CLASS = {
    "LatentConsistencyModelPipeline": _EMBEDDED_GUIDANCE,
    "SanaSprintPipeline": Usual(2, 4.5),
    "QwenImage21Pipeline": Usual(40, 1.0),
}

# Patterns of the last part of a repository's name, the class that such a one is of (None: any), and
# what it is drawn with (None: as usual). The first that fits counts.
_NAMES: tuple[tuple[str, str | None, Usual | None], ...] = (
    (r"flux\.?2.*klein.*base", "Flux2KleinPipeline", None),
    (r"flux\.?2.*klein", "Flux2KleinPipeline", _FOUR),
    (r"flux\.?2", "Flux2Pipeline", Usual(28, 4.0)),
    (r"schnell", "FluxPipeline", _FOUR),
    (r"flux\.?1.*(dev|krea)", "FluxPipeline", Usual(28, 3.5)),
    (r"flux", "FluxPipeline", None),
    (r"z-?image.*turbo", "ZImagePipeline", Usual(9, 1.0)),
    (r"z-?image", "ZImagePipeline", None),
    (r"ernie-?image.*turbo", "ErnieImagePipeline", _EIGHT),
    (r"ernie-?image", "ErnieImagePipeline", None),
    (r"krea-?2.*turbo", "Krea2Pipeline", _EIGHT),
    (r"krea-?2", "Krea2Pipeline", None),
    (r"qwen-?image.*lightning", "QwenImagePipeline", _EIGHT),
    (r"qwen-?image-?2\.?1", "QwenImage21Pipeline", _BY_CLASS["QwenImage21Pipeline"]),
    (r"qwen-?image", "QwenImagePipeline", None),
    (r"sana.*sprint", "SanaSprintPipeline", _BY_CLASS["SanaSprintPipeline"]),
    (r"lcm_dreamshaper", "LatentConsistencyModelPipeline", _EMBEDDED_GUIDANCE),
    (r"(?<![a-z])(sdxl-turbo|sdxl-lightning)", "StableDiffusionXLPipeline", _FOUR),
    (r"stable-diffusion-3.*turbo", "StableDiffusion3Pipeline", _FOUR),
    (r"(?<![a-z])(turbo|lightning|lcm|dmd2?|hyper-sd)(?![a-z])", None, _FOUR),
    (r"(?<![a-z])chroma", "ChromaPipeline", None),
    (r"hidream", "HiDreamImagePipeline", None),
    (r"hunyuan-?image", "HunyuanImagePipeline", None),
    (r"hunyuan-?dit", "HunyuanDiTPipeline", None),
    (r"lumina-?image-?2", "Lumina2Pipeline", None),
    (r"longcat-?image", "LongCatImagePipeline", None),
    (r"(?<![a-z])sana(?![a-z])", "SanaPipeline", None),
    (r"pixart-?sigma", "PixArtSigmaPipeline", None),
    (r"pixart", "PixArtAlphaPipeline", None),
    (r"aura-?flow", "AuraFlowPipeline", None),
    (r"(?<![a-z])kolors", "KolorsPipeline", None),
    (r"cogview-?4", "CogView4Pipeline", None),
    (r"ideogram-?4", "Ideogram4Pipeline", None),
    (r"kandinsky-?3", "Kandinsky3Pipeline", None),
)


def usual(model: str) -> Usual | None:
    """What a model was made for, where its name on the Hub or its folder says so; else None.

    Of a folder what it holds counts, not its name, and of a repository the name, not whether it is
    on this machine: a recipe's digest must not depend on either.
    """
    folder = folder_of(model)
    return _says(folder) if folder is not None else _named(model)[1]


def likely_class(model: str) -> str | None:
    """The pipeline class that a repository's name suggests; None if it suggests none."""
    return _named(model)[0]


def folder_of(model: str) -> Path | None:
    """The pipeline's folder that a recipe names; None for a repository of the Hub."""
    folder = EMBEDDED_FOLDERS.get(model) or expanded(model)
    return folder if is_folder(folder) and is_file(folder / MODEL_INDEX) else None


def cached_folder(model: str, revision: str | None) -> Path | None:
    """Where this machine keeps a repository of the Hub; None if it has never been here."""
    address = HubAddress.parse(model)
    if address is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        address.repo_id, MODEL_INDEX, revision=revision or address.revision
    )
    return Path(found).parent if isinstance(found, str) else None


def mismatch(model: str, revision: str | None, steps: int, guidance_scale: float) -> Usual | None:
    """What a model was made for, if that is something else altogether; None if all seems well.

    Looks at what this machine has of a repository too, and at the name of a folder.
    """
    folder = folder_of(model) or cached_folder(model, revision)
    made_for = usual(model) or (_says(folder) if folder else None) or _named(model)[1]
    if made_for is None:
        return None
    unguided = made_for.guidance_scale <= 1 < guidance_scale
    return made_for if unguided or steps > 3 * made_for.steps else None


def _named(model: str) -> tuple[str | None, Usual | None]:
    name = model.rpartition("/")[2].lower()
    for pattern, kind, made_for in _NAMES:
        if re.search(pattern, name):
            return kind, made_for
    return None, None


def _says(folder: Path) -> Usual | None:
    """What the files of a pipeline say about how it is drawn with."""
    kind, index = pipeline_class(folder), _json(folder / MODEL_INDEX)
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    noise = str(scheduler.get("_class_name"))
    guided = _json(folder / "transformer" / "config.json").get("guidance_embeds")
    # SD and SDXL Turbo begin at the last time step, without training for zero terminal SNR.
    from_the_end = scheduler.get("timestep_spacing") == "trailing"
    from_the_end = from_the_end and not scheduler.get("rescale_betas_zero_snr")
    predicts_noise = scheduler.get("prediction_type") == "epsilon"
    rules: tuple[tuple[object, Usual | None], ...] = (
        (kind in _BY_CLASS, _BY_CLASS.get(str(kind))),
        (_json(folder / "unet" / "config.json").get("time_cond_proj_dim"), _EMBEDDED_GUIDANCE),
        (noise in ("LCMScheduler", "TCDScheduler"), _FOUR),
        (index.get("is_distilled"), _EIGHT if kind == "Krea2Pipeline" else _FOUR),
        (kind == "FluxPipeline" and guided is not None, Usual(28, 3.5) if guided else _FOUR),
        (kind == "Flux2Pipeline", Usual(28, 4.0)),
        (kind == "HunyuanImagePipeline" and guided, Usual(8, 3.25)),
        (from_the_end and predicts_noise and noise.startswith("Euler"), _FOUR),
    )
    return next((made_for for applies, made_for in rules if applies), None)


def _json(path: Path) -> Mapping[str, Any]:
    """A configuration; empty where it cannot be read, which whoever loads it will say."""
    try:
        found = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
