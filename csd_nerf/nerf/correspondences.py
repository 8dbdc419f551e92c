"""Where the views of a scene show the same points of it."""

from __future__ import annotations

import torch
from nerfstudio.models.nerfacto import NerfactoModel

from csd_nerf import ranks
from csd_nerf.distillation.correspondence import Correspondence, find_correspondence
from csd_nerf.nerf.rendering import render_still
from csd_nerf.nerf.source_field import edited_everywhere
from csd_nerf.pixel_rays import PixelRays


@torch.no_grad()
def correspondence_of(model: NerfactoModel, rays: PixelRays, indices: list[int]) -> Correspondence:
    """By the depth of the scene as it is now, and the poses and lenses that it is drawn with.

    Args:
        model: in training mode, on the cameras' device.
        rays: of the whole training split's cameras, through the middles of their latents.
        indices: of N cameras.
    """

    def distances(mine: list[int]) -> torch.Tensor:
        found = []
        for index in mine:
            bundle = rays.of_view(index)
            along_axis = render_still(model, bundle).depth[0]
            found.append(along_axis * bundle.metadata["directions_norm"][..., 0])
        return torch.stack(found)

    bundles = [rays.of_view(index).flatten() for index in indices]
    for bundle in bundles:
        model.camera_optimizer.apply_to_raybundle(bundle)
    with edited_everywhere(model):
        depth = ranks.by_share(distances, indices)
    directions = torch.stack([bundle.directions for bundle in bundles]).unflatten(1, depth.shape[1:])
    return find_correspondence(torch.stack([bundle.origins[0] for bundle in bundles]), directions, depth)
