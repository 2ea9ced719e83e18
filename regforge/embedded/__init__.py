"""Models that travel with regforge and need no network, no GPU and no key.

    tinyworld/        a small real text-to-image pipeline (a diffusers folder)
    judge/            small image and text encoders that measure its images (transformers folders)
    language_model/   SmolLM2-135M as a LiteLLM provider, for choosing among phrases
    banks/            curated phrases per super-category and slot

The pipeline draws 96-pixel images of a sticker world. It is there to learn, to test and to
experiment on in minutes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.errors import RegforgeError

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline
    from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase


TINYWORLD: Path = Path(__file__).parent / "tinyworld"
IDENTITY: Path = Path(__file__).parent / "judge" / "identity"
ALIGNMENT: Path = Path(__file__).parent / "judge" / "alignment"
EMBEDDED, EMBEDDED_JUDGE = "embedded/tinyworld", "embedded/judge"
EMBEDDED_FOLDERS = {EMBEDDED: TINYWORLD, EMBEDDED_JUDGE: ALIGNMENT}
"""A recipe's name of an embedded model -> its folder."""

# Whoever imports diffusers imports torchao, if it is there, which says what it lacks without a GPU.
for _logger in ("diffusers.quantizers", "torchao", "torch.utils._pytree"):
    logging.getLogger(_logger).setLevel(logging.ERROR)


class EmbeddedModelMissing(RegforgeError):
    """A folder of embedded weights is not where the package should have it."""


def require_folder(folder: Path, file: str) -> Path:
    """Return `folder` if it holds `file`.

    Raises:
        EmbeddedModelMissing: The installation is incomplete.
    """
    if not (folder / file).is_file():
        raise EmbeddedModelMissing(
            f"The embedded model in {folder} is missing {file}.",
            hint="Install regforge again: pip install --force-reinstall --no-deps regforge",
        )
    return folder


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Load our small models without progress bars, and without notes on what they do not need.

    transformers says at length that it could use torchvision; no embedded model has a use for it.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    bars = [m for m in (diffusers_logging, transformers_logging) if m.is_progress_bar_enabled()]
    verbosity = transformers_logging.get_verbosity()
    for module in bars:
        module.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        for module in bars:
            module.enable_progress_bar()


def load_pipeline(
    device: str | None = None, dtype: torch.dtype | None = None
) -> StableDiffusionPipeline:
    """Load the embedded pipeline, ready to call with prompts.

    Args:
        device: 'cpu', 'cuda', 'mps', ...; by default CUDA if there is a GPU, else the CPU.
        dtype: Precision of the weights; by default float16 on CUDA and float32 elsewhere.

    Returns:
        A StableDiffusionPipeline. Pass it `num_inference_steps=25, guidance_scale=4.0`, which is
        what it was measured with; diffusers' own defaults are 50 and 7.5. Images have 96 px.

    Raises:
        EmbeddedModelMissing: The weights are not in the package.
    """
    import torch

    folder = require_folder(TINYWORLD, "model_index.json")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype is None:
        dtype = torch.float16 if device.startswith("cuda") else torch.float32
    with quiet_loading():
        from diffusers import StableDiffusionPipeline

        loaded: Any = StableDiffusionPipeline.from_pretrained(
            folder, dtype=dtype, local_files_only=True
        )
    pipeline: StableDiffusionPipeline = loaded.to(device)
    return pipeline


def load_vocabulary() -> dict[str, list[str]]:
    """What the embedded pipeline can draw, in phrases for captions.

    Returns:
        Phrases by slot: 'class_noun' and 'living' (those of them that are alive), 'color',
        'texture', 'size', 'motion', 'background', 'lighting' and 'style' (which ends in "of").

    Raises:
        EmbeddedModelMissing: The file is not in the package.
    """
    folder = require_folder(TINYWORLD, "vocabulary.json")
    words: dict[str, list[str]] = json.loads((folder / "vocabulary.json").read_text("utf-8"))
    return words


def load_identity() -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Load the image encoder whose embeddings tell drawings apart, as DINO's tell photos.

    It was trained on the tiny world's own images, never on the generator's.

    Returns:
        The model and the image processor that makes its inputs from PIL images. Embeddings are
        `model(**inputs).pooler_output.flatten(1)`, float32 (n, 256); compare them by cosine. (The
        pooled output is (n, 256, 1, 1), as of every ResNet; flattening leaves DINO's as it is.)

    Raises:
        EmbeddedModelMissing: The weights are not in the package.
    """
    return _judge(IDENTITY)


def load_alignment() -> tuple[PreTrainedModel, BaseImageProcessor, PreTrainedTokenizerBase]:
    """Load the text-image pair whose cosine says how well a caption fits an image.

    Returns:
        The model, the image processor and the tokenizer (pad captions to `max_length`, as the
        model was trained). `model(input_ids=..., pixel_values=...)` gives `image_embeds` and
        `text_embeds`, float32 (n, 128) of unit length; `get_image_features(...).pooler_output` and
        `get_text_features(...).pooler_output` give them one by one, not normalised.

    Raises:
        EmbeddedModelMissing: The weights are not in the package.
    """
    from transformers import AutoTokenizer

    model, processor = _judge(ALIGNMENT)
    return model, processor, AutoTokenizer.from_pretrained(ALIGNMENT, local_files_only=True)


def _judge(folder: Path) -> tuple[PreTrainedModel, BaseImageProcessor]:
    require_folder(folder, "config.json")
    with quiet_loading():
        from transformers import AutoImageProcessor, AutoModel

        model: Any = AutoModel.from_pretrained(folder, dtype="float32", local_files_only=True)
        processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    return model.eval(), processor
