"""How far an edited view has been shifted and zoomed against its source: phase correlation of their edges.

An edit that samples pictures redraws them, a little beside where they were; nothing else measures that apart
from what was asked for. The figures need no weights, and no geometry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor

from csd_nerf.scenes.operators import LUMA_WEIGHTS

Images = Float[Tensor, "views 3 height width"]
PerView = Float[Tensor, " views"]
Edges = Complex[Tensor, "height width"]

MOST_ZOOM = 0.06
"""Zooms are looked for up to so much in and out."""

MOST_SHIFT = 1 / 8
"""Shifts are looked for up to so much of the short side."""

LEAST_PEAK = 8.0
"""Height of a peak, in standard deviations of the correlation, from which it says something: pictures that
show different things come to 7."""

MOST_ALIGNED = 0.9
"""Length of the mean edge over the mean length of the edges, up to which a shift along them is seen: 1 where
all have one direction."""

EDGE_FLOOR = 1 / 255
"""Gradients (per pixel) that are small against it are none."""

BLUR, NEIGHBOURHOOD = 1.0, 3.0
"""Standard deviations in pixels: of the luma before its gradient, and of what edges are compared with."""

TAPER = 1 / 8
"""Share of the picture at each border in which it fades, for it is not periodic."""

ZOOM_STEP = 0.64
"""Pixels by which neighbouring zooms of the search differ half a side from the middle: a peak is about twice
as wide."""


@dataclass(frozen=True)
class Registration:
    """Where edited views are, against their sources: the source's point `p` is at `shift + zoom p`, from the
    middle of the picture. NaN where that cannot be told.

    Attributes:
        right, down: shift of each view, in its pixels.
        zoom: ratio of sizes, above 1 where the edit shows things larger.
    """

    right: PerView
    down: PerView
    zoom: PerView

    @property
    def shift(self) -> PerView:
        """Length of the shift of each view, in its pixels."""
        return torch.hypot(self.right, self.down)


def registration(images: Images, reference: Images) -> Registration:
    """Shift and zoom of each view against its source.

    An edge is the double angle of the gradient of the luma with the length of its square, over the mean
    square in its neighbourhood: `(g_x + i g_y)^2 / (blur |g|^2 + 1/255^2)`. So it counts alike whether an
    edit makes it strong or weak, or turns dark against bright. The edited picture's edges are zoomed back by
    each of the zooms looked for, and the phase correlation (Kuglin and Hines 1975) with the source's, its
    frequencies f weighted by `exp(-(2 pi f)^2 / 2)`, has its peak at the shift. The highest peak gives the
    zoom. Both are refined by parabolas through the neighbours, the shift's at tenths of a pixel.

    NaN for pictures without edges, with edges of one direction only (`MOST_ALIGNED`), of different things
    (`LEAST_PEAK`) and too far apart (`MOST_SHIFT`, `MOST_ZOOM`).

    Args:
        images: edited, 0..1.
        reference: their sources, 0..1, of the same size.

    >>> checks = torch.rand(1, 3, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    >>> registration(checks.roll(2, 3), checks).right.round()
    tensor([2.])
    """
    found = [_register(image, source) for image, source in zip(images, reference, strict=True)]
    right, down, zoom = torch.tensor(found, dtype=torch.float32).reshape(-1, 3).unbind(1)
    return Registration(right, down, zoom)


def _register(image: Tensor, source: Tensor) -> tuple[float, float, float]:
    """Shift to the right, shift down and zoom of one picture (3, H, W)."""
    edges, others = _edges(image), _edges(source)
    if not (_several_directions(edges) and _several_directions(others)):
        return (math.nan,) * 3
    window = _window(*edges.shape)
    spectrum = torch.fft.fft2(others * window).conj()

    def at(zoom: float) -> _Peak:
        return _peak(torch.fft.fft2(_zoomed(edges, zoom) * window) * spectrum)

    step = 2 * ZOOM_STEP / min(edges.shape)
    steps = math.ceil(MOST_ZOOM / step)
    peaks = [at(1 + step * offset) for offset in range(-steps, steps + 1)]
    best = max(range(len(peaks)), key=lambda place: peaks[place].height)
    if best in (0, len(peaks) - 1) or not peaks[best].clear:
        return (math.nan,) * 3
    zoom = 1 + step * (best - steps)
    zoom += step * _summit(*(peak.height for peak in peaks[best - 1 : best + 2]))
    zoom += step / 2 * _summit(*(at(zoom + offset).height for offset in (-step / 2, 0, step / 2)))
    peak = at(zoom)
    return zoom * peak.right, zoom * peak.down, zoom


@dataclass(frozen=True)
class _Peak:
    """The highest place of a correlation.

    Attributes:
        right, down: where it is, in pixels.
        height: 1 where all phases agree.
        clear: whether it stands out.
    """

    right: float
    down: float
    height: float
    clear: bool


def _peak(cross_power: Complex[Tensor, "height width"]) -> _Peak:
    """The peak of the phase correlation, to a fraction of a pixel."""
    height, width = cross_power.shape
    down = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    right = torch.fft.fftfreq(width, dtype=torch.float64)[None]
    weights = torch.exp(-0.5 * (2 * math.pi) ** 2 * (down.square() + right.square()))
    phases = cross_power / cross_power.abs().clamp(min=1e-12) * weights / weights.sum()
    surface = torch.fft.ifft2(phases).real * phases.numel()

    reach = int(MOST_SHIFT * min(height, width))
    near = surface.roll((reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]
    row, column = divmod(int(near.argmax()), 2 * reach + 1)
    tenths = torch.linspace(-1, 1, 21, dtype=torch.float64)
    rows, columns = row - reach + tenths, column - reach + tenths
    # The correlation between the pixels, which is the sum of its frequencies (Guizar-Sicairos et al. 2008).
    waves = torch.exp(2j * math.pi * rows[:, None] * down.T), torch.exp(2j * math.pi * right.T * columns)
    fine = (waves[0] @ phases @ waves[1]).real
    row, column = (min(max(place, 1), 19) for place in divmod(int(fine.argmax()), 21))
    around = fine[row - 1 : row + 2, column - 1 : column + 2]
    return _Peak(
        right=float(columns[column]) + 0.1 * _summit(*around[1].tolist()),
        down=float(rows[row]) + 0.1 * _summit(*around[:, 1].tolist()),
        height=float(around[1, 1]),
        clear=bool(around[1, 1] > LEAST_PEAK * surface.std()),
    )


def _summit(before: float, here: float, after: float) -> float:
    """Where the parabola through three neighbouring heights is highest, in steps from the middle one, at most
    one; 0 where it bends upwards."""
    bend = before - 2 * here + after
    return 0.0 if bend >= 0 else min(max((before - after) / (2 * bend), -1.0), 1.0)


def _several_directions(edges: Edges) -> bool:
    """Whether there are edges whose shift can be seen in all directions."""
    return bool(edges.mean().abs() < MOST_ALIGNED * edges.abs().mean())


def _edges(image: Float[Tensor, "3 height width"]) -> Edges:
    """Directions of the edges, see `registration`."""
    picture = image.detach().cpu().double()
    luma = _blurred((picture * picture.new_tensor(LUMA_WEIGHTS).reshape(3, 1, 1)).sum(0), BLUR)
    down, right = torch.gradient(luma)
    square = torch.complex(right, down) ** 2
    return square / (_blurred(square.abs(), NEIGHBOURHOOD) + EDGE_FLOOR**2)


def _blurred(plane: Float[Tensor, "height width"], sigma: float) -> Float[Tensor, "height width"]:
    """Gaussian blur, edges replicated."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=plane.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(plane[None, None], (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.reshape(1, 1, 1, -1)), kernel.reshape(1, 1, -1, 1))[0, 0]


def _window(height: int, width: int) -> Float[Tensor, "height width"]:
    """1 in the middle, falling to the borders."""

    def fade(side: int) -> Tensor:
        distance = (torch.arange(side, dtype=torch.float64) + 0.5) / side
        distance = torch.minimum(distance, 1 - distance)
        return 0.5 - 0.5 * torch.cos(math.pi * (distance / TAPER).clamp(max=1))

    return torch.outer(fade(height), fade(width))


def _zoomed(edges: Edges, zoom: float) -> Edges:
    """What was zoomed by so much, back at its size. Directions stay under a zoom."""
    layers = torch.stack([edges.real, edges.imag])[None]
    grid = F.affine_grid(
        layers.new_tensor([[[zoom, 0, 0], [0, zoom, 0]]]), list(layers.shape), align_corners=False
    )
    real, imaginary = F.grid_sample(layers, grid, mode="bicubic", align_corners=False)[0]
    return torch.complex(real, imaginary)
