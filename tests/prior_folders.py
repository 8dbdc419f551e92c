"""Prior folders: small untrained models of flow matching, and breaking folders on purpose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from csd_nerf.bundled import bundled_path
from csd_nerf.errors import InputError
from csd_nerf.priors import check_prior


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def check_that_a_missing_part_is_named(folder: Path, part: str) -> None:
    """Takes the part, a file or a folder, out of a prior's folder."""
    path = folder / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=f"missing parts(.|\n)*no {part}"):
        check_prior(str(folder))


def save_flux_kontext(
    folder: Path, *, guidance_embeds: bool = True, pipeline: str = "FluxKontextPipeline"
) -> Path:
    """A FLUX.1 Kontext in small about the bundled VAE, shifted, and the bundled CLIP; 8 pixels a token."""
    import diffusers
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
    from transformers import CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

    bundled = bundled_path("tiny-instruct")
    vae = AutoencoderKL.from_pretrained(bundled / "vae")
    vae.register_to_config(shift_factor=0.15)
    clip = CLIPTextModel.from_pretrained(bundled / "text_encoder")
    letters = [("\u2581", -1.0), *((letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz")]
    t5_tokenizer = T5TokenizerFast(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *letters], extra_ids=0
    )
    torch.manual_seed(0)
    t5 = T5EncoderModel(
        T5Config(vocab_size=len(t5_tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    )
    transformer = FluxTransformer2DModel(
        in_channels=4 * vae.config["latent_channels"],
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=clip.config.hidden_size,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    getattr(diffusers, pipeline)(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=vae,
        text_encoder=clip,
        tokenizer=CLIPTokenizer.from_pretrained(bundled / "tokenizer"),
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer,
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


def save_flux2_klein(
    folder: Path, *, is_distilled: bool = False, pipeline: str = "Flux2KleinPipeline"
) -> Path:
    """A FLUX.2 klein in small; 8 pixels a token."""
    import diffusers
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
    from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    letters = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz\u0120\u010a"]
    tokenizer = Qwen2TokenizerFast(vocab={letter: place for place, letter in enumerate(letters)}, merges=[])
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    language_model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(letters),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=28,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            initializer_range=0.5,  # so that prompts differ
        )
    )
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 16,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    getattr(diffusers, pipeline)(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=vae,
        text_encoder=language_model,
        tokenizer=tokenizer,
        transformer=transformer,
        is_distilled=is_distilled,
    ).save_pretrained(folder)
    return folder


def _qwen_2_5_vl() -> tuple[Any, Any]:
    """A processor and a model of language and vision in small, which looks at squares of 28 pixels."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2TokenizerFast,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    special += ["<|image_pad|>", "<|video_pad|>"]
    letters = [*map(chr, range(33, 127)), "\u0120", "\u010a"]
    vocabulary = {letter: place for place, letter in enumerate([*special, *letters])}
    tokenizer = Qwen2TokenizerFast(vocab=vocabulary, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.pad_token = "<|endoftext|>"
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=112 * 112),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template="{{ messages }}",
    )
    torch.manual_seed(0)
    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "initializer_range": 0.5,  # so that prompts differ
        "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]},
    }
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": 16,
        "fullatt_block_indexes": [1],
        "initializer_range": 0.5,
    }
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=text,
            vision_config=vision,
            **{
                f"{name}_token_id": vocabulary[f"<|{token}|>"]
                for name, token in (
                    ("image", "image_pad"),
                    ("video", "video_pad"),
                    ("vision_start", "vision_start"),
                    ("vision_end", "vision_end"),
                )
            },
        )
    )
    return processor, model


def save_qwen_image_edit(folder: Path) -> Path:
    """A Qwen-Image-Edit of 2511 in small; 8 pixels a token."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImageEditPlusPipeline,
        QwenImageTransformer2DModel,
    )

    processor, model = _qwen_2_5_vl()
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[-0.5, 0.2, 0.1, 0.4],
        latents_std=[2.0, 1.5, 0.7, 1.0],
    )
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
        zero_cond_t=True,
    )
    QwenImageEditPlusPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_image_seq_len=8192),
        vae=vae,
        text_encoder=model,
        tokenizer=processor.tokenizer,
        processor=processor,
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


def save_longcat_image_edit(folder: Path) -> Path:
    """A LongCat-Image-Edit in small, but for the 16 channels of its latents; 8 pixels a token."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        LongCatImageEditPipeline,
        LongCatImageTransformer2DModel,
    )

    processor, model = _qwen_2_5_vl()
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=0.4,
        shift_factor=0.15,
    )
    transformer = LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 6, 6],
    )
    LongCatImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=model,
        tokenizer=processor.tokenizer,
        text_processor=processor,
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


def save_motion_adapter(folder: Path, unet: Any, *, quiet: bool = False) -> Path:
    """Untrained layers of motion for a U-Net.

    Args:
        folder: of the adapter.
        unet: of pictures.
        quiet: whether they are to add nothing.
    """
    from diffusers import MotionAdapter

    torch.manual_seed(2)
    adapter = MotionAdapter(
        block_out_channels=unet.config["block_out_channels"],
        motion_layers_per_block=unet.config["layers_per_block"],
        motion_num_attention_heads=2,
        motion_norm_num_groups=unet.config["norm_num_groups"],
        motion_max_seq_length=8,
    )
    for name, parameter in adapter.named_parameters():
        if "proj_out" in name:  # diffusers begins training where they add nothing
            torch.nn.init.normal_(parameter, std=0.0 if quiet else 0.1)
    adapter.save_pretrained(folder)
    return folder


def save_animate_diff(folder: Path, pictures: Path) -> Path:
    """An AnimateDiff in small, as its pipeline saves it, from a prior for pictures."""
    from diffusers import (
        AnimateDiffPipeline,
        AutoencoderKL,
        DDIMScheduler,
        MotionAdapter,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTokenizer

    unet = UNet2DConditionModel.from_pretrained(pictures / "unet")
    adapter = save_motion_adapter(folder.with_name(folder.name + "-motion"), unet)
    AnimateDiffPipeline(
        scheduler=DDIMScheduler.from_pretrained(pictures / "scheduler"),
        vae=AutoencoderKL.from_pretrained(pictures / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(pictures / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(pictures / "tokenizer"),
        unet=unet,
        motion_adapter=MotionAdapter.from_pretrained(adapter),
    ).save_pretrained(folder)
    return folder


def save_wan(folder: Path, *, pipeline: str = "WanPipeline") -> Path:
    """A Wan in small, or a Lucy Edit; 8 pixels a token, 4 frames a latent."""
    import diffusers
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
    from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

    edits = pipeline == "LucyEditPipeline"
    letters = [("\u2581", -1.0), *((letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz")]
    tokenizer = T5TokenizerFast(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *letters], extra_ids=0)
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[-0.5, 0.2, 0.1, 0.4],
        latents_std=[2.0, 1.5, 0.7, 1.0],
        scale_factor_spatial=4,
        scale_factor_temporal=4,
    )
    encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    )
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8 if edits else 4,
        out_channels=4,
        text_dim=32,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        rope_max_seq_len=32,
    )
    getattr(diffusers, pipeline)(
        scheduler=UniPCMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        ),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        expand_timesteps=edits,
    ).save_pretrained(folder)
    return folder
