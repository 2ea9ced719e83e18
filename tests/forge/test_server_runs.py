"""Runs whose images servers of one's own draw: what is planned, recorded and gone on with."""

import json
from pathlib import Path

import pytest
from image_servers import ComfyServer, WebuiServer, plain_workflow
from shell import Shell
from small_runs import WriteRecipe, quietly, rows_of

from regforge.recipe import load_recipe

WEBUI = {"renderer": "a1111", "width": 48, "height": 40, "steps": 5, "dtype": "auto"}
COMFY = {"renderer": "comfyui", "workflow": "workflow.json", "dtype": "auto"}


@pytest.fixture(autouse=True)
def workflow(tmp_path: Path) -> None:
    (tmp_path / "workflow.json").write_text(json.dumps(plain_workflow()))


def test_a_run_of_a_workflow_says_what_the_workflow_says(
    shell: Shell, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    with ComfyServer() as server:
        recipe = write_recipe(render={**COMFY, "api_base": server.url}, prompts={"count": 6})
        loaded = load_recipe(recipe)
        assert shell("check", recipe, "--json") == 0, shell.err
        plan = json.loads(shell.out)
        said = (plan["model"], plan["steps"], plan["guidance_scale"], plan["images_cost"])
        assert said == ("v1-5.safetensors", 2, 8.0, 0.0)
        done = quietly(loaded, tmp_path / "made")
        assert len(server.drawn) == 6
        quietly(loaded, tmp_path / "made")
        assert len(server.drawn) == 6, "nothing is drawn again"
    rows = rows_of(done)
    assert {(row.model, row.scheduler, row.steps, row.guidance_scale) for row in rows} == {
        ("v1-5.safetensors", "dpmpp_2m karras", 2, 8.0)
    }
    assert {row.negative_prompt for row in rows} == {"text, watermark"}
    assert {row.seed for row in rows} == {w["3"]["inputs"]["seed"] for w in server.drawn}
    (revision,) = {row.model_revision for row in rows}
    assert revision is not None
    card = (done.dataset_folder / "README.md").read_text(encoding="utf-8")
    assert revision.removeprefix("workflow ") in card


def test_a_server_that_is_away_is_a_warning_of_check_and_stops_a_run_before_it_begins(
    shell: Shell, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    away = {"api_base": "http://127.0.0.1:9"}
    for render in ({**COMFY, **away}, {**WEBUI, **away}):
        recipe = write_recipe(render=render)
        assert shell("check", recipe, "--json") == 0, shell.err
        assert "127.0.0.1:9" in " ".join(json.loads(shell.out)["warnings"])
        assert shell("run", recipe, "--out", "made") == 1
        assert "127.0.0.1:9" in shell.err
        assert not (tmp_path / "made").exists()


def test_a_web_ui_that_has_another_checkpoint_by_now_does_not_go_on(
    shell: Shell, write_recipe: WriteRecipe
) -> None:
    with WebuiServer() as server:
        recipe = write_recipe(render={**WEBUI, "api_base": server.url}, prompts={"count": 3})
        assert shell("check", recipe, "--json") == 0, shell.err
        assert json.loads(shell.out)["model"] == "v1-5.safetensors"
        assert shell("run", recipe, "--out", "made", "--limit", "2") == 0, shell.err
        server.vae = "other.safetensors"
        assert shell("run", recipe, "--out", "made") == 2
        assert "VAE other.safetensors" in shell.err
        server.vae = "Automatic"
        assert shell("run", recipe, "--out", "made") == 0, shell.err
    assert len(server.drawn) == 3
