"""Tiny models as the single files that people share: in the layout of the models' authors."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Tensors = dict[str, Any]


def checkpoint(folder: Path, file: Path, *marks: str) -> Path:
    """A checkpoint of a Stable Diffusion (XL) folder, with some empty tensors as marks."""
    import torch
    from safetensors.torch import save_file

    tensors = {name: torch.zeros(0) for name in marks}
    unet = _read(folder / "unet")
    tensors |= {f"model.diffusion_model.{_unet(name)}": v for name, v in unet.items()}
    for name, value in _read(folder / "vae").items():
        # Attention of autoencoders is a convolution there.
        as_convolution = ".mid.attn_1." in _vae(name) and value.dim() == 2
        shaped = value[:, :, None, None] if as_convolution else value
        tensors[f"first_stage_model.{_vae(name)}"] = shaped
    clip = {_text_model(n): v for n, v in _read(folder / "text_encoder").items()}
    if (folder / "text_encoder_2").is_dir():
        tensors |= {f"conditioner.embedders.0.transformer.{n}": v for n, v in clip.items()}
        second = _open_clip(_read(folder / "text_encoder_2"))
        tensors |= {f"conditioner.embedders.1.model.{n}": v for n, v in second.items()}
    else:
        tensors |= {f"cond_stage_model.transformer.{n}": v for n, v in clip.items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)
    return file


def denoiser(folder: Path, file: Path, convert: Callable[[Tensors], Tensors] = dict) -> Path:
    """A file of nothing but a folder's transformer."""
    from safetensors.torch import save_file

    save_file(convert(_read(folder / "transformer")), file)
    return file


def gguf(folder: Path, file: Path, architecture: str) -> Path:
    """The same, quantized to 8 bits where its layers are wide enough."""
    import gguf

    writer = gguf.GGUFWriter(file, architecture)
    for name, value in _read(folder / "transformer").items():
        wide = value.dim() == 2 and value.shape[1] % 32 == 0
        kind = gguf.GGMLQuantizationType.Q8_0 if wide else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(value.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


_Z_IMAGE = (
    ("all_x_embedder.2-1.", "x_embedder."),
    ("all_final_layer.2-1.", "final_layer."),
    (".attention.to_out.0.", ".attention.out."),
    (".norm_k.", ".k_norm."),
    (".norm_q.", ".q_norm."),
)


def z_image_names(tensors: Tensors) -> Tensors:
    """Z-Image's tensors as its authors call them: queries, keys and values are one."""
    import torch

    made = {}
    for name, value in tensors.items():
        if name.endswith(("to_k.weight", "to_v.weight")):
            continue
        if name.endswith("to_q.weight"):
            each = [tensors[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            made[name.replace("to_q", "qkv")] = torch.cat(each)
            continue
        for theirs, ours in (
            ("x_embedder.", "all_x_embedder.2-1."),
            ("final_layer.", "all_final_layer.2-1."),
            (".attention.out.", ".attention.to_out.0."),
            (".k_norm.", ".norm_k."),
            (".q_norm.", ".norm_q."),
        ):
            name = name.replace(ours, theirs)
        made[name] = value
    return made


def _read(folder: Path) -> Tensors:
    from safetensors.torch import load_file

    (file,) = folder.glob("*.safetensors")
    return load_file(file)


_RESNET = (
    ("norm1.", "in_layers.0."),
    ("conv1.", "in_layers.2."),
    ("time_emb_proj.", "emb_layers.1."),
    ("norm2.", "out_layers.0."),
    ("conv2.", "out_layers.3."),
    ("conv_shortcut.", "skip_connection."),
)


_TOPS = (
    ("time_embedding.linear_1.", "time_embed.0."),
    ("time_embedding.linear_2.", "time_embed.2."),
    ("add_embedding.linear_1.", "label_emb.0.0."),
    ("add_embedding.linear_2.", "label_emb.0.2."),
    ("conv_in.", "input_blocks.0.0."),
    ("conv_norm_out.", "out.0."),
    ("conv_out.", "out.2."),
)


def _unet(name: str) -> str:
    """Of two blocks down and up with one layer each, the ones near the middle with attention."""
    found = re.match(r"(?:(down|up)_blocks\.(\d)|mid_block)\.(\w+?)\.(\d)\.(.*)", name)
    if found is None:
        return _renamed(name, _TOPS)
    where, block, part, layer = found[1], int(found[2] or 0), found[3], int(found[4])
    rest = _renamed(found[5], _RESNET) if part == "resnets" else found[5]
    match where, part:
        case "down", "downsamplers":
            return f"input_blocks.2.0.op.{rest.removeprefix('conv.')}"
        case "up", "upsamplers":
            return f"output_blocks.{2 * block + 1}.{2 - block}.{rest}"
        case None, _:
            return f"middle_block.{1 if part == 'attentions' else 2 * layer}.{rest}"
    place = (
        f"input_blocks.{1 + 2 * block}" if where == "down" else f"output_blocks.{2 * block + layer}"
    )
    return f"{place}.{int(part == 'attentions')}.{rest}"


def _renamed(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for ours, theirs in pairs:
        name = name.replace(ours, theirs)
    return name


_ATTENTION = (("to_q.", "q."), ("to_k.", "k."), ("to_v.", "v."), ("to_out.0", "proj_out"))
_OPEN_CLIP = (
    ("layer_norm", "ln_"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn", "attn"),
)


def _vae(name: str) -> str:
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    up = lambda found: f"up.{1 - int(found[1])}"  # noqa: E731
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"{up(m)}.upsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"{up(m)}.block.{m[2]}", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0.", "mid.attn_1.").replace("group_norm", "norm")
    for ours, theirs in (
        ("to_q.", "q."),
        ("to_k.", "k."),
        ("to_v.", "v."),
        ("to_out.0", "proj_out"),
    ):
        name = name.replace(ours, theirs)
    return name


def _text_model(name: str) -> str:
    return name if name.startswith("text_model.") else f"text_model.{name}"


def _open_clip(tensors: Tensors) -> Tensors:
    import torch

    made = {"text_projection": tensors["text_projection.weight"].T}
    for name, value in tensors.items():
        rest = name.removeprefix("text_model.")
        if rest.startswith("encoder.layers."):
            _, _, number, part = rest.split(".", 3)
            top = f"transformer.resblocks.{number}"
            if part.startswith("self_attn.q_proj"):
                kind = part.rpartition(".")[2]
                each = [tensors[name.replace("q_proj", p)] for p in ("q_proj", "k_proj", "v_proj")]
                made[f"{top}.attn.in_proj_{kind}"] = torch.cat(each)
            elif not part.startswith(("self_attn.k_proj", "self_attn.v_proj")):
                made[f"{top}.{_renamed(part, _OPEN_CLIP)}"] = value
    for theirs, ours in (
        ("positional_embedding", "embeddings.position_embedding.weight"),
        ("token_embedding.weight", "embeddings.token_embedding.weight"),
        ("ln_final.weight", "final_layer_norm.weight"),
        ("ln_final.bias", "final_layer_norm.bias"),
    ):
        made[theirs] = tensors[f"text_model.{ours}"]
    return made
