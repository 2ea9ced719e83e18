"""The arguments that trainers' scripts take, restated from their parsers, to parse commands with.

A word is an option: `name` takes a text, `name:int` a number, `name!` nothing, `name=a|b` one of
those, `name*` several; `name.` is required. The sources are

- kohya-ss/musubi-tuner at 30c658c, below src/musubi_tuner/: training/parser_common.py,
  cache_latents.py and cache_text_encoder_outputs.py (`setup_parser_common`), and what the scripts
  of each model add (`*_setup_parser` in them, `add_model_version_args` of qwen_image and flux_2);
- modelscope/DiffSynth-Studio at fed7b18: diffsynth/diffusion/parsers.py (`add_general_config`,
  `add_image_size_config`) and the parser in examples/*/model_training/train.py;
- tdrussell/diffusion-pipe at 8f83dbf: train.py, with the argument that DeepSpeed adds.
"""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

_TRAIN = """
    config_file dataset_config sdpa! flash_attn! sage_attn! xformers! flash3! split_attn!
    compile! compile_backend
    compile_mode=default|reduce-overhead|max-autotune|max-autotune-no-cudagraphs
    compile_dynamic=true|false|auto compile_fullgraph! compile_cache_size_limit:int
    cuda_allow_tf32! cuda_cudnn_benchmark! dynamo_backend=NO|INDUCTOR
    dynamo_mode=default|reduce-overhead|max-autotune dynamo_fullgraph! dynamo_dynamic!
    max_train_steps:int max_train_epochs:int max_data_loader_n_workers:int
    persistent_data_loader_workers! seed:int gradient_checkpointing!
    gradient_checkpointing_cpu_offload! gradient_accumulation_steps:int
    mixed_precision=no|fp16|bf16 save_precision=float|fp32|fp16|bf16 logging_dir
    log_with=tensorboard|wandb|all log_prefix log_tracker_name wandb_run_name log_tracker_config
    wandb_api_key log_config! ddp_timeout:int ddp_gradient_as_bucket_view! ddp_static_graph!
    sample_every_n_steps:int sample_at_first! sample_every_n_epochs:int sample_prompts
    optimizer_type optimizer_args* learning_rate:float max_grad_norm:float lr_scheduler
    lr_warmup_steps:number lr_decay_steps:number lr_scheduler_num_cycles:int
    lr_scheduler_power:float lr_scheduler_timescale:int lr_scheduler_min_lr_ratio:float
    lr_scheduler_type lr_scheduler_args* fp8_base! blocks_to_swap:int
    use_pinned_memory_for_block_swap! block_swap_h2d_only! block_swap_ring_size:int
    img_in_txt_in_offloading! disable_numpy_memmap! guidance_scale:float
    timestep_sampling=sigma|uniform|sigmoid|shift|flux_shift|flux2_shift|ideogram4_shift|qwen_shift|krea2_shift|logsnr|qinglong_flux|qinglong_qwen
    discrete_flow_shift:float sigmoid_scale:float
    weighting_scheme=logit_normal|mode|cosmap|sigma_sqrt|none logit_mean:float logit_std:float
    mode_scale:float min_timestep:int max_timestep:int preserve_distribution_shape!
    num_timestep_buckets:int show_timesteps=image|console no_metadata! network_weights
    network_module network_dim:int network_alpha:float network_dropout:float network_args*
    training_comment dim_from_weights! scale_weight_norms:float base_weights*
    base_weights_multiplier:float* output_dir output_name resume save_every_n_epochs:int
    save_every_n_steps:int save_last_n_epochs:int save_last_n_epochs_state:int
    save_last_n_steps:int save_last_n_steps_state:int save_state! save_state_on_train_end!
    metadata_title metadata_author metadata_description metadata_license metadata_tags
    metadata_reso metadata_arch huggingface_repo_id huggingface_repo_type
    huggingface_path_in_repo huggingface_token huggingface_repo_visibility
    save_state_to_huggingface! resume_from_huggingface! async_upload! dit vae vae_dtype
    text_encoder
"""
_LATENTS = """
    dataset_config. vae vae_dtype device batch_size:int num_workers:int skip_existing!
    keep_cache! debug_mode=image|console|video console_width:int console_back
    console_num_images:int disable_cudnn_backend!
"""
_TEXTS = """
    dataset_config. device batch_size:int num_workers:int skip_existing! keep_cache!
    text_encoder.
"""
_DIFFSYNTH = """
    dataset_base_path. dataset_metadata_path dataset_repeat:int dataset_num_workers:int
    data_file_keys model_paths model_id_with_origin_paths extra_inputs fp8_models offload_models
    resume_from_checkpoint quant_options learning_rate:float num_epochs:int trainable_models
    find_unused_parameters! weight_decay:float task customized_optimizer output_path
    remove_prefix_in_ckpt save_steps:int lora_base_model lora_target_modules lora_rank:int
    lora_checkpoint preset_lora_path preset_lora_model use_gradient_checkpointing!
    use_gradient_checkpointing_offload! gradient_accumulation_steps:int
    template_model_id_or_path enable_lora_hot_loading! enable_model_cpu_offload!
    enable_optimizer_cpu_offload! cpu_offload_split_threshold:int enable_tensorboard_log!
    enable_swanlab_log! swanlab_project enable_wandb_log! wandb_project enable_csv_log!
    height:int width:int max_pixels:int
"""
_PIPE = """
    config local_rank:int resume_from_checkpoint reset_dataloader! reset_optimizer!
    reset_optimizer_params! regenerate_cache! cache_only! trust_cache! i_know_what_i_am_doing!
    master_port:int dump_dataset test_sample! deepspeed!
"""
_QWEN_VAE = "vae_tiling! vae_chunk_size:int vae_spatial_tile_sample_min_size:int"
_QWEN = "edit! edit_plus! model_version"
_FLUX2 = "model_version=klein-4b|klein-base-4b|klein-9b|klein-base-9b|dev"
_IDEOGRAM = "validate_caption_structure! warn_on_caption_issues!"
_SHIFTS = "initial_sigma:float ideogram4_timestep_mu:float ideogram4_timestep_std:float"
_MUSUBI = "src/musubi_tuner"
_SCRIPTS = {
    f"{_MUSUBI}/qwen_image_cache_latents.py": f"{_LATENTS} {_QWEN_VAE} {_QWEN}",
    f"{_MUSUBI}/qwen_image_cache_text_encoder_outputs.py": f"{_TEXTS} fp8_vl! {_QWEN}",
    f"{_MUSUBI}/qwen_image_train_network.py": f"{_TRAIN} fp8_scaled! fp8_vl! num_layers:int "
    f"remove_first_image_from_target! {_QWEN}",
    f"{_MUSUBI}/zimage_cache_latents.py": _LATENTS,
    f"{_MUSUBI}/zimage_cache_text_encoder_outputs.py": f"{_TEXTS} fp8_llm!",
    f"{_MUSUBI}/zimage_train_network.py": f"{_TRAIN} fp8_scaled! fp8_llm! use_32bit_attention!",
    f"{_MUSUBI}/flux_2_cache_latents.py": f"{_LATENTS} {_FLUX2}",
    f"{_MUSUBI}/flux_2_cache_text_encoder_outputs.py": f"{_TEXTS} fp8_text_encoder! {_FLUX2}",
    f"{_MUSUBI}/flux_2_train_network.py": f"{_TRAIN} fp8_scaled! fp8_text_encoder! {_FLUX2}",
    f"{_MUSUBI}/krea2_cache_latents.py": f"{_LATENTS} {_QWEN_VAE}",
    f"{_MUSUBI}/krea2_cache_text_encoder_outputs.py": f"{_TEXTS} text_encoder_dtype",
    f"{_MUSUBI}/krea2_train_network.py": f"{_TRAIN} fp8_scaled! turbo_dit turbo_dit_cache!",
    f"{_MUSUBI}/ideogram4_cache_latents.py": _LATENTS,
    f"{_MUSUBI}/ideogram4_cache_text_encoder_outputs.py": f"{_TEXTS} {_IDEOGRAM} "
    "text_cache_dtype=bf16|fp8_e4m3fn|float32",
    f"{_MUSUBI}/ideogram4_train_network.py": f"{_TRAIN} {_IDEOGRAM} {_SHIFTS} unconditional_dit "
    "use_unconditional_dit_for_lora_sampling! dit_dtype sampler_preset log_loss_stats!",
    **{
        f"examples/{example}/model_training/train.py": f"{_DIFFSYNTH} {more}"
        for example, more in {
            "stable_diffusion": "tokenizer_path",
            "stable_diffusion_xl": "tokenizer_path tokenizer_2_path align_to_opensource_format!",
            "flux": "tokenizer_1_path tokenizer_2_path align_to_opensource_format!",
            "flux2": "tokenizer_path initialize_model_on_cpu!",
            "qwen_image": "tokenizer_path processor_path zero_cond_t! initialize_model_on_cpu!",
            "z_image": "tokenizer_path enable_npu_patch!",
            "krea2": "tokenizer_path initialize_model_on_cpu! align_to_opensource_format!",
            "ernie_image": "tokenizer_path",
            "ideogram4": "tokenizer_path",
        }.items()
    },
    "train.py": _PIPE,
}

_KINDS: dict[str, Any] = {"int": int, "float": float, "number": float}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise AssertionError(message)


def parsed(script: str, arguments: list[str]) -> argparse.Namespace:
    """What a script of a trainer makes of its arguments; an AssertionError if it would stop."""
    parser = _Parser(prog=script, add_help=False, allow_abbrev=False)
    for word in _SCRIPTS[script].split():
        found = re.fullmatch(r"(\w+)(?::(\w+))?(?:=([^*.!]+))?(\*?)(!?)(\.?)", word)
        assert found, word
        name, kind, choices, several, bare, required = found.groups()
        more: dict[str, Any] = {"action": "store_true"}
        if not bare:
            more = {"type": _KINDS.get(kind, str), "required": bool(required)}
            more |= {"choices": choices.split("|")} if choices else {}
            more |= {"nargs": "*"} if several else {}
        parser.add_argument(f"--{name}", **more)
    return parser.parse_args(arguments)
