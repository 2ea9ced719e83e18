"""The card over the datasets of several subjects: one configuration for each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regforge.dataset.card_parts import LICENSE_KEYS, OUR_KEYS, Card
from regforge.files import write_atomically
from regforge.runs import recipe_in
from regforge.words import counted

CARD = "README.md"
_OURS = OUR_KEYS | LICENSE_KEYS


def subjects_in(folder: Path) -> list[str]:
    """The subjects whose runs lie in a folder, finished or not; no run of another recipe.

    A subject's own recipe is called as the one over all of them is, and then as its folder.
    """
    return [
        run.parent.name
        for run in sorted(folder.glob("*/recipe.yaml"))
        if str(recipe_in(run.parent).get("name")).endswith(f"-{run.parent.name}")
    ]


def write_index(folder: Path, repo_id: str | None = None) -> Path:
    """Write the card of a folder of runs, for `load_dataset(folder, subject)` to read one of them.

    Each subject's dataset is a configuration. What else the card has, the user's own words and
    front matter, stays. With `repo_id` it says how to load them from there.
    """
    path = folder / CARD
    card = Card.parse(path.read_text(encoding="utf-8") if path.is_file() else None)
    cards = [folder / name / "dataset" / CARD for name in subjects_in(folder)]
    shared: dict[str, Any] = {}
    licenses, configs, columns = dict[str, None](), [], []
    for each in filter(Path.is_file, cards):
        name = each.parent.parent.name
        own = Card.parse(each.read_text(encoding="utf-8")).front
        try:
            (config,), info = own["configs"], dict(own["dataset_info"])
            described = [*config["data_files"]]
        except (KeyError, TypeError, ValueError):  # edited, or not regforge's
            continue
        files = [{**each, "path": f"{name}/dataset/{each['path']}"} for each in described]
        # With the content's digest, by which the cache of `datasets` tells one run from another.
        configs.append({**config, "config_name": name, "data_files": files})
        columns.append({"config_name": name, **info})
        licenses |= {str(own["license"]): None} if "license" in own else {}
        shared |= {key: own[key] for key in _OURS & own.keys()}
        if "://" not in (link := str(own.get("license_link", "://"))):
            shared["license_link"] = f"{name}/dataset/{link}"
    title = f"Regularization images of {counted(len(configs), 'subject')}"
    theirs = {key: value for key, value in card.front.items() if key not in _OURS}
    front = {**shared, **theirs, "pretty_name": title, "configs": configs, "dataset_info": columns}
    front.pop("size_categories", None)  # of one of them
    if len(licenses) > 1:
        front["license"] = list(licenses)
    names, where = [config["config_name"] for config in configs], repo_id or folder.name
    calls = (f'datasets.load_dataset("{where}", "{name}", split="train")' for name in names)
    images = (f"[![{name}]({name}/dataset/samples.webp)]({name}/dataset/{CARD})" for name in names)
    ours = (
        "\n# {}\n\nOne configuration for each subject, each the dataset of a run of its own, whose "
        "card has how it was made and its licence:\n\n```python\n{}\n```\n\n{}\n\n"
    ).format(title, "\n".join(calls), "\n\n".join(images))
    write_atomically(path, Card(front, card.before, ours, card.after).as_text())
    return path
