"""A box in the scene, and the viewer's controls that move it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import viser.transforms as vtf
from jaxtyping import Bool, Float
from nerfstudio.viewer.viewer_elements import ViewerButton, ViewerControl, ViewerVec3
from torch import Tensor

from csd_nerf.errors import check

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class RegionBox:
    """A box in scene coordinates: nerfstudio's normalised ones, those of its viewer.

    Attributes:
        center: its middle.
        size: lengths of its edges.
        rotation: roll, pitch and yaw in radians, in the convention of the viewer's Crop Viewport.
    """

    center: Vector
    size: Vector
    rotation: Vector = (0.0, 0.0, 0.0)

    def contains(self, positions: Float[Tensor, "*n 3"]) -> Bool[Tensor, "*n"]:
        """Which positions lie in the box."""
        axes = torch.as_tensor(vtf.SO3.from_rpy_radians(*self.rotation).as_matrix()).to(positions)  # columns
        along = (positions - positions.new_tensor(self.center)) @ axes
        return (along.abs() <= positions.new_tensor(self.size) / 2).all(-1)

    def check(self) -> None:
        """See that the box has a place and a volume.

        Raises:
            InputError: when it has not.
        """
        numbers = (*self.center, *self.size, *self.rotation)
        check(
            all(map(math.isfinite, numbers)) and min(self.size) > 0,
            "the box has no volume",
            expected="three positive lengths, and finite numbers for middle and rotation",
            got=self,
            hint="change --pipeline.region.box-size, box-center or box-rotation",
        )

    def __str__(self) -> str:
        center, size, rotation = (
            " ".join(f"{value:g}" for value in vector) for vector in (self.center, self.size, self.rotation)
        )
        return f"center {center}, size {size}, rotation {rotation}"


class BoxControls:
    """A box, and the viewer's controls for it.

    Attributes:
        elements: by the name that they should have as public attributes of a pipeline, where nerfstudio's
            viewer looks for them.
    """

    def __init__(self, box: RegionBox) -> None:
        self._configured = box
        self._center = ViewerVec3("Box center", box.center, step=0.01)
        self._size = ViewerVec3("Box size", box.size, step=0.01)
        self._rotation = ViewerVec3("Box rotation", box.rotation, step=0.01)
        self._viewer = ViewerControl()
        self.elements = {
            "box_center": self._center,
            "box_size": self._size,
            "box_rotation": self._rotation,
            "box_from_crop": ViewerButton("Box from Crop Viewport", cb_hook=lambda _: self._take_crop()),
            "viewer_control": self._viewer,
        }

    @property
    def box(self) -> RegionBox:
        """As the viewer's controls say."""
        return RegionBox(*(_vector(element.value) for element in (self._center, self._size, self._rotation)))

    def contains(self, positions: Tensor) -> Tensor:
        """Which positions (..., 3) lie in the box as it is now, (...)."""
        return self.box.contains(positions)

    def configured(self) -> dict[str, Vector]:
        """What the configuration said, by the names of the elements."""
        return _by_element(self._configured)

    def current(self) -> dict[str, Vector]:
        """What the controls say, by the names of the elements."""
        return _by_element(self.box)

    def _take_crop(self) -> None:
        """Take over the box that was dragged into place as the viewer's crop."""
        crop = self._viewer.viewer.control_panel.crop_obb
        turned = vtf.SO3.from_matrix(crop.R.numpy()).as_rpy_radians()
        self._center.value = _vector(crop.T.tolist())
        self._size.value = _vector(crop.S.tolist())
        self._rotation.value = _vector((turned.roll, turned.pitch, turned.yaw))


def _by_element(box: RegionBox) -> dict[str, Vector]:
    return {"box_center": box.center, "box_size": box.size, "box_rotation": box.rotation}


def _vector(values: object) -> Vector:
    x, y, z = (float(value) for value in values)  # type: ignore[attr-defined]
    return x, y, z
