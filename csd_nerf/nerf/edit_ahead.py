"""Editing the views of the next round while the scene is fitted to those of this one.

    round k begins      keep the targets of round k, edited meanwhile; draw the views of round k + 1
    a thread            edits the views of round k + 1
    the fits of round k, at the same time

Worth it where the diffusion model has a device of its own, which would stand still during the fits, as the
scene's would during an edit. A target is a round older then: its view was drawn before the fits of the round
before. The first round is edited at once, and the views of the second are drawn before any fit. Of several
processes each has such a thread, and they share its edit as they share the fits.

The thread draws its random numbers from the views' own generator. So neither an edit nor the fits depend on
how fast the other is.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from csd_nerf import ranks
from csd_nerf.nerf.edits import Edit, RoundViews
from csd_nerf.nerf.targets import as_bytes

Edited = tuple[Tensor, Tensor]
"""Views of a round, (N, 3, H, W) in 0..1, and their targets."""


class EditAhead:
    """One round ahead of the fits, and no more.

    Args:
        edit: what makes targets of views; from now on only called in here or while nothing is under way.
        device: of the views.
    """

    def __init__(self, edit: Edit, device: torch.device) -> None:
        self._edit, self._device = edit, device
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="edit-ahead")
        self._number: int | None = None
        self._edited: Future[Edited] = Future()
        self._channel = ranks.channel()  # the fits talk meanwhile

    def begin(self, views: RoundViews) -> None:
        """Edit views, without waiting for it."""
        self._number = views.number
        self._edited = self._worker.submit(self._targets, views)

    def take(self, number: int) -> Edited | None:
        """Views and targets of a round, as soon as they are there; None if it was not begun.

        Raises:
            NonFiniteResidual, RuntimeError: what went wrong with the edit. It is not begun then.
            Parted: another rank is gone.
        """
        begun, self._number = self._number, None
        if begun is None:
            return None
        try:
            edited = self._edited.result()
        except ranks.Parted:
            ranks.part()
            raise
        return edited if begun == number else None

    def forget(self) -> None:
        """Drop what was begun, once the diffusion model is free again."""
        if self._number is not None:
            self._edited.exception()
            self._number = None

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint keeps, once the edit is done: the round, views and targets as bytes.

        None where nothing was begun or the edit failed, which `take` tells of.
        """
        if self._number is None or self._edited.exception() is not None:
            return None
        views, targets = self._edited.result()
        return {"number": self._number, "views": as_bytes(views), "targets": as_bytes(targets)}

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Go on with what a checkpoint kept."""
        self.forget()
        if state is not None:
            views, targets = (
                (state[name].permute(0, 3, 1, 2) / 255).to(self._device) for name in ("views", "targets")
            )
            self._number, self._edited = state["number"], Future()
            self._edited.set_result((views, targets))

    @torch.no_grad()
    def _targets(self, views: RoundViews) -> Edited:
        with ranks.speaking_by(self._channel), torch.autocast(self._device.type, enabled=False):
            return views.images, self._edit(views)
