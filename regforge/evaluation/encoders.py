"""Encoders: images and captions as unit vectors whose cosine says how alike they are.

Takes any transformers checkpoint (DINO, CLIP and their like) from the Hub or a folder, the embedded
judge, and LPIPS where torchmetrics is installed. Loads safetensors only and runs no code of a
repository.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regforge.devices import pick_device
from regforge.embedded import ALIGNMENT, EMBEDDED_JUDGE, IDENTITY, quiet_loading, require_folder
from regforge.evaluation.suites import EvaluationError, absolute, is_tinyworld
from regforge.files import revision_of
from regforge.hub import HubAddress, HubError, explained
from regforge.words import first_line, missing_package

DINO = "facebook/dino-vits16"
CLIP = "openai/clip-vit-base-patch32"
INSTALL_LPIPS = "DIV is not LPIPS: that needs `pip install torchmetrics torchvision`."

_LOCAL = (
    "A local folder with a transformers model works too (--structure-encoder, "
    "--alignment-encoder). embedded/judge needs no network; it knows nothing but images of "
    "embedded/tinyworld."
)
_BATCH = 32
# Trained on lower case, padded to full length and with nothing masked; see SigLIP's model cards.
_SIGLIP = ("siglip", "siglip2")
_MOST_TOKENS = 512
_ALEXNET = "alexnet-owt-7be5be79.pth"
_LPIPS_BATCH = 8


def default_encoders(base: str) -> tuple[str, str]:
    """Names of the structure and the alignment encoder for images of a base model.

    DreamBooth measures with DINO ViT-S/16 and does not name its CLIP; ViT-B/32 is what those who
    repeat it take. The embedded judge is for the embedded pipeline.
    """
    return (EMBEDDED_JUDGE, EMBEDDED_JUDGE) if is_tinyworld(base) else (DINO, CLIP)


# -------------------------------------------------------------------------------- transformers


class ImageEncoder:
    """Images to unit vectors.

    The vectors are those of a CLIP-like model's image half (`get_image_features`); the CLS token
    behind the last layer (DINO, DINOv2, ViT); else the pooled output (ResNet, ConvNeXt).

    Args:
        name: A folder, `user/name`, `user/name@revision`, or `embedded/judge`.
        device: The best there is by default. Always in float32.
        judge: The folder that `embedded/judge` stands for.

    Attributes:
        name: Model and revision, as results have it: `facebook/dino-vits16@<commit>`.
        notes: What a reader of the results must know, a sentence each.

    Raises:
        EvaluationError: It is not there, cannot be loaded, lacks weights, or gives no vectors.
        HubError: The Hub has it not, or cannot be reached.
    """

    def __init__(self, name: str, *, device: str | None = None, judge: Path = IDENTITY) -> None:
        self._source = _find(name, judge)
        model, self._processor, lacks_pooler = _load(self._source)
        source, place = self._source, Path(self._source.place)
        if source.name == EMBEDDED_JUDGE:
            self.name = EMBEDDED_JUDGE
        elif source.address is None:
            self.name = f"{place.resolve().name}@{revision_of(place)[:19]}"
        else:
            commit = getattr(model.config, "_commit_hash", None) or source.options["revision"]
            self.name = f"{source.place}@{commit}"
        self.notes: list[str] = []
        self._device = pick_device(device, "device")
        self._model = model.to(self._device).eval()
        self._crop = _dino_crop(model.config, self._processor)
        parameters = (each for each, _ in model.named_parameters())
        self._cls = any(each.rpartition(".")[2] == "cls_token" for each in parameters)
        if lacks_pooler and not self._cls and not hasattr(model, "get_image_features"):
            raise EvaluationError(f"{self.name} has no weights for its pooled output.")

    def images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Encode images of any size and mode; float32 [N, D], of unit length."""
        import torch

        whole = {"do_resize": False, "do_center_crop": False} if self._crop else {}
        parts = []
        for part in _parts(images):
            rgb = [image.convert("RGB") for image in part]
            if self._crop:
                rgb = [_cropped(image, *self._crop) for image in rgb]
            inputs = self._processor(images=rgb, return_tensors="pt", **whole).to(self._device)
            with torch.inference_mode():
                parts.append(self._units(self._features(inputs)))
        return _joined(parts)

    def _features(self, inputs: Any) -> Any:
        """Vectors of prepared images, [N, D]."""
        if hasattr(self._model, "get_image_features"):
            # SigLIP 2 takes more than pixels, others nothing else.
            takes = inspect.signature(self._model.get_image_features).parameters
            taken = {name: value for name, value in inputs.items() if name in takes}
            return self._model.get_image_features(**taken)
        output = self._model(pixel_values=inputs["pixel_values"])
        if self._cls:
            return output.last_hidden_state[:, 0]
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            raise EvaluationError(
                f"{self.name} is a {type(self._model).__name__}, which gives no vector for an "
                "image.",
                hint=f"Name a vision model, such as {DINO}.",
            )
        return pooled.flatten(1)  # a ResNet's is [N, D, 1, 1]

    def _units(self, features: Any) -> NDArray[np.float32]:
        import torch

        features = getattr(features, "pooler_output", features)
        units: NDArray[np.float32]
        units = torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()
        if not np.allclose(np.linalg.norm(units, axis=1), 1.0, atol=1e-3):  # NaN is not close
            raise EvaluationError(
                f"{self.name} gives vectors that are zero or no numbers.",
                hint="Its weights are damaged, or it is not meant for this device.",
            )
        return units


class TextImageEncoder(ImageEncoder):
    """Images and captions to unit vectors of one space: CLIP, SigLIP, AltCLIP, ..."""

    def __init__(self, name: str, *, device: str | None = None, judge: Path = ALIGNMENT) -> None:
        super().__init__(name, device=device, judge=judge)
        if not all(hasattr(self._model, f"get_{half}_features") for half in ("image", "text")):
            raise EvaluationError(
                f"{name} is a {type(self._model).__name__}, which does not put images and captions "
                "side by side.",
                hint=f"Name a CLIP-like model, such as {CLIP}.",
            )
        from transformers import AutoTokenizer

        with quiet_loading():
            try:
                source = self._source
                self._tokenizer = AutoTokenizer.from_pretrained(source.place, **source.options)
            except Exception as error:
                raise _problem(self._source, error) from error
        text = getattr(self._model.config, "text_config", self._model.config)
        longest = getattr(text, "max_position_embeddings", None) or _MOST_TOKENS
        if "roberta" in text.model_type or text.model_type.startswith("altclip"):
            longest -= 2  # RoBERTa's positions begin behind that of the padding
        self._tokens = min(longest, int(self._tokenizer.model_max_length))
        self._siglip = self._model.config.model_type in _SIGLIP

    def texts(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """Encode captions; float32 [N, D], of unit length. What is too long is cut and noted."""
        import torch

        one_more = self._tokens + 1
        tokens = self._tokenizer(list(captions), truncation=True, max_length=one_more)["input_ids"]
        for text, ids in zip(captions, tokens, strict=True):
            note = f"{self.name} reads {self._tokens} tokens; this prompt was cut: {text!r}."
            if len(ids) == one_more and note not in self.notes:
                self.notes.append(note)
        parts = []
        for part in _parts(captions):
            # Some models were trained with captions padded to full length; others do not mind.
            inputs = self._tokenizer(
                [text.lower() if self._siglip else text for text in part],
                padding="max_length",
                max_length=self._tokens,
                truncation=True,
                return_tensors="pt",
            ).to(self._device)
            if self._siglip:
                inputs.pop("attention_mask", None)
            with torch.inference_mode():
                parts.append(self._units(self._model.get_text_features(**inputs)))
        return _joined(parts)


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))


def _joined(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32)


def _dino_crop(config: Any, processor: Any) -> tuple[int, int] | None:
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


# ----------------------------------------------------------------------------------- checkpoints


@dataclass(frozen=True)
class _Source:
    """Where a checkpoint lies; `place` and `options` as transformers takes them."""

    name: str
    place: str
    options: dict[str, Any]
    address: HubAddress | None = None


def _find(name: str, judge: Path) -> _Source:
    local = {"trust_remote_code": False, "local_files_only": True}
    if name == EMBEDDED_JUDGE:
        return _Source(name, str(require_folder(judge, "config.json")), local)
    folder = absolute(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise EvaluationError(
                f"{name} is no transformers model: it has no config.json.",
                hint="Name the folder that holds config.json, model.safetensors and "
                "preprocessor_config.json.",
            )
        return _Source(name, str(folder), local)
    address = HubAddress.parse(name)
    if address is None or name.startswith((".", "~", "/")):
        raise EvaluationError(f"There is no folder {name}.", hint=_LOCAL)
    options = {"trust_remote_code": False, "revision": address.revision or "main"}
    return _Source(name, address.repo_id, options, address)


def _load(source: _Source) -> tuple[Any, Any, bool]:
    """Model in float32, image processor, and whether weights of the pooled output are lacking."""
    with quiet_loading():
        from huggingface_hub import hf_hub_download
        from transformers import AutoImageProcessor, AutoModel

        try:
            if source.address is not None:  # the Hub's own words for a model that is not there
                hf_hub_download(source.place, "config.json", revision=source.options["revision"])
            model, loading = AutoModel.from_pretrained(
                source.place,
                dtype="float32",
                use_safetensors=True,  # others can hold code
                output_loading_info=True,
                **source.options,
            )
            # Torchvision's images differ a little, and not everybody has it.
            processor = AutoImageProcessor.from_pretrained(
                source.place, backend="pil", **source.options
            )
        except Exception as error:  # whatever a broken file makes transformers raise
            raise _problem(source, error) from error
    missing = sorted(loading["missing_keys"])
    lacking = [key for key in missing if "pooler" not in key]
    if lacking:
        more = f" and {len(lacking) - 1} others" if len(lacking) > 1 else ""
        raise EvaluationError(
            f"{source.name} cannot measure: its file of weights lacks {lacking[0]}{more}."
        )
    return model, processor, bool(missing)


def _problem(source: _Source, error: Exception) -> EvaluationError | HubError:
    text = first_line(error)
    if "safetensors" in text and ("no file named" in text or "have a file named" in text):
        return EvaluationError(
            f"{source.name} has no weights as safetensors; others can hold code, so regforge does "
            "not load them.",
            hint="Load it once with transformers and save it with save_pretrained, then name that "
            "folder.",
        )
    if source.address is not None and _comes_from_the_hub(error):
        found = explained(error, source.place, repo_type="model", revision=source.address.revision)
        return HubError(found.message, hint=f"{found.hint or ''} {_LOCAL}".strip())
    if package := missing_package(error):
        return EvaluationError(
            f"{source.name} needs a package that is not here: {package}.",
            hint=f"pip install {package}",
        )
    return EvaluationError(
        f"{source.name} cannot be loaded: {text}.",
        hint=f"It must be a transformers model of images, such as {DINO} or {CLIP}.",
    )


def _comes_from_the_hub(error: BaseException | None) -> bool:
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    theirs = (HTTPError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError)
    while error is not None:
        if isinstance(error, theirs):
            return True
        error = error.__cause__ or error.__context__
    return False


# ----------------------------------------------------------------------------------------- LPIPS


class Lpips:
    """Distances of pairs of images (https://arxiv.org/abs/1801.03924), backbone AlexNet.

    DreamBooth measures diversity by it. It is optional, because its backbone is no transformers
    model and is downloaded by torchvision; `open_lpips` loads it.
    """

    def __init__(self, metric: Any, version: str, device: str | None) -> None:
        self.name = f"LPIPS (AlexNet, torchmetrics {version})"
        self._device = pick_device(device, "device")
        self._net = metric.net.to(self._device).eval()

    def distances(
        self, images: Sequence[Image.Image], pairs: Sequence[tuple[int, int]]
    ) -> NDArray[np.float64]:
        """Distances of pairs of places, [P], from 0 for equal images to about 1.

        Images are of one size, at least 64 pixels on each side.
        """
        import torch

        found: list[float] = []
        for start in range(0, len(pairs), _LPIPS_BATCH):
            first, second = zip(*pairs[start : start + _LPIPS_BATCH], strict=True)
            with torch.inference_mode():
                values = self._net(
                    self._pixels([images[place] for place in first]),
                    self._pixels([images[place] for place in second]),
                    normalize=True,
                )
            found += values.flatten().tolist()
        return np.array(found, dtype=np.float64)

    def _pixels(self, images: Sequence[Image.Image]) -> Any:
        """Float32 [N, 3, H, W], 0 to 1."""
        import torch

        rows = np.stack([np.asarray(image.convert("RGB")) for image in images])
        values = torch.from_numpy(rows).to(self._device)
        return values.permute(0, 3, 1, 2).float() / 255


def open_lpips(*, device: str | None = None) -> Lpips | str:
    """LPIPS, or one sentence that says why it cannot be had.

    Its backbone (233 MB) is downloaded once, unless HF_HUB_OFFLINE is set.
    """
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        from torchvision.models import alexnet  # noqa: F401
    except ImportError:
        return INSTALL_LPIPS
    except RuntimeError as error:  # a torchvision that was built for another torch
        return f"DIV is not LPIPS: torchvision cannot be used ({first_line(error)})."
    import torch

    there = Path(torch.hub.get_dir(), "checkpoints", _ALEXNET).is_file()
    if not there and os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return (
            f"DIV is not LPIPS: {_ALEXNET} is not in torch.hub's cache, and HF_HUB_OFFLINE is set."
        )
    try:
        with _weights_only():
            metric = LearnedPerceptualImagePatchSimilarity(net_type="alex")
    except Exception as error:  # no network, a cut or broken download
        return f"DIV is not LPIPS: its backbone cannot be loaded ({first_line(error)})."
    return Lpips(metric, metadata.version("torchmetrics"), device)


@contextmanager
def _weights_only() -> Iterator[None]:
    """Have torch refuse code in the files it loads, which torchvision does not ask it for."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
