"""The embedded judge: encoders that say whether an image shows the subject, and the caption.

Both are ordinary transformers folders, used exactly as DINO and CLIP are: `AutoModel` with
`pooler_output` for identity, `get_image_features` / `get_text_features` for alignment. They were
trained on the tiny world's own images, never on the generator's, and mean nothing on real photos.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.embedded.pipeline import quiet_loading, require_folder

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

IDENTITY: Path = Path(__file__).parent / "judge" / "identity"
ALIGNMENT: Path = Path(__file__).parent / "judge" / "alignment"


def load_identity() -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Load the image encoder whose embeddings tell drawings apart.

    Returns:
        The model and the image processor that makes its inputs from PIL images. Embeddings are
        `model(**inputs).pooler_output.flatten(1)`, float32 (n, 256); compare them by cosine. (The
        pooled output is (n, 256, 1, 1), as of every ResNet; flattening leaves DINO's as it is.)

    Raises:
        EmbeddedModelMissing: The weights are not in the package.
    """
    folder = require_folder(IDENTITY, "config.json")
    with quiet_loading():
        from transformers import AutoImageProcessor, AutoModel

        model: Any = AutoModel.from_pretrained(folder, dtype="float32", local_files_only=True)
        processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    return model.eval(), processor


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
    folder = require_folder(ALIGNMENT, "config.json")
    with quiet_loading():
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        model: Any = AutoModel.from_pretrained(folder, dtype="float32", local_files_only=True)
        processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.eval(), processor, tokenizer
