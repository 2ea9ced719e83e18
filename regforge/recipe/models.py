"""What a dataset recipe can say: one pydantic model a section, one field a key.

The descriptions here and in `prompts` are the reference documentation (docs/recipe.md is made from
them) and the JSON schema that editors complete from. Knows nothing about YAML, files or defaults
that depend on other files; `loading` does. A recipe is data: it calls nobody.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from regforge.recipe.prompts import Prompts, Subject
from regforge.recipe.sections import RUNTIME, RecipeDocument, Section, not_truth


class Lora(Section):
    """LoRA weights laid over the model."""

    path: str = Field(
        min_length=1,
        description="A .safetensors file, a folder with one, or a repository (`user/name`).",
    )
    scale: float = Field(
        default=1.0, ge=-10, le=10, description="What the LoRA is multiplied with; 1 is as trained."
    )


def _listed(value: object) -> object:
    """`lora: path` and `lora: {path: ...}` as lists of one."""
    if value is None:
        return ()
    entries = list(value) if isinstance(value, list | tuple) else [value]
    return [{"path": each} if isinstance(each, str) else each for each in entries]


class Render(Section):
    """Which model draws the images, and how."""

    model: str = Field(
        default="embedded/tinyworld",
        min_length=1,
        description="A diffusers text-to-image repository or folder, `embedded/tinyworld` (in "
        "the package), or, with `renderer: hosted`, a LiteLLM image model. A relative path starts "
        "at the recipe; of a folder, what it holds counts, not its name.",
    )
    renderer: Literal["local", "hosted"] = Field(
        default="local",
        description="`local`: a diffusers pipeline on this machine. `hosted`: an image API "
        "through LiteLLM.",
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit of the repository."
    )
    variant: str | None = Field(
        default=None, description="Weights variant in the repository, such as `fp16`."
    )
    lora: Annotated[
        tuple[Lora, ...],
        BeforeValidator(_listed, json_schema_input_type=str | Lora | list[str | Lora] | None),
    ] = Field(
        default=(),
        description="LoRA weights laid over the model: a path or repository, `{path, scale}`, or a "
        "list of these. Of a file, what it holds counts, not its name.",
    )
    vae: str | None = Field(
        default=None,
        min_length=1,
        description="Another autoencoder in place of the model's own: a repository such as "
        "`madebyollin/sdxl-vae-fp16-fix`, or a folder. Some draw black in float16.",
    )
    width: int | None = Field(
        default=None, ge=8, le=8192, description="Pixels; the model's own size if left out."
    )
    height: int | None = Field(
        default=None, ge=8, le=8192, description="Pixels; the model's own size if left out."
    )
    steps: int = Field(default=30, ge=1, le=1000, description="Denoising steps.")
    guidance_scale: float = Field(
        default=5.0, ge=0, le=50, description="Classifier-free guidance; 1 or less turns it off."
    )
    scheduler: str | None = Field(
        default=None,
        description="`euler_ancestral`, `euler`, `ddim`, `ddpm`, `dpmpp_2m`, `dpmpp_2m_karras`, "
        "`unipc`, `lms`, `heun`, or a diffusers class name; the model's own if left out.",
    )
    negative_prompt: str = Field(default="", description="What the images should not show.")
    images_per_prompt: int = Field(default=1, ge=1, le=100, description="Images of each caption.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="Precision; `auto` takes the best one for the device."
    )
    format: Literal["webp", "png", "jpeg"] = Field(
        default="webp", description="File format of the images. WebP here is lossless."
    )
    jpeg_quality: int = Field(default=95, ge=1, le=100, description="Only for `format: jpeg`.")
    max_attempts: int = Field(
        default=3,
        ge=1,
        le=20,
        description="How often an image is drawn, with a new seed each time, before its row is "
        "given up.",
    )
    batch_size: (
        Literal["auto"] | Annotated[int, Field(ge=1, le=1024), BeforeValidator(not_truth)]
    ) = Field(
        default="auto",
        description="Images at a time. `auto` finds a good one and halves it when memory runs out.",
        json_schema_extra=RUNTIME,
    )
    device: str | None = Field(
        default=None,
        description="`cuda`, `cuda:1`, `mps`, `cpu`; the best there is if left out.",
        json_schema_extra=RUNTIME,
    )
    compile: bool = Field(
        default=False,
        description="torch.compile the denoiser: slow to start, then faster on a GPU.",
        json_schema_extra=RUNTIME,
    )
    offload: bool = Field(
        default=False,
        description="Keep parts of the model in main memory until used, for small GPUs.",
        json_schema_extra=RUNTIME,
    )
    trust_remote_code: bool = Field(
        default=False, description="Run code that the model's repository brings along."
    )
    api_base: str | None = Field(
        default=None, description="URL of the image server, for `renderer: hosted`."
    )
    max_concurrency: int = Field(
        default=4,
        ge=1,
        le=100,
        description="Calls at the same time, for `renderer: hosted`.",
        json_schema_extra=RUNTIME,
    )
    rpm: int | None = Field(
        default=None,
        ge=1,
        description="Most calls a minute, for `renderer: hosted`. Calls wait, they are never "
        "rejected.",
        json_schema_extra=RUNTIME,
    )
    max_cost: float | None = Field(
        default=None,
        gt=0,
        description="Most to spend on the images of a run, in US dollars, all sessions together, "
        "for `renderer: hosted`. The run stops before it is exceeded.",
        json_schema_extra=RUNTIME,
    )
    cost_per_image: float | None = Field(
        default=None,
        ge=0,
        description="Price in US dollars, for `renderer: hosted` and models that LiteLLM has no "
        "price of. A server on this machine or in its network is free unless one is given.",
        json_schema_extra=RUNTIME,
    )


class Alignment(Section):
    """Scores how well an image shows its caption."""

    model: str = Field(
        default="embedded/judge",
        description="A transformers CLIP-like checkpoint (repository or folder), or "
        "`embedded/judge` for images of the embedded pipeline.",
    )
    min: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="Images with a lower cosine similarity are drawn again; left out, the score "
        "is only kept.",
    )


class Curate(Section):
    """Which images are not good enough to keep."""

    max_duplicate_distance: int | None = Field(
        default=4,
        ge=0,
        le=32,
        description="Images whose 64-bit perceptual hashes differ in at most this many bits "
        "count as duplicates; null keeps them all. Exact copies are always refused.",
    )
    constant: bool = Field(
        default=True, description="Refuse images that are black or of a single colour."
    )
    nsfw: bool = Field(
        default=True, description="Refuse images that the model's own safety checker flags."
    )
    alignment: Alignment | None = Field(
        default=None, description="Score images against their captions."
    )


class DatasetSection(Section):
    """What the finished dataset says about itself, and where it goes."""

    license: str | None = Field(
        default=None,
        description="Licence of the images, as a Hub identifier (`openrail++`, `cc-by-4.0`, "
        "`other`). It follows the rendering model's terms.",
        json_schema_extra=RUNTIME,
    )
    repo_id: str | None = Field(
        default=None,
        description="Where `regforge publish` puts it on the Hub: `user/name`.",
        json_schema_extra=RUNTIME,
    )
    private: bool = Field(
        default=True,
        description="Whether the Hub repository is private.",
        json_schema_extra=RUNTIME,
    )
    language: str = Field(
        default="en", description="Language of the captions.", json_schema_extra=RUNTIME
    )


class Recipe(RecipeDocument):
    """A regularization dataset, declared."""

    version: Literal[1] = Field(default=1, description="Version of the recipe format.")
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$",
        description="Name of the dataset; the run goes to runs/<name>.",
        json_schema_extra=RUNTIME,
    )
    extends: Path | None = Field(
        default=None,
        description="Another recipe to start from; keys given here win.",
        json_schema_extra=RUNTIME,
    )
    subject: Subject = Field(description="The one thing being personalized.")
    prompts: Prompts = Field(default_factory=Prompts, description="Which captions are made.")
    render: Render = Field(default_factory=Render, description="Which model draws the images.")
    curate: Curate = Field(default_factory=Curate, description="Which images are refused.")
    dataset: DatasetSection = Field(
        default_factory=DatasetSection, description="What the dataset says about itself."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Everything random follows from it.")
