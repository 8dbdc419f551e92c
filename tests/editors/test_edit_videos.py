"""`edit_video` with the bundled prior, and the groups in which frames are edited."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from csd_nerf.editors import VideoSettings, edit_video
from csd_nerf.editors.canvas import Batch
from csd_nerf.editors.edit_videos import fill_gaps, reduced_size
from csd_nerf.editors.frame_canvas import Frame, FrameCanvas
from csd_nerf.editors.observer import Observer
from csd_nerf.errors import InputError
from csd_nerf.media import read_clip, write_clip
from csd_nerf.priors import Prior
from csd_nerf.scenes.operators import OPERATORS


def settings(**changes: Any) -> VideoSettings:
    return VideoSettings(**{"prior": "tiny-instruct", "steps": 2, "size": 32, **changes})


def clip(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    """Soft waves that move, (F, 3, H, W)."""
    x = torch.arange(width) / width
    waves = [torch.sin(2 * torch.pi * (x + 0.02 * t + k / 3)) for t in range(count) for k in range(3)]
    return (0.5 + 0.4 * torch.stack(waves)).view(count, 3, 1, width).expand(-1, -1, height, -1)


def canvas(frames: int, **changes: Any) -> FrameCanvas:
    latents = torch.arange(frames).float().view(-1, 1, 1, 1)
    arguments: dict[str, Any] = {"particles": 16, "anchors": 4, **changes}
    return FrameCanvas(latents.clone(), latents, latents[:, :0], "make it night", **arguments)


def indices(batches: list[Batch[Frame]]) -> list[list[int]]:
    return [[frame.index for frame in batch.places] for batch in batches]


@pytest.mark.parametrize("frames", [1, 2, 16, 17, 40, 200])
def test_every_frame_moves_once_in_each_step(frames: int, generator: torch.Generator) -> None:
    clip = canvas(frames)
    for _ in range(3):
        change = torch.zeros_like(clip.latents)
        for batch in clip.batches(generator):
            assert len(batch.places) <= 16
            particles = clip.gather(batch)
            assert torch.equal(particles.latents, particles.source)
            clip.scatter(batch, torch.ones(len(batch.places), 1, 1, 1), change)
        torch.testing.assert_close(change, torch.ones_like(change))


def test_groups_share_anchors_from_all_over_the_clip(generator: torch.Generator) -> None:
    clip, seen = canvas(200), Counter[int]()
    for _ in range(50):
        groups = indices(clip.batches(generator))
        anchors = set.intersection(*map(set, groups))
        assert {index // 50 for index in anchors} == {0, 1, 2, 3} and len(anchors) == 4
        for group in groups:
            run = [index for index in group if index not in anchors]
            # Neighbours, but for the anchors between them and the one run that goes on at the beginning.
            steps = torch.tensor(run).diff()
            assert ((steps > 5) | (steps < 0)).sum() <= 1
        seen.update(anchors)
    assert len(seen) > 100  # not always the same


@pytest.mark.parametrize("particles", [2, 3, 4, 16])
def test_anchors_fit_groups_of_any_size(particles: int, generator: torch.Generator) -> None:
    chosen = settings(particles=particles)
    chosen.check(("make it night",))
    clip = canvas(20, particles=particles, anchors=chosen.shared_frames())
    groups = indices(clip.batches(generator))
    assert max(map(len, groups)) <= particles and set().union(*groups) == set(range(20))


def test_frames_between_keyframes_have_one_on_either_side(generator: torch.Generator) -> None:
    clip = canvas(43, fixed=range(0, 43, 4), particles=12)
    batches = clip.batches(generator)
    moved = torch.zeros_like(clip.latents)
    for batch in batches:
        group = [frame.index for frame in batch.places]
        assert group == list(range(group[0], group[-1] + 1)) and len(group) <= 12
        assert group[0] % 4 == 0 and (group[-1] % 4 == 0 or group[-1] == 42)
        clip.scatter(batch, torch.ones(len(group), 1, 1, 1), moved)
    expected = torch.tensor([float(index % 4 != 0) for index in range(43)])
    torch.testing.assert_close(moved.flatten(), expected)


def test_gaps_begin_with_the_change_of_their_keyframes() -> None:
    source = torch.rand(10, 1, 1, 1)
    edited = source.clone()
    edited[::4] += torch.tensor([0.0, 4.0, 8.0]).view(3, 1, 1, 1)
    keyframes = edited[::4].clone()
    fill_gaps(edited, source, range(0, 10, 4))
    assert torch.equal(edited[::4], keyframes)
    change = (edited - source).flatten()
    torch.testing.assert_close(change, torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 7, 8, 8]))


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_an_edit_follows_the_instruction(frames: int, tiny_prior: Prior) -> None:
    """Groups of three, with one anchor, make all frames the night that the prior was taught."""
    source = clip(frames, 48, 64)
    edited = edit_video(
        source, "make it night", settings(steps=6, size=48, particles=3, anchors=1), loaded=tiny_prior
    )
    night = OPERATORS["night"].apply(source)
    assert edited.shape == source.shape
    assert (edited - night).abs().mean((1, 2, 3)).max() < 0.5 * (source - night).abs().mean()


@pytest.mark.parametrize("stride", [2, 3, 100])
def test_gaps_are_edited_too(stride: int, tiny_prior: Prior) -> None:
    source = clip(6)
    edited = edit_video(source, "make it night", settings(steps=6, keyframe_stride=stride), loaded=tiny_prior)
    night = OPERATORS["night"].apply(source)
    error = (edited - night).abs().mean((1, 2, 3))
    assert error.max() < 0.6 * (source - night).abs().mean()


@pytest.mark.parametrize("transport", ["svgd", "independent"])
def test_a_still_clip_stays_still(transport: str, tiny_prior: Prior) -> None:
    """One noise for all groups of a step: frames that are alike are edited alike, to the last bit but few."""
    source = clip(1).expand(7, -1, -1, -1)
    chosen = settings(steps=3, particles=3, anchors=1, transport=transport)
    still = edit_video(source, "make it autumn", chosen, loaded=tiny_prior)
    assert (still - still[:1]).abs().max() < 1e-4
    chosen.noise = "per-particle"
    flickering = edit_video(source, "make it autumn", chosen, loaded=tiny_prior)
    assert (flickering - flickering[:1]).abs().max() > 1e-2


def test_frames_keep_their_proportion_and_small_ones_their_size(tiny_prior: Prior) -> None:
    assert reduced_size(1080, 1920, 512) == (512, 910)
    assert reduced_size(517, 333, 96) == (149, 96)
    odd = edit_video(clip(2, 33, 51), "make it night", settings(steps=1, size=96), loaded=tiny_prior)
    assert odd.shape == (2, 3, 33, 51)


class Recorder(Observer):
    """Keeps what is saved, and stops after some steps."""

    def __init__(self, after: int = 0, begin_with: tuple[int, torch.Tensor] | None = None) -> None:
        self.after = after
        self.begin_with = begin_with
        self.last: tuple[int, torch.Tensor] = (0, torch.empty(0))
        self.previews: list[torch.Size] = []

    def resume(self, identity: dict[str, Any], latents: torch.Tensor) -> int:
        if self.begin_with is None:
            return 0
        latents.copy_(self.begin_with[1])
        return self.begin_with[0]

    def step(self, steps: int, latents: torch.Tensor, draw: Callable[[], torch.Tensor]) -> None:
        self.last = (steps, latents.clone())
        self.previews.append(draw().shape)
        if steps == self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 4, 5])
def test_a_resumed_edit_ends_as_an_uninterrupted_one(after: int, tiny_prior: Prior) -> None:
    """Interrupted among the keyframes, between them and the rest, and among the rest."""
    source = clip(5)
    chosen = settings(steps=4, particles=3, anchors=1, keyframe_stride=2)
    whole = edit_video(source, "make it winter", chosen, loaded=tiny_prior)
    stopped = Recorder(after=after)
    with pytest.raises(KeyboardInterrupt):  # 4 steps of the keyframes and 1 of the others
        edit_video(source, "make it winter", chosen, loaded=tiny_prior, observer=stopped)
    resumed = edit_video(
        source, "make it winter", chosen, loaded=tiny_prior, observer=Recorder(begin_with=stopped.last)
    )
    assert torch.equal(resumed, whole)
    assert set(stopped.previews) == {torch.Size([3, 32, 4 * 32])}


def test_a_clip_on_disk_is_edited_as_its_frames_are(tmp_path: Path, tiny_prior: Prior) -> None:
    write_clip(clip(3, 48, 80), tmp_path / "frames")
    on_disk = read_clip(tmp_path / "frames", Fraction(10))
    edited = edit_video(on_disk, "make it night", settings(), loaded=tiny_prior)
    assert (len(edited), edited.height, edited.width) == (3, 32, 53)
    frames = torch.stack(list(edited))
    same = edit_video(torch.stack(list(on_disk)), "make it night", settings(), loaded=tiny_prior)
    assert torch.equal(frames, same)
    assert torch.equal(frames, torch.stack(list(edited)))  # a second time


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"anchors": 16}, "--anchors"),
        ({"anchors": 0}, "--anchors"),
        ({"particles": 1}, "--particles"),
        ({"keyframe_stride": 0}, "--keyframe-stride"),
        ({"size": 0}, "--size"),
        ({"method": "dds", "source_prompt": "waves"}, "prior"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError, match=part):
        edit_video(clip(2), "make it night", settings(**changes))


@pytest.mark.parametrize("shape", [(3, 8, 8), (0, 3, 8, 8), (2, 8, 8, 3)])
def test_tensors_that_are_no_clips_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="not a clip"):
        edit_video(torch.zeros(shape), "make it night", settings())
