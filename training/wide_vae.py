"""The autoencoder of `tiny-instruct` and `tiny-flow`: `tiny-sd`'s with 8 latent channels instead of 4.

For the fine lines that 4 lose.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from csd_nerf.scenes.operators import sketch
from training.decoder import EXTRA_SKETCHES, picture_loss
from training.photos import Photo
from training.progress import Job
from training.vae import EDITS, Crops, fit_vae, load_vae, new_vae

NAME = "wide-vae"
LATENTS = "wide-latents"
"""The stage that encodes what is learnt from beside it."""

CHANNELS = 8
PEAK_LEARNING_RATE = 1e-3


@torch.no_grad()
def widened(narrow: AutoencoderKL) -> AutoencoderKL:
    """An autoencoder of `CHANNELS` latent channels of which, at first, it decodes those of `narrow` alone."""
    vae = new_vae(CHANNELS)
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        convolution.weight.zero_()[:, :, 0, 0].fill_diagonal_(1)
        convolution.bias.zero_()
    vae.decoder.conv_in.weight.zero_()
    few = torch.arange(narrow.config.latent_channels)
    moments = torch.cat([few, CHANNELS + few])  # of all channels the means, then the log-variances
    rows = {"encoder.conv_out": moments, "quant_conv": moments, "post_quant_conv": few}
    columns = {"quant_conv": moments, "post_quant_conv": few, "decoder.conv_in": few}
    for name, parameter in vae.named_parameters():
        layer, kind = name.rsplit(".", 1)
        known = narrow.get_parameter(name)
        row = rows.get(layer, torch.arange(len(parameter)))
        if kind == "weight" and layer in columns:
            parameter[row[:, None], columns[layer]] = known
        else:
            parameter[row] = known
    return vae


def train_wide_vae(
    job: Job,
    narrow: AutoencoderKL,
    photos: list[Photo],
    perceptual_weights: Path,
) -> None:
    """Train, then write `work/wide-vae.pt`; see `training.vae.fit_vae`.

    Args:
        narrow: what it begins as.
    """
    torch.manual_seed(job.seed)
    fit_vae(
        NAME,
        replace(job, seed=job.seed + 6),
        widened(narrow),
        Crops(photos, EDITS + (sketch,) * EXTRA_SKETCHES),
        picture_loss,
        perceptual_weights,
        peak_learning_rate=PEAK_LEARNING_RATE,
    )


def load_wide_vae(work: Path, device: torch.device) -> AutoencoderKL:
    """The autoencoder that `train_wide_vae` left, frozen."""
    return load_vae(work, device, NAME, CHANNELS)
