"""The data manager of a scene that has no data: an orbit of cameras to look at it from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Tuple, Type  # noqa: UP035 - the forms that tyro and nerfstudio resolve

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import DataManager, DataManagerConfig
from nerfstudio.data.datamanagers.random_cameras_datamanager import RandomCamerasDataManager
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.pixel_samplers import PixelSamplerConfig
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader, RandIndicesEvalDataloader
from nerfstudio.data.utils.nerfstudio_collate import nerfstudio_collate
from nerfstudio.model_components.ray_generators import RayGenerator
from torch import Tensor

from csd_nerf.errors import check, check_at_least, option
from csd_nerf.nerf.viewpoints import Viewpoints, orbit, random_viewpoints

SCENE_RADIUS = 1.0
"""Of the ball about the origin that holds the scene."""
_GREY = 128


@dataclass
class OrbitDataManagerConfig(DataManagerConfig):
    """Where the cameras may be. They look at the origin; the scene is the ball of radius 1 about it."""

    _target: Type = field(default_factory=lambda: OrbitDataManager)  # noqa: UP006
    distance: Tuple[float, float] = (1.5, 2.0)  # noqa: UP006
    """Least and greatest distance of a random camera from the origin; the scene's radius is 1."""
    elevation: Tuple[float, float] = (-10.0, 45.0)  # noqa: UP006
    """Lowest and highest random camera, in degrees above the horizon."""
    azimuth: Tuple[float, float] = (-180.0, 180.0)  # noqa: UP006
    """Random cameras go around the scene from the first to the second angle, in degrees; 0 is the front."""
    field_of_view: Tuple[float, float] = (40.0, 70.0)  # noqa: UP006
    """Narrowest and widest view of a random camera, in degrees."""
    orbit_views: int = 12
    """Fixed cameras around the scene, for the viewer, ns-render and ns-eval."""
    orbit_elevation: float = 15.0
    """Height of the fixed cameras and of the turntable, in degrees above the horizon."""
    orbit_size: int = 256
    """Side of the fixed cameras' square pictures, in pixels."""

    def check(self) -> None:
        """Refuse viewpoints that there are not.

        Raises:
            InputError: naming the option.
        """
        limits = {
            "distance": (SCENE_RADIUS, float("inf"), "scene units, outside the scene's radius of 1"),
            "elevation": (-90.0, 90.0, "degrees from -90, below, to 90, above"),
            "azimuth": (-360.0, 360.0, "degrees from -360 to 360"),
            "field_of_view": (1.0, 170.0, "degrees from 1 to 170"),
        }
        for name, (least, most, meaning) in limits.items():
            low, high = getattr(self, name)
            check(
                least <= low <= high <= most and high < float("inf"),
                f"{option(f'pipeline.datamanager.{name}')} is not a range of cameras",
                expected=f"the smaller number and then the larger one, {meaning}",
                got=f"{low} {high}",
            )
        check_at_least("pipeline.datamanager.orbit_views", self.orbit_views, 1)
        check_at_least("pipeline.datamanager.orbit_size", self.orbit_size, 8)
        check(
            -90 <= self.orbit_elevation <= 90,
            option("pipeline.datamanager.orbit_elevation"),
            expected="degrees from -90, below, to 90, above",
            got=self.orbit_elevation,
        )


class OrbitDataset(InputDataset):
    """Cameras with grey pictures: nerfstudio's viewer and loaders want some for every camera."""

    def __init__(self, cameras: Cameras) -> None:
        box = SCENE_RADIUS * torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
        names = [Path(f"view-{index}") for index in range(len(cameras))]
        cameras.metadata = {}  # into which `ns-export cameras` writes
        super().__init__(DataparserOutputs(names, cameras, scene_box=SceneBox(aabb=box)))

    def get_numpy_image(self, image_idx: int) -> np.ndarray:
        """Grey, of the camera's size."""
        height, width = (int(side[image_idx]) for side in (self.cameras.height, self.cameras.width))
        return np.full((height, width, 3), _GREY, dtype=np.uint8)


class OrbitDataManager(RandomCamerasDataManager):
    """Cameras of which none took a photo: random ones to train with, an orbit of fixed ones to look from.

    Of its parent it keeps nothing but the name: `ns-render spiral` accepts no other kind of data manager
    without photos.
    """

    config: OrbitDataManagerConfig  # type: ignore[assignment]
    rays_per_step: int = 0
    """For the rays-per-second display; set by the pipeline."""

    def __init__(
        self,
        config: OrbitDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: str = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **_: Any,
    ) -> None:
        self.config = config
        self.device = device
        self.test_mode = test_mode  # type: ignore[assignment]
        self.world_size, self.local_rank = world_size, local_rank
        dataset = OrbitDataset(self.orbit_cameras(config.orbit_views, config.orbit_size).to("cpu"))
        self.train_dataset = self.eval_dataset = dataset
        self.train_dataparser_outputs = dataset._dataparser_outputs
        DataManager.__init__(self)

    def setup_train(self) -> None:
        """What `ns-export` goes through; a step draws its own cameras."""
        self.train_pixel_sampler = PixelSamplerConfig().setup()

    @cached_property
    def _orbit(self) -> tuple[RayGenerator, dict[str, Tensor]]:
        """Rays of the fixed cameras, and what the sampler wants of their pictures."""
        dataset = self.train_dataset
        assert dataset is not None, "it is made with the cameras"
        batch = nerfstudio_collate([dataset[index] for index in range(len(dataset))])
        return RayGenerator(dataset.cameras.to(self.device)), batch

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Tensor]]:
        """Rays of random pixels of the fixed cameras, and these pixels, grey, for `ns-export`."""
        generate_rays, pictures = self._orbit
        batch = self.train_pixel_sampler.sample(pictures)
        return generate_rays(batch["indices"]), batch

    def setup_eval(self) -> None:
        """The loaders that `ns-eval` and `ns-render` go through."""
        options: dict[str, Any] = {
            "input_dataset": self.eval_dataset,
            "device": self.device,
            "num_workers": 0,
        }
        self.eval_dataloader = RandIndicesEvalDataloader(**options)
        self.fixed_indices_eval_dataloader = FixedIndicesEvalDataloader(**options)

    def random_viewpoints(self, *, count: int, seed: int, step: int) -> Viewpoints:
        """The viewpoints of a training step, see `viewpoints.random_viewpoints`."""
        config = self.config
        ranges = (config.distance, config.elevation, config.azimuth, config.field_of_view)
        return random_viewpoints(*ranges, count=count, seed=seed, step=step)

    def orbit_cameras(self, count: int, size: int) -> Cameras:
        """Fixed cameras around the scene, square pictures of `size` pixels, on the device.

        They are as far away, and their view is as wide, as in the middle of the random ones.
        """
        config = self.config
        viewpoints = orbit(
            _middle(config.distance), config.orbit_elevation, _middle(config.field_of_view), count=count
        )
        return viewpoints.cameras(size).to(self.device)

    def get_train_rays_per_batch(self) -> int:
        """Rays of one step."""
        return self.rays_per_step

    def get_datapath(self) -> Path:
        """Where the viewer keeps camera paths: with nothing captured, the working folder."""
        return Path()


def _middle(bounds: Sequence[float]) -> float:
    return sum(bounds) / len(bounds)
