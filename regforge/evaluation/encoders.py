"""Images and captions as vectors whose cosine means something: DINO, CLIP and their like.

Any transformers checkpoint will do, from the Hub or from a folder, and the embedded judge. Knows
how such models want their images and captions; where they come from, `encoder_files` knows.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from regforge.devices import pick_device
from regforge.embedded import ALIGNMENT, IDENTITY
from regforge.evaluation.encoder_files import CLIP, DINO, EMBEDDED, Loaded, load
from regforge.evaluation.interface import EvaluationError, ImageEncoder, TextImageEncoder
from regforge.evaluation.suites import is_tinyworld

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = [
    "CLIP",
    "DINO",
    "EMBEDDED",
    "EncoderNames",
    "default_encoders",
    "open_image_encoder",
    "open_text_image_encoder",
]

_BATCH = 32
# Trained on lower case, padded to full length and with nothing masked; see SigLIP's model cards.
_SIGLIP = ("siglip", "siglip2")
_MOST_TOKENS = 512


@dataclass(frozen=True)
class EncoderNames:
    """Which encoders measure.

    Attributes:
        structure: Whose vectors say whether it is this subject: `facebook/dino-vits16`.
        alignment: Whose vectors put images beside captions: `openai/clip-vit-base-patch32`.
    """

    structure: str
    alignment: str


def default_encoders(base: str) -> EncoderNames:
    """The encoders for images of a base model, where nobody names others.

    DreamBooth measures with DINO ViT-S/16 and does not say which CLIP; ViT-B/32 is what those who
    repeat it take. The embedded judge is for the embedded pipeline.
    """
    return EncoderNames(EMBEDDED, EMBEDDED) if is_tinyworld(base) else EncoderNames(DINO, CLIP)


def open_image_encoder(name: str, *, device: str | None = None) -> ImageEncoder:
    """Load an encoder of images.

    What its vectors are: those of a CLIP-like model's image half (`get_image_features`); the CLS
    token behind the last layer (DINO, DINOv2, ViT); else the pooled output (ResNet, ConvNeXt).

    Args:
        name: A folder, `user/name`, `user/name@revision`, or `embedded/judge`.
        device: Where to compute; the best there is by default. Always in float32.

    Raises:
        EvaluationError: It is not there, cannot be loaded, or gives no vectors.
        HubError: The Hub has it not, or cannot be reached.
    """
    return _ImageEncoder(load(name, IDENTITY), pick_device(device))


def open_text_image_encoder(name: str, *, device: str | None = None) -> TextImageEncoder:
    """Load an encoder of images and captions: CLIP, SigLIP, AltCLIP, ...

    Args:
        name: As for `open_image_encoder`.
        device: As for `open_image_encoder`.

    Raises:
        EvaluationError: It is not there, cannot be loaded, or takes no captions.
        HubError: The Hub has it not, or cannot be reached.
    """
    loaded = load(name, ALIGNMENT)
    if not all(hasattr(loaded.model, f"get_{half}_features") for half in ("image", "text")):
        raise EvaluationError(
            f"{name} is a {type(loaded.model).__name__}, which does not put images and captions "
            "side by side.",
            hint=f"Name a CLIP-like model, such as {CLIP}.",
        )
    return _ImageTextEncoder(loaded, pick_device(device))


# -------------------------------------------------------------------------------------- encoders


class _ImageEncoder:
    """An `ImageEncoder` of a transformers model.

    Attributes:
        name: Model and revision.
        notes: What a reader of the results must know, a sentence each.
    """

    def __init__(self, loaded: Loaded, device: torch.device) -> None:
        self.name = loaded.name
        self.notes: list[str] = []
        self._model = loaded.model.to(device).eval()
        self._processor = loaded.processor
        self._device = device
        self._crop = _own_crop(loaded.model.config, loaded.processor)
        self._cls = any(
            name.rpartition(".")[2] == "cls_token" for name, _ in loaded.model.named_parameters()
        )
        if (
            loaded.lacks_pooler
            and not self._cls
            and not hasattr(loaded.model, "get_image_features")
        ):
            raise EvaluationError(f"{loaded.name} has no weights for its pooled output.")

    def images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Float32 [N, D], of unit length.

        Args:
            images: Of any size and mode.

        Raises:
            EvaluationError: The model gives no vectors, or no numbers.
        """
        return self._together([self._see(part) for part in _parts(images)])

    def _see(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        import torch

        rgb = [image.convert("RGB") for image in images]
        settings = {}
        if self._crop is not None:
            rgb = [_cropped(image, *self._crop) for image in rgb]
            settings = {"do_resize": False, "do_center_crop": False}
        inputs = self._processor(images=rgb, return_tensors="pt", **settings).to(self._device)
        with torch.inference_mode():
            return self._units(self._features(inputs))

    def _features(self, inputs: Any) -> Any:
        """The model's vectors of prepared images, [N, D]."""
        if hasattr(self._model, "get_image_features"):
            return _pooled(self._model.get_image_features(**_taken(self._model, inputs)))
        seen = self._model(pixel_values=inputs["pixel_values"])
        if self._cls:
            return seen.last_hidden_state[:, 0]
        pooled = getattr(seen, "pooler_output", None)
        if pooled is None:
            raise EvaluationError(
                f"{self.name} is a {type(self._model).__name__}, which gives no vector for an "
                "image.",
                hint=f"Name a vision model, such as {DINO}.",
            )
        return pooled.flatten(1)  # a ResNet's is [N, D, 1, 1]

    def _units(self, features: Any) -> NDArray[np.float32]:
        import torch

        units = torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()
        if not np.allclose(np.linalg.norm(units, axis=1), 1.0, atol=1e-3):  # NaN is not close
            raise EvaluationError(
                f"{self.name} gives vectors that are zero or no numbers.",
                hint="Its weights are damaged, or it is not meant for this device.",
            )
        found: NDArray[np.float32] = units
        return found

    def _together(self, parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        return np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32)


class _ImageTextEncoder(_ImageEncoder):
    """A `TextImageEncoder` of a transformers model."""

    def __init__(self, loaded: Loaded, device: torch.device) -> None:
        super().__init__(loaded, device)
        self._tokenizer = loaded.tokenizer()
        self._tokens = _most_tokens(loaded.model.config, self._tokenizer)
        self._siglip = loaded.model.config.model_type in _SIGLIP

    def texts(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """Float32 [N, D], of unit length. What is too long is cut off, and `notes` says so.

        Raises:
            EvaluationError: The model gives no numbers.
        """
        self._note_long(captions)
        return self._together([self._read(part) for part in _parts(captions)])

    def _read(self, captions: Sequence[str]) -> NDArray[np.float32]:
        import torch

        # Some models were trained with captions padded to full length; the others do not mind.
        inputs = self._tokenizer(
            [text.lower() if self._siglip else text for text in captions],
            padding="max_length",
            max_length=self._tokens,
            truncation=True,
            return_tensors="pt",
        ).to(self._device)
        if self._siglip:
            inputs.pop("attention_mask", None)
        with torch.inference_mode():
            return self._units(_pooled(self._model.get_text_features(**inputs)))

    def _note_long(self, captions: Sequence[str]) -> None:
        one_more = self._tokens + 1
        tokens = self._tokenizer(list(captions), truncation=True, max_length=one_more)["input_ids"]
        long = [text for text, ids in zip(captions, tokens, strict=True) if len(ids) == one_more]
        for text in dict.fromkeys(long):
            note = f"{self.name} reads {self._tokens} tokens; this prompt was cut: {text!r}."
            if note not in self.notes:
                self.notes.append(note)


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))


def _pooled(features: Any) -> Any:
    return getattr(features, "pooler_output", features)


def _taken(model: Any, inputs: Any) -> dict[str, Any]:
    """The inputs that `get_image_features` takes; those of SigLIP 2 are more than pixels."""
    takes = inspect.signature(model.get_image_features).parameters
    return {name: value for name, value in inputs.items() if name in takes}


def _most_tokens(config: Any, tokenizer: Any) -> int:
    text = getattr(config, "text_config", config)
    longest = getattr(text, "max_position_embeddings", None) or _MOST_TOKENS
    if "roberta" in text.model_type or text.model_type.startswith("altclip"):
        longest -= 2  # RoBERTa's positions begin behind that of the padding
    return min(longest, int(tokenizer.model_max_length))


# ----------------------------------------------------------------------------------- DINO's crop


def _own_crop(config: Any, processor: Any) -> tuple[int, int] | None:
    """(shorter side, square) in pixels for a ViT whose processor squeezes; None for the others.

    DINO's own evaluation, and that of the benchmarks which use it, makes the shorter side 8/7 of
    the input and cuts the middle out; its port's processor squeezes images into a square.
    (https://github.com/adobe-research/custom-diffusion, customconcept101/evaluate.py)
    """
    if config.model_type != "vit" or getattr(processor, "do_center_crop", False):
        return None
    side = int(config.image_size)
    return round(side * 256 / 224), side


def _cropped(image: Image.Image, shorter: int, side: int) -> Image.Image:
    scale = shorter / min(image.size)
    width, height = (max(shorter, int(length * scale)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))
