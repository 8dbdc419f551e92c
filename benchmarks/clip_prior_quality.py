"""How well an instruction prior for clips edits windows that travel over photos it never saw.

    python benchmarks/clip_prior_quality.py [--prior tiny-video] [--clips 4] [--out results.json]

Clips of held-out objects of `CSD_NERF_SHARED/data/photos`, 8 frames of 96 pixels. DDIM, 20 steps from the
most noise, text guidance 3, image guidance 1.5. Beside the prior for clips, with noise of its own for each
frame: `tiny-instruct` frame by frame, with noise of its own for each, and with one for all.

Gain is mean PSNR in dB towards the operator's frames, less that of the source; flicker the error of second
differences in time against those frames, times 1000 (`video_consistency.py`); hue spread that over the frames
of a clip, in degrees.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.prior_quality import best_psnr, truths_of  # noqa: E402
from benchmarks.video_consistency import flicker  # noqa: E402
from csd_nerf.distillation import Guidance, sample_edit  # noqa: E402
from csd_nerf.errors import exit_on_input_error  # noqa: E402
from csd_nerf.evaluation.consistency import hue_deviation  # noqa: E402
from csd_nerf.nerf.edits import as_clips, as_pictures  # noqa: E402
from csd_nerf.priors import Prior, load_prior  # noqa: E402
from csd_nerf.scenes.operators import OPERATORS, TINT_INSTRUCTION  # noqa: E402
from training.moving import travelling  # noqa: E402
from training.photos import held_out_photos, resized, shared_folder  # noqa: E402

STEPS, GUIDANCE, SHORT_SIDE = 20, Guidance(3.0, 1.5), 144
INSTRUCTIONS = {name: operator.instruction for name, operator in OPERATORS.items() if name != "identity"} | {
    "tint": TINT_INSTRUCTION
}


@torch.no_grad()
def edited(prior: Prior, frames: Tensor, instruction: str, seed: int, same_noise: bool = False) -> Tensor:
    """Frames (F, 3, H, W) edited as one clip, or by a prior for pictures each by itself."""
    asked = as_clips(frames, 1) if prior.clip_frames else frames
    latents, condition = prior.encode_source(asked)
    parts = [slice(0, len(latents))] if not same_noise else [slice(i, i + 1) for i in range(len(latents))]
    sampled = [
        sample_edit(
            prior,
            latents[part],
            condition[part],
            prompt=instruction,
            guidance=GUIDANCE,
            start=prior.schedule.num_timesteps - 1,
            steps=STEPS,
            generator=torch.Generator().manual_seed(seed),
        )
        for part in parts
    ]
    return as_pictures(prior.decode(torch.cat(sampled))).float()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prior", default="tiny-video", help="bundled name, or a folder in diffusers format")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    with exit_on_input_error():
        of_clips = load_prior(arguments.prior, device="cpu", clips_too=True)
        of_pictures = load_prior("tiny-instruct", device="cpu")
    photos = held_out_photos(shared_folder())
    photos = photos[:: max(len(photos) // arguments.clips, 1)][: arguments.clips]
    clips = [
        travelling(resized(photo.rgb, SHORT_SIDE)[None], torch.Generator().manual_seed(number))[0]
        for number, photo in enumerate(photos)
    ]
    rows = []
    for edit, instruction in INSTRUCTIONS.items():
        for way, prior in (("clip", of_clips), ("frames", of_pictures), ("frames, one noise", of_pictures)):
            gains, flickers, hues = [], [], []
            for seed, clip in enumerate(clips):
                answer = edited(prior, clip, instruction, seed, same_noise="one noise" in way)
                truths = truths_of(edit, clip, None)
                assert truths is not None
                # Of the tint one hue is right for all frames.
                reached = torch.stack(
                    [best_psnr(answer, truth[:, None]).mean() for truth in truths.unbind(1)]
                )
                before = torch.stack([best_psnr(clip, truth[:, None]).mean() for truth in truths.unbind(1)])
                gains.append(float(reached.max() - before.max()))
                flickers.append(1000 * flicker(answer, truths[:, int(reached.argmax())]))
                hues.append(hue_deviation(answer))
            rows.append(
                {"edit": edit, "way": way, "gain": mean(gains), "flicker": mean(flickers), "hue": mean(hues)}
            )
            print(
                f"{edit:8} {way:18} gain {rows[-1]['gain']:6.2f}  flicker {rows[-1]['flicker']:6.1f}  "
                f"hue spread {rows[-1]['hue']:5.1f}",
                flush=True,
            )
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
