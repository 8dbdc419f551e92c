"""Where an edit acts: what of each view lies in the region, and the source that is kept in the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Optional, Tuple  # noqa: UP035 - the forms that tyro and nerfstudio resolve

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.models.nerfacto import NerfactoModel
from torch import Tensor

from csd_nerf.errors import InputError
from csd_nerf.nerf.region_box import Box, BoxControls
from csd_nerf.nerf.region_masks import check_masks, read_mask
from csd_nerf.nerf.rendering import holding, render_still
from csd_nerf.nerf.views import fit_cameras, view_size


@dataclass
class RegionConfig:
    """Where to edit. Outside the region the source scene is kept."""

    source: Literal["none", "masks", "box"] = "none"
    """What says where: none (edit everywhere), masks (where the dataset's `mask_path` pictures are white) or
    box (what lies in a box in the scene)."""
    box_center: Optional[Tuple[float, float, float]] = None  # noqa: UP006, UP045
    """Middle of the box in scene coordinates, as the viewer's Crop Viewport shows them."""
    box_size: Optional[Tuple[float, float, float]] = None  # noqa: UP006, UP045
    """Lengths of the box's edges, in the same units."""
    box_rotation: Tuple[float, float, float] = (0.0, 0.0, 0.0)  # noqa: UP006
    """Roll, pitch and yaw of the box in radians, as in the Crop Viewport; yaw turns it about the vertical."""
    preservation: float = 300.0
    """Weight of the mean squared difference to the source outside the region."""
    allow_empty_masks: bool = False
    """Accept masks without white: views from which the region is out of sight."""

    def check(self) -> None:
        """Refuse options that contradict each other, and boxes without volume.

        Raises:
            InputError: for either.
        """
        belongs_to = {
            "box_center": ("box",), "box_size": ("box",), "box_rotation": ("box",),
            "preservation": ("masks", "box"), "allow_empty_masks": ("masks",),
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
        if not 0 <= self.preservation < float("inf"):
            raise InputError(
                f"{_flag('preservation')} cannot be used",
                expected="a positive number, or 0 for none",
                got=str(self.preservation),
                hint=f"change {_flag('preservation')}",
            )
        if self.source == "box":
            self.box().check()

    def box(self) -> Box:
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
        return Box(self.box_center, self.box_size, self.box_rotation)


def _flag(name: str) -> str:
    assert name in {field.name for field in fields(RegionConfig)}
    return f"--pipeline.region.{name.replace('_', '-')}"


@dataclass(frozen=True)
class RegionViews:
    """The region as some views see it.

    Attributes:
        inside: (N, 1, H, W), the share of each pixel that is in the region, 0..1.
        source: (N, 3, H, W), renders of the source scene, 0..1.
    """

    inside: Tensor
    source: Tensor

    def composite(self, images: Tensor) -> Tensor:
        """`images` (N, 3, H, W) inside the region, the source elsewhere.

        What is computed from the composite has no gradient to pixels outside, however wide its receptive
        field; and a prior that is shown it sees the surroundings as they are to stay.
        """
        return self.source + self.inside * (images - self.source)

    def change_outside(self, images: Tensor) -> Tensor:
        """Mean over views, pixels and channels of the squared difference to the source outside the region."""
        return ((1 - self.inside) * (images - self.source).square()).mean()


class Region:
    """Where an edit acts in each training view. Everything is made once per view, from the source scene.

    For a box, the share of a pixel is the sum of the rendering weights of its samples that lie in the box.
    Against a threshold on the pixel's depth this keeps silhouettes clean: a pixel half covered belongs to the
    region by half, as its colour does, where its mean depth is a place in the air and its median depth jumps.

    Args:
        where: the dataset whose masks tell, or the controls of a box, which may move between the calls.
        model: the scene being edited. It holds `source_weights` for as long as a view is made, which must not
            be between the forward and the backward pass of a step.
        cameras: of the training split, all of one size, on the model's device.
        source_weights: state of the model before the edit.
    """

    def __init__(
        self,
        where: InputDataset | BoxControls,
        model: NerfactoModel,
        cameras: Cameras,
        source_weights: Mapping[str, Tensor],
    ) -> None:
        self._where = where
        self._model = model
        self._cameras = cameras
        self._source_weights = source_weights
        self._box: Box | None = None
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, indices: Sequence[int]) -> RegionViews:
        """The region as the training views `indices` see it."""
        box = self._where.box if isinstance(self._where, BoxControls) else None
        if box != self._box:
            self._made.clear()
            self._box = box
        missing = [index for index in indices if index not in self._made]
        if missing:
            with holding(self._model, self._source_weights):
                for index in missing:
                    self._made[index] = self._make(index)
        inside, source = zip(*(self._made[index] for index in indices), strict=True)
        device = self._cameras.device
        return RegionViews(torch.stack(inside).to(device).float(), torch.stack(source).to(device).float())

    def _make(self, index: int) -> tuple[Tensor, Tensor]:
        view = render_still(
            self._model,
            self._cameras,
            index,
            inside=self._box.contains if self._box else None,
        )
        inside = view.inside
        if isinstance(self._where, InputDataset):
            inside = read_mask(self._where, index, *view.image.shape[1:])
        # Half precision is finer than the pictures' 8 bits, and there may be hundreds of views.
        return inside.half().cpu(), view.image.half().cpu()

    def picture(self, count: int) -> Tensor:
        """Sheet (H, W, 3), 0..1: some source views, and below each the same with all but the region dark."""
        from csd_nerf.nerf.pictures import sheet

        views = self(_spread(len(self._cameras))[:count])
        dark = 0.2 * views.source
        return sheet([views.source, dark + views.inside * (views.source - dark)])


def check_region(
    config: RegionConfig,
    model: NerfactoModel,
    dataset: InputDataset,
    render_size: int,
) -> None:
    """See that there is something in the region, before anything long begins.

    Args:
        config: already checked by itself.
        model: with the source scene's weights.
        dataset: the training split.
        render_size: short side, in pixels, of the views in which it must be seen.

    Raises:
        InputError: see `check_masks`; or when no training view shows anything that lies in the box.
    """
    if config.source == "masks":
        check_masks(dataset, allow_empty=config.allow_empty_masks)
    elif config.source == "box":
        box = config.box()
        cameras = fit_cameras(dataset.cameras, *view_size(dataset.cameras, render_size, 1)).to(model.device)
        for index in _spread(len(cameras)):
            view = render_still(model, cameras, index, inside=box.contains)
            if float(view.inside.max()) >= 0.5:
                return
        raise InputError(
            "nothing of the scene lies in the box",
            expected="a box around something that the training cameras see",
            got=str(box),
            hint="find it with the Crop Viewport of `ns-viewer --load-config SCENE/config.yml`, whose "
            "coordinates are not those of transforms.json",
        )


def _spread(count: int) -> list[int]:
    """All of `range(count)`, so ordered that every beginning is spread over it (van der Corput)."""
    bits = max(1, (count - 1).bit_length())
    reversed_bits = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(1 << bits))
    return [number for number in reversed_bits if number < count]
