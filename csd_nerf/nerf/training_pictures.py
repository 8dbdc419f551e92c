"""The pictures that a scene trains on while an edit replaces them one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, UInt8
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from csd_nerf.errors import InputError


class TrainingPictures:
    """One picture for each training camera: the photo, until `replace` puts an edited one in its place.

    They are kept as bytes on the CPU, 0.75 MB for 512 x 512 pixels. An edited picture is rounded to bytes at
    once, so that a checkpoint holds exactly what the scene was trained on.

    Args:
        photos: of the training cameras, RGB.
        cameras: N of them, of the photos' height and width; rays are made on their device.
    """

    def __init__(self, photos: UInt8[Tensor, "n h w 3"], cameras: Cameras) -> None:
        self.photos = photos
        self.cameras = cameras
        self.pictures = photos.clone()
        self.edited: set[int] = set()

    def replace(self, indices: Sequence[int], pictures: Float[Tensor, "m 3 h w"]) -> None:
        """Put edited pictures (0..1) in the place of those of the cameras `indices`."""
        self.pictures[list(indices)] = as_bytes(pictures)
        self.edited.update(indices)

    def restore(self) -> None:
        """Put all photos back."""
        self.pictures.copy_(self.photos)
        self.edited.clear()

    def sample(self, rays: int, patch_size: int = 1) -> tuple[RayBundle, Float[Tensor, "r 3"]]:
        """Rays through random pixels of all pictures, and the colours (0..1) that they should have.

        Args:
            rays: how many; rounded down to whole patches, of which there is at least one.
            patch_size: side of the square patches that pixels are drawn in, row by row, one patch after
                the other; 1 draws every pixel by itself.
        """
        count, height, width, _ = self.pictures.shape
        patches = max(1, rays // patch_size**2)
        camera = torch.randint(count, (patches,))
        top = torch.randint(height - patch_size + 1, (patches,))
        left = torch.randint(width - patch_size + 1, (patches,))
        within = torch.cartesian_prod(torch.arange(patch_size), torch.arange(patch_size)).view(-1, 2)
        camera = camera.repeat_interleave(patch_size**2)  # (R,)
        row = (top[:, None] + within[:, 0]).flatten()
        column = (left[:, None] + within[:, 1]).flatten()
        colours = self.pictures[camera, row, column].float() / 255

        device = self.cameras.device
        centres = torch.stack([row, column], dim=1).to(device) + 0.5
        bundle = self.cameras.generate_rays(camera_indices=camera[:, None].to(device), coords=centres)
        return bundle, colours.to(device)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: the edited pictures as bytes, and whose they are."""
        indices = torch.tensor(sorted(self.edited), dtype=torch.long)
        return {"indices": indices, "pictures": self.pictures[indices]}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on with the edited pictures of a checkpoint.

        Raises:
            InputError: they are of another size, or of other cameras.
        """
        indices, pictures = state["indices"], state["pictures"]
        if pictures.shape[1:] != self.photos.shape[1:] or any(indices >= len(self.photos)):
            raise InputError(
                "the edited pictures in the checkpoint are not of these training views",
                expected=f"pictures of {tuple(self.photos.shape[1:3])} pixels, {len(self.photos)} or fewer",
                got=f"{len(pictures)} of {tuple(pictures.shape[1:3])} pixels",
                hint="continue with the --data and --pipeline.render-size that the edit was begun with",
            )
        self.restore()
        self.pictures[indices] = pictures
        self.edited.update(indices.tolist())


def as_bytes(pictures: Float[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n h w 3"]:
    """8-bit RGB on the CPU of pictures in 0..1."""
    return (pictures.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu()
