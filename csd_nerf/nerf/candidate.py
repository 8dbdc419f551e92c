"""An edit that was tried on a few views: saved, and read again to become the edit of the scene."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.errors import InputError
from csd_nerf.files import write_text
from csd_nerf.media import read_picture
from csd_nerf.nerf.edit_loop import NO_CHANGE
from csd_nerf.nerf.sheets import save_png

FILE = "candidate.json"


@dataclass(frozen=True)
class Candidate:
    """What was asked of a few views, and what came of it.

    Attributes:
        prompt, seed, text_guidance, image_guidance: of the edit.
        source: checkpoint of the scene.
        views: indices of the training cameras.
        change: mean absolute change of the views, 0..1.
        agreement: of their edits, 0..1, see `csd_nerf.nerf.trying.agreement`; None of a single view.
        prior: that was asked; "" of one written before it was recorded.
    """

    prompt: str
    seed: int
    text_guidance: float
    image_guidance: float
    source: str
    views: tuple[int, ...]
    change: float
    agreement: float | None
    prior: str = ""

    @property
    def does_nothing(self) -> bool:
        """Whether next to nothing is to be seen of it."""
        return self.change < NO_CHANGE

    def in_words(self) -> str:
        """Its figures, for people."""
        if self.does_nothing:
            return f"does nothing: a change of {self.change:.3f}"
        agreed = "" if self.agreement is None else f", views agree {self.agreement:.0%}"
        return f"change {self.change:.2f}{agreed}"


def save_candidate(folder: Path, candidate: Candidate, pictures: Float[Tensor, "n 3 h w"]) -> None:
    """Write a candidate and its edited views (0..1) into a folder of its own.

    Raises:
        InputError: the file system refuses.
    """
    for view, picture in zip(candidate.views, pictures, strict=True):
        save_png(picture.permute(1, 2, 0), folder / _name(view))
    write_text(folder / FILE, json.dumps(dataclasses.asdict(candidate), indent=1) + "\n")


def read_candidate(folder: Path) -> Candidate:
    """A candidate of `csd-nerf try`.

    Raises:
        InputError: there is none in the folder, or it cannot be read.
    """
    try:
        saved = json.loads((folder / FILE).read_text(encoding="utf8"))
        return Candidate(**{**saved, "views": tuple(int(view) for view in saved["views"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"there is no candidate in {folder}",
            expected=f"{FILE} and edited views, as csd-nerf try writes them",
            got=(str(error).splitlines() or [type(error).__name__])[0],
            hint="pass --pipeline.candidate TRY_FOLDER/NUMBER",
        ) from error


def read_pictures(
    folder: Path, views: Sequence[int], height: int, width: int
) -> Float[Tensor, "n 3 height width"]:
    """The edited views of a candidate, 0..1.

    Raises:
        InputError: one is missing, or of another size than the views of the edit.
    """
    pictures = [read_picture(folder / _name(view)).pixels[:3] for view in views]
    sizes = {tuple(picture.shape[1:]) for picture in pictures}
    if sizes != {(height, width)}:
        raise InputError(
            f"the views in {folder} are of another size than those of the edit",
            expected=f"{width} x {height} pixels",
            got=", ".join(f"{columns} x {rows}" for rows, columns in sizes),
            hint="try with the method, and the --pipeline.render-size, that is to edit",
        )
    return torch.stack(pictures)


def _name(view: int) -> str:
    return f"view-{view:04d}.png"
