"""How well an image shows its caption: the cosine of a text-image pair of encoders.

Any transformers checkpoint that has `get_image_features` and `get_text_features` will do (CLIP,
SigLIP, ...), or the embedded judge. Scores of different models cannot be compared. Knows nothing
about what is done with a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from regforge.errors import RegforgeError
from regforge.files import expanded

if TYPE_CHECKING:
    import torch

EMBEDDED = "embedded/judge"
_DIGITS = 4
_MOST_TOKENS = 512


class AlignmentModelError(RegforgeError):
    """A model that cannot score how well images show their captions."""


class AlignmentScorer:
    """Scores images against captions.

    Args:
        model: A repository or folder of a CLIP-like transformers checkpoint, or `embedded/judge`.
        device: Where to compute; CUDA if there is a GPU, else the CPU.
        batch_size: Images at a time.

    Raises:
        AlignmentModelError: The model cannot be loaded, or is of another sort.
    """

    def __init__(
        self, model: str = EMBEDDED, *, device: str | None = None, batch_size: int = 16
    ) -> None:
        import torch

        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._batch_size = batch_size
        loaded, self._processor, self._tokenizer = _load(model)
        self._model: Any = loaded.to(self.device).eval()
        text = getattr(self._model.config, "text_config", self._model.config)
        longest = getattr(text, "max_position_embeddings", None) or _MOST_TOKENS
        self._tokens = min(longest, self._tokenizer.model_max_length)

    def scores(self, images: Sequence[Image.Image], captions: Sequence[str]) -> list[float]:
        """Cosine similarity of each image and its caption, -1 to 1.

        Args:
            images: RGB images of any size.
            captions: One for each; what is too long for the model is cut off.

        Returns:
            Rounded to 4 digits, which leaves out what depends on the batch.
        """
        import torch

        found: list[float] = []
        for start in range(0, len(images), self._batch_size):
            part = slice(start, start + self._batch_size)
            with torch.inference_mode():
                similarity = (self._see(images[part]) * self._read(captions[part])).sum(dim=-1)
            found += [round(value, _DIGITS) for value in similarity.tolist()]
        return found

    def _see(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Unit vectors, float32 (n, d)."""
        inputs = self._processor(images=list(images), return_tensors="pt").to(self.device)
        return _unit(self._model.get_image_features(pixel_values=inputs["pixel_values"]))

    def _read(self, captions: Sequence[str]) -> torch.Tensor:
        """Unit vectors, float32 (n, d)."""
        # SigLIP and the embedded judge were trained with captions padded to full length; to CLIP
        # it makes no difference.
        inputs = self._tokenizer(
            list(captions),
            padding="max_length",
            max_length=self._tokens,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        return _unit(self._model.get_text_features(**inputs))


def _unit(features: Any) -> torch.Tensor:
    import torch

    vectors = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


def _load(model: str) -> tuple[Any, Any, Any]:
    if model == EMBEDDED:
        from regforge.embedded import load_alignment

        return load_alignment()
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    where = str(expanded(model)) if expanded(model).is_dir() else model
    try:
        # Safetensors only: pickled weights can run code.
        loaded = AutoModel.from_pretrained(where, use_safetensors=True, dtype="float32")
        processor = AutoImageProcessor.from_pretrained(where)
        tokenizer = AutoTokenizer.from_pretrained(where)
    except Exception as error:  # whatever a broken file makes the parts of transformers raise
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise AlignmentModelError(
            f"curate.alignment.model: {model!r} cannot be loaded: {reason}",
            hint="Name a CLIP-like transformers repository or folder, such as "
            "openai/clip-vit-base-patch32, or embedded/judge for images of the embedded "
            "pipeline. Without network, the model must be in the Hub's cache or in a folder.",
        ) from error
    if not (hasattr(loaded, "get_image_features") and hasattr(loaded, "get_text_features")):
        raise AlignmentModelError(
            f"curate.alignment.model: {model!r} is a {type(loaded).__name__}, which does not put "
            "images and captions side by side.",
            hint="Name a CLIP-like model, such as openai/clip-vit-base-patch32.",
        )
    return loaded, processor, tokenizer
