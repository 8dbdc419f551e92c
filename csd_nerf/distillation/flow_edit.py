"""Editing pictures along the flow from source to edit: FlowEdit, of several pictures together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.distillation.objective import NoiseSharing, NonFiniteResidual, draw_noise
from csd_nerf.distillation.residuals import Guidance, Views, dvrf
from csd_nerf.distillation.transport import independent
from csd_nerf.errors import InputError
from csd_nerf.priors.base import Prior

Transport = Callable[[Tensor, Tensor], Tensor]
"""(directions, noisy latents) to what the pictures share of them, all (n, c, h, w)."""


@torch.no_grad()
def flow_edit(
    prior: Prior,
    latents: Float[Tensor, "n c h w"],
    source: Float[Tensor, "n c h w"],
    condition: Float[Tensor, "n k h w"],
    *,
    prompt: str,
    guidance: Guidance,
    start: int,
    steps: int,
    transport: Transport = independent,
    noise_sharing: NoiseSharing = "per-particle",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n c h w"]:
    """Edit N pictures in one pass from much noise to none (FlowEdit, Kulikov et al., 2412.08629).

        z~_k = (1 - s_k) x~ + s_k eps_k        z_k = x_k + z~_k - x~
        x_k+1 = x_k - (s_k - s_k+1) transport(v(z_k; img, y) - v(z~_k; img, empty))

    With `svgd` as transport the pictures share their velocities. The pass begins at
    `x_0 = x~ + (1 - s_0) (x - x~)`, where a straight way from the source to pictures that are edited already
    has come to by then: what the prior would make of the source anyway stays as it is, and unedited pictures
    begin at the source, as published.

    Evaluations of the network a picture and step: those of `csd_edit`.

    Args:
        prior: a model of flow matching that edits pictures.
        latents: scaled latents of the pictures as they are now, x.
        source: those of the unedited pictures, x~.
        condition: `prior.condition` of the unedited pictures.
        prompt: the instruction.
        guidance: scales.
        start: timestep of s_0, an index into `prior.schedule`. With 0 the latents come back as they are.
        steps: of equal length; no more than `start` are taken.
        transport: how the pictures share.
        noise_sharing: which pictures have one noise in a step, see `ObjectiveConfig.noise`.
        generator: source of the noise.

    Raises:
        InputError: another kind of prior.
        NonFiniteResidual: the prior returned NaN or infinity.
    """
    check_flow_edit(prior)
    steps = min(steps, start)
    times = [round(start * left / steps) for left in range(steps, -1, -1)] if steps else []
    text, empty = (prior.told([words], condition) for words in (prompt, ""))
    schedule = prior.schedule
    source = source.float()
    latents = source + schedule.alphas[start].item() * (latents.float() - source)
    for t, following in zip(times, times[1:], strict=False):
        noise = draw_noise(source, noise_sharing, generator)
        views = Views(latents, source, condition, noise, t, text, empty, empty, eta=1.0)
        directions = dvrf(prior, views, guidance)
        if not directions.isfinite().all():
            raise NonFiniteResidual(f"the velocity at timestep {t} is not finite (prompt {prompt!r})")
        noisy = latents - source + schedule.add_noise(source, noise, t)
        length = schedule.sigmas[t].item() - schedule.sigmas[following].item()
        latents = latents - length * transport(directions, noisy)
    return latents


def check_flow_edit(prior: Prior) -> None:
    """See that there is a flow to go along.

    Raises:
        InputError: the prior has none, or does not edit pictures.
    """
    if not (prior.schedule.is_flow and prior.image_conditioned):
        raise InputError(
            "FlowEdit cannot ask this prior",
            expected="a model of flow matching that edits pictures, as FLUX.1 Kontext or FLUX.2 klein",
            got="one of another kind, as InstructPix2Pix and Stable Diffusion are",
            hint="use `--pipeline.edit descend` or `sample`",
        )
