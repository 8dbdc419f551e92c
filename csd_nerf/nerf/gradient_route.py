"""The gradient as it was published: from score distillation back through encoder and renderer."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.models.nerfacto import NerfactoModel
from torch import Tensor

from csd_nerf import ranks
from csd_nerf.distillation.objective import NonFiniteResidual, Objective
from csd_nerf.nerf.rendering import RenderedViews
from csd_nerf.threads import all_for_torch


def losses_through_the_renderer(
    model: NerfactoModel,
    objective: Objective,
    views: RenderedViews,
    pictures: Float[Tensor, "m 3 height width"],
    *,
    of: int,
    **question: Any,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The losses of one step of score distillation (DreamFusion, 2209.14988; CSD, 2307.04787, section 4).

    The first is a surrogate: its value means nothing, its gradient is that of the objective. The others are
    nerfacto's own, without which the proposal networks would drift from the field.

    Args:
        model: that drew the views.
        objective: what is descended, with its prior.
        views: those M of N that are this rank's share, with a gradient to the model's parameters.
        pictures: what the prior sees of them, with a gradient to the views.
        of: N, the views of all ranks.
        question: what else `Objective.gradient` is to know.

    Returns:
        Losses, whose gradients are to be summed over the ranks, and the statistics of the step.

    Raises:
        NonFiniteResidual: the prior's answer is not finite.
    """
    with torch.autocast(pictures.device.type, enabled=False), all_for_torch():
        views.images.register_hook(refuse_non_finite)
        latents = objective.prior.encode(pictures)
        distilled = objective.gradient(ranks.of_all(latents, of), **question)
    losses = {
        "distillation": distillation_loss(distilled.gradient[ranks.share(of)], latents),
        "interlevel_loss": model.config.interlevel_loss_mult * views.interlevel,
        "distortion_loss": model.config.distortion_loss_mult * views.distortion,
    }
    part = len(latents) / of
    shared = ranks.with_values_of_all({name: part * loss for name, loss in losses.items()})
    return shared, distilled.statistics


def distillation_loss(gradient: Float[Tensor, "n c h w"], latents: Float[Tensor, "n c h w"]) -> Tensor:
    """A scalar whose gradient is that of the objective, as a mean over views and latent pixels.

    So it keeps its proportion to nerfacto's own losses, which are means over rays. Its value means nothing.
    """
    return (gradient * latents).sum() / latents[:, 0].numel()


def refuse_non_finite(gradient: Tensor) -> None:
    """Stop a backward pass before it reaches the field, where one NaN would spoil every later step."""
    if ranks.any_says(not bool(gradient.isfinite().all())):
        raise NonFiniteResidual("the gradient that came through the autoencoder is not finite")
