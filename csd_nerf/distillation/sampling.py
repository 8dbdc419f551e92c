"""Editing pictures by sampling: noise to a timestep, and DDIM back from there."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.distillation.objective import NonFiniteResidual
from csd_nerf.distillation.residuals import Guidance, guided_noise
from csd_nerf.priors.base import NoiseSchedule, Prior


@torch.no_grad()
def sample_edit(
    prior: Prior,
    latents: Float[Tensor, "n c h w"],
    condition: Float[Tensor, "n k h w"],
    *,
    prompt: str,
    guidance: Guidance,
    start: int,
    steps: int,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n c h w"]:
    """Edit N pictures, each by itself, as Instruct-NeRF2NeRF does (Haque et al., 2303.12789, section 4.2).

    The latents are noised to the first timestep of `ddim_timesteps` and denoised by DDIM, guided by the
    prompt and, of an InstructPix2Pix, by the picture it is shown. Starting from a noised picture instead of
    pure noise is SDEdit (Meng et al., 2108.01073): the less noise, the more of the picture stays.

    U-Net evaluations a picture and step: 3 of an InstructPix2Pix, 2 of a model that is guided by the prompt
    alone, 1 of one that has guidance distilled into it.

    Args:
        prior: the diffusion model.
        latents: scaled latents of the pictures as they are now.
        condition: `prior.condition` of the unedited pictures.
        prompt: the instruction, or for a text-to-image model a description of the edited picture.
        guidance: scales of both kinds of guidance.
        start: how much noise: a number of timesteps, below `prior.schedule.num_timesteps`. With 0 the latents
            come back as they are.
        steps: of DDIM; no more than `start` are taken.
        generator: source of the noise.

    Raises:
        NonFiniteResidual: the prior returned NaN or infinity.
    """
    schedule = prior.schedule
    timesteps = ddim_timesteps(start, steps)
    if not timesteps:
        return latents.clone()
    text, empty = (prior.told([words], condition) for words in (prompt, ""))
    device = generator.device if generator is not None else latents.device
    noise = torch.randn(latents.shape, generator=generator, device=device).to(latents.device)
    latents = schedule.add_noise(latents.float(), noise, timesteps[0])
    for t, previous in zip(timesteps, [*timesteps[1:], 0], strict=True):
        (predicted,) = guided_noise(prior, t, empty, condition, guidance, (latents, text))
        if not predicted.isfinite().all():
            raise NonFiniteResidual(f"the predicted noise at timestep {t} is not finite (prompt {prompt!r})")
        latents = ddim_step(schedule, predicted, latents, t, previous)
    return latents


def ddim_timesteps(start: int, steps: int) -> list[int]:
    """The timesteps at which DDIM looks at the picture, from much noise to little.

        t_k = 1 + k floor(start / steps)        k = steps - 1, ..., 0

    This is the spacing "leading" with offset 1, which Stable Diffusion's own DDIM has, over the first `start`
    timesteps instead of all of them. The last step goes to timestep 0, the least noise.

    Args:
        start: number of timesteps, fewer than the schedule has.
        steps: how many of them; with fewer than `steps` timesteps each of those is taken.

    Example:
        >>> ddim_timesteps(980, 4)
        [736, 491, 246, 1]
        >>> ddim_timesteps(2, 4), ddim_timesteps(0, 4)
        ([2, 1], [])
    """
    steps = min(steps, start)
    return [1 + k * (start // steps) for k in reversed(range(steps))]


def ddim_step(
    schedule: NoiseSchedule,
    predicted: Float[Tensor, "n c h w"],
    latents: Float[Tensor, "n c h w"],
    t: int,
    previous: int,
) -> Float[Tensor, "n c h w"]:
    """One deterministic step from timestep t to `previous` (Song et al., 2010.02502, equation 12, eta 0).

        x_0 = (x_t - sigma_t e) / alpha_t        x_t' = alpha_t' x_0 + sigma_t' e

    Args:
        schedule: of the prior.
        predicted: e, the noise predicted in `latents`.
        latents: x_t.
        t, previous: indices into the schedule.
    """
    clean = (latents - schedule.sigmas[t].item() * predicted) / schedule.alphas[t].item()
    return schedule.add_noise(clean, predicted, previous)
