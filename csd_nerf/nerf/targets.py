"""The edited pictures that a scene is fitted to: of the views edited last, or of the whole capture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, UInt8
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from csd_nerf.errors import InputError
from csd_nerf.pixel_rays import PixelRays


class Targets:
    """One picture of each of some training cameras, the newest edit last.

    They are kept as bytes on the CPU, 0.75 MB for 512 x 512 pixels. An edited picture is rounded to bytes at
    once, so that a checkpoint holds exactly what the scene was fitted to.

    Args:
        rays: of the cameras of the training split, N of one height and width.
        keep: how many views are kept; when there are more, the one that was edited longest ago goes.
        photos: of all cameras, RGB, each in the place of its view until that is edited; then all views are
            kept. None begins with nothing.
    """

    def __init__(self, rays: PixelRays, keep: int, photos: UInt8[Tensor, "n h w 3"] | None = None) -> None:
        self.rays = rays
        self.cameras = rays.cameras
        self.photos = photos
        self._keep = len(self.cameras) if photos is not None else keep
        self.restore()

    def restore(self) -> None:
        """Forget all edits; the photos, if any, are back."""
        height, width = int(self.cameras.height[0]), int(self.cameras.width[0])
        empty = torch.empty(0, height, width, 3, dtype=torch.uint8)
        self.pictures = empty if self.photos is None else self.photos
        self.views: list[int] = [] if self.photos is None else list(range(len(self.photos)))
        self.edited: set[int] = set()

    def put(self, indices: Sequence[int], pictures: Float[Tensor, "m 3 h w"]) -> None:
        """Keep edited pictures (0..1) of the cameras `indices`, in the place of older ones of the same."""
        self._put(indices, as_bytes(pictures))

    def _put(self, indices: Sequence[int], pictures: UInt8[Tensor, "m h w 3"]) -> None:
        stay = [row for row, view in enumerate(self.views) if view not in indices]
        pictures = torch.cat([self.pictures[stay], pictures])
        views = [*(self.views[row] for row in stay), *indices]
        self.pictures, self.views = pictures[-self._keep :], views[-self._keep :]
        self.edited = (self.edited | set(indices)) & set(self.views)

    def sample(self, rays: int, patch_size: int = 1) -> tuple[RayBundle, Float[Tensor, "r 3"]]:
        """Rays through random pixels of all pictures, and the colours (0..1) that they should have.

        Args:
            rays: how many; rounded down to whole patches, of which there is at least one.
            patch_size: side of the square patches that pixels are drawn in, row by row, one patch after
                the other; 1 draws every pixel by itself.
        """
        count, height, width, _ = self.pictures.shape
        patches = max(1, rays // patch_size**2)
        picture = torch.randint(count, (patches,))
        top = torch.randint(height - patch_size + 1, (patches,))
        left = torch.randint(width - patch_size + 1, (patches,))
        within = torch.cartesian_prod(torch.arange(patch_size), torch.arange(patch_size)).view(-1, 2)
        picture = picture.repeat_interleave(patch_size**2)  # (R,)
        row = (top[:, None] + within[:, 0]).flatten()
        column = (left[:, None] + within[:, 1]).flatten()
        colours = self.pictures[picture, row, column].float() / 255

        device = self.cameras.device
        camera = torch.tensor(self.views)[picture]
        return self.rays(camera.to(device), row.to(device), column.to(device)), colours.to(device)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: the edited pictures as bytes, oldest first, and whose they are."""
        rows = [row for row, view in enumerate(self.views) if view in self.edited]
        return {"indices": torch.tensor(self.views, dtype=torch.long)[rows], "pictures": self.pictures[rows]}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on with the edited pictures of a checkpoint.

        Raises:
            InputError: they are of another size, or of other cameras.
        """
        indices, pictures = state["indices"], state["pictures"]
        self.restore()
        if pictures.shape[1:] != self.pictures.shape[1:] or any(indices >= len(self.cameras)):
            raise InputError(
                "the edited pictures in the checkpoint are not of these training views",
                expected=f"{tuple(self.pictures.shape[1:3])} pixels, of {len(self.cameras)} views or fewer",
                got=f"{tuple(pictures.shape[1:3])} pixels, of {len(pictures)} views",
                hint="continue with the --data and --pipeline.render-size that the edit was begun with",
            )
        self._put(indices.tolist(), pictures)


def as_bytes(pictures: Float[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n h w 3"]:
    """8-bit RGB on the CPU of pictures in 0..1."""
    return (pictures.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu()
