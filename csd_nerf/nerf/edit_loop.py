"""The loop of every edit: draw views, edit them, fit the scene to what they should look like.

    views   = draw(N cameras)                     no gradient
    targets = edit(views)                         what differs between the methods: `edits`
    fit(field, targets of the last B views)       M steps on random rays

A round asks the diffusion model once, about N views together, and trains the scene for M steps. Rays are
cheap where they need no whole view, an optimiser sees M gradients for one drawing, and earlier targets are
not forgotten while new ones come.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.models.nerfacto import NerfactoModel
from torch import Tensor

from csd_nerf import ranks
from csd_nerf.nerf.cpu_sampling import distortion_loss, interlevel_loss
from csd_nerf.nerf.perceptual import PatchLpips
from csd_nerf.nerf.rendering import render_still, still
from csd_nerf.nerf.source_field import edited_everywhere
from csd_nerf.nerf.targets import Targets
from csd_nerf.pixel_rays import PixelRays

NO_CHANGE = 0.01
"""Mean absolute change of pictures (0..1) below which nothing is to be seen."""
FOLLOWED = 0.9
"""A fit leaves at most this share of the distance between views and targets, or did not follow them."""


@torch.no_grad()
def draw(model: NerfactoModel, rays: PixelRays, indices: list[int]) -> Float[Tensor, "n 3 h w"]:
    """Views of the scene as it is now, 0..1, each from where its photo was taken.

    At the corrected poses, which the fit trains at as well, and of an edit that is everywhere, wherever it is
    shown: see `edited_everywhere`.

    Args:
        model: in training mode, on the cameras' device.
        rays: of the whole training split's cameras, all of one size.
        indices: of N cameras.
    """

    def drawn(mine: list[int]) -> Tensor:
        return torch.stack([render_still(model, rays.of_view(index)).image for index in mine])

    with edited_everywhere(model):
        return ranks.by_share(drawn, indices)


@dataclass
class Fit:
    """How the scene follows its targets.

    Attributes:
        rays: of a step.
        patch_size: side of the square patches that pixels are drawn in; 1 draws every pixel by itself.
        absolute: compare colours by their absolute difference, and not by its square.
        lpips: what compares patches, if anything does.
        lpips_weight: of it.
    """

    rays: int
    patch_size: int = 1
    absolute: bool = False
    lpips: PatchLpips | None = None
    lpips_weight: float = 0.0

    def losses(self, model: NerfactoModel, targets: Targets) -> tuple[dict[str, Tensor], Tensor]:
        """One step on random rays: the losses, and the mean absolute difference of the colours (0..1).

        Nerfacto's own losses are among them, without which the proposal networks would drift from the field.
        All are means over rays, or over patches: over several ranks their gradients are those of this rank's
        share, to be summed, and their values those of all rays.
        """
        rays, colours = targets.sample(self.rays, self.patch_size)
        patches = ranks.share(len(colours) // self.patch_size**2)
        mine = slice(patches.start * self.patch_size**2, patches.stop * self.patch_size**2)
        part = (mine.stop - mine.start) / len(colours)
        # As views are drawn: what evaluation and the viewer show is what the edit works on. With samples at
        # random even targets that ask for nothing would move the scene, and blur it.
        with edited_everywhere(model), still(model):
            outputs = model(rays[mine])
        colours = colours[mine]
        rendered = outputs["rgb"].float()
        levels = outputs["weights_list"], outputs["ray_samples_list"]
        distance = F.l1_loss(rendered, colours)
        losses = {
            "rgb_loss": distance if self.absolute else F.mse_loss(rendered, colours),
            "interlevel_loss": model.config.interlevel_loss_mult * interlevel_loss(*levels),
            "distortion_loss": model.config.distortion_loss_mult * distortion_loss(*levels),
        }
        if self.lpips is not None:
            losses["lpips_loss"] = self.lpips_weight * self.lpips(rendered, colours, self.patch_size)
        shared = ranks.with_values_of_all(
            {name: part * loss for name, loss in {**losses, "": distance.detach()}.items()}
        )
        return shared, shared.pop("")


class NoOpAlarm:
    """Says at once what would else be found out at the end: that nothing is asked for, or nothing happens.

    Args:
        rounds: in which nothing must have happened before it is said.
    """

    def __init__(self, rounds: int = 2) -> None:
        self._patience = {"asked": rounds, "followed": rounds}

    @property
    def watches_followed(self) -> bool:
        """Whether `followed` may still have something to say."""
        return self._patience["followed"] > 0

    def asked(self, views: Tensor, targets: Tensor) -> str | None:
        """What to say when targets do not differ from their views; None while all is well."""
        change = float((targets.clamp(0, 1) - views).abs().mean())
        return self._count(
            "asked",
            change < NO_CHANGE,
            f"The diffusion model asks for next to no change: {change:.4f} of 1 on average. It may not know "
            "the words of the prompt, or be held back by its guidance.",
        )

    def followed(self, views: Tensor, after: Tensor, targets: Tensor) -> str | None:
        """What to say when the scene does not move towards its targets; None while all is well."""
        wanted, left = (float((targets.clamp(0, 1) - images).abs().mean()) for images in (views, after))
        return self._count(
            "followed",
            wanted >= NO_CHANGE and left > FOLLOWED * wanted,
            f"The scene does not follow its targets: {left:.4f} of 1 away from them after a round, "
            f"{wanted:.4f} before. Raise its learning rate or --pipeline.fits-per-round.",
        )

    def _count(self, kind: str, wrong: bool, message: str) -> str | None:
        """The message once, after so many rounds in a row from the start; a good one ends the watch."""
        left = self._patience[kind]
        self._patience[kind] = left - 1 if wrong and left > 0 else -1
        return message if wrong and left == 1 else None
