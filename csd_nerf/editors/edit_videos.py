"""`edit_video`: clips of any length, from disk or as tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from csd_nerf import ranks
from csd_nerf.distillation import DescentConfig
from csd_nerf.editors.canvas import Canvas
from csd_nerf.editors.clip_canvas import ClipCanvas
from csd_nerf.editors.edit_pictures import reflected
from csd_nerf.editors.frame_canvas import FrameCanvas
from csd_nerf.editors.observer import Observer, Work
from csd_nerf.editors.passes import Pass, run_passes
from csd_nerf.editors.settings import VideoSettings
from csd_nerf.errors import InputError
from csd_nerf.media import Clip
from csd_nerf.priors import Prior
from csd_nerf.priors.shared import shared

GAP_STEPS_SHARE = 0.25
"""Steps of the frames between keyframes, of those of the keyframes, whose answer they begin with."""

PREVIEW_FRAMES = 4
"""Of a clip, side by side."""


@dataclass(frozen=True)
class EditedClip:
    """The frames of an edited clip, (3, height, width), RGB in 0..1; decoded one by one, each time anew.

    Where several ranks share the edit, all of them have to go through its frames together.

    Args:
        latents: scaled, of all frames; of a prior for clips those of one clip.
        prior: whose autoencoder decodes them.
        height, width: of the frames, in pixels.
        frames: how many there are; latents of more are not shown.
    """

    latents: Float[Tensor, "frames c h w"] | Float[Tensor, "1 c f h w"]
    prior: Prior
    height: int
    width: int
    frames: int

    def __len__(self) -> int:
        return self.frames

    def __iter__(self) -> Iterator[Float[Tensor, "3 height width"]]:
        return self.decoded(Observer())

    @property
    def work(self) -> Work:
        """Decoding, as a part of the work."""
        return _decoding(len(self))

    def decoded(self, observer: Observer) -> Iterator[Float[Tensor, "3 height width"]]:
        """The frames, with somebody watching."""
        observer.start(self.work)
        number = 0
        for frames in self._groups():
            for frame in frames[: self.frames - number].cpu():
                number += 1
                observer.advance(self.work, number)
                yield frame[:, : self.height, : self.width]
        observer.finish(self.work)

    def preview(self, prior: Prior) -> Float[Tensor, "3 height width"]:
        """Some of the frames side by side, by a prior of this rank alone."""
        shown = torch.linspace(0, self.frames - 1, min(PREVIEW_FRAMES, self.frames)).round().long()
        shown = shown.to(self.latents.device)
        if not prior.clip_frames:
            frames = prior.decode(self.latents[shown])
        elif prior.frame_factor == 1:
            frames = _frames(prior.decode(self.latents[:, :, shown]))
        else:  # an autoencoder that knows of time shows the beginning
            frames = _frames(prior.decode(self.latents[:, :, :2]))[: min(PREVIEW_FRAMES, self.frames)]
        return torch.cat(list(frames[:, :, : self.height, : self.width].cpu()), dim=2)

    def _groups(self) -> Iterator[Float[Tensor, "n 3 height width"]]:
        """All frames, decoded some at a time; at once where the autoencoder knows of time."""
        if not self.prior.clip_frames:
            for numbers in ranks.groups(range(len(self.latents))):
                yield self.prior.decode(self.latents[numbers])
            return
        most = self.prior.clip_frames if self.prior.frame_factor == 1 else self.latents.shape[2]
        for some in self.latents.split(most, dim=2):
            yield _frames(self.prior.decode(some))


@overload
def edit_video(
    clip: Tensor,
    prompt: str,
    settings: VideoSettings | None = None,
    *,
    loaded: Prior | None = None,
    observer: Observer | None = None,
) -> Tensor: ...
@overload
def edit_video(
    clip: Clip,
    prompt: str,
    settings: VideoSettings | None = None,
    *,
    loaded: Prior | None = None,
    observer: Observer | None = None,
) -> EditedClip: ...
def edit_video(
    clip: Clip | Tensor,
    prompt: str,
    settings: VideoSettings | None = None,
    *,
    loaded: Prior | None = None,
    observer: Observer | None = None,
) -> EditedClip | Tensor:
    """Edit a clip of any length by text.

    All frames take part in every step, in groups that share anchor frames: see `FrameCanvas`. With a keyframe
    stride only every so many frames do; those between then begin with what became of the keyframes on
    either side, and are edited in a quarter of the steps together with them. In memory are the latents of all
    frames, one frame, and one group's work.

    With a prior for clips overlapping stretches of the clip are the particles: see `ClipCanvas`. Where its
    autoencoder knows of time all frames are in memory, too.

    Args:
        clip: from `read_clip`; or a tensor (F, 3, H, W), RGB in 0..1, one frame or more.
        prompt: an instruction, or for a text-to-image prior a description of the edited clip.
        settings: method, prior, steps, size and so on; None for the defaults.
        loaded: the prior that the settings name, if it is loaded already.
        observer: told of the progress.

    Returns:
        Frames of the size that the settings say: a tensor for a tensor; for a clip on disk an `EditedClip`,
        which `csd_nerf.media.write_clip` writes.

    Raises:
        InputError: settings that contradict each other, or the prior; a tensor of another shape; a clip that
            can no longer be read.

    Example:
        >>> settings = VideoSettings(prior="tiny-instruct", steps=1, size=32)
        >>> edit_video(torch.rand(2, 3, 48, 64), "make it night", settings).shape
        torch.Size([2, 3, 32, 43])
    """
    settings = settings or VideoSettings()
    settings.check((prompt,))
    if isinstance(clip, Tensor):
        _check_tensor(clip)
    height, width = tuple(clip.shape[2:]) if isinstance(clip, Tensor) else (clip.height, clip.width)
    prior = loaded or settings.load_prior()
    settings.check_kind(bool(prior.clip_frames))
    observer = observer or Observer()
    height, width = reduced_size(height, width, settings.size or prior.native_size)
    edited = _edit(clip, prompt, settings, prior, height, width, observer)
    return torch.stack(list(edited.decoded(observer))).to(clip) if isinstance(clip, Tensor) else edited


def reduced_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """The size of frames whose short side is to be so long, in the same proportion; never larger.

    Example:
        >>> reduced_size(1080, 1920, 512), reduced_size(48, 64, 512)
        ((512, 910), (48, 64))
    """
    scale = min(short_side / min(height, width), 1)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def resized(frame: Float[Tensor, "3 h w"], height: int, width: int) -> Float[Tensor, "3 height width"]:
    """A frame at another size, smoothed as far as it shrinks."""
    if frame.shape[1:] == (height, width):
        return frame
    return functional.interpolate(frame[None], size=(height, width), mode="bilinear", antialias=True)[0]


def _edit(
    clip: Clip | Tensor,
    prompt: str,
    settings: VideoSettings,
    prior: Prior,
    height: int,
    width: int,
    observer: Observer,
) -> EditedClip:
    count, descent = len(clip), settings.descent()
    stride = min(settings.keyframe_stride, count)
    gap_descent = DescentConfig(
        steps=max(round(GAP_STEPS_SHARE * descent.steps), 1), learning_rate=descent.rate(descent.steps - 1)
    )
    encoding = Work("encode", "Encode", count, "frames")
    editing = Work("edit", "Edit", descent.steps + (gap_descent.steps if stride > 1 else 0), "steps")
    observer.plan([encoding, editing, _decoding(count)])

    stretch = settings.fitting_frames(prior) if prior.clip_frames else 1
    together = shared(prior)
    objective = settings.objective(together)
    # Now, not in the first step: a text encoder that cannot be loaded is bad input too.
    prior.read_ahead([prompt, settings.source_prompt, ""])
    observer.start(encoding)
    source, condition, digest = _encode(
        clip, together, height, width, lambda number: observer.advance(encoding, number)
    )
    observer.finish(encoding)

    latents = source.clone()

    def canvas(frames: slice, fixed: range) -> Canvas[Any]:
        if prior.clip_frames:
            return ClipCanvas(
                latents,
                source,
                condition,
                prompt,
                window=1 + (stretch - 1) // prior.frame_factor,
                particles=settings.particles,
            )
        return FrameCanvas(
            latents[frames],
            source[frames],
            condition[frames],
            prompt,
            particles=settings.particles,
            anchors=settings.shared_frames(),
            fixed=fixed,
        )

    keyframes = range(0, count, stride)
    passes = [Pass(canvas(slice(None, None, stride), range(0)), descent)]
    if stride > 1:
        gaps = canvas(slice(None), keyframes)
        passes.append(Pass(gaps, gap_descent, begin=lambda: fill_gaps(latents, source, keyframes)))
    edited = EditedClip(latents, together, height, width, count)
    run_passes(
        passes,
        latents,
        objective,
        settings,
        editing,
        identity={"prompt": prompt, "clip": digest},
        draw=lambda: edited.preview(prior),
        observer=observer,
    )
    return edited


def fill_gaps(
    latents: Float[Tensor, "frames c h w"], source: Float[Tensor, "frames c h w"], keyframes: range
) -> None:
    """Give the frames between keyframes their change: that of the keyframes on either side, in proportion.

    Args:
        latents: edited at the keyframes; the others are overwritten.
        source: of the unedited frames.
        keyframes: evenly spaced, from frame 0; frames after the last change as it did.
    """
    change = latents[:: keyframes.step] - source[:: keyframes.step]
    for index in range(len(latents)):
        before, part = divmod(index, keyframes.step)
        if part == 0:
            continue
        after = min(before + 1, len(change) - 1)
        latents[index] = source[index] + torch.lerp(change[before], change[after], part / keyframes.step)


def _encode(
    clip: Clip | Tensor, prior: Prior, height: int, width: int, done: Callable[[int], None]
) -> tuple[Tensor, Tensor, str]:
    """Scaled latents and condition of all frames, and what tells the frames from others.

    Of a prior for clips those of one clip, which goes on with its last frame up to a length that suits the
    prior.
    """
    factor = prior.vae_factor
    padded = [-(-side // factor) * factor for side in (height, width)]
    digest = hashlib.sha256()
    latents, conditions = [], []
    number = 0
    for frames in _groups_to_encode(clip, prior):
        pictures = []
        for frame in frames:
            small = resized(frame.detach().float().cpu(), height, width)
            digest.update((small * 65535).round().int().numpy().tobytes())
            pictures.append(reflected(small, *padded))
        number += len(frames)
        views = torch.stack(pictures)
        if prior.clip_frames:
            lacking = -(len(views) - 1) % prior.frame_factor
            views = torch.cat([views, views[-1:].expand(lacking, -1, -1, -1)]).transpose(0, 1)[None]
        of_frames, conditions_of_frames = prior.encode_source(views.to(prior.device))
        latents.append(of_frames)
        conditions.append(conditions_of_frames)
        done(number)
    along = 2 if prior.clip_frames else 0
    return torch.cat(latents, along), torch.cat(conditions, along), digest.hexdigest()


def _groups_to_encode(clip: Clip | Tensor, prior: Prior) -> Iterator[list[Tensor]]:
    """The frames, some at a time; all at once where the autoencoder knows of time."""
    if not prior.clip_frames:
        yield from ranks.groups(clip)
        return
    frames = iter(clip)
    most = prior.clip_frames if prior.frame_factor == 1 else len(clip)
    while group := list(islice(frames, most)):
        yield group


def _frames(clip: Float[Tensor, "1 3 frames height width"]) -> Float[Tensor, "frames 3 height width"]:
    return clip[0].transpose(0, 1)


def _decoding(count: int) -> Work:
    return Work("decode", "Decode", count, "frames")


def _check_tensor(clip: Tensor) -> None:
    if clip.ndim != 4 or clip.shape[1] != 3 or len(clip) == 0 or not clip.is_floating_point():
        raise InputError(
            "the tensor is not a clip",
            expected="(frames, 3, height, width) of floating-point numbers in 0..1, one frame or more",
            got=f"{tuple(clip.shape)} of {clip.dtype}",
            hint="put the frames first: clip.permute(0, 3, 1, 2) where colours come last",
        )
