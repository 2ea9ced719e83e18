"""What a dataset says about how its images were made, and what one may do with them."""

from __future__ import annotations

from regforge.audit.findings import Check, Grade, percent, ratio
from regforge.audit.gathering import PROVENANCE, Gathered

NO_LICENSE = frozenset(("", "unknown", "other", "unlicensed"))
"""What a card says that grants nothing by itself."""

_WORDS = {
    "model_revision": "model revision",
    "scheduler": "sampler",
    "guidance_scale": "guidance",
}


def metadata(found: Gathered) -> Check:
    """Which of seed, model, revision, sampler, steps and guidance are known."""
    total = len(found.ids)
    without = {name: ratio(found.missing[name], total) for name in PROVENANCE}
    models = [model for (model, _), _ in found.models.most_common()]
    numbers = {"without": without, "models": list(dict.fromkeys(models))[:10]}
    incomplete = [name for name in PROVENANCE if found.missing[name]]
    different = len(dict.fromkeys(models))
    if len(incomplete) == len(PROVENANCE) and all(without[n] == 1 for n in incomplete):
        return Check(
            "metadata",
            "look",
            "No image says how it was made.",
            "Regularization images should come from the very model that is trained; ask whoever "
            "made these.",
            numbers,
        )
    parts = [
        f"{_WORDS.get(name, name)} {percent(found.missing[name], total)}" for name in incomplete
    ]
    finding = f"Unknown: {', '.join(parts)} of the images" if parts else "All of it is known"
    finding += f"; drawn by {models[0]}" if models else ""
    if different > 1:
        finding += f" and {different - 1:,} more models"
    grade: Grade = "look" if parts or different > 1 else "good"
    advice = ""
    if "seed" in incomplete or "model" in incomplete:
        advice = "Images without seed and model cannot be made again."
    elif parts:
        advice = "What is unknown cannot be repeated exactly."
    elif different > 1:
        advice = "Train with the images of the model that is trained."
    return Check("metadata", grade, finding + ".", advice, numbers)


def licence(name: str | None) -> Check:
    """Whether the dataset has a licence.

    Args:
        name: What its card says.
    """
    numbers = {"license": name}
    if name is None or name.strip().lower() in NO_LICENSE:
        said = f"Its card says {name!r}." if name else "None is named."
        return Check(
            "licence",
            "look",
            said,
            "Without a licence nobody may pass the images on; it usually follows the model that "
            "drew them (dataset.license in a recipe).",
            numbers,
        )
    return Check("licence", "good", f"{name}.", numbers=numbers)
