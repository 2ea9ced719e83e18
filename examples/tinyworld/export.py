"""Put what training made into the package: `regforge/embedded/tinyworld` and `.../judge`.

Half precision, safetensors only, in the ordinary folder layouts of diffusers and transformers.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import models
from world import vocabulary as v

HERE = Path(__file__).parent
EMBEDDED = HERE.parents[1] / "regforge" / "embedded"


def assemble(work: Path) -> Any:
    """The pipeline made of the parts in a training folder."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(work / "unet"),
        scheduler=models.noise_schedule(),
        safety_checker=None,  # the world has nothing unsafe to draw
        feature_extractor=None,
        requires_safety_checker=False,
    )


def vocabulary() -> dict[str, list[str]]:
    """What the pipeline can draw, by slot, for recipes and examples."""

    def first(table: dict[str, list[str]]) -> list[str]:
        return [phrases[0] for phrases in table.values() if phrases[0]]

    nouns = v.CLASS_NOUNS
    return {
        "class_noun": [name for names in nouns.values() for name in names],
        "living": [name for noun in nouns if noun in v.LIVING for name in nouns[noun]],
        "color": [phrases[0] for _, phrases in v.COLORS.values()],
        "texture": first(v.TEXTURES),
        "size": first(v.SIZES),
        "motion": first(v.MOTIONS),
        "background": first(v.PLACES),
        "lighting": first(v.LIGHTS),
        "style": first(v.STYLES),
    }


def replace_folder(source: Path, target: Path) -> None:
    """Copy a folder over another one, leaving nothing of the old."""
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)


def name_precision(config: Path, dtype: str) -> None:
    """Say in a transformers config which precision to load in, wherever it says any."""

    def change(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        return {k: dtype if k == "dtype" else change(v) for k, v in node.items()}

    config.write_text(json.dumps(change(json.loads(config.read_text())), indent=2) + "\n")


def forget_paths(folder: Path) -> None:
    """Take out of all configs where the parts were loaded from."""
    for path in folder.rglob("*.json"):
        config = json.loads(path.read_text())
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")


def megabytes(folder: Path) -> float:
    """Size of a folder's files."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    args = parser.parse_args()

    pipeline = assemble(args.work)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        part.half()
    target = args.out / "tinyworld"
    card = (target / "README.md").read_text() if (target / "README.md").exists() else None
    shutil.rmtree(target, ignore_errors=True)
    pipeline.save_pretrained(target)
    forget_paths(target)
    # transformers loads in the precision that the config names, diffusers in float32.
    name_precision(target / "text_encoder" / "config.json", "float32")
    (target / "vocabulary.json").write_text(json.dumps(vocabulary(), indent=1) + "\n")
    if card:
        (target / "README.md").write_text(card)
    print(f"{target}: {megabytes(target):.1f} MB")
    judge = args.out / "judge"
    for name in ("identity", "alignment"):
        if (args.work / "judge" / name).exists():
            replace_folder(args.work / "judge" / name, judge / name)
            forget_paths(judge / name)
            name_precision(judge / name / "config.json", "float32")
    shutil.copy(args.work / "unet" / "training.json", HERE / "training.json")
    for name in ("guide", "reader"):
        if (args.work / "judge" / f"{name}.safetensors").exists():
            shutil.copy(args.work / "judge" / f"{name}.safetensors", HERE)
    if judge.exists():
        print(f"{judge}: {megabytes(judge):.1f} MB")


if __name__ == "__main__":
    main()
