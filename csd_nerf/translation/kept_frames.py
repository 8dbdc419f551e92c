"""The frames of a clip that is being translated: kept, so that an interrupted run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from csd_nerf.errors import InputError
from csd_nerf.files import beside, remove, whole_file, write_text

IDENTITY = "identity.json"
FAST = 1
"""Compression of what is soon read and removed again."""


class KeptFrames:
    """A hidden folder beside an output with the frames that are done, as numbered PNGs.

    Args:
        output: of the translation.
        identity: what decides the frames; what was kept of another translation is not gone on with.
        fresh: begin again where it was another one.

    Raises:
        InputError: it was another one, or the file system refuses.
    """

    def __init__(self, output: Path, identity: dict[str, str], *, fresh: bool) -> None:
        self.folder = beside(output, "unfinished")
        kept = self._identity()
        if kept not in (None, identity):
            if not fresh:
                raise InputError(
                    f"there is another unfinished translation of this output in {self.folder}",
                    expected=f"the same clip, translator and prompt: {kept}",
                    got=str(identity),
                    hint="go on with it by these, choose another output, or begin again with --force",
                )
            self.remove()
        self.folder.mkdir(exist_ok=True)
        write_text(self.folder / IDENTITY, json.dumps(identity))

    def __len__(self) -> int:
        return sum(1 for _ in self.folder.glob("*.png"))

    def frame(self, number: int, translated: Callable[[], Float[Tensor, "3 h w"]]) -> Float[Tensor, "3 h w"]:
        """A frame in steps of 1/255: as it was kept, or translated now, and kept.

        Args:
            number: from 0 on.
            translated: makes it, RGB in 0..1.

        Raises:
            InputError: the file system refuses.
        """
        file = self.folder / f"{number:06}.png"
        if not file.exists():
            pixels = (255 * translated().permute(1, 2, 0)).round().byte().numpy()
            with whole_file(file) as partial:
                Image.fromarray(pixels).save(partial, format="PNG", compress_level=FAST)
        else:
            pixels = np.array(Image.open(file))
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255

    def remove(self) -> None:
        """The output is written."""
        remove(self.folder)

    def _identity(self) -> dict[str, str] | None:
        try:
            return dict(json.loads((self.folder / IDENTITY).read_text(encoding="utf8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}
