"""What becomes of photos' captions: in `check`, a run, `audit`, training and exports."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from servers import Call, OpenAIServer, Reply, said
from shell import Shell
from small_runs import WriteRecipe, write_captioned

from regforge.recipe import load_recipe, load_training_recipe, recipe_digest
from regforge.training.plan import make_training_plan

STATED = "The image shows a small white and blue sks cat with black paws. It is fluffy and white."


def prompts_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "prompts.jsonl").open(encoding="utf-8")]


def images(folder: Path) -> dict[str, str]:
    return {"images": str(folder)}


@pytest.mark.slow
def test_what_a_caption_does_not_let_vary_is_said_by_check_the_run_and_audit(
    shell: Shell, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    photos = write_captioned(tmp_path / "photos", ["a photo of a sks cat on a mat", STATED])
    recipe = write_recipe(
        subject=images(photos), prompts={"sets": {"against": 1}, "count": 6}, name="stated"
    )
    assert shell("check", recipe, "--json") == 0, shell.err
    (warning,) = [each for each in json.loads(shell.out)["warnings"] if STATED in each]
    assert "001.png" in warning
    assert shell("run", recipe, "--out", "run", "--set", "render.steps=1") == 0, shell.err
    assert STATED in shell.err
    made = {prompt["text"] for prompt in prompts_of(Path("run")) if "paws" in prompt["text"]}
    assert made == {"The image shows a cat with black paws. It is fluffy and white."}
    shell("audit", "run", "--json", "--quiet")
    (found,) = [c for c in json.loads(shell.out)["checks"] if c["name"] == "followed captions"]
    assert found["grade"] == "look"
    assert found["numbers"] == {"photos": 2, "not_varied": {"001.png": ["color"]}}
    assert "black paws" in found["examples"][0]


@pytest.mark.slow
def test_plain_captions_need_no_vocabulary_and_are_no_finding(
    shell: Shell, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    photos = write_captioned(tmp_path / "photos", ["my old sks cat on a mat", STATED])
    recipe = write_recipe(
        subject=images(photos),
        prompts={"sets": {"captions": 1}, "count": 4, "slots": ["color"]},
        render={"width": 96, "height": 96, "steps": 1},
        name="plain",
    )
    assert shell("check", recipe, "--json") == 0, shell.err
    plan = json.loads(shell.out)
    assert (plan["calls"], plan["captions"][0]) == (0, "my old cat on a mat")
    assert not [each for each in plan["warnings"] if "varied" in each]
    assert shell("run", recipe, "--out", "run") == 0, shell.err
    made = prompts_of(Path("run"))
    assert [prompt["text"] for prompt in made[::2]] == ["my old cat on a mat"] * 2
    assert {(prompt["width"], prompt["height"]) for prompt in made} == {(96, 96)}
    assert len({prompt["seed"] for prompt in made}) == 4
    shell("audit", "run", "--json", "--quiet")
    assert "followed captions" not in [c["name"] for c in json.loads(shell.out)["checks"]]


def test_prompt_syntax_comes_off(shell: Shell, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    photos = write_captioned(tmp_path / "photos", ["a photo of a (sks cat:1.3) on a rug"])
    recipe = write_recipe(subject=images(photos), prompts={"sets": {"against": 1}, "count": 2})
    assert shell("check", recipe) == 0, shell.err
    assert "(sks cat:1.3)" in shell.out.partition("warning")[2]
    assert "on a rug" in shell.out
    assert shell("prompts", recipe, "--out", "run") == 0, shell.err
    assert "000.png" in shell.err
    for prompt in prompts_of(Path("run")):
        assert prompt["text"] == f"a photo of a {prompt['slots']['color']} cat on a rug"


@pytest.mark.parametrize("several", ["{red|blue}", "[red:blue:0.5]", "__color__"])
def test_captions_that_stand_for_several_are_refused_by_name(
    several: str, shell: Shell, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    captions = ["a sks cat", f"a {several} sks cat on a rug"]
    photos = write_captioned(tmp_path / "photos", captions)
    recipe = write_recipe(subject=images(photos), prompts={"sets": {"against": 1}})
    for command in ("check", "run"):
        assert shell(command, recipe) == 2
        assert "001.png" in shell.err
        assert several in shell.err
    assert not list(Path("runs").rglob("vocabulary.json"))  # nobody was asked for phrases


def sees(call: Call) -> Reply:
    return said('{"background": "on a mat", "pose": "dozing", "lighting": ""}')


SEEN = "a photo of a sks cat dozing on a mat"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = write_captioned(tmp_path / "photos", [None, "a sks cat on a sofa", None, None])
    (folder / "002.txt").write_text("")  # a file that is there
    return folder


def auto(write_recipe: WriteRecipe, photos: Path, url: str, captions: str) -> Path:
    llm = {"vision_model": "openai/eyes", "api_base": url}
    return write_recipe(
        name="described",
        subject={"images": str(photos), "captions": captions},
        prompts={"sets": {"against": 1}, "count": 4, "llm": llm},
        render={"steps": 1},
    )


@pytest.mark.slow
def test_captions_of_a_vision_model_are_written_beside_the_photos_on_demand(
    shell: Shell, write_recipe: WriteRecipe, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    before = {path.name for path in photos.iterdir()}
    with OpenAIServer(sees) as server:
        recipe = auto(write_recipe, photos, server.url, "auto")
        assert shell("run", recipe, "--out", "run") == 0, shell.err
        assert {path.name for path in photos.iterdir()} == before
        digest, made = recipe_digest(load_recipe(recipe)), prompts_of(Path("run"))
        asked = len(server.calls)
        recipe = auto(write_recipe, photos, server.url, "write")
        assert shell("run", recipe, "--out", "run") == 0, shell.err  # the same run goes on
        assert shell("run", recipe, "--out", "run") == 0, shell.err
        assert len(server.calls) == asked == 3
    assert {path.name for path in photos.iterdir()} - before == {"000.txt", "003.txt"}
    assert (photos / "000.txt").read_text() == SEEN + "\n"
    assert (photos / "002.txt").read_text() == ""
    assert (photos / "001.txt").read_text() == "a sks cat on a sofa"
    assert recipe_digest(load_recipe(recipe)) == digest
    assert prompts_of(Path("run")) == made


@pytest.mark.slow
def test_training_and_exports_take_the_captions_of_the_run(
    shell: Shell,
    write_recipe: WriteRecipe,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with OpenAIServer(sees) as server:
        recipe = auto(write_recipe, photos, server.url, "auto")
        assert shell("run", recipe) == 0, shell.err

    def trained(dataset: Path | str | None, **subject: Any) -> Any:
        content = {
            "name": "lora",
            "base_model": "embedded/tinyworld",
            "subject": {"class_noun": "cat", "images": str(photos), **subject},
            "regularization": {"dataset": dataset and str(dataset)},
        }
        Path("train.yaml").write_text(yaml.safe_dump(content))
        return make_training_plan(load_training_recipe("train.yaml"))

    plain = "a photo of a sks cat"
    described = {f"00{n}.png": SEEN for n in (0, 2, 3)} | {"001.png": "a sks cat on a sofa"}
    for dataset in (recipe, Path("runs/described").absolute()):
        plan = trained(dataset)
        assert (plan.captions, plan.without_caption) == (described, [])
    assert trained(recipe, identifier="zqk").captions["000.png"] == SEEN.replace("sks", "zqk")
    for plan in (trained(None), trained(recipe, captions="files")):
        assert plan.captions["000.png"] == plain
        assert plan.without_caption == ["000.png", "002.png", "003.png"]
    digest = trained(recipe).digest
    for photo, caption in described.items():  # as `captions: write` does
        (photos / photo).with_suffix(".txt").write_text(caption)
    assert trained(recipe).digest == digest

    others = tmp_path / "others"  # of the same names, and other photos
    shutil.copytree(photos, others, ignore=shutil.ignore_patterns("*.txt"))
    (others / "000.png").write_bytes((photos / "003.png").read_bytes())
    export = ("export", "runs/described", "--to", "kohya", "--subject", others, "--out", "out")
    assert shell(*export) == 0, shell.err
    captions = [path.read_text() for path in sorted(Path("out/subject").glob("*.txt"))]
    assert captions == [plain, plain, SEEN, SEEN]  # the second had a caption of its own
