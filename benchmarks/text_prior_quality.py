"""What the bundled text-to-image prior knows of pictures it never saw.

    python benchmarks/text_prior_quality.py [--prior tiny-sd] [--control-net tiny-depth] [--out results.json]

Three questions, on held-out photos and views of the held-out scene `stone_horse` at 96 px:

- Does it tell styles apart? Each picture under each operator is noised at three levels; the caption under
  which the noise is predicted best is its answer (Li et al., 2303.16203). Share of right answers.
- Does it edit? Delta Denoising Score (2304.07090) on the latents, from "a photo" to each style's caption:
  gain in PSNR towards the operator's output, in dB.
- Does the ControlNet follow depth? On views of the still life that it was not trained on: error of the
  predicted noise when it is shown the view's own depth, relative to being shown another view's, and to none.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from csd_nerf.distillation import DescentConfig, Objective, edit_latents, preset  # noqa: E402
from csd_nerf.errors import exit_on_input_error  # noqa: E402
from csd_nerf.evaluation.pixels import psnr  # noqa: E402
from csd_nerf.priors import Prior, load_prior  # noqa: E402
from csd_nerf.priors.control import ControlConfig  # noqa: E402
from csd_nerf.scenes.operators import CAPTIONS, OPERATORS, TINTS  # noqa: E402
from csd_nerf.scenes.still_life import orbit_cameras, render  # noqa: E402
from training.depth import along_axis  # noqa: E402
from training.photos import centre_square, held_out_photos, resized, scene_photos, shared_folder  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = 96
STYLES = [style for style in CAPTIONS if style != "painting"]
"""Those with an exact operator; of the tint's four hues, cyan stands for all."""

LEVELS = (300, 500, 700)
"""Timesteps of 1000."""

DDS_DESCENT, DDS_MOST_NOISE = DescentConfig(steps=60, learning_rate=0.2), 0.6
DEPTH_VIEWS = 16


def noise_errors(
    prior: Prior, latents: Tensor, captions: list[str], condition: Tensor, noise: Tensor
) -> Tensor:
    """Mean squared error of the noise predicted under each caption, averaged over `LEVELS`: (N, captions)."""
    texts = prior.embed(captions)
    errors = latents.new_zeros(len(latents), len(captions))
    for t in LEVELS:
        noisy = prior.schedule.add_noise(latents, noise, t)
        for column, text in enumerate(texts):
            predicted = prior.predict_noise(noisy, t, text.expand(len(latents), -1, -1), condition)
            errors[:, column] += (predicted - noise).square().mean((1, 2, 3)) / len(LEVELS)
    return errors


def recognition(prior: Prior, photos: Tensor) -> dict[str, float]:
    """Share of pictures of each style whose own caption predicts the noise best."""
    generator = torch.Generator().manual_seed(0)
    right = {}
    captions = [CAPTIONS[style] for style in STYLES]
    for column, style in enumerate(STYLES):
        styled = TINTS["cyan"](photos) if style == "tint" else OPERATORS[style].apply(photos)
        latents, condition = prior.encode(styled), prior.condition(styled)
        noise = torch.randn(latents.shape, generator=generator).to(DEVICE)
        errors = noise_errors(prior, latents, captions, condition, noise)
        right[style] = (errors.argmin(1) == column).float().mean().item()
    return right


def delta_denoising(prior: Prior, photos: Tensor) -> dict[str, dict[str, float]]:
    """PSNR towards the operator's output before and after DDS, in dB, by style."""
    config = preset("dds")
    config.min_timestep, config.max_timestep = 0.02, DDS_MOST_NOISE
    source, condition = prior.encode(photos), prior.condition(photos)
    figures = {}
    for style in STYLES:
        if style in ("identity", "tint"):
            continue
        edited = edit_latents(
            Objective(config, prior),
            source,
            source,
            condition,
            prompt=CAPTIONS[style],
            source_prompt=CAPTIONS["identity"],
            descent=DDS_DESCENT,
            generator=torch.Generator().manual_seed(0),
        )
        truth = OPERATORS[style].apply(photos)
        before, after = (psnr(pictures, truth).mean().item() for pictures in (photos, prior.decode(edited)))
        figures[style] = {"unedited": before, "edited": after, "gain": after - before}
        print(style, figures[style], flush=True)
    return figures


def depth_following(name: str, control_net: str) -> dict[str, float]:
    """Error of the predicted noise when shown other depth, or none, over that with the view's own depth."""
    prior = load_prior(name, device=DEVICE, control=ControlConfig(net=control_net, picture="depth"))
    cameras = orbit_cameras(DEPTH_VIEWS, size=SIZE, seed=11)
    pictures = [render(camera, samples_per_side=2) for camera in cameras]
    rgb = torch.stack([torch.from_numpy(picture.rgb).permute(2, 0, 1) for picture in pictures])
    depth = torch.stack(
        [along_axis(picture.depth, camera)[None] for picture, camera in zip(pictures, cameras, strict=True)]
    )
    latents, shown = prior.encode(rgb.to(DEVICE)), prior.condition(depth.to(DEVICE))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    own, other, none = (
        noise_errors(prior, latents, [CAPTIONS["identity"]], condition, noise).mean().item()
        for condition in (shown, shown.roll(1, 0), torch.zeros_like(shown))
    )
    return {"shown_another_views": other / own, "shown_none": none / own}


@torch.no_grad()
def check(name: str, control_net: str, out: Path | None) -> None:
    """Measure everything, print it, write what was asked for."""
    shared = shared_folder()
    pictures = held_out_photos(shared) + scene_photos(shared, "stone_horse", every=8)
    photos = torch.stack([centre_square(resized(picture.rgb, SIZE)) for picture in pictures]).to(DEVICE)
    prior = load_prior(name, device=DEVICE, vae_batch_size=8)
    results = {
        "recognised": recognition(prior, photos),
        "delta_denoising": delta_denoising(prior, photos),
        "depth_error_ratio": depth_following(name, control_net),
    }
    print(json.dumps(results, indent=1))
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prior", default="tiny-sd", help="a text-to-image prior")
    parser.add_argument("--control-net", default="tiny-depth", help="a depth ControlNet for it")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    with exit_on_input_error():
        check(arguments.prior, arguments.control_net, arguments.out)


if __name__ == "__main__":
    main()
