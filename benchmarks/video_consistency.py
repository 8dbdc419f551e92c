"""Does an edited clip flicker, and do its frames agree on one answer to an ambiguous instruction?

Whole clips are edited frame by frame with diffusers' own InstructPix2Pix pipeline, with noise of its own for
each frame, as the pipeline draws it, and with the same for all; with frames that attend to each other, as
Pix2Video does, and with the attention of the source, as FateZero does (`baselines/attention_sharing.py`); by
CSD-Edit with independent scores; and by CSD-Edit with SVGD. The last two differ in nothing but the transport.
`--ways clips --clip-prior FOLDER` is CSD-Edit with SVGD by a prior for clips. Two instructions: a fixed
one, and an ambiguous one with four right answers. Reported are, for every clip:

- warp error along the optical flow of the source (`csd_nerf.evaluation.consistency.warp_error`, times 1000);
- flicker: root mean square difference of second differences in time to those of the source, times 1000;
- hue deviation: circular standard deviation of the frames' mean hues, in degrees;
- sharpness: mean absolute difference of neighbouring pixels, times 1000; with a keyframe stride also of the
  keyframes and of the frames between them.

    python benchmarks/video_consistency.py --output results/video
    python benchmarks/video_consistency.py --ways svgd --keyframe-stride 4 --output results/stride
    python benchmarks/video_consistency.py --memory 10 40 160

Leaves `video_consistency.json`, and for every edit a clip and a sheet of frames (the source's on top), in
`--output`; what is in the JSON already is not done again. `--memory` measures instead how much the process
grows while it edits the first clip, repeated to so many frames.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from csd_nerf.distillation import Guidance
from csd_nerf.editors import VideoSettings, edit_video
from csd_nerf.editors.edit_pictures import reflected
from csd_nerf.editors.edit_videos import reduced_size, resized
from csd_nerf.errors import exit_on_input_error
from csd_nerf.evaluation.consistency import hue_deviation, motions, warp_error
from csd_nerf.media import Clip, Picture, read_clip, write_clip, write_picture
from csd_nerf.priors import Prior, load_prior
from csd_nerf.priors.instruct_pix2pix import InstructPix2Pix
from csd_nerf.priors.loading import check_prior
from csd_nerf.scenes.operators import TINT_INSTRUCTION, hue_and_chroma

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from benchmarks.baselines.attention_sharing import fatezero, pix2video  # noqa: E402

SHARED = Path(os.environ.get("CSD_NERF_SHARED", REPOSITORY.parent / "shared"))
SHEET_FRAMES = 8
PIPELINE_BATCH = 8
"""Frames at a time; each has its own noise and outcome all the same."""


@dataclass
class Edit:
    """One instruction and what it needs."""

    prompt: str
    text_guidance: float
    max_timestep: float
    steps: int
    learning_rate: float


FIXED = Edit("make it winter", text_guidance=3.5, max_timestep=0.6, steps=6, learning_rate=1.0)
AMBIGUOUS = Edit(TINT_INSTRUCTION, text_guidance=7.5, max_timestep=0.98, steps=12, learning_rate=0.6)
EDITS = {"ambiguous": AMBIGUOUS, "fixed": FIXED}
Way = Literal["pipeline", "same-noise", "pix2video", "fatezero", "independent", "svgd", "clips"]
WAYS: tuple[Way, ...] = (
    "pipeline",
    "same-noise",
    "pix2video",
    "fatezero",
    "independent",
    "svgd",
)


@dataclass
class Settings:
    """Flicker and agreement of edited clips."""

    clips: tuple[Path, ...] = (SHARED / "data/video/wolf.mp4", SHARED / "data/video/car-turn.mp4")
    """Clips, all of whose frames are edited."""
    edits: tuple[Literal["ambiguous", "fixed"], ...] = ("ambiguous", "fixed")
    """Instructions."""
    ways: tuple[Way, ...] = WAYS
    """Ways to edit: the pipeline with noise of its own for each frame, and with one for all; attention shared
    between frames, or taken from the source; CSD-Edit with either transport; and clips, with `clip_prior`."""
    prior: str = "tiny-instruct"
    """An InstructPix2Pix: bundled name or folder."""
    clip_prior: str = ""
    """One for clips."""
    size: int = 96
    """Short side of the frames in pixels."""
    particles: int = 24
    """Most frames in a group."""
    anchors: int = 4
    """Of them, shared by all groups."""
    keyframe_stride: int = 1
    """Of CSD-Edit: every so many frames are edited first."""
    noise: Literal["shared", "per-particle", "still"] = "shared"
    """Of the frames in a step."""
    kernel: Literal["imq", "rbf"] = "imq"
    """Of SVGD."""
    pipeline_steps: int = 10
    """Sampling steps of the frame-by-frame pipeline, and of those that share attention."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the U-Net, in all ways."""
    seed: int = 0
    """Of everything random."""
    memory: tuple[int, ...] = ()
    """Measure memory at these numbers of frames instead."""
    output: Path = Path("benchmarks/results/video")
    """Folder for figures, clips and sheets."""


def main(settings: Settings) -> None:
    settings.output.mkdir(parents=True, exist_ok=True)
    if settings.memory:
        measure_memory(settings)
        return
    record = settings.output / "video_consistency.json"
    rows: list[dict[str, Any]] = json.loads(record.read_text())["rows"] if record.exists() else []
    prior = load_prior(settings.prior, device="cpu", dtype=getattr(torch, settings.precision))
    print(
        f"{'clip':10} {'instruction':12} {'way':12} {'warp error':>10} {'flicker':>7} "
        f"{'hue':>6} {'chroma':>7} {'sharp':>6} {'s':>5} {'CPU s':>5}"
    )
    for path in settings.clips:
        for name in settings.edits:
            source, clip = frames_of(path, settings.size)
            moving = list(motions(source))
            for way in ("source", *settings.ways):
                cell = {"clip": path.stem, "edit": name, "way": way}
                if any(cell.items() <= row.items() for row in rows):
                    continue
                start, cpu = time.perf_counter(), time.process_time()
                edited = source if way == "source" else edit(source, EDITS[name], way, prior, settings)
                seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
                sharp = [sharpness(frame) for frame in edited]
                between = [value for index, value in enumerate(sharp) if index % settings.keyframe_stride]
                row = {
                    **cell,
                    "frames": len(source),
                    "warp_error": warp_error(edited, moving),
                    "flicker": flicker(edited, source),
                    "hue_deviation": hue_deviation(edited),
                    "chroma": hue_and_chroma(edited)[1].mean().item(),
                    "sharpness": mean(sharp),
                    "sharpness_keyframes": mean(sharp[:: settings.keyframe_stride]),
                    "sharpness_between": mean(between) if between else None,
                    "seconds": seconds,
                    "cpu_seconds": cpu_seconds,
                }
                print(
                    f"{path.stem:10} {name:12} {way:12} {1000 * row['warp_error']:10.2f} "
                    f"{1000 * row['flicker']:7.1f} {row['hue_deviation']:6.1f} {row['chroma']:7.2f} "
                    f"{1000 * row['sharpness']:6.1f} {seconds:5.0f} {cpu_seconds:5.0f}",
                    flush=True,
                )
                rows.append(row)
                about = asdict(replace(settings, clips=(), edits=(), ways=(), output=Path())) | {
                    key: asdict(value) for key, value in EDITS.items()
                }
                record.write_text(json.dumps({"settings": about, "rows": rows}, indent=1, default=str) + "\n")
                stem = settings.output / f"{path.stem}-{name}-{way}"
                write_clip(edited, stem.with_suffix(".mp4"), like=replace(clip, audio=False), force=True)
                write_picture(Picture(sheet(source, edited)), stem.with_suffix(".png"), force=True)


def frames_of(path: Path, size: int) -> tuple[Tensor, Clip]:
    """All frames of a clip at the size of the edit, (F, 3, h, w)."""
    clip = read_clip(path)
    reduced = reduced_size(clip.height, clip.width, size)
    return torch.stack([resized(frame, *reduced) for frame in clip]), clip


def edit(source: Tensor, what: Edit, way: str, prior: Prior, settings: Settings) -> Tensor:
    """The frames, edited in one of the `WAYS`."""
    if way in ("pipeline", "same-noise"):
        same = way == "same-noise"
        return torch.stack(list(frame_by_frame(source, what, settings, same_noise=same)))
    if way in ("pix2video", "fatezero"):
        assert isinstance(prior, InstructPix2Pix)
        shared = pix2video if way == "pix2video" else fatezero
        height, width = source.shape[-2:]
        padded = [-(-side // prior.vae_factor) * prior.vae_factor for side in (height, width)]
        frames = torch.stack([reflected(frame, *padded) for frame in source])
        guidance = Guidance(what.text_guidance, 1.5)
        edited = shared(prior, frames, what.prompt, guidance=guidance, steps=settings.pipeline_steps)
        return edited[..., :height, :width]
    chosen = VideoSettings(
        prior=settings.clip_prior if way == "clips" else settings.prior,
        steps=what.steps,
        learning_rate=what.learning_rate,
        text_guidance=what.text_guidance,
        min_timestep=0.02,
        max_timestep=what.max_timestep,
        transport="independent" if way == "independent" else "svgd",
        particles=settings.particles,
        anchors=None if way == "clips" else settings.anchors,
        keyframe_stride=1 if way == "clips" else settings.keyframe_stride,
        precision=settings.precision,
        noise=settings.noise,
        kernel=settings.kernel,
        size=settings.size,
        seed=settings.seed,
    )
    return edit_video(source, what.prompt, chosen, loaded=None if way == "clips" else prior)


def flicker(edited: Tensor, source: Tensor) -> float:
    """Root mean square difference of second differences in time, (F, 3, h, w) in 0..1."""
    return (edited.diff(n=2, dim=0) - source.diff(n=2, dim=0)).square().mean().sqrt().item()


def frame_by_frame(source: Tensor, what: Edit, settings: Settings, *, same_noise: bool) -> Iterator[Tensor]:
    """Each frame by itself, with the pipeline as diffusers has it."""
    from diffusers import StableDiffusionInstructPix2PixPipeline

    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        check_prior(settings.prior), torch_dtype=getattr(torch, settings.precision)
    )
    pipeline.set_progress_bar_config(disable=True)
    for first in range(0, len(source), PIPELINE_BATCH):
        batch = source[first : first + PIPELINE_BATCH]
        seeds = [settings.seed + (0 if same_noise else first + index) for index in range(len(batch))]
        yield from pipeline(
            [what.prompt] * len(batch),
            image=batch,
            num_inference_steps=settings.pipeline_steps,
            guidance_scale=what.text_guidance,
            image_guidance_scale=1.5,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
        ).images.float()


def sharpness(picture: Tensor) -> float:
    """Mean absolute difference of neighbouring pixels, (3, h, w) in 0..1."""
    return (picture.diff(dim=1).abs().mean().item() + picture.diff(dim=2).abs().mean().item()) / 2


def sheet(source: Tensor, edited: Tensor) -> Tensor:
    """Frames from all over the clip, the source's above the edit's."""
    shown = torch.linspace(0, len(source) - 1, min(SHEET_FRAMES, len(source))).round().long()
    return torch.cat([torch.cat(list(frames[shown]), dim=2) for frames in (source, edited)], dim=1)


def measure_memory(settings: Settings) -> None:
    """Edit the first clip, repeated to several lengths, for one step, from disk to disk."""
    prior = load_prior(settings.prior, device="cpu")
    source = read_clip(settings.clips[0])
    small = reduced_size(source.height, source.width, settings.size)
    chosen = VideoSettings(prior=settings.prior, size=settings.size, steps=1)
    # Once with all that comes with it: libraries, the allocator's pools.
    edit_video(torch.rand(2 * chosen.particles, 3, *small), "make it winter", chosen, loaded=prior)
    print(f"{'frames':>6} {'most memory of the process (MiB)':>33} {'of it latents':>14}")
    print(f"{'-':>6} {_peak():33.0f}", flush=True)
    for frames in sorted(settings.memory):
        path, out = settings.output / f"repeated-{frames}.mp4", settings.output / f"edited-{frames}.mp4"
        write_clip(_repeated(source, frames, small), path, frame_rate=Fraction(20), force=True)
        clip = read_clip(path)
        edited = edit_video(clip, "make it winter", chosen, loaded=prior)
        write_clip(edited, out, like=clip, force=True)
        # Those of the edit, of the source, what the prior is shown, and a step's change.
        latents = 4 * edited.latents.nbytes / 2**20
        print(f"{frames:6d} {_peak():33.0f} {latents:14.1f}", flush=True)
        path.unlink()
        out.unlink()


def _repeated(clip: Clip, frames: int, size: tuple[int, int]) -> Iterator[Tensor]:
    done = 0
    while True:
        for frame in clip:
            yield resized(frame, *size)
            done += 1
            if done == frames:
                return


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    with exit_on_input_error():
        main(tyro.cli(Settings, description=__doc__))
