"""What a training recipe can say: one pydantic model a section, one field a key.

The descriptions are the reference documentation and the JSON schema; see `sections`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from regforge.recipe.pipelines import usual
from regforge.recipe.sections import (
    UNION,
    Kind,
    Quantize,
    RecipeDocument,
    Runtime,
    Section,
    not_truth,
    problem_of,
)

Probability = Annotated[float, Field(ge=0, le=1), BeforeValidator(not_truth)]


def _two_numbers(value: object) -> object:
    if isinstance(value, list | tuple) and len(value) != 2:
        raise problem_of("", "needs two numbers, such as [0.9, 0.999]")
    return value


Decay = Annotated[float, Field(ge=0, lt=1), BeforeValidator(not_truth)]
Betas = Annotated[tuple[Decay, Decay], BeforeValidator(_two_numbers)]


def _in_order(steps: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(steps)))


Step = Annotated[int, Field(ge=1), BeforeValidator(not_truth)]
Steps = Annotated[tuple[Step, ...], AfterValidator(_in_order)]


class NewToken(Section):
    """A new token for the subject, whose embedding is trained.

    Textual inversion (arXiv 2208.01618), alone or together with `method`. The token becomes one
    more row of each CLIP text encoder; encoders that are language models (T5, Gemma, Qwen) are left
    alone and read its name.
    """

    new: str = Field(pattern=r"^<[a-z0-9][a-z0-9_-]{0,37}>$", examples=["<my-cat>"])
    """Its name, as captions and prompts write it: `<my-cat>`."""
    init: str = Field(default="class_noun", min_length=1, max_length=80)
    """Words whose embeddings, averaged, it begins with; `class_noun`: those of the class noun."""
    vectors: int = Field(default=1, ge=1, le=32)
    """Rows that it has in each text encoder; a prompt is longer by as many tokens."""
    lr: float = Field(default=5e-3, gt=0, le=10)
    """Learning rate of its embedding, with the scheduler of `optimizer` and without weight
    decay."""


def _which(value: object) -> str:
    return f"{UNION}{'new' if isinstance(value, dict | NewToken) else 'word'}"


Word = Annotated[str, Field(min_length=1, max_length=40)]
Identifier = Annotated[
    Annotated[Word, Tag(f"{UNION}word")] | Annotated[NewToken, Tag(f"{UNION}new")],
    Discriminator(_which),
]


class TrainingSubject(Section):
    """The one thing to be learned."""

    images: Path = Field(examples=["photos/"])
    """Folder with its photos, 3 to 20 of them. Captions come from photos/*.txt or
    photos/metadata.jsonl; `{}` in them stands for identifier and class noun. A photo without one
    gets 'a photo of a {}'. Relative paths start at the recipe."""
    identifier: Identifier = "sks"
    """What will stand for the subject: a rare word that the model has, or a new token, `{new:
    <my-cat>}`."""
    class_noun: str = Field(min_length=1, max_length=80, examples=["ceramic teapot"])
    """What the subject is, as specific as fits: 'ceramic teapot'."""
    captions: Literal["auto", "files"] = "auto"
    """Of photos without a caption. `auto`: the one that a vision model wrote for the dataset recipe
    or run which `regularization.dataset` names (`subject.captions: auto` there), if it is about the
    same photo. `files`: only files count."""
    kind: Runtime[Kind | None] = None
    """`object` or `living`: which prompts `regforge evaluate` asks it."""

    @property
    def token(self) -> NewToken | None:
        """The new token, if the identifier is one."""
        return self.identifier if isinstance(self.identifier, NewToken) else None

    @property
    def word(self) -> str:
        """The identifier as captions write it."""
        return self.identifier.new if isinstance(self.identifier, NewToken) else self.identifier


class Regularization(Section):
    """The images beside the photos that keep the model from forgetting what the class is."""

    dataset: str | None = Field(default=None, min_length=1, examples=["me/teapot-reg"])
    """A run, a dataset's folder, an archive, `user/name` on the Hub, or a dataset recipe
    (`reg.yaml`), which is run first, in runs/<its name>, or gone on with; null trains without
    one. Relative paths start at the recipe; what lies there is never looked for on the Hub."""
    revision: str | None = Field(default=None, min_length=1)
    """Branch, tag or commit of a dataset on the Hub."""
    prior_weight: float = Field(default=1.0, ge=0, le=100)
    """Weight of the regularization loss; 1 is the paper's. 0 is the same as no dataset."""
    target: Literal["pixels", "teacher"] = "pixels"
    """What a regularization image is to teach: `pixels`, the image itself (the paper's way);
    `teacher`, what the base model would have predicted for it."""
    per_instance: int = Field(default=1, ge=1, le=16)
    """Regularization images beside each photo in a batch; 1 is the paper's."""
    class_twins: Probability = 0.0
    """Share of the regularization images that are class twins: the photo beside them itself, with
    the same crop, noise and time, under its caption without the identifier, and with what the base
    model would have predicted for it as target. With 1 no dataset is needed. As in differential
    output preservation (kohya's sd-scripts, pull request 1710) and contrastive adapter training
    (arXiv 2404.07554)."""
    drift_penalty: float = Field(default=0.0, ge=0)
    """Weight of the squared change of the trained weights, added to the loss, with or without
    regularization images; as in "Preserve and Personalize" (arXiv 2505.19519). Of a LoRA it is that
    of its product, of a full fine-tune the distance from the base model."""


class Method(Section):
    """What is trained."""

    kind: Literal["lora", "full", "embedding"] = "lora"
    """`lora`: small matrices beside the weights; `full`: all weights; `embedding`: nothing but the
    new token of `subject.identifier`."""
    rank: int = Field(default=16, ge=1, le=1024)
    """Rank of the LoRA."""
    alpha: float | None = Field(default=None, gt=0)
    """Scale of the LoRA times its rank; the rank if left out."""
    dropout: Probability = 0.0
    """Dropout inside the LoRA."""
    dora: bool = False
    """Weight-decomposed LoRA (arXiv 2402.09353)."""
    rslora: bool = False
    """Rank-stabilized scale, alpha / sqrt(rank) (arXiv 2312.03732)."""
    targets: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Layers that get a LoRA, by the end of their names; those of diffusers' scripts if left out,
    mostly the attention layers of the denoiser."""
    quantize: Quantize | None = None
    """Fewer bits for the frozen weights of the denoiser, beside which the LoRA is trained (QLoRA,
    arXiv 2305.14314), and of language models that read captions: `int8` (torchao) or `nf4`
    (bitsandbytes, on a GPU); see `render.quantize`."""
    text_encoder: bool = False
    """Whether the text encoder is trained too (LoRA or full): CLIP, in SD, SDXL, SD3 and FLUX.1."""
    text_encoder_lr: float | None = Field(default=None, gt=0)
    """Its learning rate; `optimizer.lr` if left out."""


class Data(Section):
    """What is done with images and captions on their way into a batch."""

    resolution: int | None = Field(default=None, ge=16, le=8192)
    """Side of the square crops, in pixels, and the root of other areas; the model's own if left
    out."""
    crop: Literal["random", "center", "none"] = "random"
    """`random`: a random square of the image, at a random scale down to `crop_scale`; `center`: the
    middle square; `none`: all of the image in its own proportions, at about the area of resolution
    squared. These are rounded to sixteenths of the resolution, up to 4:1 (buckets), and batches are
    of one bucket where there are enough images."""
    crop_scale: float = Field(default=0.6, gt=0, le=1)
    """Smallest side of a random crop, relative to the shorter side of the image."""
    crop_wording: bool = True
    """Whether the caption of a tight crop says so ('a close-up of ...')."""
    crops_per_image: int = Field(default=4, ge=1, le=1000)
    """How many random crops of each image are made and cached."""
    caption_dropout: Probability = 0.05
    """How often a caption is replaced by an empty one."""
    slot_dropout: Probability = 0.1
    """How often each slot of a regularization caption is left out (the caption is composed again
    without it)."""
    flip: bool = False
    """Mirror half of the images. Off: logos and text would suffer."""
    cache: Runtime[Literal["memory", "disk", "none"]] = "memory"
    """Where latents and text embeddings are kept, so that they are computed once."""


class Optimizer(Section):
    """How the weights move."""

    name: str = "adamw"
    """`adamw`; `adamw8bit` (needs bitsandbytes), `prodigy` (needs prodigyopt)."""
    lr: float = Field(default=1e-4, gt=0, le=10)
    """Learning rate."""
    steps: int = Field(default=2000, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=1, ge=1, le=1024)
    """Photos in a batch."""
    gradient_accumulation: int = Field(default=1, ge=1, le=4096)
    """Batches per optimizer step."""
    scheduler: Literal["constant", "cosine", "linear"] = "constant"
    """What the learning rate does after the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which it grows from 0."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    betas: Betas = (0.9, 0.999)
    """Of Adam."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients longer than this are shortened; null never."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Of the forward pass; trained weights are always kept in fp32. `auto` takes what rendering
    takes: bf16 where the device computes with it, else fp16 on GPUs and fp32 on CPUs."""
    min_snr_gamma: float | None = Field(default=None, gt=0)
    """Weights time steps by min(SNR, gamma) (arXiv 2303.09556); 5 is usual."""
    timestep_sampling: Literal["auto", "uniform", "logit_normal"] = "auto"
    """At which times a flow-matching model learns: `uniform`, all alike; `logit_normal`, more often
    in the middle (arXiv 2403.03206); both through its scheduler's shift. `auto` is what diffusers'
    scripts do: `uniform`, and for SD3 `logit_normal`."""
    ema: bool = False
    """Keep an exponential moving average of the weights and save it."""
    ema_decay: float = Field(default=0.999, gt=0, lt=1)
    """Of that average."""
    gradient_checkpointing: Runtime[bool] = False
    """Less memory, about a third slower."""
    compile: Runtime[bool] = False
    """torch.compile the denoiser: slow to start, then faster on a GPU."""


DEFAULT_PROMPTS = ("a photo of a {}", "a {} on a beach")
"""What validation draws if nothing is said."""


class Validation(Section):
    """Images on the way."""

    prompts: Runtime[tuple[str, ...]] = ()
    """What to draw; two with the identifier if left out. `{}` stands for identifier and class noun:
    "a {} on the moon"."""
    every: Runtime[int] = Field(default=500, ge=0)
    """Every so many steps; 0 only at the end."""
    steps: Runtime[int] = Field(default=25, ge=1, le=1000)
    """Denoising steps. Left out, 25, or what a distilled base model is made for."""
    guidance_scale: Runtime[float] = Field(default=5.0, ge=0, le=50)
    """Classifier-free guidance; 1 or less turns it off. Left out, 5.0, or what a distilled base
    model is made for: mostly none."""


class Checkpoint(Section):
    """What is kept, so that a run can go on."""

    every: Runtime[int] = Field(default=500, ge=1)
    """Every so many steps."""
    keep: Runtime[int] = Field(default=3, ge=1)
    """The newest so many are kept."""
    resume: Runtime[Literal["auto", "never"]] = "auto"
    """`auto` goes on from the newest whole checkpoint in the folder."""
    snapshots: Runtime[Steps] = Field(default=(), examples=[[50, 125, 250]])
    """After these steps the result so far is kept as well, as weights to use:
    `snapshots/step-000125/lora/...`. Steps beyond `optimizer.steps` are ignored."""


class HubSection(Section):
    """Where the model goes."""

    repo_id: Runtime[str | None] = None
    """Where `regforge publish` puts it on the Hub: `user/name`."""
    private: Runtime[bool] = True
    """Whether the Hub repository is private."""
    license: Runtime[str | None] = None
    """Licence of the model, as a Hub identifier (`openrail++`, `other`). It follows the base
    model's terms."""


class TrainingRecipe(RecipeDocument):
    """A personalized model, declared."""

    version: Literal[1] = 1
    """Version of the recipe format."""
    name: Runtime[str] = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    """Name of the model; the run goes to runs/<name>."""
    extends: Runtime[Path | None] = None
    """Another training recipe to start from; keys given here win."""
    base_model: str = Field(default="embedded/tinyworld", min_length=1)
    """A diffusers text-to-image repository or folder, such as `black-forest-labs/FLUX.1-dev`, a
    single `.safetensors` file, here or by its URL on the Hub, or `embedded/tinyworld` (in the
    package). A relative path starts at the recipe."""
    config: str | None = Field(default=None, min_length=1)
    """Of a single file: the diffusers repository or folder that says how it is built, and has what
    the file lacks; see `render.config`."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    variant: str | None = None
    """Weights variant in the repository, such as `fp16`."""
    subject: TrainingSubject
    """What is learned."""
    subjects: Runtime[Path | tuple[dict[str, Any], ...] | None] = None
    """Several subjects, one training after the other; as in dataset recipes. `{subject}` in
    `regularization.dataset` is the name; of a dataset recipe with the same subjects, each takes its
    own."""
    regularization: Regularization = Field(default_factory=Regularization)
    """What keeps the model from forgetting."""
    method: Method = Field(default_factory=Method)
    """What is trained."""
    data: Data = Field(default_factory=Data)
    """Cropping and dropout."""
    optimizer: Optimizer = Field(default_factory=Optimizer)
    """How the weights move."""
    validation: Validation = Field(default_factory=Validation)
    """Images on the way."""
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    """What is kept."""
    hub: HubSection = Field(default_factory=HubSection)
    """Where the model goes."""
    tracking: Runtime[Literal["none", "tensorboard", "wandb", "trackio"]] = "none"
    """Where numbers go besides log.jsonl; the package must be installed."""
    device: Runtime[str | None] = None
    """As torch spells it, such as `cuda` or `mps`; the best there is if left out."""
    offload: Runtime[Literal["model", "group", "sequential"]] = "model"
    """`model`: text encoders, autoencoder and denoiser are on the device one after the other. There
    is nothing else: `group` and `sequential` take weights away that the gradient needs, and are
    refused."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Everything random follows from it."""

    @property
    def trains_text(self) -> bool:
        """Whether text encoders are trained, or a token of theirs: some captions change."""
        return self.method.text_encoder or self.subject.token is not None

    @model_validator(mode="before")
    @classmethod
    def _as_the_model_is_made(cls, given: Any) -> Any:
        model = given.get("base_model") if isinstance(given, dict) else None
        made_for = usual(model) if isinstance(model, str) else None
        said = given.get("validation", {}) if made_for else None
        if made_for is None or not isinstance(said, dict):
            return given
        return {**given, "validation": {**made_for._asdict(), **said}}
