"""Steps that are not computed whole: of UNets and transformers, and guidance that has a window.

Which steps these are follows from how many there are, never from what is drawn: an image depends on
its batch no more than without, and on nothing that was drawn before.

- DeepCache (Ma et al., arXiv 2312.00858): what the deep blocks of a UNet see changes slowly, so
  they are computed at every `render.cache_interval`-th step alone. A step between computes the
  first convolution, the last layer of the last block, and what comes after.
- TaylorSeer (Liu et al., arXiv 2503.06923), of the first order and of the last layer alone: a step
  of a transformer that is not computed gets what it gave at the last two that were, continued in a
  straight line over time: o(t) = o1 + (o1 - o0) (t - t1) / (t1 - t0).
- Guidance in a limited interval (Kynkäänniemi et al., arXiv 2404.07724): outside of
  `render.guidance_window` the denoiser computes the half with the caption alone. Both halves of
  what it returns are then the same, and u + s (c - u) with u = c is c, at any scale s.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from regforge.images.renderer import RenderSettingError
from regforge.recipe.pipelines import CACHED, CONTINUED, WINDOWED
from regforge.recipe.rendering import ALL_STEPS, Render
from regforge.words import listed

if TYPE_CHECKING:
    import torch


def require_shortcuts(render: Render, kind: str) -> None:
    """See that a pipeline, named by its class, can leave out what a recipe wants to leave out.

    Raises:
        RenderSettingError: It cannot.
    """
    for key, wanted, known in (
        ("speed", render.speed != "exact", CACHED),
        ("cache_interval", render.cache_interval > 1, CACHED | CONTINUED),
        ("guidance_window", render.guidance_window != ALL_STEPS, WINDOWED),
    ):
        if wanted and kind not in known:
            instead = key == "speed" and kind in CONTINUED
            raise RenderSettingError(
                f"render.{key} does not go with {render.model}, which is a {kind}: it goes with "
                f"{listed(sorted(known))}.",
                hint=f"Leave render.{key} out"
                + (", or write render.cache_interval: 2 instead." if instead else "."),
            )


def shorten(pipeline: Any, render: Render) -> Shortcuts | None:
    """Put a recipe's shortcuts before the denoiser of a loaded pipeline; None if it has none.

    Raises:
        RenderSettingError: They do not go with the pipeline.
    """
    require_shortcuts(render, type(pipeline).__name__)
    of_steps = render.cache_interval > 1 or render.guidance_window != ALL_STEPS
    return Shortcuts(pipeline, render) if of_steps else None


class Shortcuts:
    """Stands before the denoiser of a pipeline, and counts its steps from each `begin` on."""

    def __init__(self, pipeline: Any, render: Render) -> None:
        name = "unet" if getattr(pipeline, "unet", None) is not None else "transformer"
        self._denoiser: Any = getattr(pipeline, name)
        self._pipeline = pipeline
        self._interval, self._window = render.cache_interval, render.guidance_window
        self._pass: str | None = None
        self._with_caption: Any = None
        self.begin(1)
        # What torch.compile gives keeps the module that it compiles.
        unet = getattr(self._denoiser, "_orig_mod", self._denoiser)
        self._shallow: Any = _shallow(unet) if self._interval > 1 and name == "unet" else None
        self._continues = self._interval > 1 and name != "unet"
        self._first = 2 if self._continues else 0
        self._whole = self._denoiser.forward
        self._denoiser.forward = self._forward
        if hasattr(self._denoiser, "cache_context"):
            self._own_context = self._denoiser.cache_context
            self._denoiser.cache_context = self._context

    def begin(self, images: int) -> None:
        """Say that the next call of the pipeline draws so many images."""
        self._images, self._step = images, -1
        self._pass = self._with_caption = None
        self._computed: dict[object, list[tuple[float, tuple[torch.Tensor, ...]]]] = {}

    @contextmanager
    def _context(self, name: str, **more: Any) -> Iterator[None]:
        self._pass = name
        with self._own_context(name, **more):
            yield
        self._pass = None

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        second = self._pass == "uncond"
        if not second:
            self._step += 1
        # Steps of some schedulers (PNDM, Heun) call the denoiser twice: each is one of these.
        steps = len(self._pipeline.scheduler.timesteps)
        # Features of one batch are of no use to another, so guidance changes where they do.
        last_whole = self._step - max(0, self._step - self._first) % self._interval
        guided = self._window[0] * steps <= last_whole < self._window[1] * steps
        if second and not guided:
            return self._with_caption
        latents: Any = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
        halved = not guided and len(latents) == 2 * self._images
        if halved:
            args, kwargs = _second_half((args, kwargs), self._images)
        if self._step == last_whole:
            result = self._whole(*args, **kwargs)
        else:
            result = self._shallow(*args, **kwargs) if self._shallow else self._continued(halved)
        if self._continues and self._step == last_whole:
            self._keep(halved, result)
        if halved:
            result = tuple(each.repeat(2, *[1] * (each.dim() - 1)) for each in result)
        if self._pass == "cond":
            self._with_caption = result
        return result

    def _keep(self, halved: bool, result: tuple[torch.Tensor, ...]) -> None:
        """Remember what a transformer gave at this step, and at one before."""
        time = float(self._pipeline.scheduler.timesteps[self._step])
        computed = self._computed.setdefault((self._pass, halved), [])
        computed[:] = [each for each in computed if each[0] != time][-1:]  # Heun's come twice
        computed.append((time, result))

    def _continued(self, halved: bool) -> tuple[torch.Tensor, ...]:
        """What a transformer would give at this step in a straight line from those before."""
        computed = self._computed[self._pass, halved]
        (t0, older), (t1, last) = computed[0], computed[-1]
        time = float(self._pipeline.scheduler.timesteps[self._step])
        ahead = (time - t1) / (t1 - t0) if t1 != t0 else 0.0
        return tuple(o1 + (o1 - o0) * ahead for o0, o1 in zip(older, last, strict=True))


def _second_half(value: Any, images: int) -> Any:
    """Arguments without the rows that stand for no caption, wherever they are."""
    import torch

    if isinstance(value, torch.Tensor):
        return value[images:] if value.dim() and len(value) == 2 * images else value
    if isinstance(value, dict):
        return {key: _second_half(each, images) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_second_half(each, images) for each in value)
    return value


# --------------------------------------------------------------------------------------- DeepCache


def _shallow(unet: Any) -> Any:
    """The first and last layers of a UNet as another one, with the same weights.

    Its forward is the UNet's own. There are no blocks on the way down; in the middle is what the
    deep blocks of the whole UNet gave at its last call; and on the way up the last layer alone,
    which joins that with the output of the first convolution.
    """
    import torch

    block, fresh = unet.up_blocks[-1], unet.conv_in.out_channels
    middle: Any = torch.nn.Module()
    middle.forward = lambda *_, **__: middle.deep

    def keep(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        middle.deep = inputs[0][:, :-fresh]

    block.resnets[-1].register_forward_pre_hook(keep)
    last = {name: layers and layers[-1:] for name, layers in block._modules.items()}
    up = torch.nn.ModuleList([_twin(block, last)])
    none = torch.nn.ModuleList()
    return _twin(unet, {"down_blocks": none, "mid_block": middle, "up_blocks": up})


def _twin(module: Any, parts: dict[str, Any]) -> Any:
    """The same module with other parts."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, **parts}
    twin.__dict__.pop("forward", None)  # of an offloaded module; it would call the other one
    return twin
