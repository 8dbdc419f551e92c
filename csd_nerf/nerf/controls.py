"""What nerfstudio's viewer shows of a run that follows a prompt: one folder, in the order of work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import viser.transforms as vtf
from nerfstudio.viewer.render_state_machine import RenderAction
from nerfstudio.viewer.viewer_elements import ViewerControl

from csd_nerf import ranks
from csd_nerf.errors import InputError
from csd_nerf.nerf.known_prompts import words_unknown_to

if TYPE_CHECKING:
    from nerfstudio.viewer.viewer import Viewer

    from csd_nerf.nerf.prompted import PromptedPipeline
    from csd_nerf.nerf.requests import Setting

MAX_RES_ON_CPU = 128
"""Longer side, in pixels, of the viewer's picture of a run on a CPU: it is drawn in every round."""
_GUIDANCE = {"text_guidance": ("Text guidance", 15.0), "image_guidance": ("Image guidance", 5.0)}
"""By the name of the setting: what stands before the slider, and where it ends at least."""
_TURN = 0.02
"""Seconds in which the thread that trains leaves the model to those that draw it, after asking them to."""
_MOVING = 0.1
"""Seconds since the last move of a camera in which it counts as moving: training waits for it."""


class Controls(ViewerControl):
    """The folder of a run. Nothing of it exists before nerfstudio's viewer asks for it, by `_setup`.

    Clicks come in a thread of the viewer's. What they ask for is put into the trainer's `requests`, and done
    between two steps.

    Args:
        pipeline: whose run it is.
    """

    def __init__(self, pipeline: PromptedPipeline) -> None:
        self.pipeline = pipeline
        self.is_shown = False
        self._trainer: Any = None
        self._began: tuple[float, int] | None = None
        self._rounds_drawn: tuple[int, int] | None = None
        self._refused: dict[int, Any] = {}  # by the tab: what it was told last

    # ---------------------------------------------------------------- building

    def _setup(self, viewer: Viewer) -> None:
        super()._setup(viewer)
        # Of several processes the others would not know what is changed in this one.
        self._trainer = viewer.trainer if ranks.count() == 1 else None
        for element in (viewer.pause_train, viewer.resume_train):
            element.visible = False  # in their place: Start, and Stop and keep
        for speed in (viewer.control_panel._train_speed, viewer.control_panel._train_util):
            speed.set_hidden(True)  # of a rhythm of redrawing that is not this one
        if self.pipeline.device.type == "cpu":
            viewer.control_panel._max_res.value = MAX_RES_ON_CPU
        with self.gui.add_folder("Edit", order=-1):
            if self._trainer is None:
                self._build_for_looking()
            else:
                self._build()
        viewer.control_panel.update_control_panel()  # else the crop stands in the scene, switched off or not
        self.viser_server.on_client_connect(self._stand_where_a_photo_was_taken)
        self.is_shown = True

    def _stand_where_a_photo_was_taken(self, client: Any) -> None:
        """Let a new tab begin with what the capture is of; viser's own camera looks from anywhere. A little
        further ahead than the photo, which is drawn there too, and would hide the scene."""
        from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO

        photos = self.pipeline.datamanager.train_dataset
        assert photos is not None
        pose = photos.cameras.camera_to_worlds[0].numpy(force=True)
        with client.atomic():
            ahead = 2 * self.viewer.config.camera_frustum_scale
            client.camera.position = pose[:, 3] * VISER_NERFSTUDIO_SCALE_RATIO - pose[:, 2] * ahead
            client.camera.wxyz = (vtf.SO3.from_matrix(pose[:, :3]) @ vtf.SO3.from_x_radians(math.pi)).wxyz

    @property
    def gui(self) -> Any:
        """Of viser."""
        return self.viser_server.gui

    def _build_for_looking(self) -> None:
        """In the viewer of a finished run, or of several processes, where nothing can be done."""
        self.gui.add_markdown(f"Prompt: **{self.pipeline.prompt.value}**")

    def _build(self) -> None:
        gui = self.gui
        self._status = gui.add_markdown("Loading ...")
        self._bar = gui.add_progress_bar(0.0)
        self._words = gui.add_text("Prompt", self.pipeline.prompt.value)
        self.add_button("Apply", self._apply, hint="Follow this prompt from the next round on")
        # Which of them the prior reads is known when it is loaded.
        self._guidance = {
            name: self._guidance_slider(getattr(self.pipeline, name), *_GUIDANCE[name])
            for name in self.pipeline.changeable
            if name in _GUIDANCE
        }
        self._build_choices()
        self._start = self.add_button("Start", lambda: self._trainer.go_on, icon="PLAYER_PLAY")
        self._stop = self.add_button("Stop and keep", self._stop_and_keep, icon="PLAYER_STOP", at_once=True)
        self._steps = gui.add_slider("Steps", 10, 1000, 10, 100)
        self._more = self.add_button(
            "More steps", lambda: _with(self._trainer.more_steps, int(self._steps.value)), icon="PLUS"
        )
        self._build_more()
        self._show_whether(running=True)

    def _build_choices(self) -> None:
        """What a kind of run has before its start besides."""

    def _build_more(self) -> None:
        """What a kind of run has besides."""

    def add_button(
        self, label: str, wanted: Callable[[], Callable[[], None]], icon: str | None = None, **options: Any
    ) -> Any:
        """A button; what it does is read from the other elements when it is pressed, and done between steps.

        Args:
            label: on it.
            wanted: gives what is to be done.
            icon: of viser.
            options: `at_once`, to do it now; others are viser's.
        """
        import viser

        at_once = options.pop("at_once", False)
        button = self.gui.add_button(label, icon=icon and getattr(viser.Icon, icon), **options)

        @button.on_click
        def _(event: Any) -> None:
            if at_once:
                wanted()()
            else:
                self.ask(wanted(), event.client)

        return button

    def ask(self, do: Callable[[], None], client: Any = None) -> None:
        """Have something done between two steps; the tab that asked is told when it is refused."""
        self._trainer.requests.ask(do, lambda error: self._tell_refused(error, client))

    def begun(self) -> None:
        """The prior is loaded: show what it reads."""
        if not self._acts:
            return
        for name in self.pipeline.guidance_read():
            self._guidance[name].visible = True
        self._tell_progress()

    def _guidance_slider(self, setting: Setting[float], label: str, most: float) -> Any:
        most = max(most, 2 * setting.value)
        slider = self.gui.add_slider(label, 0.0, most, 0.1, setting.value, visible=False)

        @slider.on_update
        def _(event: Any) -> None:
            if event.client is None:  # set below
                return
            value = float(slider.value)
            if not 0 <= value <= most:
                slider.value = setting.value
                refused = InputError(
                    f"{label} is out of range",
                    expected=f"0 to {most:g}",
                    got=f"{value:g}",
                    hint="move the slider",
                )
                self._tell_refused(refused, event.client)
                return
            setting.value = value
            self.ask(self._trainer.save_settings, event.client)

        return slider

    # ---------------------------------------------------------------- doing

    def _apply(self) -> Callable[[], None]:
        words = self._words.value

        def apply() -> None:
            self._trainer.change_prompt(words)
            self.tell("Prompt", f"{words!r}, from the next round on")
            self._warn_of(words)

        return apply

    def show_settings(self) -> None:
        """Let words and sliders say what they stand for, which was changed elsewhere."""
        self._words.value = self.pipeline.prompt.value
        for name, slider in self._guidance.items():
            slider.value = getattr(self.pipeline, name).value

    def _warn_of(self, words: str) -> None:
        unknown = words_unknown_to(self.pipeline.config.asked, words.strip())
        if unknown is not None:
            said, *known = unknown.splitlines()  # which a notification shows as one paragraph
            self.tell("Prompt", f"{said} {'; '.join(map(str.strip, known))}.", color="yellow")

    def _stop_and_keep(self) -> Callable[[], None]:
        self._stop.disabled = True
        self._status.content = "Stopping after this step ..."
        return self._trainer.stop_and_keep

    # ---------------------------------------------------------------- telling

    @property
    def _acts(self) -> bool:
        return self.is_shown and self._trainer is not None

    def is_running(self) -> None:
        """Steps begin."""
        if self._acts:
            self._began = None
            self._show_whether(running=True)

    def has_stopped(self) -> None:
        """No steps are made until somebody asks for some."""
        if not self._acts:
            return
        self._show_whether(running=False)
        self._tell_progress()
        self._redraw()
        done, planned = self._trainer.steps_done, self._trainer.steps_planned
        if done:
            what = "All steps are done" if done >= planned else f"Stopped after {done} of {planned} steps"
            self.tell(what, f"Saved in {self._trainer.base_dir}", color="green")

    def after_step(self) -> None:
        """Show how far the run is, and let the picture follow; while a camera moves, it comes first."""
        if not self._acts:  # of several processes
            return
        while time.time() - self.viewer.last_move_time < _MOVING:
            time.sleep(_MOVING / 2)
        if self._began is None:
            self._began = time.monotonic(), self._trainer.steps_done
        self._tell_progress()
        rounds = self.pipeline.rounds_done(self._trainer.steps_done)
        if rounds != self._rounds_drawn or (rounds is None and self._trainer.steps_done % 10 == 0):
            self._rounds_drawn = rounds
            self._redraw()

    def _show_whether(self, *, running: bool) -> None:
        left = self._trainer.steps_done < self._trainer.steps_planned
        self._stop.visible, self._stop.disabled = running, False
        self._start.visible, self._start.disabled = not running, not left
        self._more.disabled = running

    def _tell_progress(self) -> None:
        done, planned = self._trainer.steps_done, self._trainer.steps_planned
        rounds = self.pipeline.rounds_done(done)
        parts = [f"Round {rounds[0]} of {rounds[1]}"] if rounds else []
        parts.append(f"step {done} of {planned}")
        if self._began is not None and done < planned and done - self._began[1] >= 2:
            since, first = self._began
            left = (planned - done) * (time.monotonic() - since) / (done - first)
            parts.append(f"{_duration(left)} left")
        text = " · ".join([*parts, *self._state()])
        self._status.content = text[0].upper() + text[1:]
        self._bar.value = 100 * min(1.0, done / max(1, planned))
        self.viewer.step = done
        self.viewer.update_step(done)

    def _state(self) -> list[str]:
        """What else there is to say."""
        return []

    def _redraw(self) -> None:
        """Let every tab draw the scene as it is now, and make room for that."""
        machines = list(self.viewer.render_statemachines.values())
        for machine in machines:
            machine.action(RenderAction("step", self.viewer.get_camera_state(machine.client)))
        if machines:
            time.sleep(_TURN)

    def tell(self, title: str, body: str, color: Literal["green", "yellow"] | None = None) -> None:
        """Say something in every tab; what is not good news for long goes by itself."""
        if self.is_shown:
            for client in self.viser_server.get_clients().values():
                client.add_notification(title, body, auto_close=False if color else 5000, color=color)

    def _tell_refused(self, error: InputError, client: Any) -> None:
        title = error.problem[0].upper() + error.problem[1:]
        body = f"Expected: {error.expected}. Got: {error.got}. Do this: {error.hint}."
        for tab in [client] if client is not None else self.viser_server.get_clients().values():
            # One at a time: a tab shows ten notifications, and what comes then waits until one of them goes.
            if (earlier := self._refused.get(tab.client_id)) is not None:
                earlier.remove()
            self._refused[tab.client_id] = tab.add_notification(title, body, auto_close=15000, color="red")


def _with(function: Callable[..., None], *values: Any) -> Callable[[], None]:
    """A call of the function with values that are read now."""
    return lambda: function(*values)


def _duration(seconds: float) -> str:
    """In words as short as they can be.

    >>> _duration(12.3), _duration(150)
    ('13 s', '3 min')
    """
    return f"{int(seconds) + 1} s" if seconds < 100 else f"{round(seconds / 60 + 0.5)} min"
