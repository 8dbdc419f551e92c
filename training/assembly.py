"""diffusers' pipelines of the parts that the stages left, in single precision."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
)

from training.decoder import load_decoder
from training.denoising import new_scheduler
from training.flow import TIME_SHIFT, load_transformer
from training.motion import load_motion_unet
from training.text import load_text
from training.unet import UnetRecipe, load_unet
from training.wide_vae import CHANNELS, load_wide_vae
from training.words import load_words

REFINED = "refined-decoder"
"""The stage after which there is a better decoder."""


def assembled(recipe: UnetRecipe, work: Path, vae: AutoencoderKL | None = None) -> DiffusionPipeline:
    """The pipeline of a finished U-Net and the text encoder in `work`.

    Args:
        vae: None for the best that is there.
    """
    if vae is None:
        vae = best_vae(work) if recipe.channels < CHANNELS else load_wide_vae(work, torch.device("cpu"))
    tokenizer, text_encoder = load_text(work)
    kind = StableDiffusionInstructPix2PixPipeline if recipe.shown_photo else StableDiffusionPipeline
    return kind(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=load_unet(recipe, work),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def assembled_flow(work: Path) -> FluxKontextPipeline:
    """The pipeline of the finished transformer and the two text encoders in `work`."""
    clip_tokenizer, clip = load_text(work)
    t5_tokenizer, t5 = load_words(work)
    vae = load_wide_vae(work, torch.device("cpu"))
    vae.register_to_config(shift_factor=0.0)  # the pipeline takes it off, and None cannot be
    return FluxKontextPipeline(
        vae=vae,
        text_encoder=clip,
        tokenizer=clip_tokenizer,
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer,
        transformer=load_transformer(work),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=TIME_SHIFT),
    )


def assembled_clips(work: Path) -> AnimateDiffPipeline:
    """The pipeline of the U-Net with layers of motion, which are inside it, and the text encoder in `work`.

    diffusers knows none for one that is shown a clip. This names its parts, and cannot be called.
    """
    tokenizer, text_encoder = load_text(work)
    return AnimateDiffPipeline(
        vae=best_vae(work),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=load_motion_unet(work),
        motion_adapter=None,
        scheduler=new_scheduler(),
    )


def best_vae(work: Path) -> AutoencoderKL:
    """Of 4 channels, with the refined decoder once there is one."""
    return load_decoder(REFINED if (work / f"{REFINED}.pt").exists() else "decoder", work)
