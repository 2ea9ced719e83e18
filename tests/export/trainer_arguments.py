"""What trainers accept as arguments and settings, restated apart from the package.

Each function gets the command and the files that an export prints and writes, and gives what the
trainer makes of them; what it would refuse, or stop at, is an AssertionError. The sources are

- kohya-ss/sd-scripts at 48d368f: `setup_parser` and `assert_extra_args` of each script,
  `add_flux_train_arguments` and its likes in library/;
- huggingface/diffusers at 58eb52c: `parse_args` of each examples/dreambooth/train_dreambooth_lora
  script and of examples/custom_diffusion/train_custom_diffusion.py, with its check of tokens;
- bghira/SimpleTuner at bc8e6ab, in simpletuner/helpers/: configuration/cmd_args.py (the seed), and
  of each model in models/ the HUGGINGFACE_PATHS and `check_user_config`;
- Nerogar/OneTrainer at 23df383: scripts/train.py, training_presets/, `TrainConfig.to_pack_dict` and
  `default_values` (modules/util/config/TrainConfig.py), modules/util/enum/ModelType.py;
- ostris/ai-toolkit at 27a03a9: `ModelConfig`, `TrainConfig`, `SampleConfig` and `NetworkConfig`
  (toolkit/config_modules.py), `get_model_class` and the `arch` of each model's class.
"""

from __future__ import annotations

import argparse
import json
import shlex
from typing import Any, NoReturn

import yaml

from regforge.exporting.trainer import Plan


class _Parser(argparse.ArgumentParser):
    """One that allows no abbreviations and fails with an AssertionError."""

    def __init__(self, values: str, switches: str = "", **choices: str) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        for name in values.split():
            self.add_argument(f"--{name}")
        for name in switches.split():
            self.add_argument(f"--{name}", action="store_true")
        for name, allowed in choices.items():
            self.add_argument(f"--{name}", choices=allowed.split())

    def error(self, message: str) -> NoReturn:
        raise AssertionError(message)


def _launched(plan: Plan) -> tuple[str, list[str]]:
    accelerate, launch, script, *words = shlex.split(plan.command.replace("\\\n", " "))
    assert (accelerate, launch) == ("accelerate", "launch")
    return script, words


# ------------------------------------------------------------------------------------------- kohya

_KOHYA = (
    "pretrained_model_name_or_path dataset_config prior_loss_weight network_module network_dim "
    "network_alpha learning_rate max_train_steps seed output_dir output_name"
)
_KOHYA_SWITCHES = (
    "gradient_checkpointing sdpa network_train_unet_only v2 v_parameterization "
    "zero_terminal_snr "
    "cache_text_encoder_outputs"
)
_PRECISION = {"mixed_precision": "no fp16 bf16"}
_PREDICTION = {"model_prediction_type": "raw additive sigma_scaled"}
_TIMES = "sigma uniform sigmoid shift flux_shift"
# Values, switches and choices beyond those of train_network.py.
# fmt: off
_KOHYA_SCRIPTS: dict[str, tuple[str, str, dict[str, str]]] = {
    "train_network.py": ("", "", {"max_token_length": "150 225"}),
    "sdxl_train_network.py": ("", "", {"max_token_length": "150 225"}),
    "sd3_train_network.py": ("clip_l clip_g t5xxl", "", {}),
    "flux_train_network.py": ("clip_l t5xxl ae guidance_scale", "apply_t5_attn_mask",
        {"timestep_sampling": _TIMES, "model_type": "flux chroma", **_PREDICTION}),
    "lumina_train_network.py": ("gemma2 ae discrete_flow_shift system_prompt", "",
        {"timestep_sampling": f"{_TIMES} nextdit_shift", **_PREDICTION}),
    "hunyuan_image_train_network.py": ("text_encoder byt5 vae discrete_flow_shift", "split_attn",
        {"attn_mode": "torch xformers flash sdpa", **_PREDICTION}),
    "anima_train_network.py": ("qwen3 vae discrete_flow_shift", "", {"timestep_sampling": _TIMES}),
}
# fmt: on
_NETWORKS = {
    f"{name}_train_network.py": f"networks.lora_{name}"
    for name in ("sd3", "flux", "lumina", "hunyuan_image", "anima")
}


def kohya(plan: Plan) -> dict[str, Any]:
    script, words = _launched(plan)
    values, switches, choices = _KOHYA_SCRIPTS[script]
    parser = _Parser(f"{_KOHYA} {values}", f"{_KOHYA_SWITCHES} {switches}", **_PRECISION, **choices)
    found = vars(parser.parse_args(words))
    assert found["network_module"] == _NETWORKS.get(script, "networks.lora")
    chroma = found.get("model_type") == "chroma"
    for file in values.split():  # all that are files stand in the command
        assert bool(found[file]) == (file != "clip_l" or not chroma), file
    assert found.get("apply_t5_attn_mask", False) == chroma
    if script in ("hunyuan_image_train_network.py", "anima_train_network.py"):
        assert found["network_train_unet_only"]
    if script not in ("train_network.py", "sdxl_train_network.py"):
        assert found["pretrained_model_name_or_path"].endswith(".safetensors")
    return {"script": script, **found}


# --------------------------------------------------------------------------------------- diffusers

_DREAMBOOTH = (
    "pretrained_model_name_or_path instance_data_dir instance_prompt class_data_dir class_prompt "
    "prior_loss_weight num_class_images resolution train_batch_size learning_rate lr_scheduler "
    "lr_warmup_steps max_train_steps seed output_dir"
)
_TOKEN = (
    "repeats train_text_encoder_ti_frac token_abstraction num_new_tokens_per_abstraction "
    "text_encoder_lr"
)
_DREAMBOOTH_SCRIPTS = {  # with what else they take
    "": "",
    "_sdxl": "repeats",
    "_sd3": "repeats",
    "_flux": "repeats guidance_scale",
    "_flux2": "repeats guidance_scale",
    "_flux2_klein": "repeats guidance_scale",
    "_qwen_image": "repeats",
    "_lumina2": "repeats",
    "_hidream": "repeats",
    "_krea2": "repeats",
    "_sana": "repeats",
    "_ideogram4": "repeats guidance_scale",
    # Of examples/advanced_diffusion_training.
    "_sd15_advanced": _TOKEN,
    "_sdxl_advanced": _TOKEN,
    "_flux_advanced": f"{_TOKEN} initializer_concept guidance_scale",
}


def dreambooth(plan: Plan) -> dict[str, Any]:
    script, words = _launched(plan)
    kind = script.removeprefix("train_dreambooth_lora").removesuffix(".py")
    switches = "with_prior_preservation gradient_checkpointing"
    switches += " disable_training_autocast" if kind == "_ideogram4" else ""
    switches += " train_text_encoder_ti" if kind.endswith("_advanced") else ""
    parser = _Parser(f"{_DREAMBOOTH} {_DREAMBOOTH_SCRIPTS[kind]}", switches, **_PRECISION)
    return {"script": script, **vars(parser.parse_args(words))}


def custom_diffusion(plan: Plan) -> dict[str, Any]:
    script, words = _launched(plan)
    assert script == "train_custom_diffusion.py"
    parser = _Parser(
        "pretrained_model_name_or_path concepts_list prior_loss_weight num_class_images "
        "modifier_token initializer_token resolution train_batch_size learning_rate lr_scheduler "
        "lr_warmup_steps max_train_steps seed output_dir",
        "with_prior_preservation real_prior gradient_checkpointing",
    )
    return {"script": script, **vars(parser.parse_args(words))}


# ------------------------------------------------------------------------------------- SimpleTuner

_FLAVOURS = {
    "sd1x": "1.5 1.4 dreamshaper realvis",
    "sd2x": "digitaldiffusion pseudoflex-v2 pseudojourney 2.1 2.0",
    "sdxl": "base-1.0 refiner-1.0 base-0.9 refiner-0.9",
    "sd3": "medium large",
    "flux": "dev krea schnell kontext fluxbooru libreflux",
    "flux2": "dev klein-4b klein-9b",
    "qwen_image": "v1.0 v2.0 edit-v1 edit-v2 edit-v2+ edit-v3",
    "z_image": "base turbo turbo-ostris-v2 ostris-de-turbo",
    "chroma": "base hd flash",
    "lumina2": "2.0 neta-lumina",
    "hidream": "dev full fast",
    "krea2": "raw turbo",
    "sana": "sana1.5-4.8b-1024 sana1.5-1.6b-1024 sana1.0-1.6b-2048 sana1.0-1.6b-1024",
    "anima": "release base-v1.0 preview-3 preview-2 preview",
    "ernie": "base turbo",
    "ideogram": "fp8 nf4",
}
_ADAPTERS = {
    ("flux", "schnell"): "ostris/FLUX.1-schnell-training-adapter",
    ("z_image", "turbo"): "ostris/zimage_turbo_training_adapter",
    ("z_image", "turbo-ostris-v2"): "ostris/zimage_turbo_training_adapter",
}


def simpletuner(plan: Plan) -> dict[str, Any]:
    """With the text encoder of FLUX.2, the adapter, and the seed, None for the clock's."""
    config = json.loads(plan.files["simpletuner/config.json"])
    family, flavour = config["model_family"], config.get("model_flavour")
    assert flavour is None or flavour in _FLAVOURS[family].split(), flavour
    assert flavour != "schnell" or config.get("flux_fast_schedule")  # flux/model.py:1144
    assert config.get("prediction_type") in (None, "epsilon", "v_prediction")
    found = {"adapter": _ADAPTERS.get((family, flavour)), "seed": config["seed"] or None}
    if family == "flux2":  # flux2/model.py:442-456
        found["text_encoder"] = "Qwen3" if flavour in ("klein-4b", "klein-9b") else "Mistral"
    return {**config, **found}


# -------------------------------------------------------------------------------------- OneTrainer

_PRESETS = {  # model_type of each preset of a LoRA, and Sana's
    "Anima/#anima LoRA": "ANIMA",
    "Chroma/#chroma LoRA 24GB": "CHROMA_1",
    "Ernie Image/#ernie LoRA 16GB": "ERNIE",
    "Flux 2/#flux2 LoRA 16GB": "FLUX_2",
    "Flux Dev.1/#flux LoRA": "FLUX_DEV_1",
    "HiDream Full/#hidream LoRA": "HI_DREAM_FULL",
    "Ideogram 4/#ideogram LoRA 24GB": "IDEOGRAM_4",
    "Krea 2/#krea2 LoRA 24GB": "KREA_2",
    "QwenImage/#qwen LoRA 24GB": "QWEN",
    "SD1.5/#sd 1.5 LoRA": "STABLE_DIFFUSION_15",
    "SD2.1/#sd 2.1 LoRA": "STABLE_DIFFUSION_21",
    "SD3/#sd 3 LoRA": "STABLE_DIFFUSION_3",
    "SDXL/#sdxl 1.0 LoRA": "STABLE_DIFFUSION_XL_10_BASE",
    "Sana/#sana 1.6b": "SANA",
    "Z-Image/#z-image DeTurbo LoRA 16GB": "Z_IMAGE",
    "Z-Image/#z-image LoRA 16GB": "Z_IMAGE",
}
_ONETRAINER = {  # the keys of ours, with their types there
    "base_model_name": str,
    "concept_file_name": str,
    "resolution": str,
    "epochs": int,
    "workspace_dir": str,
    "cache_dir": str,
    "output_model_destination": str,
    "samples": list,
    "model_type": str,
    "training_method": str,
    "output_model_format": str,
    "force_v_prediction": bool,
    "additional_embeddings": list,
    "embedding_learning_rate": float,
}
_EMBEDDING = {  # `TrainEmbeddingConfig.default_values`
    "placeholder": str,
    "train": bool,
    "token_count": int,
    "initial_embedding_text": str,
    "is_output_embedding": bool,
}


def onetrainer(plan: Plan) -> dict[str, Any]:
    words = shlex.split(plan.command.replace("\\\n", " "))
    assert words[:2] == ["python", "scripts/train.py"]
    found = vars(_Parser("preset-path config-path").parse_args(words[2:]))
    preset = found["preset_path"].removeprefix("training_presets/").removesuffix(".json")
    config = json.loads(plan.files["onetrainer/config.json"])
    for key, value in config.items():
        assert type(value) is _ONETRAINER[key], key
    for embedding in config.get("additional_embeddings", ()):
        assert {key: type(value) for key, value in embedding.items()} == _EMBEDDING
    # Else training_samples/samples.json is opened, which a fresh checkout has not.
    assert config.get("samples") is not None
    method = "FINE_TUNE" if preset.startswith("Sana/") else "LORA"
    return {"preset": preset, "model_type": _PRESETS[preset], "training_method": method} | config


# -------------------------------------------------------------------------------------- ai-toolkit

_ARCHITECTURES = frozenset(
    "sd1 sd2 sdxl sd3 flux lumina2 "  # toolkit/stable_diffusion_model.py
    "flux2 flux2_klein_4b flux2_klein_9b qwen_image zimage chroma hidream krea2 anima ernie_image "
    "ideogram4".split()
)
_TIMESTEPS = ("sigmoid", "linear", "lognorm_blend", "weighted", "shift")


def ai_toolkit(plan: Plan) -> dict[str, Any]:
    process = yaml.safe_load(plan.files["ai-toolkit/train.yaml"])["config"]["process"][0]
    model, train, sample = process["model"], process["train"], process["sample"]
    assert model["arch"] in _ARCHITECTURES
    assert train.get("timestep_type", "sigmoid") in _TIMESTEPS
    assert train["noise_scheduler"] == sample["sampler"]
    assert (train["noise_scheduler"] == "flowmatch") == model["quantize"]
    return {**model, **sample, **train, "ignored": process["network"].get("network_kwargs")}


READERS = {
    "kohya": kohya,
    "diffusers-dreambooth": dreambooth,
    "custom-diffusion": custom_diffusion,
    "simpletuner": simpletuner,
    "onetrainer": onetrainer,
    "ai-toolkit": ai_toolkit,
}
"""By the names that `--to` takes."""
