"""What is wrong with the image files themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from regforge.audit import images
from regforge.audit.findings import Check, Grade, of, ratio, worse
from regforge.audit.gathering import STALE_DIGEST, Gathered
from regforge.image_files import ANIMATED, DEEP, TRANSPARENT, TURNED

SOME = 0.01
"""Share of useless images above which they harm."""

_USELESS = (images.CANNOT_BE_READ, images.TOO_LARGE, "black", "a single colour")

_ADVICE: Mapping[str, str] = {
    images.CANNOT_BE_READ: "remove or repair them; ai-toolkit skips such files, others stop",
    images.TOO_LARGE: "shrink them: Pillow refuses so many pixels",
    "black": "remove them; renderers put black where a safety checker objects",
    "a single colour": "remove them",
    TURNED: "save them upright; not every trainer turns them",
    images.LOW_JPEG_QUALITY: "their 8 x 8 blocks are learned too",
    TRANSPARENT: "put them on a background; trainers show what lies below, often black",
    ANIMATED: "only the first frame is used",
    DEEP: "save them with 8 bits a channel; many trainers cut what is more to white",
    STALE_DIGEST: "their stored digest is another one: somebody saved them again",
}


def problems(found: Gathered, *, curated: bool | None, left_out: Sequence[str] = ()) -> Check:
    """Files that cannot be read, show nothing, are turned, transparent or of poor quality.

    Args:
        found: The dataset.
        curated: Whether the run that made it refused what shows nothing; None if not known.
        left_out: What the reader of the dataset could not read, a sentence each.
    """
    total = len(found.ids)
    if not found.opened:
        unopened = {"opened": 0}
        if curated:
            said = "Not opened again: those that cannot be read or show nothing were refused."
            return Check("image files", "good", said, numbers=unopened)
        said = "Not opened: the dataset stores their hashes."
        return Check(
            "image files", "unknown", said, "Open them: regforge audit ... --thorough", unopened
        )
    numbers: dict[str, float] = {"opened": total}
    numbers |= {trouble.lower().replace(" ", "_"): found.troubles[trouble] for trouble in _ADVICE}
    if not found.troubles:
        grade: Grade = "look" if left_out else "good"
        finding = " ".join([f"All {total:,} can be read.", *left_out])
        advice = "Trainers may stop at what was left out: remove or repair it." * bool(left_out)
        return Check("image files", grade, finding, advice, numbers)
    useless = sum(found.troubles[trouble] for trouble in _USELESS)
    numbers["useless_share"] = ratio(useless, total)
    grade = worse("look", "bad" if useless > SOME * total else "good")
    said_of = [trouble for trouble in _ADVICE if found.troubles[trouble]]
    parts = [f"{trouble}: {of(found.troubles[trouble], total)}" for trouble in said_of]
    examples = [name for trouble in said_of for name in found.trouble_ids[trouble][:2]]
    return Check(
        "image files",
        grade,
        " ".join([f"{'; '.join(parts)}.", *left_out]),
        "; ".join(f"{trouble}: {_ADVICE[trouble]}" for trouble in said_of) + ".",
        numbers,
        list(dict.fromkeys(examples))[:5],
    )
