"""The viewer's folder of an edit: besides what every run has, where it shows, undo, and the scene before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import viser.transforms as vtf
from nerfstudio.viewer.render_state_machine import RenderStateMachine

from csd_nerf.errors import InputError
from csd_nerf.nerf.before import RGB_BEFORE
from csd_nerf.nerf.chain import Link, chain_of
from csd_nerf.nerf.closing_words import viewer_command
from csd_nerf.nerf.controls import Controls
from csd_nerf.nerf.region_box import RegionBox, Vector
from csd_nerf.nerf.try_controls import TryControls

if TYPE_CHECKING:
    from csd_nerf.nerf.edit_pipeline import EditPipeline

_BOX_COLOUR = (255, 211, 105)
_FIRST_BOX = RegionBox((0.0, 0.0, 0.0), (0.5, 0.5, 0.5))
"""What is moved into place where no box was given."""
_CORNERS = [(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)]
_EDGES = [
    (one, other)
    for one in _CORNERS
    for other in _CORNERS
    if one < other and sum(a != b for a, b in zip(one, other, strict=True)) == 1
]


class Gizmo:
    """A box in the viewer's scene that can be dragged.

    Args:
        scene: of viser.
        scale: from scene coordinates to viser's.
        moved: is told where it was dragged to.
    """

    def __init__(self, scene: Any, scale: float, moved: Callable[[Vector, Vector], None]) -> None:
        self._scene, self._scale = scene, scale
        self._handle = scene.add_transform_controls(
            "/region", line_width=3.0, depth_test=False, visible=False
        )

        @self._handle.on_update
        def _(_: Any) -> None:
            turned = vtf.SO3(self._handle.wxyz).as_rpy_radians()
            rotation = (float(turned.roll), float(turned.pitch), float(turned.yaw))
            moved(_readable(float(value) / scale for value in self._handle.position), rotation)

    def show(self, box: RegionBox | None) -> None:
        """Stand where the box is; None hides it."""
        self._handle.visible = box is not None
        if box is None:
            return
        self._handle.position = tuple(value * self._scale for value in box.center)
        self._handle.wxyz = vtf.SO3.from_rpy_radians(*box.rotation).wxyz
        for number, edge in enumerate(_EDGES):
            ends = tuple(
                tuple(self._scale * part * length for part, length in zip(corner, box.size, strict=True))
                for corner in edge
            )
            self._scene.add_spline_catmull_rom(  # below the handle, and so carried by it
                f"/region/edge_{number}", ends, line_width=2.0, color=_BOX_COLOUR
            )


class EditControls(Controls):
    """The folder of an edit."""

    pipeline: EditPipeline

    def _build_for_looking(self) -> None:
        super()._build_for_looking()
        if self.pipeline.box:
            self.gui.add_markdown(f"In a box: {self.pipeline.box}")
        self._build_before()
        self._build_history()

    def _build_choices(self) -> None:
        self._try = TryControls(self, self._trainer)

    def _build_more(self) -> None:
        self._undo = self.add_button(
            "Undo",
            lambda: self._changing_the_scene(self._trainer.undo),
            icon="ARROW_BACK_UP",
            hint="Show the source; nothing is lost",
        )
        self._redo = self.add_button(
            "Redo", lambda: self._changing_the_scene(self._trainer.redo), icon="ARROW_FORWARD_UP"
        )
        self._on_top = self.add_button(
            "Edit on top",
            lambda: self._edit_on_top,
            icon="STACK_2",
            hint="Edit what is shown, with another prompt; this edit is kept, in a folder of its own",
        )
        self._strength = self.gui.add_slider("Strength", 0.0, 1.0, 0.05, self.pipeline.strength)
        self._strength.on_update(self._mixed)
        self._build_before()
        box = self.pipeline.box
        is_given_otherwise = self.pipeline.config.region.source not in ("none", "box")
        with self.gui.add_folder("Region", expand_by_default=box is not None, visible=not is_given_otherwise):
            first = box or _FIRST_BOX
            self._keep = self.add_button(
                "Edit in a box only", self._take_box, hint="Elsewhere the source is kept to the last bit"
            )
            self._numbers = [
                self.gui.add_vector3(label, value, step=0.01)
                for label, value in (
                    ("Box center", first.center),
                    ("Box size", first.size),
                    ("Box rotation", first.rotation),
                )
            ]
            self._said = self.gui.add_markdown("")
            self.add_button("Box from crop", self._take_crop, hint="Take the box of the Crop Viewport below")
        from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO

        self._build_history()
        self._gizmo = Gizmo(self.viser_server.scene, VISER_NERFSTUDIO_SCALE_RATIO, self._dragged)
        for number in self._numbers:
            number.on_update(self._typed)
        self._show_box()

    def _mixed(self, event: Any) -> None:
        if event.client is None:  # set by this class
            return
        strength = min(max(float(self._strength.value), 0.0), 1.0)
        self.ask(lambda: _in_order(lambda: self._trainer.show_at(strength), self._redraw), event.client)

    # ---------------------------------------------------------------- before and after

    def _build_before(self) -> None:
        try:
            self.pipeline.show_before(self._is_before_looked_at)
        except InputError as error:
            self.gui.add_markdown(f"No scene before: {error.problem}.")
            return
        panel: Any = self.viewer.control_panel
        update_options = panel.update_output_options

        def with_the_scene_before(options: list[str]) -> None:
            """nerfstudio chooses the last of them, with every tab that comes: some depth."""
            update_options(options)
            panel._split_output_render.value = RGB_BEFORE

        panel.update_output_options = with_the_scene_before
        switch = self.gui.add_checkbox(
            "Before and after", False, hint="Right of the line is the scene before the edit"
        )

        @switch.on_update
        def _(_: Any) -> None:
            if RGB_BEFORE in panel._split_output_render.options:  # else it will be
                panel._split_output_render.value = RGB_BEFORE
            panel._split.value = switch.value

    def _is_before_looked_at(self) -> bool:
        if not isinstance(threading.current_thread(), RenderStateMachine):
            return False  # a picture for a file
        panel = self.viewer.control_panel
        return panel.output_render == RGB_BEFORE or (panel.split and panel.split_output_render == RGB_BEFORE)

    # ---------------------------------------------------------------- history

    def _build_history(self) -> None:
        """What the scene was made from, and how to see it."""
        self._history = self.gui.add_folder("History", expand_by_default=False)
        self._links: list[Any] = []
        self._show_history()

    def _show_history(self) -> None:
        for element in self._links:
            element.remove()
        source = self.pipeline.config.source_checkpoint
        try:
            links = chain_of(source) if source else []
        except InputError:
            links = [Link(source.parent.parent, gone=True)] if source else []
        self._links = []
        with self._history:
            for number, link in enumerate(links):
                what = link.prompt or ("gone" if link.gone else "the scene")
                command = str(link.folder) if link.gone else viewer_command(link.folder)
                self._links.append(self.gui.add_markdown(f"{number}. {what}"))
                # An input: as text, a path that is longer than a line would widen the whole panel.
                self._links.append(self.gui.add_text("It was at" if link.gone else "Look", command))
            self._links.append(self.gui.add_markdown(f"{len(links)}. this edit"))

    # ---------------------------------------------------------------- the box

    @property
    def _shown_box(self) -> RegionBox:
        """As the numbers say."""
        center, size, rotation = (tuple(map(float, number.value)) for number in self._numbers)
        return RegionBox(center, size, rotation)  # type: ignore[arg-type]

    def _take_box(self) -> Callable[[], None]:
        box = self._shown_box
        return lambda: _in_order(lambda: self._trainer.keep_to_box(box), self._show_box, self._redraw)

    def _take_crop(self) -> Callable[[], None]:
        panel = self.viewer.control_panel
        is_on, crop = panel.crop_viewport, panel.crop_obb

        def take() -> None:
            if not is_on:
                raise InputError(
                    "there is no crop to take the box from",
                    expected="Crop Viewport, further down, enabled and dragged into place",
                    got="Crop Viewport switched off",
                    hint="enable it and drag it, or drag the box itself",
                )
            turned = vtf.SO3.from_matrix(crop.R.numpy()).as_rpy_radians()
            rotation = (float(turned.roll), float(turned.pitch), float(turned.yaw))
            box = RegionBox(*(_readable(part) for part in (crop.T.tolist(), crop.S.tolist(), rotation)))
            box.check()
            self._set_numbers(box)
            self._move(box)

        return take

    def _typed(self, event: Any) -> None:
        if event.client is not None:
            box = self._shown_box
            self.ask(lambda: self._move(box), event.client)

    def _dragged(self, center: Vector, rotation: Vector) -> None:
        box = RegionBox(center, self._shown_box.size, rotation)
        self._set_numbers(box)
        self.ask(lambda: self._move(box))

    def _move(self, box: RegionBox) -> None:
        """Let the edit show there, if it keeps to a box already; the gizmo follows.

        Raises:
            InputError: the box has no volume; the numbers are then those of before.
        """
        try:
            box.check()
        except InputError:
            self._set_numbers(self._last_box)
            raise
        if self.pipeline.box:
            self.pipeline.move_box(box)
            self._trainer.save_settings()
            self._redraw()
        self._show_box()

    def _set_numbers(self, box: RegionBox) -> None:
        for number, value in zip(self._numbers, (box.center, box.size, box.rotation), strict=True):
            if number.value != value:
                number.value = value

    def _show_box(self) -> None:
        self._last_box = self._shown_box
        active = self.pipeline.box
        self._keep.visible = active is None
        self._gizmo.show(self._last_box if active else None)
        what = "The edit shows in this box" if active else "Not in use: the edit is everywhere"
        self._said.content = f"{what}.  \n{self._last_box}"

    # ---------------------------------------------------------------- what can be done now

    def _changing_the_scene(self, do: Callable[[], None]) -> Callable[[], None]:
        return lambda: _in_order(
            do, lambda: self._show_whether(running=False), self._tell_progress, self._redraw
        )

    def _edit_on_top(self) -> None:
        self._changing_the_scene(self._trainer.edit_on_top)()
        self._show_history()
        self._strength.value = self.pipeline.strength
        self._try.clear()
        self.tell(
            "Edit on top", f"Write another prompt, Apply, Start. It will be in {self._trainer.base_dir}"
        )

    def _state(self) -> list[str]:
        return ["undone: this is the source"] if self.pipeline.is_undone else super()._state()

    def _show_whether(self, *, running: bool) -> None:
        super()._show_whether(running=running)
        is_undone = self.pipeline.is_undone
        self._undo.visible = not is_undone
        self._redo.visible = is_undone
        self._undo.disabled = running or not self._trainer.steps_done
        self._on_top.disabled = running or is_undone or not self._trainer.steps_done
        self._try.button.disabled = running or not (is_undone or not self._trainer.steps_done)
        if running:
            self._try.clear()
        self._strength.disabled = running or is_undone or not self._trainer.steps_done
        if is_undone:
            self._start.disabled = False


def _readable(vector: Iterable[float]) -> Vector:
    """With as many digits as a box needs."""
    x, y, z = (round(part, 3) for part in vector)
    return x, y, z


def _in_order(*actions: Callable[[], None]) -> None:
    for action in actions:
        action()
