"""Where in a picture a prompt changes something, as the prior's own answers tell."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.priors.base import Prior, as_many, joined

LEVELS = (0.4, 0.5, 0.6, 0.7, 0.8)
"""Amounts of noise, as fractions of the schedule, at which the prior is asked. With more it sees no picture,
with less there is nothing left to decide."""
DRAWS = 2
"""Draws of noise at each of them."""


@torch.no_grad()
def relevance(
    prior: Prior,
    source: Float[Tensor, "n c h w"],
    condition: Float[Tensor, "n k h w"],
    prompt: str,
    without: str,
    generator: torch.Generator,
) -> Float[Tensor, "n h w"]:
    """How much a prompt changes in each latent of the source views: the length of the change that it makes to
    the prior's idea of the clean view, as a mean over noise levels and draws of noise.

        relevance = mean_(t, eps) sigma_t / alpha_t  |e(x~_t; y) - e(x~_t; y_0)|

    where |.| is the root mean square over channels and `x~_t = alpha_t x~ + sigma_t eps`. The difference of
    scores at one level is the relevance map of Watch Your Steps (Mirzaei et al., 2308.08947) and, over draws,
    the mask of DiffEdit (Couairon et al., 2210.11427). The factor turns noise into pictures, in which levels
    compare.

    Args:
        prior: of either kind.
        source: x~, scaled latents of the source views.
        condition: what the prior is shown of them.
        prompt: y, what to change, or what the edit shows.
        without: y_0: empty, or what the source shows.
        generator: of the noise, on the CPU.

    Returns:
        In units of the scaled latents, 0 or more.
    """
    schedule, count = prior.schedule, len(source)
    texts = joined([as_many(prior.embed([words]), count) for words in (prompt, without)])
    maps = []
    for level in LEVELS:
        t = round(level * (schedule.num_timesteps - 1))
        scale = (schedule.sigmas[t] / schedule.alphas[t]).item()
        changes = []
        for _ in range(DRAWS):
            noise = torch.randn(source.shape, generator=generator).to(source)
            noisy = schedule.add_noise(source, noise, t)
            asked, plain = prior.predict_noise(
                torch.cat([noisy, noisy]), t, texts, torch.cat([condition, condition])
            ).chunk(2)
            changes.append(scale * (asked - plain).square().mean(1).sqrt())
        maps.append(torch.stack(changes).mean(0))
    return torch.stack(maps).mean(0)
