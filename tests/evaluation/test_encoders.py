"""Encoders of every sort, as small models with random weights, saved with their processors."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regforge.embedded import TINYWORLD
from regforge.errors import RegforgeError
from regforge.evaluation import encoders
from regforge.evaluation.encoders import ImageEncoder, TextImageEncoder, default_encoders
from regforge.evaluation.suites import EvaluationError

SIDE = 32
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
PATCHES: dict[str, Any] = {**SMALL, "image_size": SIDE, "patch_size": 8}
WORDS: dict[str, Any] = {**SMALL, "vocab_size": 5000, "max_position_embeddings": 16}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CAPTIONS = ["a photo of a cat on a beach", "a red teapot", "a dog"]


def images(count: int = 3) -> list[Image.Image]:
    numbers = np.random.default_rng(0)
    return [
        Image.fromarray(numbers.integers(0, 256, (40 + 9 * n, 64, 3), dtype=np.uint8))
        for n in range(count)
    ]


def build(name: str, folder: Path) -> Path:
    """Save a model with its processor, and a tokenizer if it reads captions."""
    import torch
    import transformers as hf

    torch.manual_seed(0)
    square, shortest = {"height": SIDE, "width": SIDE}, {"shortest_edge": SIDE}
    model: Any
    processor: Any
    if name == "dino":  # as `facebook/dino-vits16` is published: squeezes images into a square
        model = hf.ViTModel(hf.ViTConfig(**PATCHES), add_pooling_layer=False)
        processor = hf.ViTImageProcessor(size=square, image_mean=MEAN, image_std=STD)
    elif name == "dinov2":
        model = hf.Dinov2Model(hf.Dinov2Config(**PATCHES))
        processor = hf.BitImageProcessor(size={"shortest_edge": 36}, crop_size=SIDE)
    elif name == "resnet":
        small = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
        model = hf.ResNetModel(hf.ResNetConfig(**small, layer_type="basic"))
        processor = hf.ConvNextImageProcessor(size=shortest)
    elif name == "clip":
        ids = json.loads((TINYWORLD / "tokenizer" / "tokenizer.json").read_text("utf-8"))["model"]
        end = ids["vocab"]["<|endoftext|>"]
        words = {**WORDS, "eos_token_id": end, "bos_token_id": end - 1, "pad_token_id": end}
        config = hf.CLIPConfig(text_config=words, vision_config=PATCHES, projection_dim=12)
        model, processor = (
            hf.CLIPModel(config),
            hf.CLIPImageProcessor(size=shortest, crop_size=SIDE),
        )
    else:
        words = {**WORDS, "projection_size": 16}
        model = hf.SiglipModel(hf.SiglipConfig(text_config=words, vision_config=PATCHES))
        processor = hf.SiglipImageProcessor(size=square)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if name in ("clip", "siglip"):
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TINYWORLD / "tokenizer" / file, folder / file)
    return folder


Saved = Callable[[str], Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return functools.cache(lambda name: build(name, tmp_path_factory.mktemp("models") / name))


def unit(vector: np.ndarray) -> Any:
    return pytest.approx(vector / np.linalg.norm(vector), abs=1e-4)


@pytest.mark.parametrize("name", ["dino", "dinov2", "resnet", "clip", "siglip"])
def test_vectors_have_unit_length(saved: Saved, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ImageEncoder(str(saved(name)), device="cpu")
    found = encoder.images(images())
    assert (found.dtype, len(found)) == (np.float32, 3)
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-4  # it does look at them
    monkeypatch.setattr("regforge.evaluation.encoders._BATCH", 2)
    assert encoder.images(images()) == pytest.approx(found, abs=1e-5)
    assert encoder.images([]).shape[0] == 0
    assert encoder.name.startswith(f"{name}@sha256:")


def test_dino_is_the_cls_token_of_the_middle_of_the_image(saved: Saved) -> None:
    import torch
    from transformers import ViTModel

    image = Image.new("RGB", (74, 37), "blue")  # 37 is 8/7 of 32: nothing is resized
    image.paste(images()[0].crop((0, 0, SIDE, SIDE)), (21, 2))
    pixels = np.asarray(image, dtype=np.float32)[2:34, 21:53] / 255
    values = torch.from_numpy((pixels - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1)
    model = ViTModel.from_pretrained(saved("dino"), add_pooling_layer=False).eval()
    with torch.inference_mode():
        token = model(values[None].contiguous()).last_hidden_state[0, 0].numpy()
    found = ImageEncoder(str(saved("dino")), device="cpu").images([image])
    assert found[0] == unit(token)


def test_dinov2_is_its_cls_token(saved: Saved) -> None:
    import torch
    from transformers import BitImageProcessorPil, Dinov2Model

    processor = BitImageProcessorPil.from_pretrained(saved("dinov2"))
    inputs = processor(images=images(1), return_tensors="pt")
    with torch.inference_mode():
        output = Dinov2Model.from_pretrained(saved("dinov2")).eval()(**inputs)
    found = ImageEncoder(str(saved("dinov2")), device="cpu").images(images(1))
    assert found[0] == unit(output.last_hidden_state[0, 0].numpy())


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_pairs_put_captions_into_the_same_space(saved: Saved, name: str) -> None:
    encoder = TextImageEncoder(str(saved(name)), device="cpu")
    captions = encoder.texts(CAPTIONS)
    assert captions.dtype == np.float32
    assert captions.shape == encoder.images(images()).shape
    assert np.linalg.norm(captions, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert encoder.texts(CAPTIONS[1:2])[0] == pytest.approx(captions[1], abs=1e-5)
    assert encoder.texts(["A Red TEAPOT"])[0] == pytest.approx(captions[1], abs=1e-5)


def test_clip_is_its_projection_and_does_not_mind_padding(saved: Saved) -> None:
    import torch
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(saved("clip")).eval()
    inputs = AutoTokenizer.from_pretrained(saved("clip"))(CAPTIONS[:1], return_tensors="pt")
    with torch.inference_mode():
        hidden = model.text_model(**inputs).last_hidden_state[0, -1]  # the end-of-text token
        text = model.text_projection(hidden).numpy()
    found = TextImageEncoder(str(saved("clip")), device="cpu").texts(CAPTIONS[:1])
    assert found[0] == unit(text)


def test_siglip_reads_captions_padded_and_unmasked(saved: Saved) -> None:
    import torch
    from transformers import AutoTokenizer, SiglipModel

    model = SiglipModel.from_pretrained(saved("siglip")).eval()
    tokens = AutoTokenizer.from_pretrained(saved("siglip"))(
        CAPTIONS[:1], padding="max_length", max_length=16, return_tensors="pt"
    )
    with torch.inference_mode():
        text = model.get_text_features(input_ids=tokens["input_ids"]).pooler_output[0].numpy()
        masked = model.get_text_features(**tokens).pooler_output[0].numpy()
    assert np.abs(text - masked).max() > 1e-3  # so it matters
    found = TextImageEncoder(str(saved("siglip")), device="cpu").texts(CAPTIONS[:1])
    assert found[0] == unit(text)


def test_a_long_caption_is_cut_and_noted_once(saved: Saved) -> None:
    encoder = TextImageEncoder(str(saved("clip")), device="cpu")
    long = "a photo of a cat " * 8
    first = encoder.texts([long, "a cat"])
    assert encoder.texts([long + "on a beach"])[0] == pytest.approx(first[0], abs=1e-5)
    encoder.texts([long])
    notes = encoder.notes  # type: ignore[attr-defined]
    assert len(notes) == 2  # two captions, and one of them twice
    assert "reads 16 tokens" in notes[0]
    assert long in notes[0]


def test_the_embedded_judge_measures_as_curation_does(repo: Path) -> None:
    from regforge.images.curation import AlignmentScorer

    folder = repo / "examples" / "subjects" / "cat"
    photos = [Image.open(folder / f"0{number}.png").convert("RGB") for number in range(2)]
    captions = ["a photo of a cat in a meadow", "a photo of a cat in a bedroom"]
    judge = TextImageEncoder("embedded/judge", device="cpu")
    assert judge.name == "embedded/judge"
    cosines = judge.images(photos) @ judge.texts(captions).T
    assert cosines.argmax(axis=1).tolist() == [0, 1]
    scores = AlignmentScorer(device="cpu").scores(photos, captions)
    assert np.diagonal(cosines) == pytest.approx(scores, abs=2e-4)

    identity = ImageEncoder("embedded/judge", device="cpu")
    dog = Image.open(repo / "examples" / "subjects" / "dog" / "00.png")
    first, second, other = identity.images([*photos, dog])
    assert first @ second > first @ other + 0.3


def test_default_encoders_and_one_of_images_alone_takes_no_captions(saved: Saved) -> None:
    embedded = ("embedded/judge", "embedded/judge")
    assert default_encoders("embedded/tinyworld") == embedded
    assert default_encoders(str(TINYWORLD)) == embedded
    real = ("facebook/dino-vits16", "openai/clip-vit-base-patch32")
    assert default_encoders("stabilityai/stable-diffusion-xl-base-1.0") == real
    with pytest.raises(EvaluationError, match="does not put images and captions side by side"):
        TextImageEncoder(str(saved("dino")))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("facebook/dino-vits16@main", "facebook/dino-vits16"),
        *((name, "There is no folder") for name in ("./nowhere", "no model", "/no/such/folder")),
    ],
)
def test_without_network_or_folder_one_sentence_says_what_to_pass(name: str, words: str) -> None:
    with pytest.raises(RegforgeError) as caught:
        ImageEncoder(name)
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert "local folder" in (caught.value.hint or "")


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the weights of a model."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "it has no config.json"),
        (lambda f: (f / "config.json").write_text('{"model_type": "x"}'), "cannot be loaded"),
        (lambda f: (f / "model.safetensors").rename(f / "model.bin"), "no weights as safetensors"),
        (lambda f: changed(f, lambda w: w.pop("embeddings.cls_token")), "lacks embeddings.cls"),
        (lambda f: changed(f, lambda w: w["layernorm.weight"].mul_(math.nan)), "or no numbers"),
    ],
)
def test_models_that_cannot_measure_are_refused(
    saved: Saved, tmp_path: Path, damage: Callable[[Path], Any], words: str
) -> None:
    folder = Path(shutil.copytree(saved("dinov2"), tmp_path / "dinov2"))
    damage(folder)
    with pytest.raises(EvaluationError) as error:
        ImageEncoder(str(folder), device="cpu").images(images(1))
    assert words in error.value.message


@pytest.fixture
def torchmetrics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A torchmetrics whose LPIPS is the mean absolute difference; the cache of its weights."""
    import torch

    class Net(torch.nn.Module):
        def forward(self, first: Any, second: Any, normalize: bool) -> Any:
            assert normalize
            assert 0 <= first.min() <= first.max() <= 1
            assert len(first) <= encoders._LPIPS_BATCH
            return (first - second).abs().mean(dim=(1, 2, 3), keepdim=True)

    class Metric:
        def __init__(self, net_type: str) -> None:
            assert net_type == "alex"
            assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
            self.net = Net()

    made: dict[str, dict[str, Any]] = {
        "torchmetrics.image.lpip": {"LearnedPerceptualImagePatchSimilarity": Metric},
        "torchvision.models": {"alexnet": None},
        **{name: {} for name in ("torchmetrics", "torchmetrics.image", "torchvision")},
    }
    for name, content in made.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(metadata, "version", lambda name: f"9 of {name}")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth"


def test_distances_of_pairs(torchmetrics: Path) -> None:
    torchmetrics.parent.mkdir()
    torchmetrics.touch()
    lpips = encoders.open_lpips(device="cpu")
    assert isinstance(lpips, encoders.Lpips)
    assert lpips.name == "LPIPS (AlexNet, torchmetrics 9 of torchmetrics)"
    images = [Image.new("L", (64, 64), level) for level in (0, 51, 255)]
    pairs = [(0, 1), (0, 2), (1, 2), *[(2, 2)] * 9]  # more than one batch
    expected = [0.2, 1.0, 0.8, *[0.0] * 9]
    assert lpips.distances(images, pairs) == pytest.approx(expected, abs=1e-6)
    assert lpips.distances(images, []).size == 0
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.usefixtures("torchmetrics")
def test_nothing_is_downloaded_offline_or_without_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "HF_HUB_OFFLINE is set" in str(encoders.open_lpips())  # the tests set it
    monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", None)
    assert encoders.open_lpips() == encoders.INSTALL_LPIPS
