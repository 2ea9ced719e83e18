"""Base models: how one is recognized, and what each trainer makes of it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_samples import Memory, export, material, ours
from own_code import PARSERS
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from trainer_arguments import READERS, custom_diffusion, kohya

from regforge.embedded import TINYWORLD
from regforge.exporting import export_dataset
from regforge.exporting.trainer import ExportError, Trainer
from regforge.exporting.writing import TRAINERS
from regforge.recipe.pipelines import FAMILIES, NAMED, Family, family_of, predicts_v

KOHYA, DREAMBOOTH, CUSTOM, SIMPLE, ONE, AI, *_ = TRAINERS


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_known_by_the_model_that_it_is_named_after(family: Family) -> None:
    assert family_of(family.repository) is family
    assert not family.like or not NAMED[family.like].like


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("RunDiffusion/Juggernaut-XL-v9", "sdxl"),
        ("SG161222/RealVisXL_V5.0", "sdxl"),
        ("SG161222/RealVisXL_V5.0_Lightning", "sdxl-turbo"),
        ("bluepen5805/anima_pencil-XL", "sdxl"),
        ("stabilityai/stable-diffusion-3.5-medium", "sd3.5"),
        ("runwayml/stable-diffusion-v1-5", "sd1"),
        ("/models/SD15/mine.safetensors", "sd1"),
        ("C:\\models\\v1-5-pruned-emaonly.safetensors", "sd1"),
        ("/models/flux1-dev-fp8.safetensors", "flux1-dev"),
        ("Qwen/Qwen-Image-2512", "qwen-image"),
        ("ostris/Z-Image-De-Turbo", "z-image"),
        ("me/hyperrealistic-xl", "sdxl"),
        ("HiDream-ai/HiDream-I1-Fast", "hidream-dev"),
        # Not what a part of their name says.
        ("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", None),
        ("Qwen/Qwen-Image-Edit", None),
        ("black-forest-labs/FLUX.1-Kontext-dev", None),
        ("segmind/SSD-1B", None),
        ("HiDream-ai/HiDream-O1-Image", None),
        ("me/my-flux", None),  # 1 or 2?
        ("/data/sdxl/photos/mine", None),
        ("openai/gpt-image-1", None),
        ("BASE-MODEL", None),
    ],
)
def test_the_name_tells_the_family_or_nothing(name: str, family: str | None) -> None:
    assert (found := family_of(name)) is (NAMED[family] if family else None), found


@pytest.mark.parametrize(
    ("pipeline", "file", "entries", "family"),
    [
        ("StableDiffusionXLPipeline", "unet/config.json", {}, "sdxl"),
        ("StableDiffusionPipeline", "unet/config.json", {"cross_attention_dim": 768}, "sd1"),
        ("StableDiffusionPipeline", "unet/config.json", {"cross_attention_dim": 1024}, "sd2"),
        ("FluxPipeline", "transformer/config.json", {"guidance_embeds": True}, "flux1-dev"),
        ("FluxPipeline", "transformer/config.json", {"guidance_embeds": False}, "flux1-schnell"),
        ("Flux2KleinPipeline", "transformer/config.json", {"num_layers": 5}, "flux2-klein-4b"),
        ("Flux2KleinPipeline", "transformer/config.json", {"num_layers": 7}, None),
        ("StableDiffusion3Pipeline", "transformer/config.json", {"qk_norm": None}, "sd3"),
        ("PixArtSigmaPipeline", "transformer/config.json", {}, None),
    ],
)
def test_what_the_folder_says_counts_more_than_its_name(
    tmp_path: Path, pipeline: str, file: str, entries: dict[str, Any], family: str | None
) -> None:
    folder = tmp_path / "z-image"
    for name, content in {
        "model_index.json": {"_class_name": pipeline, "is_distilled": True},
        file: entries,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    assert family_of(str(folder)) is (NAMED[family] if family else None)


def test_a_repository_in_the_cache_of_the_hub_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert family_of("me/mine") is None
    snapshot = tmp_path / "models--me--mine" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text('{"_class_name": "QwenImagePipeline"}')
    (tmp_path / "models--me--mine" / "refs").mkdir()
    (tmp_path / "models--me--mine" / "refs" / "main").write_text("0" * 40)
    assert family_of("me/mine") is NAMED["qwen-image"]


TRAINED = [
    (trainer, family)
    for trainer in TRAINERS
    for family in FAMILIES
    if trainer.trains(family) and trainer.name in READERS
]


@pytest.mark.parametrize(("trainer", "family"), TRAINED, ids=lambda value: value.name)
def test_the_trainer_takes_what_is_printed_and_written(trainer: Trainer, family: Family) -> None:
    plan = trainer.plan(material(family=family.name))
    READERS[trainer.name](plan)
    text = plan.command + "".join(plan.files.values())
    named = family.repository in text or "BASE-MODEL.safetensors" in plan.command
    assert named
    told = [note for note in plan.notes if "distilled to few steps" in note]
    assert len(told) == family.distilled


CHECKOUTS = os.environ.get("REGFORGE_TRAINERS", "")
FOLDERS = {"kohya": "sd-scripts", "simpletuner": "SimpleTuner", "onetrainer": "OneTrainer"}
FOLDERS |= {"ai-toolkit": "ai-toolkit"}


@pytest.mark.slow
@pytest.mark.skipif(not CHECKOUTS, reason="REGFORGE_TRAINERS names no folder with checkouts")
@pytest.mark.parametrize("name", PARSERS)
def test_the_trainers_own_code_reads_the_same(name: str) -> None:
    """Of the commits that trainer_arguments.py names, whose rules it restates."""
    plans = {each.name: t.plan(material(family=each.name)) for t, each in TRAINED if t.name == name}
    given = {key: {"command": p.command, "files": dict(p.files)} for key, p in plans.items()}
    folder = Path(CHECKOUTS) / FOLDERS.get(name, "diffusers")
    words = [sys.executable, str(Path(__file__).parent / "own_code.py"), name, str(folder)]
    ran = subprocess.run(
        words, input=json.dumps(given), text=True, capture_output=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    for key, own in json.loads(ran.stdout).items():
        restated = READERS[name](plans[key])
        same = {k: type(own[k])(v) for k, v in restated.items() if k in own and v is not None}
        assert len(same) > 3
        assert {k: own[k] for k in same} == same


FLUX, RAW = {"guidance_scale": "1.0"}, {"model_prediction_type": "raw"}
QWEN3 = {"text_encoder": "Qwen3"}


@pytest.mark.parametrize(
    ("trainer", "family", "read"),
    [
        (KOHYA, "sdxl", {"script": "sdxl_train_network.py", "v_parameterization": False}),
        (KOHYA, "sd1", {"script": "train_network.py", "v2": False}),
        (KOHYA, "sd2", {"script": "train_network.py", "v2": True, "v_parameterization": True}),
        (KOHYA, "sd3.5", {"script": "sd3_train_network.py"}),
        *(
            (KOHYA, f"flux1-{name}", {**FLUX, "timestep_sampling": "flux_shift"} | RAW)
            for name in ("dev", "krea", "schnell")
        ),
        (KOHYA, "chroma", {"guidance_scale": "0.0", "model_type": "chroma"} | RAW),
        (DREAMBOOTH, "sd1", {"script": "train_dreambooth_lora.py"}),
        (DREAMBOOTH, "sdxl", {"script": "train_dreambooth_lora_sdxl.py"}),
        (DREAMBOOTH, "flux1-dev", {"guidance_scale": "1"}),
        (DREAMBOOTH, "flux2-klein-4b", {"script": "train_dreambooth_lora_flux2_klein.py"}),
        (SIMPLE, "sd1", {"model_family": "sd1x", "prediction_type": "epsilon"}),
        (SIMPLE, "sd2", {"model_family": "sd2x", "prediction_type": "v_prediction"}),
        (SIMPLE, "flux2-dev", {"model_family": "flux2", "text_encoder": "Mistral"}),
        (SIMPLE, "flux2-klein-base-4b", {"model_flavour": "klein-4b", "seed": 1} | QWEN3),
        (SIMPLE, "flux2-klein-9b", {"model_flavour": "klein-9b", "validation_guidance": 1} | QWEN3),
        (SIMPLE, "z-image", {"model_family": "z_image", "adapter": None}),
        (SIMPLE, "z-image-turbo", {"adapter": "ostris/zimage_turbo_training_adapter"}),
        (SIMPLE, "flux1-schnell", {"adapter": "ostris/FLUX.1-schnell-training-adapter"}),
        (ONE, "sdxl", {"model_type": "STABLE_DIFFUSION_XL_10_BASE", "samples": []}),
        (ONE, "sd3.5", {"model_type": "STABLE_DIFFUSION_35"}),
        (ONE, "sd2", {"force_v_prediction": True}),
        (ONE, "sana", {"model_type": "SANA", "training_method": "LORA"}),
        (ONE, "z-image-turbo", {"preset": "Z-Image/#z-image DeTurbo LoRA 16GB"}),
        (AI, "sd1", {"arch": "sd1", "noise_scheduler": "ddpm", "guidance_scale": 7.5}),
        (AI, "sd2", {"arch": "sd2", "is_v_pred": True}),
        (AI, "flux2-klein-4b", {"arch": "flux2_klein_4b", "guidance_scale": 1}),
        (AI, "hidream", {"ignored": {"ignore_if_contains": ["ff_i.experts", "ff_i.gate"]}}),
        *(
            (
                AI,
                name,
                {"assistant_lora_path": NAMED[name].adapter, "guidance_scale": 1},
            )
            for name in ("flux1-schnell", "z-image-turbo", "krea2-turbo")
        ),
    ],
    ids=lambda value: getattr(value, "name", value if isinstance(value, str) else ""),
)
def test_the_command_and_the_files_go_by_the_base_model(
    trainer: Trainer, family: str, read: dict[str, Any]
) -> None:
    found = READERS[trainer.name](trainer.plan(material(family=family)))
    assert {key: found.get(key) for key in read} == read
    if trainer is AI and not NAMED[family].adapter:
        assert "assistant_lora_path" not in found


@pytest.mark.parametrize(
    ("trainer", "family", "read"),
    [
        (DREAMBOOTH, "sd1", {"script": "train_dreambooth_lora_sd15_advanced.py"}),
        (DREAMBOOTH, "sdxl", {"num_new_tokens_per_abstraction": "1", "text_encoder_lr": "0.005"}),
        (DREAMBOOTH, "flux1-dev", {"initializer_concept": "teapot", "guidance_scale": "1"}),
        (DREAMBOOTH, "sd3", {}),
        (ONE, "sdxl", {"embedding_learning_rate": 0.005}),
        (ONE, "qwen-image", {}),
        (KOHYA, "sdxl", {}),
        (AI, "sdxl", {}),
    ],
    ids=lambda value: getattr(value, "name", value if isinstance(value, str) else ""),
)
def test_a_new_token_is_trained_where_the_trainer_can(
    trainer: Trainer, family: str, read: dict[str, Any]
) -> None:
    """Elsewhere one note says that it is none."""
    made = material(family=family, identifier="<my-pot>", class_noun="red teapot")
    plan = trainer.plan(made)
    found = READERS[trainer.name](plan)
    assert {key: found.get(key) for key in read} == read
    assert bool(read) == (not list(trainer.token_notes(made)))
    assert bool(read) == any("<my-pot>" in note and "embedding" in note for note in plan.notes)
    if read and trainer is DREAMBOOTH:
        assert found["token_abstraction"] == "<my-pot>"
        assert "a <my-pot> red teapot" in found["instance_prompt"]
        assert "examples/advanced_diffusion_training" in plan.files["diffusers-dreambooth/train.sh"]
    if read and trainer is ONE:
        (embedding,) = found["additional_embeddings"]
        assert embedding["placeholder"] == "<my-pot>"
        assert embedding["initial_embedding_text"] == "teapot"
    plain = material(family=family, identifier="ohwx", class_noun="red teapot")
    assert "<" not in "".join(trainer.plan(plain).files.values()).replace("<br", "")
    assert not list(trainer.token_notes(plain))


@pytest.mark.parametrize(
    ("base_model", "files", "velocity"),
    [
        ("stabilityai/stable-diffusion-2-1", {}, True),
        ("stabilityai/stable-diffusion-2-1-base", {}, False),
        ("stabilityai/sd-turbo", {}, False),
        ("Laxhar/noobai-XL-Vpred-1.0", {}, True),
        ("stabilityai/stable-diffusion-xl-base-1.0", {}, False),
        ("sdxl", {"prediction_type": "v_prediction"}, True),
        ("sd2", {"prediction_type": "epsilon"}, False),
    ],
)
def test_the_scheduler_or_the_name_tells_what_is_predicted(
    tmp_path: Path, base_model: str, files: dict[str, str], velocity: bool
) -> None:
    if files:
        base_model = str(tmp_path / base_model)
        config = Path(base_model) / "scheduler" / "scheduler_config.json"
        config.parent.mkdir(parents=True)
        config.write_text(json.dumps(files))
    assert predicts_v(base_model, family_of(base_model)) == velocity


@pytest.mark.parametrize(
    ("base_model", "noun", "token"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "robot toy", "ktn"),
        (str(TINYWORLD), "robot toy", "toy"),
        (str(TINYWORLD), "zyxwvu", "photo"),
    ],
)
def test_the_initializer_is_one_token_of_the_tokenizer(
    base_model: str, noun: str, token: str
) -> None:
    made = replace(material(family="sd1", class_noun=noun), base_model=base_model)
    assert custom_diffusion(CUSTOM.plan(made))["initializer_token"] == token
    if base_model == str(TINYWORLD):
        tokenizer = Tokenizer.from_file(str(TINYWORLD / "tokenizer" / "tokenizer.json"))
        assert len(tokenizer.encode(token, add_special_tokens=False).ids) == 1
        assert len(tokenizer.encode("ktn", add_special_tokens=False).ids) > 1


def test_a_file_of_weights_stays_where_kohya_wants_files() -> None:
    made = replace(material(family="flux1-dev"), base_model="/models/flux1-dev.safetensors")
    found = kohya(KOHYA.plan(made))
    assert found["pretrained_model_name_or_path"] == "/models/flux1-dev.safetensors"


@pytest.fixture
def noob(tmp_path: Path) -> Path:
    """The header of an SDXL file that predicts the velocity, by any name."""
    mark = "conditioner.embedders.1.model.positional_embedding"
    path = tmp_path / "mine.safetensors"
    save_file({name: np.zeros(1, np.float32) for name in (mark, "v_pred", "ztsnr")}, path)
    return path


def test_trainers_take_a_model_that_is_a_file(noob: Path, tmp_path: Path) -> None:
    kohya_, _, simple = (
        export(
            ours(4), tmp_path / "out", "kohya", "ai-toolkit", "simpletuner", base_model=str(noob)
        )
    ).targets
    words = kohya_.command.replace("\\\n", " ").split()
    assert f"--pretrained_model_name_or_path={noob}" in words
    assert {"--v_parameterization", "--zero_terminal_snr"} <= {*words}
    assert any("from_single_file" in note for note in simple.notes)
    assert not any("from_single_file" in note for note in kohya_.notes)


def test_a_file_on_the_hub_is_named_as_it_will_be_called(tmp_path: Path) -> None:
    url = "https://huggingface.co/me/models/blob/main/sdxl-mine.safetensors"
    done = export(ours(4), tmp_path / "out", "kohya", base_model=url)
    assert "--pretrained_model_name_or_path=sdxl-mine.safetensors" in done.targets[0].command
    assert any("hf download me/models sdxl-mine.safetensors" in note for note in done.notes)


def hosted() -> Memory:
    """Images that an API drew."""
    dataset = ours(4)
    facts = {"model": "openai/gpt-image-1", "scheduler": None}
    rows = [replace(row, metadata={**row.metadata, **facts}) for row in dataset.rows]
    return replace(dataset, rows=rows)


@pytest.mark.parametrize("trainer", [each for each in TRAINERS if each.families is not None])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, ["openai/gpt-image-1, which drew", "--family"]),
        ({"base_model": "me/mine"}, ["me/mine", "--family"]),
        ({"family": "sdlx"}, ["Did you mean 'sdxl'"]),
    ],
)
def test_an_unknown_base_model_is_refused_and_never_guessed(
    out: Path, trainer: Trainer, options: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(ExportError) as refused:
        export_dataset(hosted(), to=[trainer.name], out=out, resolution=1024, **options)
    text = f"{refused.value} {refused.value.hint}"
    assert [each for each in said if each not in text] == []
    assert not out.exists()


def test_an_image_api_is_no_base_model(out: Path) -> None:
    done = export(hosted(), out, "kohya", "imagefolder", family="sdxl")
    assert "--pretrained_model_name_or_path=BASE-MODEL" in done.targets[0].command
    assert "openai/gpt-image-1" in done.notes[0]
    told = {"base_model": "me/mine", "family": "sdxl"}
    done = export(hosted(), out.parent / "told", "kohya", **told)
    assert "sdxl_train_network.py" in done.targets[0].command
    assert "--pretrained_model_name_or_path=me/mine" in done.targets[0].command


def test_a_trainer_that_cannot_train_it_names_those_that_can(out: Path) -> None:
    with pytest.raises(ExportError, match="kohya sd-scripts cannot train Qwen-Image") as refused:
        export(ours(4), out, "ai-toolkit", "kohya", base_model="Qwen/Qwen-Image")
    assert "--to diffusers-dreambooth, simpletuner, onetrainer, ai-toolkit" in refused.value.hint
    assert not out.exists()
    with pytest.raises(ExportError, match="DreamBooth cannot train Z-Image with a regularization"):
        export(ours(4), out, "diffusers-dreambooth", base_model="Tongyi-MAI/Z-Image")
