"""The judge's architectures: small image encoders and a text-image pair, as transformers classes.

`identity` is a ResNet (an `AutoModel` whose `pooler_output`, flattened, is the embedding),
`alignment` a VisionTextDualEncoder (`get_image_features`, `get_text_features`). `reader` puts
attribute heads on a ResNet: the classifier that measures the generator. None of them ever sees a
generated image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import models
from world import vocabulary as v
from world.captions import Spec

MEAN = STD = [0.5, 0.5, 0.5]
EMBEDDING = 128
SLOTS: dict[str, list[str | None]] = {
    "class_noun": list(v.CLASS_NOUNS),
    "place": list(v.PLACES),
    "color": [None, *v.COLORS],
    "texture": [None, *v.TEXTURES],
    "size": [None, *v.SIZES],
    "motion": [None, *v.MOTIONS],
    "light": list(v.LIGHTS),
    "style": list(v.STYLES),
}


def residual_tower() -> Any:
    """ResNetModel on 96 px images, 1.6M parameters; `pooler_output` is (n, 256, 1, 1)."""
    from transformers import ResNetConfig, ResNetModel

    return ResNetModel(
        ResNetConfig(
            num_channels=3,
            embedding_size=32,
            hidden_sizes=[64, 96, 160, 256],
            depths=[1, 1, 1, 1],
            layer_type="basic",
        )
    )


def convnext_tower() -> Any:
    """ConvNextModel on 96 px images, 1.9M parameters; `pooler_output` is (n, 256).

    A ResNet learns faster, but transformers' dual encoder cannot take its four-dimensional output.
    """
    from transformers import ConvNextConfig, ConvNextModel

    return ConvNextModel(
        ConvNextConfig(
            num_channels=3,
            image_size=models.SIDE,
            patch_size=4,
            hidden_sizes=[48, 96, 192, 256],
            depths=[1, 1, 3, 1],
            layer_scale_init_value=1.0,  # the default, 1e-6, is for far deeper networks
            hidden_size=256,  # what the dual encoder calls the width of `pooler_output`
        )
    )


def image_processor() -> Any:
    """Resizes to 96 px and normalises to -1..1."""
    from transformers import ConvNextImageProcessor

    return ConvNextImageProcessor(
        do_resize=True,
        size={"shortest_edge": models.SIDE},
        crop_pct=1.0,
        resample=3,
        do_normalize=True,
        image_mean=MEAN,
        image_std=STD,
    )


def dual_encoder(tokenizer: Any, vision: Any) -> Any:
    """VisionTextDualEncoderModel: `vision` beside a two-layer text encoder of width 128."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        VisionTextDualEncoderConfig,
        VisionTextDualEncoderModel,
    )

    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=EMBEDDING,
            intermediate_size=4 * EMBEDDING,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=models.TEXT_LENGTH,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            projection_dim=EMBEDDING,
        )
    )
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision.config, text.config, projection_dim=EMBEDDING
    )
    return VisionTextDualEncoderModel(config, vision_model=vision, text_model=text)


def to_tensor(images: np.ndarray) -> Any:
    """uint8 (n, side, side, 3) to float32 (n, 3, side, side) in -1..1."""
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def labels(specs: list[Spec], slot: str) -> Any:
    """Indices of the specs' values of a slot, int64 (n,); -1 where a caption left the place out."""
    import torch

    values = SLOTS[slot]
    return torch.tensor(
        [values.index(x) if (x := getattr(s, slot)) in values else -1 for s in specs]
    )


def reader() -> Any:
    """A ResNet with one linear head per slot; `forward(images)` gives logits by slot."""
    import torch

    class Reader(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = residual_tower()
            self.heads = torch.nn.ModuleDict(
                {slot: torch.nn.Linear(256, len(values)) for slot, values in SLOTS.items()}
            )

        def forward(self, images: Any) -> dict[str, Any]:
            summary = self.tower(images).pooler_output.flatten(1)
            return {slot: head(summary).float() for slot, head in self.heads.items()}

    return Reader()


def load_reader(path: Path) -> Any:
    """The trained classifier, ready to use."""
    from safetensors.torch import load_file

    model = reader()
    model.load_state_dict({k: t.float() for k, t in load_file(path).items()})
    return model.eval()
