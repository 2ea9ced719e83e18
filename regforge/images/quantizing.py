"""Weights of fewer bits: which parts of a pipeline get them, by which library, and what that needs.

The denoiser and language models that read captions. CLIP and autoencoders are small, and the latter
lose detail first. Both libraries are asked through the configurations of diffusers and
transformers; what a LoRA beside such weights computes is peft's.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from regforge.devices import pick_device
from regforge.images.pipelines import DENOISERS
from regforge.images.renderer import RenderSettingError

if TYPE_CHECKING:
    import torch

_PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}


def require_quantizer(quantize: str | None, device: str | None, key: str, device_key: str) -> None:
    """See that this machine can quantize as a recipe says; the keys are for messages.

    Raises:
        RenderSettingError: Its package is not here, or there is no GPU for it.
        DeviceError: The device is not here.
    """
    if quantize is None:
        return
    package = _PACKAGES[quantize]
    if find_spec(package) is None:
        raise RenderSettingError(
            f"{key}: {quantize} needs a package that is not here: {package}.",
            hint=f"pip install {package}",
        )
    if quantize == "nf4" and pick_device(device, device_key).type not in ("cuda", "xpu", "mps"):
        raise RenderSettingError(
            f"{key}: nf4 needs a GPU, and this machine computes on its CPU.",
            hint="int8 runs on a CPU too.",
        )


def quantize_in_place(module: Any) -> None:
    """Give the linear layers of a loaded module weights of 8 bits."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(module, Int8WeightOnlyConfig(version=2))


def settings_of(quantize: str, part: str, dtype: torch.dtype) -> Any:
    """The configuration that a part is loaded with; `dtype` is the precision it computes in."""
    import diffusers
    import transformers

    library: Any = diffusers if part in DENOISERS else transformers
    if quantize == "nf4":
        return library.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    from torchao.quantization import Int8WeightOnlyConfig

    return library.TorchAoConfig(Int8WeightOnlyConfig(version=2))
