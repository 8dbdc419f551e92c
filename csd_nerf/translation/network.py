"""The network that translates pictures: small, convolutions alone, for pictures of any size."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

PATCH = 4
"""Pixels along each side that the coarse layers see as one."""
REACH = 64
"""Pixels away from which nothing has a say in what becomes of a pixel; a multiple of `PATCH`."""
LIVELINESS = 4.0
"""What the last layers give is multiplied by it, so that they learn faster by as much than those before them.
An edit of all colours asks much of them, and nothing of the others."""


class Translator(nn.Module):
    """From a picture to what it becomes under one of several targets; the identity before it is trained.

    Residual blocks see the picture at a quarter of its resolution, where they are cheap, and tell two fine
    layers, which see every pixel, what to do. The blocks are shared by the targets but for a scale and a
    shift, the fine layers are each target's own; so is a matrix of colours beside them, for what an edit does
    to all pixels alike. Nothing is normalised over the picture: what becomes of a pixel depends on what is
    nearer than `REACH` alone, not on the picture's size, and a still picture does not flicker in a clip.

    Args:
        targets: how many.
        channels: of the coarse layers.
        blocks: coarse residual blocks of two convolutions.
        fine_channels: of the fine layers.
    """

    def __init__(self, targets: int, channels: int = 32, blocks: int = 4, fine_channels: int = 24) -> None:
        super().__init__()
        self.shape = {"channels": channels, "blocks": blocks, "fine_channels": fine_channels}
        self.stem = nn.Conv2d(3 * PATCH**2, channels, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(blocks))
        self.outer = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(blocks))
        self.asked = nn.Embedding(targets, blocks * 2 * channels)
        nn.init.normal_(self.asked.weight, std=0.3)
        self.hints = nn.Conv2d(channels, fine_channels, 3, padding=1)
        self.fine = nn.ModuleList(nn.Conv2d(3, fine_channels, 3, padding=1) for _ in range(targets))
        self.change = nn.ModuleList(nn.Conv2d(fine_channels, 3, 1) for _ in range(targets))
        self.colours = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(targets))
        for parameter in (*self.change.parameters(), *self.colours.parameters()):
            nn.init.zeros_(parameter)

    def forward(
        self, pictures: Float[Tensor, "n 3 height width"], target: int
    ) -> Float[Tensor, "n 3 height width"]:
        """The translated pictures, not limited to 0..1.

        Args:
            pictures: RGB in 0..1, of any size.
            target: number of the target.
        """
        height, width = pictures.shape[-2:]
        missing = (0, -width % PATCH, 0, -height % PATCH)
        padded = functional.pad(pictures, missing, mode="replicate") if any(missing) else pictures
        centred = 2 * padded - 1
        hidden = functional.silu(self.stem(functional.pixel_unshuffle(centred, PATCH)))
        asked = self.asked.weight[target].reshape(len(self.inner), 2, -1, 1, 1)
        for inner, outer, (scale, shift) in zip(self.inner, self.outer, asked, strict=True):
            hidden = hidden + outer(functional.silu(inner(hidden) * (1 + scale) + shift))
        # Smoothly: a number of its own for each pixel of a patch leaves a pattern of dots behind.
        hints = functional.interpolate(self.hints(hidden), scale_factor=float(PATCH), mode="bilinear")
        fine = functional.silu(self.fine[target](centred) + hints)
        change = self.change[target](fine) + self.colours[target](centred)
        return (padded + LIVELINESS * change)[..., :height, :width]
