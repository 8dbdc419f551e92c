"""The data of a scene on a CPU and of an edit: photos reduced on reading, whole views instead of rays."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Type  # noqa: UP035 - the forms that tyro and nerfstudio resolve
from unittest.mock import patch

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.pixel_samplers import PixelSampler
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader, RandIndicesEvalDataloader
from nerfstudio.model_components.ray_generators import RayGenerator
from torch import Tensor

from csd_nerf.cameras import fit_cameras, fit_photo
from csd_nerf.nerf.formats import read_split
from csd_nerf.nerf.photos import PhotoDataset
from csd_nerf.nerf.transforms import read_transforms
from csd_nerf.pixel_rays import PixelRays


@dataclass
class SceneDataManagerConfig(VanillaDataManagerConfig):
    """nerfstudio's plain data manager (no worker processes), with photos reduced on reading."""

    _target: Type = field(default_factory=lambda: SceneDataManager)  # noqa: UP006
    photo_size: Optional[int] = None  # noqa: UP045
    """Photos whose short side is longer, in pixels, are reduced to this; None leaves them as they are."""


class SceneDataManager(VanillaDataManager[PhotoDataset]):
    """`VanillaDataManager` that reduces large photos, and reads those of uncommon kinds."""

    config: SceneDataManagerConfig

    def __init__(self, *args: Any, **options: Any) -> None:
        # nerfstudio's dataparser reads the file by a name of its own; the meaning of what it reads is ours.
        with patch("nerfstudio.data.dataparsers.nerfstudio_dataparser.load_from_json", read_transforms):
            super().__init__(*args, **options)

    def create_train_dataset(self) -> PhotoDataset:
        """The training split at the reduced size."""
        self._reduce(self.train_dataparser_outputs.cameras)
        return super().create_train_dataset()

    def create_eval_dataset(self) -> PhotoDataset:
        """The evaluation split at the same size."""
        outputs = read_split(self.dataparser, self.test_split)
        return self.dataset_type(outputs, scale_factor=self.config.camera_res_scale_factor)

    def setup_train(self) -> None:
        """Read the photos, and solve for the lens of the cameras."""
        super().setup_train()
        self.train_ray_generator = PixelRayGenerator(self.train_ray_generator.cameras)

    def _reduce(self, cameras: Cameras) -> None:
        if self.config.photo_size is not None:
            short_side = int(torch.minimum(cameras.height, cameras.width).min())
            self.config.camera_res_scale_factor = reduction(short_side, self.config.photo_size)


class PixelRayGenerator(RayGenerator):
    """nerfstudio's, which solves for a lens once."""

    def __init__(self, cameras: Cameras) -> None:
        super().__init__(cameras)
        self._rays = PixelRays(cameras)

    def forward(self, ray_indices: Tensor) -> RayBundle:
        """Rays (R,) of camera, row and column (R, 3)."""
        return self._rays(*ray_indices.to(self.cameras.device).unbind(1))


def reduction(short_side: int, photo_size: int) -> float:
    """The factor, at most 1, by which photos and their cameras are reduced.

    nerfstudio multiplies and rounds down twice: the sides of photos and masks as Python's floats, those of
    cameras as float32. A fraction of few bits, a whole number of parts, makes both products exact, so that
    photo and camera are of one size, whatever other photos the capture has. The float32's 24 bits suffice for
    reduced sides up to 4096 pixels, and below a short side of 4096 for sides up to 2^23 / `photo_size`.

    Args:
        short_side: of the smallest photo, in pixels.
        photo_size: what it is reduced to, in pixels; a few more where it is longer than 4096.
    """
    parts = min(4096, 1 << (short_side - 1).bit_length())  # one a pixel: rounding up gains none
    return min(1.0, -(-photo_size * parts // short_side) / parts)


@dataclass
class EditDataManagerConfig(SceneDataManagerConfig):
    """Whole views instead of random rays."""

    _target: Type = field(default_factory=lambda: EditDataManager)  # noqa: UP006


class EditDataManager(SceneDataManager):
    """Serves whole views; reads a photo when it is first needed."""

    config: EditDataManagerConfig
    rays_per_step: int = 0
    """For the rays-per-second display; set by the pipeline."""

    def setup_train(self) -> None:
        """Nothing is read ahead: an edit looks at a few photos, at the size of its views.

        `ns-export` sets the sampler's number of rays before it calls `next_train`.
        """
        self.train_pixel_sampler = self._get_pixel_sampler(
            self.train_dataset, self.config.train_num_rays_per_batch
        )

    def _get_pixel_sampler(self, dataset: PhotoDataset, num_rays_per_batch: int) -> PixelSampler:
        """Of pixels by themselves: patches are for the pictures that an edit trains on."""
        of_patches, self.config.patch_size = self.config.patch_size, 1
        try:
            return super()._get_pixel_sampler(dataset, num_rays_per_batch)
        finally:
            self.config.patch_size = of_patches

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Tensor]]:
        """Rays of random pixels of the photos, and these pixels, for `ns-export`; no edit asks for them.

        The first call reads all photos.
        """
        if self.train_count == 0:
            sampler = self.train_pixel_sampler
            super().setup_train()
            self.train_pixel_sampler = sampler
        return super().next_train(step)

    def setup_eval(self) -> None:
        """The loaders that `ns-eval` and `ns-render` go through."""
        self.eval_dataloader = RandIndicesEvalDataloader(
            input_dataset=self.eval_dataset, device=self.device, num_workers=0
        )
        self.fixed_indices_eval_dataloader = FixedIndicesEvalDataloader(
            input_dataset=self.eval_dataset, device=self.device, num_workers=0
        )

    def get_train_rays_per_batch(self) -> int:
        """Rays of one edit step."""
        return self.rays_per_step

    def train_cameras(self, height: int, width: int) -> Cameras:
        """All training cameras, cropped to one shape, on the device."""
        return fit_cameras(self.train_dataset.cameras, height, width).to(self.device)

    def eval_cameras(self, height: int, width: int, count: int) -> tuple[Cameras, list[int]]:
        """Cameras spread over the evaluation split, cropped to one shape, and their indices in it.

        Args:
            height: of the views, in pixels.
            width: of the views, in pixels.
            count: how many; fewer when the split is smaller. The training split serves where the
                evaluation split is empty.
        """
        cameras = self._shown.cameras
        chosen = torch.linspace(0, len(cameras) - 1, min(count, len(cameras))).round().long()
        return fit_cameras(cameras[chosen], height, width).to(self.device), chosen.tolist()

    def eval_photos(self, indices: Sequence[int], height: int, width: int) -> Tensor:
        """Photos (V, 3, height, width), 0..1, of cameras that `eval_cameras` chose."""
        return self._photos(self._shown, indices, height, width)

    def eval_names(self, indices: Sequence[int]) -> list[str]:
        """File names of the photos of cameras that `eval_cameras` chose."""
        return [self._shown.image_filenames[index].name for index in indices]

    @property
    def _shown(self) -> InputDataset:
        return self.eval_dataset if len(self.eval_dataset) else self.train_dataset

    def train_photos(self, indices: Sequence[int], height: int, width: int) -> Tensor:
        """Source photos (N, 3, height, width), 0..1, cropped as `train_cameras` are."""
        return self._photos(self.train_dataset, indices, height, width)

    def _photos(self, dataset: InputDataset, indices: Sequence[int], height: int, width: int) -> Tensor:
        photos = [fit_photo(dataset.get_image_float32(index), height, width) for index in indices]
        return torch.stack(photos).to(self.device)
