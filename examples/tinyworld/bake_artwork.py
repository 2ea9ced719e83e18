"""Rasterise the drawings of the tiny world from icon packages into `artwork/`.

Knows where the drawings come from and nothing about what is done with them. It runs once; its
result is in the repository, so nobody needs it to train. To run it again:

    npm install @iconify-json/noto @iconify-json/noto-v1 @iconify-json/twemoji \
        @iconify-json/emojione @iconify-json/fluent-emoji @iconify-json/fluent-emoji-flat \
        @iconify-json/fxemoji @iconify-json/streamline-emojis
    pip install resvg-py
    python bake_artwork.py --icons node_modules/@iconify-json

Writes one WebP atlas per purpose (`classes`, `subjects`, `relatives`, `extras`) and `index.json`,
which says for each cell: class noun, icon set, icon name. Licences of the sets are in the
repository's NOTICE.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from pathlib import Path

import resvg_py
from PIL import Image

SIDE = 128
COLUMNS = 16
DEFAULT_SETS = ("noto", "twemoji", "fluent-emoji-flat")

# class noun -> (icon name, sets whose drawing the generator is trained on)
CLASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "backpack": ("backpack", DEFAULT_SETS),
    "boot": ("hiking-boot", DEFAULT_SETS),
    "clock": ("alarm-clock", DEFAULT_SETS),
    "candle": ("candle", DEFAULT_SETS),
    "sneaker": ("running-shoe", DEFAULT_SETS),
    "glasses": ("sunglasses", DEFAULT_SETS),
    "teapot": ("teapot", ("noto", "twemoji", "own")),
    "vase": ("amphora", DEFAULT_SETS),
    "can": ("canned-food", DEFAULT_SETS),
    "bowl": ("bowl-with-spoon", DEFAULT_SETS),
    "cup": ("hot-beverage", DEFAULT_SETS),
    "robot": ("robot", ("noto", "twemoji", "noto-v1")),
    "car": ("automobile", DEFAULT_SETS),
    "bus": ("bus", DEFAULT_SETS),
    "bicycle": ("bicycle", DEFAULT_SETS),
    "guitar": ("guitar", DEFAULT_SETS),
    "umbrella": ("umbrella", DEFAULT_SETS),
    "hat": ("top-hat", DEFAULT_SETS),
    "rocket": ("rocket", DEFAULT_SETS),
    "cake": ("birthday-cake", DEFAULT_SETS),
    "camera": ("camera", DEFAULT_SETS),
    "handbag": ("handbag", DEFAULT_SETS),
    "chair": ("chair", DEFAULT_SETS),
    "stuffed animal": ("teddy-bear", DEFAULT_SETS),
    "mushroom": ("mushroom", DEFAULT_SETS),
    "crown": ("crown", DEFAULT_SETS),
    "cartoon": ("ghost", DEFAULT_SETS),
    "cat": ("cat", DEFAULT_SETS),
    "dog": ("dog", ("noto", "twemoji", "noto-v1")),
    "duck": ("duck", DEFAULT_SETS),
    "rabbit": ("rabbit", DEFAULT_SETS),
    "horse": ("horse", DEFAULT_SETS),
    "elephant": ("elephant", DEFAULT_SETS),
    "penguin": ("penguin", DEFAULT_SETS),
    "owl": ("owl", DEFAULT_SETS),
    "fish": ("tropical-fish", DEFAULT_SETS),
    "turtle": ("turtle", DEFAULT_SETS),
    "pig": ("pig", DEFAULT_SETS),
    "frog": ("frog", DEFAULT_SETS),
    "dinosaur": ("sauropod", DEFAULT_SETS),
    "monkey": ("monkey", DEFAULT_SETS),
    "butterfly": ("butterfly", DEFAULT_SETS),
    "fox": ("fox", DEFAULT_SETS),
}

# Never seen in training, by the generator or the judge; siblings that share a shape are left out
# of CLASSES too (fluent-emoji and fluent-emoji-flat are the same drawing, shaded differently).
SUBJECTS: dict[str, tuple[str, str]] = {
    "backpack": ("backpack", "emojione"),
    "teapot": ("teapot", "fluent-emoji"),
    "robot": ("robot", "fluent-emoji"),
    "sneaker": ("running-shoe", "emojione"),
    "clock": ("alarm-clock", "emojione"),
    "cat": ("cat", "emojione"),
    "dog": ("dog", "fluent-emoji"),
    "rabbit": ("rabbit", "emojione"),
    "owl": ("owl", "emojione"),
    "duck": ("duck", "noto-v1"),
}

# More drawings of the class nouns, for the judge alone: it has to know a cat that it never saw.
# Names of icons, looked for in all sets; what CLASSES or SUBJECTS hold is left out.
RELATIVES: dict[str, str] = {
    "backpack": "backpack schoolsatchel school-backpack",
    "boot": "hiking-boot boot",
    "clock": "alarm-clock alarmclock nine-oclock clock3oclock",
    "candle": "candle",
    "sneaker": "running-shoe mensshoe",
    "glasses": "sunglasses darksunglasses glasses glasses-1 glasses-2",
    "teapot": "teapot",
    "vase": "amphora",
    "can": "canned-food",
    "bowl": "bowl-with-spoon",
    "cup": "hot-beverage hot-beverage-1 hotbeverage teacup-without-handle teacupwithouthandle",
    "robot": "robot robot-face robot-face-1 robot-face-2 robot-face-3",
    "car": "automobile taxi sport-utility-vehicle oncoming-automobile oncomingautomobile",
    "bus": "bus minibus oncoming-bus oncomingbus trolleybus",
    "bicycle": "bicycle",
    "guitar": "guitar",
    "umbrella": "umbrella umbrella-with-rain-drops umbrellawithraindrops",
    "hat": "top-hat tophat",
    "rocket": "rocket",
    "cake": "birthday-cake birthdaycake birthday-cake-1 birthday-cake-2 birthday-cake-3",
    "camera": "camera camera-with-flash camerawithflash",
    "handbag": "handbag purse",
    "chair": "chair",
    "stuffed animal": "teddy-bear",
    "mushroom": "mushroom brown-mushroom",
    "crown": "crown",
    "cartoon": "ghost",
    "cat": "cat black-cat catside cat-face",
    "dog": "dog poodle dogside dog-face",
    "duck": "duck",
    "rabbit": "rabbit bunny bunnyside rabbit-face",
    "horse": "horse horse-face horseface",
    "elephant": "elephant",
    "penguin": "penguin penguin-1 penguin-2",
    "owl": "owl",
    "fish": "tropical-fish fish blowfish tropicalfish",
    "turtle": "turtle",
    "pig": "pig pigside pig-face",
    "frog": "frog frog-face",
    "dinosaur": "sauropod",
    "monkey": "monkey monkey-face monkeyface",
    "butterfly": "butterfly",
    "fox": "fox fox-face-1 fox-face-2 foxsmiling",
}
ALL_SETS = (*DEFAULT_SETS, "noto-v1", "emojione", "fluent-emoji", "fxemoji", "streamline-emojis")
SHADED = {"fluent-emoji": "fluent-emoji-flat"}  # the same drawings with and without shading

EXTRA_CATEGORIES = ("Animals & Nature", "Food & Drink", "Objects", "Activities")
EXTRA_SKIP = ("page", "book", "banknote", "mailbox", "calendar", "face", "chart", "lock", "suit")
EXTRAS_TRAIN, EXTRAS_TEST = 240, 120


class IconSets:
    """Reads icon packages and rasterises single icons."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sets: dict[str, dict] = {}

    def _load(self, name: str) -> dict:
        if name not in self._sets:
            self._sets[name] = json.loads((self.folder / name / "icons.json").read_text())
        return self._sets[name]

    def svg(self, icon_set: str, icon: str) -> str | None:
        """The icon's SVG source, following the package's aliases; None if it has none."""
        if icon_set == "own":
            return (Path(__file__).parent / "artwork" / "own" / f"{icon}.svg").read_text()
        data = self._load(icon_set)
        aliases = data.get("aliases", {})
        while icon not in data["icons"]:
            if icon not in aliases:
                return None
            icon = aliases[icon]["parent"]
        entry = data["icons"][icon]
        height = entry.get("height", data.get("height", 16))
        width = entry.get("width", data.get("width", height))
        box = f"{entry.get('left', 0)} {entry.get('top', 0)} {width} {height}"
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}">{entry["body"]}</svg>'
        )

    def drawing(self, icon_set: str, icon: str) -> Image.Image | None:
        """The icon cut to its outline, scaled to 128 px, standing on the bottom edge (RGBA)."""
        svg = self.svg(icon_set, icon)
        if svg is None:
            return None
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE, height=2 * SIDE))
        image = Image.open(io.BytesIO(png)).convert("RGBA")
        image = image.crop(image.getchannel("A").getbbox())
        scale = (SIDE - 4) / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
        cell = Image.new("RGBA", (SIDE, SIDE))
        cell.paste(image, ((SIDE - image.width) // 2, SIDE - 2 - image.height))
        return cell

    def extra_names(self) -> list[str]:
        """Icon names outside CLASSES, in an order that does not depend on the alphabet."""
        categories = json.loads((self.folder / "noto" / "metadata.json").read_text())["categories"]
        used = {icon for icon, _ in CLASSES.values()} | {"robot-face", "glasses", "womans-boot"}
        names = [n for c in EXTRA_CATEGORIES for n in categories[c]]
        names = [n for n in names if n not in used and not any(s in n for s in EXTRA_SKIP)]
        return sorted(set(names), key=lambda n: hashlib.sha256(n.encode()).hexdigest())


def collect_extras(icons: IconSets) -> list[tuple[str, str, str]]:
    """(purpose, set, icon) of drawings without a class noun, for the autoencoder and the judge."""
    rows: list[tuple[str, str, str]] = []
    test = train = 0
    for name in icons.extra_names():
        if test < EXTRAS_TEST:
            icon_set = DEFAULT_SETS[test % 3]
            if icons.svg(icon_set, name):
                rows.append(("test", icon_set, name))
                test += 1
        elif train < EXTRAS_TRAIN:
            for icon_set in DEFAULT_SETS[train % 2 : train % 2 + 2]:
                if icons.svg(icon_set, name):
                    rows.append(("train", icon_set, name))
                    train += 1
    return rows


def collect_relatives() -> list[dict[str, str]]:
    """Rows of RELATIVES; icons that a set lacks are left out by `write_atlas`."""
    taken = {(icon, icon_set) for icon, sets in CLASSES.values() for icon_set in sets}
    taken.add(("sunglasses", "fxemoji"))  # a face that wears some
    for icon, icon_set in SUBJECTS.values():
        taken |= {(icon, icon_set), (icon, SHADED.get(icon_set, icon_set))}
    return [
        {"class_noun": noun, "set": icon_set, "icon": icon}
        for noun, names in RELATIVES.items()
        for icon in names.split()
        for icon_set in ALL_SETS
        if (icon, icon_set) not in taken
    ]


def write_atlas(folder: Path, name: str, rows: list[dict], icons: IconSets) -> list[dict]:
    """Save the drawings of `rows` as one WebP, 16 in a line; returns the rows that were drawn."""
    drawn = [(row, icons.drawing(row["set"], row["icon"])) for row in rows]
    kept = [(row, image) for row, image in drawn if image is not None]
    lines = -(-len(kept) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * SIDE, lines * SIDE))
    for i, (_, image) in enumerate(kept):
        atlas.paste(image, (i % COLUMNS * SIDE, i // COLUMNS * SIDE))
    atlas.save(folder / f"{name}.webp", quality=92, alpha_quality=100, method=6, exact=False)
    return [row for row, _ in kept]


def main() -> None:
    """Bake all atlases."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--icons", type=Path, required=True, help="folder with the icon packages")
    icons = IconSets(parser.parse_args().icons)
    folder = Path(__file__).parent / "artwork"
    index = {
        "classes": [
            {"class_noun": noun, "set": s, "icon": icon}
            for noun, (icon, sets) in CLASSES.items()
            for s in sets
        ],
        "subjects": [
            {"class_noun": noun, "set": s, "icon": icon} for noun, (icon, s) in SUBJECTS.items()
        ],
        "relatives": collect_relatives(),
        "extras": [{"purpose": p, "set": s, "icon": icon} for p, s, icon in collect_extras(icons)],
    }
    index = {name: write_atlas(folder, name, rows, icons) for name, rows in index.items()}
    lines = ",\n".join(
        f'"{name}": [\n' + ",\n".join("  " + json.dumps(row) for row in rows) + "\n]"
        for name, rows in index.items()
    )
    (folder / "index.json").write_text("{" + lines + "}\n")
    print({name: len(rows) for name, rows in index.items()})


if __name__ == "__main__":
    main()
