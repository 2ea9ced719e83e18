"""Devices: which is the best here, its precision, its free memory, and errors about memory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import cache_folder, note_in_cache, read_object
from regforge.words import first_line

if TYPE_CHECKING:
    import torch

_LARGEST_BATCH = 32
"""Images at a time; the embedded model, on a CPU, is 1.25 times as fast with 32 as with 8."""
BYTES_PER_PIXEL = 1500
"""Memory that one more image in a batch takes, activations and decoding; a generous guess.

If it is too little, the first batch shows it and is halved."""
_GAIN = 1.1
"""A batch of twice the size pays if it draws so many times as many images a second."""


class DeviceError(RegforgeError):
    """A device or a precision that this machine does not have."""

    exit_code = EXIT_USAGE


def pick_device(name: str | None, key: str = "render.device") -> torch.device:
    """The device that a recipe names, as torch spells it, or the best there is.

    Raises:
        DeviceError: This machine does not have it.
    """
    import torch

    if name is None:
        best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return best or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(
            f"{key}: {name!r} cannot be used on this machine ({first_line(error)}).",
            hint="Leave it out to take the best device there is; `regforge doctor` shows it.",
        ) from error
    return device


_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def pick_dtype(name: str, device: torch.device, key: str = "render.dtype") -> torch.dtype:
    """The precision that a recipe names, or the one that is best on the device.

    `auto` is bfloat16 on GPUs and CPUs that compute with it natively, float16 on other
    accelerators, and float32 on other CPUs.

    Other names are dtypes as torch spells them, and fp32, fp16 and bf16.

    Raises:
        DeviceError: bfloat16 on a GPU that does not have it, not even emulated.
    """
    import torch

    if name != "auto":
        dtype: torch.dtype = getattr(torch, _DTYPES.get(name, name))
        if (
            dtype is torch.bfloat16
            and device.type == "cuda"
            and not torch.cuda.is_bf16_supported(including_emulation=True)
        ):
            raise DeviceError(f"{key}: this GPU has no bfloat16.", hint="Use float16 or float32.")
        return dtype
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu":
        # Emulation is slower than float32. The oldest torch we support cannot say.
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
        return torch.bfloat16 if native else torch.float32
    return torch.float16


def first_batch_size(device: torch.device, pixels: int, most: int = _LARGEST_BATCH) -> int:
    """How many images of so many pixels to begin with; rendering halves what is too many.

    The model lies on the device already.
    """
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return _that_fit(free * 0.9, pixels, most)
    # Nobody says when main memory runs out: the process is killed. So we take half of it at most.
    return _that_fit(_main_memory() * 0.5, pixels, most)


def _that_fit(memory: float, pixels: int, most: int) -> int:
    """The largest power of two of images for which there is memory."""
    fit = max(1, int(memory / (pixels * BYTES_PER_PIXEL)))
    return min(most, 1 << (fit.bit_length() - 1))


def saturating_batch_size(
    about: str,
    draw: Callable[[int], object],
    most: int,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """The batch size from which on a larger one hardly draws faster, up to `most`.

    Found once, by drawing 1, 2, 4, ... images, and remembered in `batch-sizes.json` of the cache
    folder under what it is `about`: model, size and device.
    """
    file, key = "batch-sizes.json", f"{about}, up to {most}"
    size: int | None = read_object(cache_folder() / file).get(key)
    if type(size) is not int or size < 1:
        size = _saturating(draw, most, clock)
        note_in_cache(file, key, size)
    return size


def _saturating(draw: Callable[[int], object], most: int, clock: Callable[[], float]) -> int:
    size, rate = 0, 0.0
    while 2 * size <= most:
        tried = max(1, 2 * size)
        try:
            draw(tried)  # kernels are chosen in the first call with a shape
            start = clock()
            draw(tried)
            now = tried / (clock() - start)
        except Exception as error:
            if size == 0 or not is_out_of_memory(error):
                raise
            break
        if now < rate * _GAIN:
            break
        size, rate = tried, now
    return size


def gpu_memory(device: str | None = None) -> int | None:
    """Bytes of the GPU that a recipe's `device` names; None without one.

    Asks torch, which takes its time, only where there is a driver.
    """
    drivers = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
    if sys.platform == "linux" and not any(Path(each).exists() for each in drivers):
        return None
    import torch

    with suppress(RuntimeError, AssertionError, ValueError):  # there is no such device
        if torch.cuda.is_available():
            return torch.cuda.get_device_properties(device or "cuda").total_memory
    return None


def _main_memory() -> int:
    """Bytes that this machine has; 8 GiB where nobody says."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        return 8 * 2**30


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch might help."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "not enough memory" in text or "can't allocate memory" in text
    )


def free_memory() -> None:
    """Give memory that nothing uses any more back to the device."""
    import gc

    import torch

    gc.collect()
    if torch.accelerator.is_available():
        # torch.accelerator.empty_cache is younger than the oldest torch we support.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        elif torch.backends.mps.is_available():
            torch.mps.empty_cache()
