"""What is said before and after work is true, and what it tells people to do works."""

import json
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from servers import OpenAIServer, Reply, refused
from shell import Shell
from small_runs import WriteRecipe

from regforge.recipe import load_recipe


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "LM_STUDIO_API_BASE", "HOSTED_VLLM_API_BASE"):
        monkeypatch.delenv(name, raising=False)


def asking(write_recipe: WriteRecipe, model: str, **llm: Any) -> Path:
    """A recipe whose one slot a language model fills."""
    return write_recipe(
        subject={"class_noun": "teapot", "images": None},
        prompts={
            "sets": {"amplify": 1},
            "slots": ["color"],
            "llm": {"model": model, "max_cost": 1.0, "max_attempts": 2, **llm},
        },
    )


# --------------------------------------------------------------------------------- models to ask


@pytest.mark.parametrize(
    ("model", "environment", "words"),
    [
        ("llama3.1", {}, "names no provider"),
        ("nosuch/llama3.1", {}, "names no provider"),
        ("hosted_vllm/mine", {}, "prompts.llm.api_base"),
        ("lm_studio/mine", {}, "prompts.llm.api_base"),
        ("gpt-4o-mini", {}, "OPENAI_API_KEY"),
        ("ollama_chat/llama3.1", {}, None),
        ("lm_studio/mine", {"LM_STUDIO_API_BASE": "http://127.0.0.1:1234/v1"}, None),
    ],
)
def test_check_says_what_keeps_a_model_from_being_asked(
    model: str,
    environment: dict[str, str],
    words: str | None,
    shell: Shell,
    write_recipe: WriteRecipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert shell("check", asking(write_recipe, model)) == 0, shell.err
    told = [
        line for line in shell.out.splitlines() if line.startswith("warning: prompts.llm.model")
    ]
    if words is not None:
        assert len(told) == 1
        assert words in told[0]
    else:
        assert not told
        assert "free" in shell.out
        assert "max_cost" not in shell.out


def test_an_image_server_that_is_down_is_said_before_a_language_model_is_paid(
    shell: Shell, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with OpenAIServer() as server:
        for render in (
            {"model": "openai/draws", "api_base": nobody},
            {"model": "draws-without-provider"},
        ):
            recipe = asking(write_recipe, "openai/writes", api_base=server.url)
            content = yaml.safe_load(recipe.read_text())
            content["render"] = {**render, "renderer": "hosted"}
            recipe.write_text(yaml.safe_dump(content))
            assert shell("run", recipe, "--out", tmp_path / "run") == 1
            assert "Traceback" not in shell.err
            assert render["model"] in shell.err
        assert server.calls == []
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "reply",
    [Reply(0), Reply(200, "<html>Sign in</html>"), refused(429, "Slow down.")],
    ids=["reset", "page", "busy"],
)
def test_a_server_that_answers_nothing_is_not_blamed_for_its_phrases(
    reply: Reply, shell: Shell, write_recipe: WriteRecipe
) -> None:
    with OpenAIServer(lambda _: reply) as server:
        recipe = asking(write_recipe, "openai/writes", api_base=server.url, timeout=5)
        assert shell("prompts", recipe, "--out", "run") == 1
    assert "usable phrase" not in shell.err
    assert "did not answer" in shell.err


# ------------------------------------------------------------------------------ what is to be drawn


def test_check_refuses_what_a_local_model_cannot_draw_with(
    shell: Shell, write_recipe: WriteRecipe
) -> None:
    assert shell("check", write_recipe(), "--set", "render.scheduler=lms") == 2
    assert "zero terminal SNR" in shell.err
    assert shell("run", write_recipe(), "--set", "render.scheduler=lms", "--out", "run") == 2
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("gpt-image-1", "renderer: hosted"),
        ("openai/dall-e-3", "renderer: hosted"),
        ("sdxl", "owner/name"),
    ],
)
def test_check_says_where_a_model_that_is_no_pipeline_belongs(
    model: str, words: str, shell: Shell, write_recipe: WriteRecipe
) -> None:
    assert shell("check", write_recipe(), "--set", f"render.model={model}") == 2
    assert words in shell.err
    hosted = ("--set", "render.renderer=hosted", "--set", "render.model=gpt-image-1")
    assert shell("check", write_recipe(), *hosted) == 0


def test_check_says_that_a_model_may_not_be_downloaded(
    shell: Shell, write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ("--set", "render.model=me/nowhere")
    assert shell("check", write_recipe(), *model) == 0
    assert "HF_HUB_OFFLINE" in shell.out
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert shell("check", write_recipe(), *model) == 0
    assert "HF_HUB_OFFLINE" not in shell.out


def test_check_shows_steps_and_guidance_of_a_distilled_model(
    shell: Shell, write_recipe: WriteRecipe
) -> None:
    recipe = write_recipe()
    content = yaml.safe_load(recipe.read_text())
    content["render"] = {"model": "stabilityai/sdxl-turbo"}
    recipe.write_text(yaml.safe_dump(content))
    assert shell("check", recipe) == 0
    assert "stabilityai/sdxl-turbo, 4 steps, no guidance" in shell.out
    assert shell("check", recipe, "--json") == 0
    plan = json.loads(shell.out)
    assert (plan["steps"], plan["guidance_scale"]) == (4, 1.0)
    assert shell("check", recipe, "--set", "render.steps=30") == 0
    assert "warning: render.steps" in shell.out


# -------------------------------------------------------------------------------- commands to type


@pytest.mark.slow
def test_every_command_that_is_told_to_start_over_can(
    shell: Shell, write_recipe: WriteRecipe
) -> None:
    recipe = write_recipe(prompts={"count": 2})
    assert shell("render", recipe, "--out", "a run") == 0
    assert shell("render", recipe, "--out", "a run", "--set", "seed=1") == 2
    assert "--fresh" in shell.err
    changed = ("--out", "a run", "--set", "seed=1", "--set", "subject.class_noun=red cat")
    assert shell("render", recipe, *changed, "--fresh") == 0
    command = next(line for line in shell.out.splitlines() if "regforge run" in line)
    words = shlex.split(command[command.index("regforge run") :])
    assert shell(*words[1:]) == 0, "the run that was rendered, and not another one"
    assert Path("a run/dataset/data").is_dir()


def test_a_training_run_is_no_dataset_run(shell: Shell, tmp_path: Path) -> None:
    from regforge.recipe import TrainingRecipe, recipe_digest, resolved_yaml

    run, photos = tmp_path / "trained", tmp_path / "photos"
    photos.mkdir()
    run.mkdir()
    (photos / "1.png").write_bytes(b"a photo")
    trained = TrainingRecipe.model_validate(
        {"name": "x", "subject": {"class_noun": "cat", "images": str(photos)}}
    )
    (run / "recipe.yaml").write_text(resolved_yaml(trained))
    (run / "state.json").write_text(json.dumps({"recipe_digest": recipe_digest(trained)}))
    for command in (
        ("report", run),
        ("audit", run),
        ("export", run, "--to", "kohya", "--out", tmp_path / "out"),
    ):
        assert shell(*command) in (1, 2)
        assert "is a training" in shell.err
        assert "regforge run" not in shell.err
    assert not (run / "report.html").exists()


@pytest.mark.slow
def test_an_export_takes_the_identifier_of_the_run(
    shell: Shell, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    recipe = write_recipe(
        subject={"class_noun": "cat", "identifier": "ohwx", "images": None},
        prompts={"sets": {"amplify": 1}, "count": 2},
    )
    assert shell("run", recipe, "--out", "run") == 0
    for given, name in (((), "ohwx"), (("--identifier", "zwx"), "zwx")):
        out = tmp_path / name
        assert shell("export", "run", "--to", "kohya", "--out", out, *given) == 0, shell.err
        assert f'"identifier": "{name}"' in (out / "export.json").read_text()


def test_a_starter_runs_with_what_its_comments_offer(shell: Shell) -> None:
    """Each comment with a number names what to put there instead."""
    assert shell("init", "mug.yaml", "--class-noun", "coffee mug") == 0
    text = Path("mug.yaml").read_text()
    recipe = load_recipe("mug.yaml")
    assert recipe.subject.identifier == "<my-coffee-mug>"
    content = yaml.safe_load(text)
    del content["prompts"]["slots"], content["render"]["steps"], content["render"]["guidance_scale"]
    content["prompts"]["llm"]["model"] = "ollama_chat/llama3.1"
    content["render"]["model"] = "stabilityai/stable-diffusion-xl-base-1.0"
    for offered in ("ollama_chat/llama3.1", content["render"]["model"]):
        assert offered in text
    Path("real.yaml").write_text(yaml.safe_dump(content))
    assert shell("check", "real.yaml") == 0
    assert "warning: The price" not in shell.out
    assert "free" in shell.out
    assert "30 steps, guidance 5" in shell.out
