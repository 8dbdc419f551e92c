"""The decoder alone goes on, its encoder frozen.

What the decoder loses, every edit loses: it bounds all measured quality. The latents do not change any
more, so that this may be lengthened without training the U-Nets anew. It learns from encoded pictures with a
little noise on their latents; once there is a U-Net, from that one's edits too (`training.refined_decoder`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from csd_nerf.evaluation.pixels import psnr
from csd_nerf.scenes.operators import sketch
from training.fitting import fit
from training.photos import Photo
from training.progress import Job, save_whole
from training.vae import EDITS, Crops, Edit, Perceptual, load_vae

BATCH = 16
EXTRA_SKETCHES = 4
"""A sketch is nothing but fine lines: it loses most in the decoder, so it is drawn five times as often."""

PEAK_LEARNING_RATE = 7e-4
SQUARED_WEIGHT, GRADIENT_WEIGHT, PERCEPTUAL_WEIGHT = 4.0, 0.25, 0.04
LARGEST_NOISE = 0.4
"""Of the unscaled latents, whose deviation is 2."""


Pairs = list[tuple[Tensor, Edit]]
"""Crops (3, h, w) in 0..1, and what is to be done to each."""

LatentsOf = Callable[[Pairs, Tensor, torch.Generator], Tensor]
"""(pairs, the crops after their edits (n, 3, h, w), generator) to unscaled latents (n, 4, h/4, w/4)."""


def train_decoder(job: Job, photos: list[Photo], perceptual_weights: Path) -> None:
    """Train that of `work/vae.pt`, then write `work/decoder.pt`."""
    vae = load_vae(job.work, job.worker.device)
    fit_decoder(
        "decoder",
        replace(job, seed=job.seed + 2),
        vae,
        lambda _, pictures, generator: noisy_latents(vae, pictures, generator),
        photos,
        perceptual_weights,
        batch=BATCH,
        peak_learning_rate=PEAK_LEARNING_RATE,
    )


def fit_decoder(
    name: str,
    job: Job,
    vae: AutoencoderKL,
    latents_of: LatentsOf,
    photos: list[Photo],
    perceptual_weights: Path,
    *,
    batch: int,
    peak_learning_rate: float,
) -> None:
    """Train the decoder of `vae` in place, then write `work/NAME.pt`; goes on from `work/NAME-checkpoint.pt`.

    Args:
        latents_of: what is decoded, to be like the edited crops.
        batch: crops a step, of all processes together.
    """
    worker = job.worker
    trained = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)
    optimiser = torch.optim.AdamW(
        trained.parameters(), lr=peak_learning_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    perceptual = Perceptual(perceptual_weights)
    crops = Crops(photos, EDITS + (sketch,) * EXTRA_SKETCHES)

    def loss_of(fraction: float, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pairs = crops.pairs(batch // worker.count, generator)
        images = torch.stack([edit(crop) for crop, edit in pairs]).to(worker.device)
        with torch.autocast(worker.device.type, torch.bfloat16):
            latents = latents_of(pairs, images, generator)
            decoded = vae.decode(latents).sample.float() / 2 + 0.5
            perceived = perceptual(decoded, images)
        loss = picture_loss(decoded, images, perceived)
        return loss, {"psnr": psnr(decoded.detach().clamp(0, 1), images).mean()}

    progress = fit(name, job, {"vae": vae}, optimiser, loss_of)
    if worker.leads:
        save_whole({"vae": vae.state_dict(), "progress": progress.state_dict()}, job.work / f"{name}.pt")
    worker.wait()


def picture_loss(decoded: Tensor, images: Tensor, perceived: Tensor) -> Tensor:
    """How far decoded pictures (n, 3, h, w) are from `images`; `perceived` is a distance of features."""
    difference = decoded - images
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    pixels = difference.abs().mean() + SQUARED_WEIGHT * difference.square().mean()
    return pixels + GRADIENT_WEIGHT * edges + PERCEPTUAL_WEIGHT * perceived


def load_decoder(name: str, work: Path) -> AutoencoderKL:
    """The autoencoder with the decoder that `fit_decoder` left, frozen."""
    vae = load_vae(work, torch.device("cpu"))
    vae.load_state_dict(torch.load(work / f"{name}.pt", map_location="cpu", weights_only=True)["vae"])
    return vae.requires_grad_(False)


@torch.no_grad()
def noisy_latents(vae: AutoencoderKL, images: Tensor, generator: torch.Generator) -> Tensor:
    """Unscaled latents with noise of a deviation drawn for each picture, none for half of them."""
    latents = vae.encode(images * 2 - 1).latent_dist.mode()
    deviations = (torch.rand(len(images), generator=generator) * 2 - 1).clamp(min=0) * LARGEST_NOISE
    noise = torch.randn(latents.shape, generator=generator) * deviations.reshape(-1, 1, 1, 1)
    return latents + noise.to(images.device)
