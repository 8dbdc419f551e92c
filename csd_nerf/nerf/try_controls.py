"""The part of the viewer's folder in which edits are tried before one of them is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from csd_nerf.nerf.sheets import save_png, sheet

if TYPE_CHECKING:
    from csd_nerf.nerf.controls import Controls
    from csd_nerf.nerf.trying import Tried

CANDIDATES = 4
"""So many seeds are tried."""


class TryControls:
    """A button that tries the prompt, and of every candidate a picture and a button that takes it.

    Args:
        controls: of the run; a folder of theirs is open.
        trainer: of the run.
    """

    def __init__(self, controls: Controls, trainer: Any) -> None:
        self._controls, self._trainer = controls, trainer
        self.button = controls.add_button(
            "Try",
            lambda: self._try,
            icon="EYE",
            hint="A few views under this prompt, in seconds; then choose",
        )
        self._said = controls.gui.add_markdown("", visible=False)
        self._pictures: list[Any] = []
        self._takes: list[Any] = []
        for number in range(1, CANDIDATES + 1):
            self._pictures.append(controls.gui.add_markdown("", visible=False))
            take = controls.add_button(f"Take {number}", self._taking(number), icon="CHECK")
            take.visible = False
            self._takes.append(take)

    def clear(self) -> None:
        """Show no candidates."""
        for element in (self._said, *self._pictures, *self._takes):
            element.visible = False

    def _try(self) -> None:
        self.clear()
        self._said.visible = True
        for number, tried in enumerate(self._trainer.try_edits(CANDIDATES), start=1):
            self._show(number, tried)
            self._said.content = f"Tried {number} of {CANDIDATES}"
        self._said.content = f"{self._controls.pipeline.prompt.value!r}, before any edit of the scene:"

    def _show(self, number: int, tried: Tried) -> None:
        folder = self._trainer.tries
        save_png(sheet([tried.pictures]), folder / f"{number}.png")
        picture, candidate = self._pictures[number - 1], tried.candidate
        picture._image_root = folder
        picture.content = (
            f"![Candidate {number}]({number}.png)\n\n"
            f"**{number}**: seed {candidate.seed}, {candidate.in_words()}"
        )
        picture.visible = self._takes[number - 1].visible = True

    def _taking(self, number: int) -> Callable[[], Callable[[], None]]:
        def take() -> None:
            self._trainer.take(number)
            self._controls.show_settings()
            self._said.content = f"Candidate {number} is the edit from Start on"

        return lambda: take
