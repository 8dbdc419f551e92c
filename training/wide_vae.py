"""`tiny-flow`'s autoencoder: `tiny-instruct`'s with 8 latent channels, for the fine lines that 4 lose."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from csd_nerf.evaluation.pixels import psnr
from csd_nerf.scenes.operators import sketch
from training.decoder import EXTRA_SKETCHES, picture_loss
from training.fitting import fit
from training.parallel import Worker
from training.photos import Photo
from training.progress import Budget, save_whole
from training.vae import (
    BATCH,
    EDITS,
    KL_WEIGHT,
    Crops,
    Perceptual,
    new_vae,
    normalise_latents,
)

NAME = "wide-vae"
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
    worker: Worker,
    narrow: AutoencoderKL,
    photos: list[Photo],
    perceptual_weights: Path,
    work: Path,
    budget: Budget,
    seed: int,
) -> None:
    """Train, then write `work/wide-vae.pt`; goes on from `work/wide-vae-checkpoint.pt` where there is one.

    Args:
        narrow: what it begins as.
    """
    torch.manual_seed(seed)
    vae = widened(narrow).to(worker.device).train()
    optimiser = torch.optim.AdamW(
        vae.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    perceptual = Perceptual(perceptual_weights)
    crops = Crops(photos, EDITS + (sketch,) * EXTRA_SKETCHES)

    def loss_of(fraction: float, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        images = crops.draw(BATCH // worker.count, generator).to(worker.device)
        with torch.autocast(worker.device.type, torch.bfloat16):
            posterior = vae.encode(images * 2 - 1).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(worker.device)
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample.float() / 2 + 0.5
            perceived = perceptual(decoded, images)
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        loss = picture_loss(decoded, images, perceived) + KL_WEIGHT * divergence
        return loss, {"psnr": psnr(decoded.detach().clamp(0, 1), images).mean(), "divergence": divergence}

    progress = fit(
        NAME, {"vae": vae}, optimiser, loss_of, worker=worker, work=work, budget=budget, seed=seed + 6
    )
    if worker.leads:
        normalise_latents(vae, crops.draw(512, worker.generator(seed, -1)).to(worker.device))
        save_whole({"vae": vae.state_dict(), "progress": progress.state_dict()}, work / f"{NAME}.pt")
    worker.wait()


def load_wide_vae(work: Path, device: torch.device) -> AutoencoderKL:
    """The autoencoder that `train_wide_vae` left, frozen."""
    vae = new_vae(CHANNELS)
    vae.load_state_dict(torch.load(work / f"{NAME}.pt", map_location="cpu", weights_only=True)["vae"])
    return vae.to(device).eval().requires_grad_(False)
