"""A base model in memory: loaded, and ready to draw.

Knows diffusers pipelines as far as `regforge.images` does, and nothing about which images are
wanted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.embedded.pipeline import quiet_loading
from regforge.evaluation.interface import PersonalizedModel
from regforge.images.loading import EMBEDDED, ModelChoice, load_model
from regforge.images.renderer import ModelIdentity, RenderError
from regforge.journal import Journal
from regforge.recipe.models import Render

if TYPE_CHECKING:
    import torch

    from regforge.images.local import LocalRenderer
    from regforge.progress import Reporter
    from regforge.prompts.tokens import TokenBudget

_EMBEDDED_GUIDANCE = 4.0  # what the embedded pipeline was measured with
_USUAL_GUIDANCE = 5.0
_MEMORY_HINT = (
    "Use a GPU with more memory, give the one there is back from other programs, or draw on the "
    "CPU: CUDA_VISIBLE_DEVICES= before the command."
)


def in_our_words(error: RenderError) -> RenderError:
    """The same error without hints at keys of a dataset's recipe, which nobody has here."""
    hint = error.hint
    if hint is not None and "render." in hint:
        hint = _MEMORY_HINT if "emory" in error.message else None
    return type(error)(error.message.replace("render.", ""), hint=hint)


class BaseModel:
    """A base model in memory.

    Attributes:
        pipeline: The diffusers pipeline, on its device.
    """

    def __init__(
        self, pipeline: Any, name: str, folder: Path, dtype: str, device: torch.device
    ) -> None:
        self.pipeline = pipeline
        self._name = name
        self._folder = folder
        self._dtype = dtype
        self._device = device
        self._budget: TokenBudget | None = None

    @classmethod
    def load(
        cls, model: PersonalizedModel, *, device: str | None, dtype: str, resolution: int | None
    ) -> BaseModel:
        """Load a model's base and put it where it computes.

        Args:
            model: Whose.
            device: The best there is if None.
            dtype: `auto` takes the best for the device.
            resolution: Side of the images to come, in pixels; the model's own if None.

        Raises:
            RenderError: It is not there, cannot be used, or does not fit.
        """
        from regforge.devices import pick_device, pick_dtype
        from regforge.images.local import default_size, place

        choice = ModelChoice(
            model.base, model.revision, model.variant, key="base_model", variant_key="variant"
        )
        try:
            where = pick_device(device)
            precision = pick_dtype(dtype, where)
            pipeline, folder = load_model(choice, precision)
            render = Render(model=model.base, width=resolution, height=resolution)
            width, height = default_size(pipeline, render)
            place(pipeline, render, where, width * height)
        except RenderError as error:
            raise in_our_words(error) from error
        return cls(pipeline, model.base, folder, str(precision).removeprefix("torch."), where)

    def renderer(
        self, settings: Mapping[str, Any], batch_size: int | None, reporter: Reporter
    ) -> LocalRenderer:
        """Something that draws with the pipeline as it is now; it encodes prompts anew.

        Args:
            settings: See `Artist.settings_for`.
            batch_size: Images at a time; as many as memory should suffice for if None.
            reporter: Who tells when it does not.
        """
        from regforge.devices import first_batch_size
        from regforge.images.local import LocalRenderer, default_size

        render = Render(
            model=self._name,
            steps=settings["steps"],
            guidance_scale=self.guidance(settings),
            width=settings["resolution"],
            height=settings["resolution"],
        )
        width, height = default_size(self.pipeline, render)
        scheduler = type(self.pipeline.scheduler).__name__
        return LocalRenderer(
            self.pipeline,
            render,
            ModelIdentity(self._name, None, scheduler, self._dtype, width, height),
            batch_size or first_batch_size(self._device, width * height),
            journal=Journal(None),
            reporter=reporter,
        )

    def guidance(self, settings: Mapping[str, Any]) -> float:
        """Classifier-free guidance: what was asked for, else what the pipeline takes by itself."""
        from regforge.images.local import inputs_of

        if settings["guidance_scale"] is not None:
            return float(settings["guidance_scale"])
        if self._name == EMBEDDED:
            return _EMBEDDED_GUIDANCE
        parameter = inputs_of(self.pipeline).get("guidance_scale")
        default = None if parameter is None else parameter.default
        return float(default) if isinstance(default, int | float) else _USUAL_GUIDANCE

    def to_float32(self) -> None:
        """Compute in float32 from now on."""
        import torch

        self.pipeline.to(torch.float32)
        self._dtype = "float32"

    def tokens(self, prompt: str) -> tuple[int, int]:
        """Tokens of a prompt, and how many the text encoder reads."""
        if self._budget is None:
            from regforge.prompts.tokens import token_budget

            with quiet_loading():
                self._budget = token_budget(Render(model=str(self._folder)), offline=True)
        return self._budget.count(prompt), self._budget.limit
