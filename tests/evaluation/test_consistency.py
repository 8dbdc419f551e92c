"""Measures of consistency against cases whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import interpolate

from csd_nerf.errors import InputError
from csd_nerf.evaluation.consistency import (
    hue_deviation,
    motion,
    motions,
    overlap_disagreement,
    seam_error,
    warp_error,
)
from csd_nerf.scenes.operators import tint


def texture(side: int = 128) -> torch.Tensor:
    """A smooth random picture."""
    noise = torch.rand(1, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
    return interpolate(noise, size=(side, side), mode="bicubic", align_corners=False)[0].clamp(0, 1)


def sliding(count: int = 4, speed: int = 3, size: int = 96) -> torch.Tensor:
    """A camera that moves to the right over a picture."""
    return torch.stack([texture()[:, 16 : 16 + size, speed * i : speed * i + size] for i in range(count)])


def test_windows_cut_from_one_picture_agree() -> None:
    picture = torch.rand(3, 20, 30)
    starts = [(0, 0), (0, 9), (8, 25)]  # the last one wraps
    wrapped = torch.cat([picture, picture], dim=2)
    windows = torch.stack([wrapped[:, top : top + 12, left : left + 12] for top, left in starts])
    assert overlap_disagreement(windows, starts, 20, 30) == pytest.approx(0, abs=1e-6)


def test_disagreement_is_the_deviation_over_windows() -> None:
    levels = torch.tensor([0.2, 0.5, 0.2])
    windows = levels[:, None, None, None].expand(3, 3, 4, 4)
    # Two windows share half of their pixels, the third stands alone.
    assert overlap_disagreement(windows, [(0, 0), (0, 2), (0, 20)], 4, 30) == pytest.approx(0.15)
    with pytest.raises(InputError, match="no two windows share"):
        overlap_disagreement(windows, [(0, 0), (0, 4), (0, 8)], 4, 12)


def test_seam_of_a_full_turn_is_like_any_other_column() -> None:
    angle = torch.arange(64) / 64 * 2 * math.pi
    turn = (0.5 + 0.5 * angle.sin()).expand(3, 8, 64)
    at_seam, elsewhere = seam_error(turn)
    assert at_seam < 2 * elsewhere
    at_seam, elsewhere = seam_error(turn[:, :, :48])
    assert at_seam > 10 * elsewhere


def test_a_seam_between_blocks_is_compared_with_borders_of_blocks() -> None:
    blocks = torch.rand(3, 8, 10, generator=torch.Generator().manual_seed(0))
    turn = blocks.repeat_interleave(4, dim=2)
    at_seam, between = seam_error(turn, block=4)
    assert at_seam == seam_error(turn)[0] == pytest.approx((blocks[..., 0] - blocks[..., -1]).abs().mean())
    assert between == pytest.approx(blocks.diff(dim=2).abs().mean())
    # Three of four neighbours are alike: 39 pairs, of which 9 lie between blocks.
    assert seam_error(turn)[1] == pytest.approx(between * 9 / 39)


def test_hues_that_agree_and_hues_that_do_not() -> None:
    picture = texture(32)
    same = torch.stack([tint(picture, "cyan")] * 2)
    mixed = torch.stack([tint(picture, "cyan"), tint(picture, "red")])
    assert hue_deviation(same) < 0.1
    assert hue_deviation(mixed) > 90


def test_flow_finds_a_known_motion() -> None:
    frames = sliding(2, speed=3)
    found = motion(frames[0], frames[1])
    # What is at x in the later frame was at x + 3 in the earlier one.
    inner = found.flow[:, 8:-8, 8:-8]
    assert (inner[0] - 3).abs().median() < 0.1
    assert inner[1].abs().median() < 0.1
    assert found.visible[8:-8, 8:-8].float().mean() > 0.9
    assert not found.visible[:, -2:].any()  # came into view


def test_warp_error_of_what_moves_along_is_nearly_zero() -> None:
    frames = sliding()
    moving = list(motions(frames))
    assert len(moving) == 3
    assert warp_error(frames, moving) < 1e-3
    still = frames[:1].expand(4, -1, -1, -1)
    assert warp_error(still, moving) > 10 * warp_error(frames, moving)


def test_warp_error_is_the_squared_change_of_colour() -> None:
    frames = sliding() * 0
    flicker = torch.tensor([0.0, 0.1, 0.0, 0.1])[:, None, None, None]
    # 0.1 in each of three channels, between every two frames.
    assert warp_error(frames + flicker, motions(sliding())) == pytest.approx(0.03, rel=1e-4)


def test_what_was_hidden_does_not_count() -> None:
    background = texture(96)
    frames = background.repeat(2, 1, 1, 1)
    square = 1 - texture(96)[:, :24, :24]
    frames[0, :, 30:54, 30:54] = square
    frames[1, :, 30:54, 38:62] = square  # uncovers a strip of eight pixels on its left
    found = motion(frames[0], frames[1])
    uncovered = found.visible[32:52, 31:37].float().mean()
    background_seen = found.visible[70:90].float().mean()
    assert uncovered < 0.3 and background_seen > 0.9


def test_clips_of_other_lengths_are_refused() -> None:
    frames = sliding(4)
    for short in (frames[:1], frames[:3]):
        with pytest.raises(InputError, match="frame by frame"):
            warp_error(short, motions(frames))
    with pytest.raises(InputError, match="frame by frame"):
        warp_error(frames, motions(frames[:3]))
