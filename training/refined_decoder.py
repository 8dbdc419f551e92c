"""The decoder of 4 channels once more, on the finished U-Net's own edits: the best of their errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from csd_nerf.scenes.operators import OPERATORS
from training.assembly import REFINED as NAME
from training.assembly import assembled
from training.decoder import Pairs, fit_decoder, load_decoder, noisy_latents
from training.photos import Photo
from training.progress import Job
from training.unet import INSTRUCT

BATCH, EDITED_BY_UNET = 12, 6
"""Crops a step, and how many of them at most are decoded from the U-Net's latents. The others keep the
decoder good at encoded pictures."""
PEAK_LEARNING_RATE = 4e-4
SAMPLING_STEPS, TEXT_GUIDANCE, IMAGE_GUIDANCE = 8, 3.0, 1.5

INSTRUCTIONS = {
    operator.apply: operator.instruction for name, operator in OPERATORS.items() if name != "identity"
}
"""What asks for each edit that has one answer."""


def refine_decoder(job: Job, photos: list[Photo], perceptual_weights: Path) -> None:
    """Train that of `work/decoder.pt`, then write `work/refined-decoder.pt`."""
    worker = job.worker
    vae = load_decoder("decoder", job.work).to(worker.device)
    fit_decoder(
        NAME,
        replace(job, seed=job.seed + 4),
        vae,
        EditedLatents(vae, job.work, EDITED_BY_UNET // worker.count, worker.device),
        photos,
        perceptual_weights,
        batch=BATCH,
        peak_learning_rate=PEAK_LEARNING_RATE,
    )


class EditedLatents:
    """Latents of edited crops: by the U-Net for the first of those that can be asked for, else encoded."""

    def __init__(self, vae: AutoencoderKL, work: Path, most: int, device: torch.device) -> None:
        self.vae, self.most = vae, most
        self.pipeline = assembled(INSTRUCT, work, vae).to(device)
        self.pipeline.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def __call__(self, pairs: Pairs, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """See `LatentsOf`."""
        latents = noisy_latents(self.vae, pictures, generator)
        asked = [index for index, (_, edit) in enumerate(pairs) if edit in INSTRUCTIONS][: self.most]
        if asked:
            edited = self.pipeline(
                [INSTRUCTIONS[pairs[index][1]] for index in asked],
                image=torch.stack([pairs[index][0] for index in asked]),
                num_inference_steps=SAMPLING_STEPS,
                guidance_scale=TEXT_GUIDANCE,
                image_guidance_scale=IMAGE_GUIDANCE,
                generator=generator,
                output_type="latent",
            ).images
            latents[asked] = (edited / self.vae.config.scaling_factor).to(latents.dtype)
        return latents
