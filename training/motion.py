"""The layers of motion of `tiny-video` (AnimateDiff, Guo et al., 2307.04725) in the U-Net that
`tiny-instruct` begins as.

That U-Net stays as it is. The layers begin as such that add nothing, so that training starts from the prior
for pictures, frame by frame.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from training.denoising import (
    LARGEST_WEIGHT,
    WEIGHT_POWER,
    Corrupted,
    load_average,
    new_scheduler,
    train_denoiser,
)
from training.moving import FRAMES, read_moving
from training.progress import Job
from training.unet import INSTRUCT, Samples, load_unet, text_tables

NAME = "motion"
PEAK_LEARNING_RATE = 4e-4
SAME_NOISE = 0.5
"""Share of the clips all of whose frames have the same noise: edits ask in either way."""


def new_motion_unet(of_pictures: UNet2DConditionModel) -> UNetMotionModel:
    """The U-Net with untrained layers of motion between its own, 2.2 M parameters that add nothing."""
    adapter = MotionAdapter(
        block_out_channels=of_pictures.config["block_out_channels"],
        motion_layers_per_block=of_pictures.config["layers_per_block"],
        motion_num_attention_heads=4,
        motion_norm_num_groups=of_pictures.config["norm_num_groups"],
        motion_max_seq_length=FRAMES,
    )
    for name, parameter in adapter.named_parameters():
        if ".proj_out." in name:
            nn.init.zeros_(parameter)
    return UNetMotionModel.from_unet2d(of_pictures, adapter)


def layers_of_motion(unet: UNetMotionModel) -> nn.ModuleList:
    """Those that are trained, and nothing else."""
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    return nn.ModuleList([block.motion_modules for block in blocks])


def diffused_clips(targets: Tensor, generator: torch.Generator) -> Corrupted:
    """Clips under Stable Diffusion's noise, of each frame its own or one for all; asked for is the noise."""
    kept = new_scheduler().alphas_cumprod
    times = torch.randint(len(kept), (len(targets),), generator=generator)
    noise = torch.randn(targets.shape, generator=generator)
    same = torch.rand(len(targets), generator=generator) < SAME_NOISE
    noise = torch.where(same.view(-1, 1, 1, 1, 1), noise[:, :, :1], noise)
    signal, spread = (level[times].sqrt().view(-1, 1, 1, 1, 1) for level in (kept, 1 - kept))
    weights = (kept[times] ** -WEIGHT_POWER).clamp(max=LARGEST_WEIGHT)
    return Corrupted(signal * targets + spread * noise, times, noise, weights)


def train_motion(job: Job, snapshot: Callable[[], None]) -> None:
    """Train the layers alone; see `train_denoiser` for what it leaves."""
    work = job.work
    torch.manual_seed(job.seed)
    unet = new_motion_unet(load_unet(INSTRUCT, work)).to(job.worker.device).requires_grad_(False)
    unet.set_attn_processor(AttnProcessor())  # see train_unet
    layers = layers_of_motion(unet).requires_grad_(True)
    samples = Samples(INSTRUCT, read_moving(work, job.worker.count), *text_tables(INSTRUCT, work, job.seed))

    def predict(noisy: Tensor, times: Tensor, photos: Tensor, text: Tensor) -> Tensor:
        words = text.repeat_interleave(noisy.shape[2], dim=0)
        return unet(torch.cat([noisy, photos], 1), times, words).sample

    train_denoiser(
        NAME,
        job,
        layers,
        predict,
        samples.draw,
        diffused_clips,
        peak_learning_rate=PEAK_LEARNING_RATE,
        snapshot=snapshot,
        of_batch=FRAMES,
    )


def load_motion_unet(work: Path) -> UNetMotionModel:
    """The U-Net with the averaged layers that `train_motion` left, frozen."""
    unet = new_motion_unet(load_unet(INSTRUCT, work))
    load_average(layers_of_motion(unet), NAME, work)
    return unet.eval().requires_grad_(False)
