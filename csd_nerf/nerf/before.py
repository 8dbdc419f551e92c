"""The scene before an edit, drawn beside the scene after it."""

from __future__ import annotations

from collections.abc import Callable

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.models.nerfacto import NerfactoModel
from torch import Tensor

RGB_BEFORE = "rgb_before"
"""Of the output of a model, beside nerfacto's `rgb`."""


class SceneBefore:
    """A second model, which exists from when somebody first looks at it.

    Args:
        build: makes it, in evaluation mode.
        is_looked_at: whether who asks for the pictures of a model now shows this one.
    """

    def __init__(self, build: Callable[[], NerfactoModel], is_looked_at: Callable[[], bool]) -> None:
        self._build, self._is_looked_at = build, is_looked_at
        self._model: NerfactoModel | None = None

    def forget(self) -> None:
        """Build it again when it is next looked at: it is another scene now."""
        self._model = None

    def draw(self, camera: Cameras, crop: OrientedBox | None) -> Tensor | None:
        """A picture (H, W, 3), 0..1; None, at no cost, when nobody looks."""
        if not self._is_looked_at():
            return None
        if self._model is None:
            self._model = self._build()
        picture: Tensor = self._model.get_outputs_for_camera(camera, crop)["rgb"]
        return picture
