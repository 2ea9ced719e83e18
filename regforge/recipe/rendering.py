"""What a dataset recipe can say of rendering: the model, how it draws, and what steps leave out.

Also the terms under which the models draw, and the licences that the Hub knows.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from regforge.recipe.pipelines import UNDISTILLED, usual
from regforge.recipe.sections import PromptSet, Quantize, Runtime, Section, not_truth, problem_of
from regforge.recipe.workflows import Role, WorkflowError, read_workflow
from regforge.words import did_you_mean


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


def _as_named(value: object) -> object:
    """`offload: true` as it was before there was a choice."""
    if isinstance(value, bool):
        return "model" if value else None
    return value


Offload = Literal["model", "group", "sequential"]
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


def _names(value: object) -> object:
    return [str(value)] if isinstance(value, str | int) else value


Nodes = dict[
    Role,
    Annotated[tuple[str, ...], BeforeValidator(_names, json_schema_input_type=str | list[str])],
]
_NODES = TypeAdapter(Nodes)

AS_LOADED = "as loaded"
"""The `render.model` of a web UI whose checkpoint the recipe leaves to it."""
ELSEWHERE = "drawn elsewhere"
"""The scheduler, and where the recipe names none the model, of images that come as files."""
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {"use_karras_sigmas": False}),
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": False}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {"use_karras_sigmas": False}),
    "lms": ("LMSDiscreteScheduler", {"use_karras_sigmas": False}),
    "heun": ("HeunDiscreteScheduler", {"use_karras_sigmas": False}),
}
"""Friendly name -> diffusers class and what it is set to."""

_USUAL_ADDRESS = {"comfyui": "http://127.0.0.1:8188", "a1111": "http://127.0.0.1:7860"}


def _with_the_servers_own(given: dict[str, Any]) -> dict[str, Any]:
    """A section of the recipe with what is left out, by the server or its workflow."""
    renderer = str(given.get("renderer"))
    if renderer == "files":
        return {"model": ELSEWHERE, **given}
    if renderer not in _USUAL_ADDRESS:
        return given
    own: dict[str, Any] = {"api_base": _USUAL_ADDRESS[renderer], "model": AS_LOADED}
    if renderer == "comfyui":
        with suppress(WorkflowError, ValidationError, TypeError):  # the checks say what is wrong
            path = Path(given.get("workflow") or "")
            named = _NODES.validate_python(given.get("nodes") or {})
            own |= {"model": path.stem, **read_workflow(path, named).settings()}
    return {**own, **{key: value for key, value in given.items() if value is not None}}


class Render(Section):
    """Which model draws the images, and how."""

    model: str = Field(default="embedded/tinyworld", min_length=1)
    """A diffusers text-to-image repository or folder, `embedded/tinyworld` (in the package), a
    single `.safetensors` or `.gguf` file, here or by its URL on the Hub, or, with `renderer:
    hosted`, a LiteLLM image model. A relative path starts at the recipe; of a folder or file, what
    it holds counts, not its name."""
    config: str | None = Field(default=None, min_length=1)
    """Of a single file: the diffusers repository or folder that says how it is built, and has what
    the file lacks. Left out, the file's own folder if it is one, or the model of its kind on the
    Hub, such as `stabilityai/stable-diffusion-xl-base-1.0`."""
    renderer: Literal["local", "hosted", "comfyui", "a1111", "files"] = "local"
    """`local`: a diffusers pipeline on this machine. `hosted`: an image API through LiteLLM.
    `comfyui`: ComfyUI, with `workflow`. `a1111`: the API of the AUTOMATIC1111 web UI, Forge or
    SD.Next. For both of these `model` is the checkpoint as the server calls it; left out, the one
    in the workflow, or the one that the web UI has loaded. `files`: captions go into the run's
    folder `to_draw`, and images come back by way of `folder`; `model` is what you call what drew
    them."""
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
    `madebyollin/sdxl-vae-fp16-fix`, a folder, or a `.safetensors` file. Some draw black in
    float16."""
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
    """Compute the denoiser whole at every so many steps only; 1 at all. In between, the deep blocks
    of a UNet are kept (Stable Diffusion 1.x, 2.x and XL: DeepCache), and what a transformer gave is
    continued in a straight line (Stable Diffusion 3, FLUX.1, FLUX.2 and Qwen-Image)."""
    guidance_window: Annotated[tuple[Part, Part], AfterValidator(_rising)] = ALL_STEPS
    """From and up to which part of the steps there is guidance, 0 to 1. It changes where the deep
    blocks are computed. For Stable Diffusion 1.x to 3, XL and Qwen-Image."""
    scheduler: str | None = None
    """`euler_ancestral`, `euler`, `ddim`, `ddpm`, `dpmpp_2m`, `dpmpp_2m_karras`, `unipc`, `lms`,
    `heun`, or a diffusers class name; the model's own if left out."""
    negative_prompt: str | dict[PromptSet, str] = Field(
        default="", examples=["blurry", {"amplify": "blurry, text"}]
    )
    """What the images should not show: of all of them, or of each prompt set that is named."""
    images_per_prompt: int = Field(default=1, ge=1, le=100)
    """Images of each caption."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision; `auto` takes the best one for the device."""
    quantize: Quantize | None = None
    """Fewer bits for the weights of the denoiser and of language models that read captions (T5,
    Qwen, Gemma, Llama, Mistral): `int8` (torchao) takes half of what bfloat16 does, `nf4`
    (bitsandbytes, on a GPU) about a quarter. Images change a little. CLIP and the autoencoder stay
    as they are."""
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
    """torch.compile the denoiser, by block where it repeats some: slow to start, anew for each size
    of images, then faster on a GPU."""
    offload: Annotated[
        Runtime[Offload | None],
        BeforeValidator(_as_named, json_schema_input_type=Offload | bool | None),
    ] = None
    """Keep the model in main memory until it is used, for small GPUs: `model` (or `true`), one part
    after the other; `group`, layer after layer, the next one on its way while one computes;
    `sequential`, layer after layer, with the least memory and by far the slowest. No effect on a
    CPU."""
    trust_remote_code: bool = False
    """Run code that the model's repository brings along."""
    api_base: str | tuple[str, ...] | None = None
    """URL of the image server, for `renderer: hosted`, `comfyui` (`http://127.0.0.1:8188` if left
    out) and `a1111` (`http://127.0.0.1:7860`). Of the last two it may be a list: each server takes
    the next image when it has one fewer than the others, and the list may change during a run."""
    workflow: Path | None = None
    """For `renderer: comfyui`: a workflow in its API format (`Export (API)`). Size, steps, guidance
    scale, negative prompt and checkpoint are the workflow's where the recipe leaves them out."""
    nodes: Nodes = {}  # noqa: RUF012 (pydantic copies it)
    """For `renderer: comfyui`: the inputs of the workflow that get `prompt`, `negative_prompt`,
    `seed`, `width`, `height`, `steps`, `guidance_scale`, `model` or `filename`, such as `6.text`,
    and the node of the `image`, such as `9`, where several could be meant. A list names several,
    and `[]` none: the workflow decides then."""
    folder: Runtime[Path | None] = None
    """For `renderer: files`: where you put the images; `drawn` in the run's folder if left out."""
    max_concurrency: Runtime[int] = Field(default=4, ge=1, le=100)
    """Calls at the same time, for renderers other than `local`; of several servers, at each."""
    rpm: Runtime[int | None] = Field(default=None, ge=1)
    """Most calls a minute, for renderers other than `local`. Calls wait, they are never
    rejected."""
    max_cost: Runtime[float | None] = Field(default=None, gt=0)
    """Most to spend on the images of a run, in US dollars, all sessions together, for `renderer:
    hosted`. The run stops before it is exceeded."""
    cost_per_image: Runtime[float | None] = Field(default=None, ge=0)
    """Price in US dollars, for `renderer: hosted` and models that LiteLLM has no price of. A server
    on this machine or in its network is free unless one is given."""

    @model_validator(mode="before")
    @classmethod
    def _as_the_model_is_made(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("renderer", "local") != "local":
            return _with_the_servers_own(given) if isinstance(given, dict) else given
        model = given.get("model")
        made_for = usual(model) if isinstance(model, str) else None
        preset = PRESETS.get(str(given.get("speed")), {})
        return {**(made_for._asdict() if made_for else {}), **preset, **given}

    def negative_for(self, prompt_set: str) -> str:
        """The negative prompt of the images of a prompt set; empty if there is none."""
        if isinstance(self.negative_prompt, str):
            return self.negative_prompt
        return next((text for name, text in self.negative_prompt.items() if name == prompt_set), "")

    @property
    def has_negatives(self) -> bool:
        """Whether some images have a negative prompt."""
        of_all = self.negative_prompt
        return any(
            each.strip() for each in ([of_all] if isinstance(of_all, str) else of_all.values())
        )

    @property
    def servers(self) -> tuple[str, ...]:
        """The addresses in `api_base`."""
        return (self.api_base,) if isinstance(self.api_base, str) else self.api_base or ()

    @property
    def server(self) -> str | None:
        """The first of the `servers`, if there is any."""
        return next(iter(self.servers), None)

    @property
    def shortcuts(self) -> dict[str, str]:
        """What is left out of steps and weights, as files of images and rows call it."""
        start, stop = self.guidance_window
        named = {
            "Cache interval": (self.cache_interval > 1, f"{self.cache_interval}"),
            "Guidance window": (self.guidance_window != ALL_STEPS, f"{start:g}-{stop:g}"),
            "Quantized": (self.quantize is not None, f"{self.quantize}"),
        }
        return {name: value for name, (used, value) in named.items() if used}


# ---------------------------------------------------------------------------------------- licences

# A dataset of generated images is under the terms of the model that drew them. Only models whose
# own card was looked at have terms here; of any other, the maker of the dataset has to know.

LICENSES = "https://huggingface.co/docs/hub/repositories-licenses"

# The table on that page: huggingface/hub-docs, docs/hub/repositories-licenses.md at 242f4a1.
LICENSE_IDENTIFIERS = frozenset(
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 "
    "bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause "
    "bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 "
    "cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 "
    "cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 "
    "eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research "
    "intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 "
    "openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr "
    "deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 "
    "llama3.3 llama4 grok2-community gemma unknown other".split()
)


@dataclass(frozen=True)
class Terms:
    """The licence of a rendering model, as its card has it.

    Attributes:
        license: The Hub's identifier.
        name: Of a licence that the Hub has none for (`other`).
        link: Where its text stands.
        caution: What somebody who shares or trains on its images should know.
    """

    license: str
    name: str | None = None
    link: str | None = None
    caution: str | None = None


_SD1 = Terms("creativeml-openrail-m")
_RAIL = Terms("openrail++")


def _on_hub(repository: str, name: str, caution: str) -> Terms:
    link = f"https://huggingface.co/{repository}/blob/main/LICENSE.md"
    return Terms("other", name, link, caution)


def _turbo(repository: str) -> Terms:
    return _on_hub(repository, "sai-nc-community", "It limits commercial use.")


def _sd3(repository: str) -> Terms:
    caution = "It limits commercial use, and what models may be trained on the images."
    return _on_hub(repository, "stabilityai-ai-community", caution)


# The front matter of each model's own card, https://huggingface.co/<repository>.
_KNOWN = {
    # NOTICE: it learned from drawings under Apache-2.0, MIT and CC BY 4.0. Its images come close
    # enough to them that the last of these is kept: it asks for attribution, which the card gives.
    "embedded/tinyworld": Terms("cc-by-4.0"),
    "CompVis/stable-diffusion-v1-4": _SD1,
    "runwayml/stable-diffusion-v1-5": _SD1,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": _SD1,
    "stabilityai/stable-diffusion-2": _RAIL,
    "stabilityai/stable-diffusion-2-base": _RAIL,
    "stabilityai/stable-diffusion-2-1": _RAIL,
    "stabilityai/stable-diffusion-2-1-base": _RAIL,
    "stabilityai/stable-diffusion-xl-base-1.0": _RAIL,
    "PixArt-alpha/PixArt-XL-2-1024-MS": _RAIL,
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": _RAIL,
    "stabilityai/sd-turbo": _turbo("stabilityai/sd-turbo"),
    "stabilityai/sdxl-turbo": _turbo("stabilityai/sdxl-turbo"),
    "stabilityai/stable-diffusion-3-medium-diffusers": _sd3(
        "stabilityai/stable-diffusion-3-medium"
    ),
    "stabilityai/stable-diffusion-3.5-medium": _sd3("stabilityai/stable-diffusion-3.5-medium"),
    "stabilityai/stable-diffusion-3.5-large": _sd3("stabilityai/stable-diffusion-3.5-large"),
    "stabilityai/stable-diffusion-3.5-large-turbo": _sd3(
        "stabilityai/stable-diffusion-3.5-large-turbo"
    ),
    "black-forest-labs/FLUX.1-schnell": Terms("apache-2.0"),
    "black-forest-labs/FLUX.1-dev": _on_hub(
        "black-forest-labs/FLUX.1-dev",
        "flux-1-dev-non-commercial-license",
        "Its images may not be used to train a model that competes with FLUX.1 [dev].",
    ),
}
_BY_LOWER_CASE = {name.lower(): terms for name, terms in _KNOWN.items()}


def terms_of(model: str) -> Terms | None:
    """The licence of a rendering model; None if it is not known here.

    Args:
        model: As in `render.model`.
    """
    return _BY_LOWER_CASE.get(model.lower())


def not_an_identifier(license_id: str) -> str | None:
    """What is wrong with a licence, in one sentence; None if the Hub knows it."""
    if license_id in LICENSE_IDENTIFIERS:
        return None
    return (
        f"{license_id!r} is no licence identifier of the Hub."
        f"{did_you_mean(license_id, sorted(LICENSE_IDENTIFIERS))}"
    )
