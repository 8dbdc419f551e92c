"""The baselines for clips that `benchmarks/video_consistency.py` compares with, on the bundled prior."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.baselines import attention_sharing  # noqa: E402
from benchmarks.baselines.attention_sharing import fatezero, pix2video  # noqa: E402
from csd_nerf.distillation import Guidance  # noqa: E402

GUIDANCE = Guidance(3.5, 1.5)


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """Three, softly different."""
    coarse = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    coarse = 0.8 * coarse[:1] + 0.2 * coarse
    return torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")


def test_attention_that_is_not_changed_is_the_usual_one(tiny_prior: Any, frames: torch.Tensor) -> None:
    source, condition = tiny_prior.encode_source(frames)
    words = tiny_prior.embed(["make it night"]).expand(3, -1, -1)
    usual = tiny_prior.predict_noise(source, 500, words, condition)
    with torch.no_grad(), attention_sharing._self_attention(tiny_prior):
        written_out = attention_sharing._asked(tiny_prior, source, condition, 500, words)
    torch.testing.assert_close(written_out, usual, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pull", [0.0, 0.1])
def test_frames_of_pix2video_follow_the_first(tiny_prior: Any, frames: torch.Tensor, pull: float) -> None:
    options: dict[str, Any] = {"guidance": GUIDANCE, "steps": 4, "pull": pull}
    edited = pix2video(tiny_prior, frames, "make it night", **options)
    assert edited.mean() < 0.8 * frames.mean()  # it is night
    other = frames.clone()
    other[0] = other[0].flip(-1)
    changed = pix2video(tiny_prior, other, "make it night", **options)
    assert (changed[2] - edited[2]).abs().mean() > 1e-4
    still = pix2video(tiny_prior, frames[:1].expand(2, -1, -1, -1), "make it night", **options)
    torch.testing.assert_close(still[0], still[1], rtol=0, atol=1e-3)


def test_fatezero_without_an_edit_gives_the_source_back(tiny_prior: Any, frames: torch.Tensor) -> None:
    """Inverted and sampled with the empty prompt, with the source's attention all the while at first."""
    back = fatezero(tiny_prior, frames, "", guidance=Guidance(1.0, 1.0), steps=20)
    assert (back - tiny_prior.decode(tiny_prior.encode(frames))).abs().mean() < 0.03
    night = fatezero(tiny_prior, frames, "make it night", guidance=GUIDANCE, steps=4)
    assert night.mean() < 0.8 * frames.mean()
