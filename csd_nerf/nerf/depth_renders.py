"""Pictures and depths of a loaded scene."""

from __future__ import annotations

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.models.nerfacto import NerfactoModel

from csd_nerf.evaluation.reprojection import PosedPictures, axis_depth


@torch.no_grad()
def render_with_depth(model: NerfactoModel, cameras: Cameras) -> PosedPictures:
    """What pinhole cameras see, with the depth the density gives, on the CPU.

    The depth of a pixel is where half of its colour has been gathered: nerfacto's `depth`, a Euclidean
    distance, turned into depth along the viewing axis. The mean depth (`expected_depth`) lies between the
    surfaces at the edges of things: on a captured scene 40 % fewer pixels can be compared with it.

    Args:
        model: of a loaded pipeline.
        cameras: (V) of one size, without distortion, on the model's device.
    """
    training = model.training
    model.eval()
    images, distances = [], []
    for index in range(len(cameras)):
        outputs = model.get_outputs_for_camera(cameras[index : index + 1])
        images.append(outputs["rgb"].permute(2, 0, 1).float().cpu().clamp(0, 1))
        distances.append(outputs["depth"][..., 0].float().cpu())
    model.train(training)
    intrinsics = cameras.get_intrinsics_matrices().cpu()
    return PosedPictures(
        images=torch.stack(images),
        depths=axis_depth(torch.stack(distances), intrinsics),
        camera_to_worlds=cameras.camera_to_worlds.cpu(),
        intrinsics=intrinsics,
    )
