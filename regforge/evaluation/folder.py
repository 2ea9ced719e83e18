"""The folder of one evaluation: whose it is, and what of it may be gone on with.

    images/<model>-<digest>/   what models drew; the digest is that of weights and settings
    references/<subject>/        small copies of the photos that images are compared with
    evaluation.json  report.html  summary.png
    state.json                   which models and settings it belongs to

Images of other weights or settings have another digest, so they are never taken for these. More
models, more samples and more prompts are the same evaluation, made larger.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from regforge.evaluation import png
from regforge.evaluation.interface import EvaluationError, PersonalizedModel
from regforge.evaluation.model_files import normal
from regforge.runs import OwnedFolder
from regforge.words import listed

_GROWING = ("samples", "class_samples", "limit")
"""Settings of which more may be asked for later; for `limit`, none at all is most."""

_MOST_NAME = 60  # letters of a folder's name


class EvaluationFolder(OwnedFolder):
    """Paths of one evaluation; see the module's docstring.

    Args:
        path: The folder itself; it need not exist.
    """

    made = (
        *("images/*/**/*.png", "references/[0-9]*/*.webp"),
        *("report.html", "summary.png", "summary-*.png", "evaluation.json"),
    )

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.images = self.path / "images"
        self.references = self.path / "references"

    def claim(
        self,
        models: Mapping[str, str],
        settings: Mapping[str, Any],
        *,
        fresh: bool,
        unchanged: Collection[str] = (),
    ) -> bool:
        """Make the folder this evaluation's, or check that it is.

        Args:
            models: Name of each model -> where it lies.
            settings: What was asked for, as JSON has it.
            fresh: Delete what an earlier evaluation made.
            unchanged: Models with the very weights that images here were drawn with: it is the
                same model, though it may have moved.

        Returns:
            Whether an earlier session is gone on with.

        Raises:
            EvaluationError: The folder belongs to another evaluation, or to something else.
            StorageError: The folder cannot be written.
        """
        known = self.state().get("evaluation")
        if not isinstance(known, dict) or not {"models", "settings"} <= known.keys():
            known = None
            if self.holds_others_files() and not self._has_our_images():
                raise EvaluationError(
                    f"{self.path} holds other files than an evaluation's.",
                    hint="Choose another folder with --out.",
                )
        if fresh:
            self.delete_made()
            known = None
        if known is not None and self.images.exists():  # else nothing would be lost
            problems = [
                *_other_models(known["models"], models, unchanged),
                *_other_settings(known["settings"], settings),
            ]
            if problems:
                raise EvaluationError(
                    f"{self.path} holds another evaluation: {'; '.join(problems)}.",
                    hint="Choose another folder with --out, or start this one over with --fresh "
                    "(what it made is deleted).",
                )
        asked = {"models": dict(models), "settings": dict(settings)}
        if fresh:
            self._write_state({"evaluation": asked})
        else:
            self.remember(evaluation=asked)
        return known is not None

    def _has_our_images(self) -> bool:
        """Whether images were drawn here, though state.json, which said for whom, is damaged.

        No harm if it was for others: each says what it was drawn from.
        """
        if self.state() or not self._state.exists():
            return False
        return any(png.is_made_from(path, {}) for path in self.images.glob("*/**/*.png"))


def default_folder(models: Sequence[str | Path | PersonalizedModel]) -> Path:
    """`evaluations/<names>`: where an evaluation goes if nobody says."""
    names = [
        each.name.replace("/", "-") if isinstance(each, PersonalizedModel) else _short_name(each)
        for each in models
    ]
    name = "-".join(names)
    if len(name) > _MOST_NAME:
        name = f"{names[0][:_MOST_NAME]}-and-{len(names) - 1}-more"
    return Path("evaluations") / (name or "none")


def _short_name(where: str | Path) -> str:
    """What a person would call a model: the last part of its path that says anything."""
    path = Path(where)
    with suppress(OSError):  # a name that no file system takes; `open_model` says so
        path = normal(path) if normal(path).exists() else path
    if path.suffix == ".safetensors":
        path = path.parent if path.stem == "pytorch_lora_weights" else path.with_suffix("")
    if path.name in ("lora", "model"):
        path = path.parent
    if path.parent.name == "snapshots":
        return f"{path.parent.parent.name}-{path.name}"
    return path.name


def _other_models(
    before: Mapping[str, str], now: Mapping[str, str], unchanged: Collection[str]
) -> Iterator[str]:
    missing = [name for name in before if name not in now]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        yield f"of {listed(before)}, and {listed(missing)} {verb} not asked for now"
    for name, where in before.items():
        if name in now and now[name] != where and name not in unchanged:
            yield f"its {name} is {where}, not {now[name]}"


def _other_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if old == new or (key in _GROWING and _grew(old, new)):
            continue
        yield f"{key.replace('_', ' ')} {_shown(old)}, not {_shown(new)}"


def _grew(old: Any, new: Any) -> bool:
    return new is None or (old is not None and new > old)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return " and ".join(map(str, value.values()))
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
