"""Where an edit shows: a volume in the scene, given by a box, by masks or by the diffusion model."""

from dataclasses import dataclass, fields
from typing import Literal, Optional, Tuple  # noqa: UP035 - the forms that tyro and nerfstudio resolve

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.models.nerfacto import NerfactoModel
from torch import Tensor

from csd_nerf.cameras import corrected_cameras, fit_cameras, view_size
from csd_nerf.errors import InputError
from csd_nerf.nerf.region_box import MovableBox, RegionBox
from csd_nerf.nerf.region_hull import Hull, check_camera_types
from csd_nerf.nerf.region_masks import check_masks, read_mask
from csd_nerf.nerf.rendering import render_still
from csd_nerf.nerf.source_field import Inside
from csd_nerf.pixel_rays import PixelRays

MASK_SIZE = 512
"""Short side, in pixels, at which masks are looked at."""


@dataclass
class RegionConfig:
    """Where to edit. Outside the region the source scene is kept."""

    source: Literal["none", "masks", "box", "auto"] = "none"
    """What says where: none (edit everywhere), masks (what the dataset's `mask_path` pictures show white),
    box (what lies in a box in the scene) or auto (where the diffusion model says that the prompt changes
    something)."""
    box_center: Optional[Tuple[float, float, float]] = None  # noqa: UP006, UP045
    """Middle of the box in scene coordinates, as the viewer's Crop Viewport shows them."""
    box_size: Optional[Tuple[float, float, float]] = None  # noqa: UP006, UP045
    """Lengths of the box's edges, in the same units."""
    box_rotation: Tuple[float, float, float] = (0.0, 0.0, 0.0)  # noqa: UP006
    """Roll, pitch and yaw of the box in radians, as in the Crop Viewport; yaw turns it about the vertical."""
    allow_empty_masks: bool = False
    """Accept masks without white: views from which the region is out of sight, and which say nothing."""

    def check(self) -> None:
        """Refuse options that contradict each other, and boxes without volume.

        Raises:
            InputError: for either.
        """
        belongs_to = {
            "box_center": ("box",), "box_size": ("box",), "box_rotation": ("box",),
            "allow_empty_masks": ("masks",),
        }  # fmt: skip
        usual = RegionConfig()
        for name, sources in belongs_to.items():
            if getattr(self, name) != getattr(usual, name) and self.source not in sources:
                raise InputError(
                    f"{_flag(name)} says nothing with {_flag('source')} {self.source}",
                    expected=f"{_flag('source')} {' or '.join(sources)} beside it",
                    got=f"{_flag('source')} {self.source}",
                    hint=f"leave out {_flag(name)}, or give {_flag('source')} {sources[0]}",
                )
        if self.source == "box":
            self.box().check()

    def box(self) -> RegionBox:
        """The box of these settings.

        Raises:
            InputError: when its middle or its size was not given.
        """
        if self.box_center is None or self.box_size is None:
            missing = "box_center" if self.box_center is None else "box_size"
            raise InputError(
                "there is no box to edit in",
                expected=f"{_flag('box_center')} X Y Z and {_flag('box_size')} X Y Z",
                got=f"no {_flag(missing)}",
                hint="find them with the Crop Viewport of `ns-viewer --load-config SCENE/config.yml`",
            )
        return RegionBox(self.box_center, self.box_size, self.box_rotation)


def _flag(name: str) -> str:
    assert name in {field.name for field in fields(RegionConfig)}
    return f"--pipeline.region.{name.replace('_', '-')}"


def find_region(
    where: MovableBox | Hull, config: RegionConfig, model: NerfactoModel, dataset: InputDataset, size: int
) -> None:
    """Make the hull of the masks, and see that there is something in the region, before anything long begins.

    Args:
        where: the box, or the hull that is to be made.
        config: already checked by itself.
        model: with the source scene's weights.
        dataset: the training split.
        size: short side, in pixels, of the views in which something must be seen.

    Raises:
        InputError: see `check_masks`, `check_camera_types` and `Hull.carve`; or when no training view shows
            anything that lies in the region.
    """
    if isinstance(where, Hull):
        _carve(where, config, model, dataset)
    cameras = fit_cameras(dataset.cameras, *view_size(dataset.cameras, size, 1)).to(model.device)
    for index in spread(len(cameras)):
        rays = cameras.generate_rays(camera_indices=index, keep_shape=True)
        view = render_still(model, rays, inside=where.contains)
        if float(view.inside.max()) >= 0.5:
            return
    if isinstance(where, Hull):
        raise InputError(
            "nothing of the scene lies where the masks meet",
            expected="masks of something that the scene shows",
            got="empty space in all views",
            hint="see that each mask belongs to its photo, and that --data is the scene that was trained",
        )
    raise InputError(
        "nothing of the scene lies in the box",
        expected="a box around something that the training cameras see",
        got=str(where.box),
        hint="find it with the Crop Viewport of `ns-viewer --load-config SCENE/config.yml`, whose "
        "coordinates are not those of transforms.json",
    )


def _carve(hull: Hull, config: RegionConfig, model: NerfactoModel, dataset: InputDataset) -> None:
    has_white = check_masks(dataset, allow_empty=config.allow_empty_masks)
    check_camera_types(dataset.cameras)
    cameras = fit_cameras(dataset.cameras, *view_size(dataset.cameras, MASK_SIZE, 1))
    with torch.no_grad():
        corrections = model.camera_optimizer(torch.arange(len(cameras))).cpu()
    height, width = int(cameras.height[0]), int(cameras.width[0])
    hull.carve(
        corrected_cameras(cameras, corrections),
        lambda index: read_mask(dataset, index, height, width)[0],
        [index for index in spread(len(cameras)) if has_white[index]],
        reach=2 * float(model.scene_box.aabb.abs().max()),
    )


def surface(model: NerfactoModel, rays: PixelRays, view: int) -> Float[Tensor, "p 3"]:
    """What the pixels of a training view show, in scene coordinates, at its corrected pose.

    Args:
        model: with the source scene's weights, in training mode.
        rays: of the training split's cameras.
        view: which of them.
    """
    depth = render_still(model, rays.of_view(view)).depth.view(-1, 1)
    bundle = rays.of_view(view).flatten()
    model.camera_optimizer.apply_to_raybundle(bundle)
    return bundle.origins + bundle.directions * (depth * bundle.metadata["directions_norm"])


def region_picture(
    model: NerfactoModel,
    cameras: Cameras,
    inside: Inside,
    count: int,
    relevance: Float[Tensor, "v 1 h w"] | None = None,
) -> Tensor:
    """Sheet (H, W, 3), 0..1: some views of the scene, and below each the same with all but the region dark.

    Args:
        model: with the source scene's weights, in training mode.
        cameras: of the training split, all of one size, on the model's device.
        inside: the region.
        count: of the views.
        relevance: of the views that come first in `spread`, of any scale, to be shown between the two.
    """
    from csd_nerf.nerf.sheets import sheet

    rays = PixelRays(cameras)
    views = [
        render_still(model, rays.of_view(index), inside=inside) for index in spread(len(cameras))[:count]
    ]
    images = torch.stack([view.image for view in views])
    shares = torch.stack([view.inside for view in views])
    rows = [images, images * (0.2 + 0.8 * shares)]
    if relevance is not None:
        maps = relevance[: len(images)].to(images)
        rows.insert(1, (maps / maps.max()).expand_as(images))
    return sheet(rows)


def spread(count: int) -> list[int]:
    """All of `range(count)`, so ordered that every beginning is spread over it (van der Corput)."""
    bits = max(1, (count - 1).bit_length())
    reversed_bits = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(1 << bits))
    return [number for number in reversed_bits if number < count]
