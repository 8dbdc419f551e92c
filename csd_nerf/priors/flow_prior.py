"""What models of flow matching have in common, of pictures and of clips (Lipman et al., 2210.02747)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from csd_nerf.priors.base import GuidedBy, NoiseSchedule
from csd_nerf.priors.latent_prior import LatentPrior

TIMESTEPS = 1000
"""Of the schedule; the transformers take any time between."""


class FlowPrior(LatentPrior):
    """A transformer in the place of a U-Net, on the straight line from pictures to noise.

    Args:
        transformer: of the subclass's class.
        guided_by: "text", or "itself" for one with guidance distilled into it.
        time_shift: see `Prior`.
        vae, load_text, unet_batch_size, vae_batch_size: of `LatentPrior`.
    """

    def __init__(
        self,
        *,
        transformer: Any,
        vae: Any,
        load_text: Callable[[], Sequence[tuple[Any, Any]]],
        guided_by: GuidedBy,
        time_shift: float,
        unet_batch_size: int,
        vae_batch_size: int,
    ) -> None:
        super().__init__(
            network=transformer,
            vae=vae,
            load_text=load_text,
            schedule=NoiseSchedule.flow(TIMESTEPS),
            unet_batch_size=unet_batch_size,
            vae_batch_size=vae_batch_size,
        )
        self.transformer = transformer.eval().requires_grad_(False)
        self.guided_by = guided_by
        self.time_shift = time_shift
