"""How far the views of one scene lie apart in their overall colour."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def colour_spread(images: Float[Tensor, "v 3 h w"]) -> float:
    """Root mean square distance of the views' mean colours from their common mean, in RGB of 0..1.

    `sqrt(mean_v |m_v - m|^2 / 3)`. A scene whose sides differ has some of it too: compare with the scene
    before the edit.
    """
    means = images.mean((2, 3))
    return float((means - means.mean(0)).square().mean().sqrt())
