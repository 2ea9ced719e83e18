"""The card over the datasets of several subjects: one configuration for each of them."""

from __future__ import annotations

from pathlib import Path

from regforge.dataset.card_parts import Card
from regforge.files import write_atomically

CARD = "README.md"


def write_index(folder: Path) -> Path:
    """Write the card of a folder of runs, for `load_dataset(folder, subject)` to read one of them.

    Each `<subject>/dataset` in it is a configuration. What else its card has, the user's own words
    and front matter, stays.
    """
    path = folder / CARD
    card = Card.parse(path.read_text(encoding="utf-8") if path.is_file() else None)
    names = sorted(each.parent.parent.name for each in folder.glob(f"*/dataset/{CARD}"))
    configs, columns = [], []
    for name in names:
        own = Card.parse((folder / name / "dataset" / CARD).read_text(encoding="utf-8")).front
        try:
            (config,), info = own["configs"], dict(own["dataset_info"])
            described = [*config["data_files"]]
        except (KeyError, TypeError, ValueError):  # edited, or not regforge's
            continue
        files = [{**each, "path": f"{name}/dataset/{each['path']}"} for each in described]
        # With the content's digest, by which the cache of `datasets` tells one run from another.
        configs.append({**config, "config_name": name, "data_files": files})
        columns.append({"config_name": name, **info})
    names = [config["config_name"] for config in configs]
    calls = (f'datasets.load_dataset("{folder.name}", "{name}", split="train")' for name in names)
    images = (f"[![{name}]({name}/dataset/samples.webp)]({name}/dataset/{CARD})" for name in names)
    ours = (
        "\n\nOne configuration for each subject, each the dataset of a run of its own:\n\n"
        "```python\n{}\n```\n\n{}\n\n"
    ).format("\n".join(calls), "\n\n".join(images))
    front = {**card.front, "configs": configs, "dataset_info": columns}
    write_atomically(path, Card(front, card.before, ours, card.after).as_text())
    return path
