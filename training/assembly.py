"""diffusers' pipeline of the parts that the stages left."""

from __future__ import annotations

from pathlib import Path

from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
)

from training.denoising import new_scheduler
from training.text import load_text
from training.unet import UnetRecipe, load_unet


def assembled(recipe: UnetRecipe, work: Path, vae: AutoencoderKL) -> DiffusionPipeline:
    """The pipeline of a finished U-Net and the text encoder in `work`, in single precision."""
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
