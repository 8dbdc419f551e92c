"""Clips of high dynamic range as an ordinary screen shows them (BT.2100 to BT.709)."""

from __future__ import annotations

import numpy as np

PQ, HLG = 16, 18
"""Numbers of the H.273 standard for the two transfer functions."""

WHITE = 203.0
"""Candelas per square metre of a diffuse white in such clips (BT.2408), which becomes white here."""

HLG_PEAK = 1000.0
"""Candelas per square metre of the display that HLG is meant for."""

KNEE = 0.8
"""Linear share of white up to which light is left as it is; what is brighter approaches white."""

_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
"""Linear light of BT.2020's primaries in those of BT.709 (BT.2087)."""

_HLG_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)


def as_seen(pixels: np.ndarray, transfer: int) -> np.ndarray:
    """Tone-mapped pixels (H, W, 3), 0..1, with the gamma of BT.709 displays.

    Args:
        pixels: (H, W, 3), 0..1, as the clip has them: BT.2020's primaries.
        transfer: `PQ` or `HLG`.
    """
    light = _pq(pixels) if transfer == PQ else _hlg(pixels)
    light = (light / WHITE) @ _TO_BT709.T
    brightest = np.maximum(light.max(-1, keepdims=True), 1e-6)
    above = np.maximum(brightest - KNEE, 0)
    rolled_off = np.minimum(brightest, KNEE) + (1 - KNEE) * (1 - np.exp(-above / (1 - KNEE)))
    return (light * (rolled_off / brightest)).clip(0, 1) ** (1 / 2.4)


def _pq(signal: np.ndarray) -> np.ndarray:
    """Candelas per square metre (SMPTE ST 2084)."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    root = signal.clip(0, 1) ** (1 / m2)
    return 10_000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def _hlg(signal: np.ndarray) -> np.ndarray:
    """Candelas per square metre (BT.2100, on a display of `HLG_PEAK`)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return HLG_PEAK * np.maximum(scene @ _HLG_LUMINANCE, 1e-6)[..., None] ** 0.2 * scene
