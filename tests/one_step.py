"""One denoising step under guidance, by a pipeline of diffusers and by a prior of ours."""

from __future__ import annotations

from typing import Any

from diffusers import DDIMScheduler
from torch import Tensor

from csd_nerf.distillation import Guidance
from csd_nerf.priors import Prior

GUIDANCE = 7.5


def step_of_pipeline(pipeline: Any, prompt: str, start: Tensor, pixels: int = 4, **options: Any) -> Tensor:
    """Latents after one step of DDIM from `start` (1, c, h, w), whose latents are `pixels` wide; gives the
    pipeline that scheduler."""
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    height, width = (pixels * side for side in start.shape[2:])
    return pipeline(
        prompt,
        height=height,
        width=width,
        latents=start,
        num_inference_steps=1,
        guidance_scale=GUIDANCE,
        output_type="latent",
        **options,
    ).images


def step_of_prior(
    prior: Prior, pipeline: Any, prompt: str, start: Tensor, condition: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same step by a text-to-image prior, at the timestep and with the scheduler of that pipeline.

    Args:
        condition: (1, k, h, w), what the prior is shown; None for nothing.

    Returns:
        Latents after the step, and the guided noise that it took away.
    """
    t = int(pipeline.scheduler.timesteps[0])
    shown = None if condition is None else condition.expand(2, -1, -1, -1)
    predicted = prior.predict_noise(start.expand(2, -1, -1, -1), t, prior.embed(["", prompt]), shown)
    noise = Guidance(GUIDANCE).combine_text(*predicted.split(1))
    return pipeline.scheduler.step(noise, t, start).prev_sample, noise
