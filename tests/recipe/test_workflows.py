"""Which inputs of a ComfyUI workflow get what: found by following links, or named."""

import json
from pathlib import Path
from typing import Any

import pytest
from image_servers import plain_workflow

from regforge.files import recipes_folder
from regforge.recipe.rendering import Render
from regforge.recipe.workflows import Workflow, WorkflowError, read_workflow


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def flux() -> dict[str, Any]:
    """As ComfyUI's example: noise, guider, sampler and sigmas apart, and no negative side."""
    return {
        "5": node("EmptyLatentImage", width=["30", 0], height=["31", 0], batch_size=1),
        "6": node("CLIPTextEncode", text=["32", 0], clip=["11", 0]),
        "8": node("VAEDecode", samples=["13", 0], vae=["10", 0]),
        "9": node("SaveImage", filename_prefix="x", images=["8", 0]),
        "10": node("VAELoader", vae_name="ae.safetensors"),
        "11": node("DualCLIPLoader", clip_name1="t5.safetensors", clip_name2="clip_l.safetensors"),
        "12": node("UNETLoader", unet_name="flux1-dev.safetensors"),
        "13": node(
            "SamplerCustomAdvanced",
            noise=["25", 0],
            guider=["22", 0],
            sampler=["16", 0],
            sigmas=["17", 0],
            latent_image=["5", 0],
        ),
        "16": node("KSamplerSelect", sampler_name="euler"),
        "17": node("BasicScheduler", scheduler="simple", steps=28, denoise=1.0, model=["29", 0]),
        "22": node("BasicGuider", model=["29", 0], conditioning=["26", 0]),
        "25": node("RandomNoise", noise_seed=7),
        "26": node("FluxGuidance", guidance=3.5, conditioning=["6", 0]),
        "29": node("ModelSamplingFlux", width=1024, height=768, model=["12", 0]),
        "30": node("PrimitiveInt", value=1024),
        "31": node("PrimitiveInt", value=768),
        "32": node("PrimitiveString", value="a cat"),
        "40": node("PreviewImage", images=["8", 0]),
    }


def sdxl() -> dict[str, Any]:
    """A base and a refiner, each with texts and a sampler of its own."""
    nodes: dict[str, Any] = {
        "5": node("EmptyLatentImage", width=1024, height=1024, batch_size=1),
        "9": node("SaveImage", filename_prefix="x", images=["17", 0]),
        "17": node("VAEDecode", samples=["11", 0], vae=["12", 2]),
    }
    for part, sampler, loader, texts in (("base", "10", "4", 6), ("refiner", "11", "12", 15)):
        nodes[loader] = node("CheckpointLoaderSimple", ckpt_name=f"{part}.safetensors")
        more = {"text_l": "a cat"} if part == "base" else {}
        name = "text_g" if part == "base" else "text"
        for number, text in ((texts, "a cat"), (texts + 1, "blurry")):
            inputs = {name: text, "width": 4096, "height": 4096, "clip": [loader, 1]}
            inputs |= dict.fromkeys(more, text)
            nodes[str(number)] = node("CLIPTextEncodeSDXL", **inputs)
        nodes[sampler] = node(
            "KSamplerAdvanced",
            noise_seed=1,
            steps=25,
            cfg=8.0,
            sampler_name="euler",
            scheduler="normal",
            positive=[str(texts), 0],
            negative=[str(texts + 1), 0],
            model=[loader, 0],
            latent_image=["5" if part == "base" else "10", 0],
        )
    return nodes


def read(folder: Path, nodes: Any, **named: Any) -> Workflow:
    path = folder / "workflow.json"
    path.write_text(json.dumps(nodes))
    return read_workflow(path, Render(nodes=named).nodes)


def places(workflow: Workflow) -> dict[str, set[str]]:
    return {r: {".".join(at) for at in there} for r, there in workflow.places.items() if there}


def test_the_plain_workflow_and_the_shipped_one(tmp_path: Path) -> None:
    wanted = {
        "prompt": {"6.text"},
        "negative_prompt": {"7.text"},
        "seed": {"3.seed"},
        "width": {"5.width"},
        "height": {"5.height"},
        "steps": {"3.steps"},
        "guidance_scale": {"3.cfg"},
        "model": {"4.ckpt_name"},
        "filename": {"9.filename_prefix"},
        "image": {"9."},
    }
    assert places(read(tmp_path, plain_workflow())) == wanted
    assert places(read_workflow(recipes_folder() / "comfyui-sdxl.json", {})) == wanted


def test_a_flux_workflow_with_values_in_nodes_of_their_own(tmp_path: Path) -> None:
    workflow = read(tmp_path, flux())
    assert places(workflow) == {
        "prompt": {"32.value"},
        "seed": {"25.noise_seed"},
        "width": {"30.value"},
        "height": {"31.value"},
        "steps": {"17.steps"},
        "guidance_scale": {"26.guidance"},
        "model": {"12.unet_name"},
        "filename": {"9.filename_prefix"},
        "image": {"9."},
    }
    assert workflow.scheduler == "euler simple"
    assert workflow.settings() == {
        "model": "flux1-dev.safetensors",
        "width": 1024,
        "height": 768,
        "steps": 28,
        "guidance_scale": 3.5,
    }


def test_a_negative_side_made_of_the_positive_one_is_none(tmp_path: Path) -> None:
    nodes = plain_workflow()
    nodes["3"]["inputs"]["negative"] = ["10", 0]
    nodes["10"] = node("ConditioningZeroOut", conditioning=["6", 0])
    assert "negative_prompt" not in places(read(tmp_path, nodes))


def test_texts_that_say_the_same_are_all_the_prompt_and_seeds_all_the_seed(tmp_path: Path) -> None:
    workflow = read(tmp_path, sdxl())
    found = places(workflow)
    assert found["prompt"] == {"6.text_g", "6.text_l", "15.text"}
    assert found["negative_prompt"] == {"7.text_g", "7.text_l", "16.text"}
    assert found["seed"] == {"10.noise_seed", "11.noise_seed"}
    assert found["width"] == {"5.width"}
    for role in ("steps", "guidance_scale", "model"):  # two samplers, two checkpoints
        assert role not in found
    sent = workflow.filled({"prompt": "a dog", "seed": 3})
    assert {sent[n]["inputs"]["noise_seed"] for n in ("10", "11")} == {3}
    assert sent["15"]["inputs"]["text"] == sent["6"]["inputs"]["text_l"] == "a dog"


def test_what_is_named_goes_before_what_is_found(tmp_path: Path) -> None:
    workflow = read(tmp_path, sdxl(), steps=["10.steps", "11.steps"], width=[], image=9)
    assert places(workflow)["steps"] == {"10.steps", "11.steps"}
    assert "width" not in places(workflow)
    assert workflow.settings()["steps"] == 25


def two_texts() -> dict[str, Any]:
    nodes = plain_workflow()
    nodes["3"]["inputs"]["positive"] = ["10", 0]
    nodes["10"] = node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["11", 0])
    nodes["11"] = node("CLIPTextEncode", text="in the style of", clip=["4", 1])
    return nodes


def two_ends() -> dict[str, Any]:
    return {**plain_workflow(), "12": node("SaveImage", filename_prefix="y", images=["8", 0])}


def without(*gone: str) -> dict[str, Any]:
    return {name: each for name, each in plain_workflow().items() if name not in gone}


@pytest.mark.parametrize(
    ("nodes", "named", "role", "words"),
    [
        (two_texts(), {}, "prompt", "6.text and 11.text"),
        (two_ends(), {}, "image", "9 and 12"),
        (without("9"), {}, "image", "none"),
        (without("6"), {}, "prompt", "prompt"),
        (plain_workflow(), {"seed": "30.seed"}, "seed", "no node '30'"),
        (plain_workflow(), {"seed": "3.sed"}, "seed", "KSampler"),
        (plain_workflow(), {"seed": "seed"}, "seed", "6.text"),
        ({"nodes": [], "links": []}, {}, None, "Export"),
        ([1], {}, None, "API format"),
        ({"3": {"inputs": {}}}, {}, None, "API format"),
    ],
)
def test_what_is_wrong_with_a_workflow_is_said(
    nodes: Any, named: dict[str, Any], role: str | None, words: str, tmp_path: Path
) -> None:
    with pytest.raises(WorkflowError, match=words) as error:
        read(tmp_path, nodes, **named)
    assert error.value.role == role


def test_a_workflow_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("{")
    for name, words in (("none.json", "no file"), ("text.json", "JSON")):
        with pytest.raises(WorkflowError, match=words):
            read_workflow(tmp_path / name, {})


def test_what_could_be_meant_twice_can_be_named(tmp_path: Path) -> None:
    assert places(read(tmp_path, two_texts(), prompt="6.text"))["prompt"] == {"6.text"}
    assert places(read(tmp_path, two_ends(), image="12"))["image"] == {"12."}
