"""Translators against the edits they were distilled from: nearness to the operator, speed, sharpness.

    python benchmarks/translator.py night.safetensors [more.safetensors ...] [--size 96]

Prompts must be those of exact operators (`OPERATORS`, or for a text-to-image prior `CAPTIONS`). Of each the
held-out photos of `CSD_NERF_SHARED/data/photos` are edited by the translator and by the optimisation of
`csd-nerf image` with the same method and prior at its defaults. PSNR in dB towards the operator's output;
sharpness is the mean absolute difference of neighbouring pixels over that of the operator's output, 1 being
as sharp; seconds are CPU time of one thread for a picture, without reading and writing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from csd_nerf.editors import PictureSettings, edit_image  # noqa: E402
from csd_nerf.errors import exit_on_input_error  # noqa: E402
from csd_nerf.evaluation.pixels import psnr  # noqa: E402
from csd_nerf.scenes.operators import CAPTIONS, OPERATORS, Operator  # noqa: E402
from csd_nerf.translation.model_file import load_translator  # noqa: E402
from training.photos import centre_square, held_out_photos, resized, shared_folder  # noqa: E402


def operator_of(prompt: str) -> Operator:
    """The exact operator that a prompt asks for."""
    return next(
        operator for name, operator in OPERATORS.items() if prompt in (operator.instruction, CAPTIONS[name])
    )


def sharpness(pictures: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels."""
    return pictures.diff(dim=-1).abs().mean() + pictures.diff(dim=-2).abs().mean()


def edited(photos: Tensor, edit: Callable[[Tensor], Tensor]) -> tuple[Tensor, float]:
    """Photos after an edit, and CPU seconds for one."""
    edit(photos[0])  # what is loaded or prepared at the first call is not counted
    began = time.process_time()
    after = torch.stack([edit(photo) for photo in photos])
    return after, (time.process_time() - began) / len(photos)


def measure(file: Path, photos: Tensor, optimised: dict[tuple[str, str, str], tuple[Tensor, float]]) -> None:
    """Print a line for each target of a translator, and for the optimisation behind it."""
    translator = load_translator(file)
    method, prior = translator.made_by["method"], translator.made_by["prior"]
    print(f"{file.name}: {method} with {prior}, {file.stat().st_size / 1e6:.1f} MB")
    settings = PictureSettings(prior=prior, method=method, source_prompt=CAPTIONS["identity"])  # type: ignore[arg-type]
    loaded = settings.load_prior()
    for number, prompt in enumerate(translator.prompts):
        truth = operator_of(prompt).apply(photos)
        key = (method, prior, prompt)
        if key not in optimised:
            optimised[key] = edited(
                photos,
                lambda photo, prompt=prompt: edit_image(photo, prompt, settings, loaded=loaded),  # type: ignore[misc]
            )
        ways = {
            "translator": edited(photos, lambda photo, at=number: translator.translate(photo, at)),  # type: ignore[misc]
            "optimisation": optimised[key],
        }
        print(f"  {prompt}: unedited {psnr(photos, truth).mean():.2f} dB")
        for way, (after, seconds) in ways.items():
            sharp = sharpness(after) / sharpness(truth)
            print(f"    {way:13} {psnr(after, truth).mean():6.2f} dB  sharpness {sharp:.2f}  {seconds:.4f} s")
        print(f"    {ways['optimisation'][1] / ways['translator'][1]:.0f} times as fast", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("translators", type=Path, nargs="+", help="files of `csd-nerf translate train`")
    parser.add_argument("--size", type=int, default=96, help="side of the photos in pixels")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with exit_on_input_error():
        photos = held_out_photos(shared_folder())
        squares = torch.stack([centre_square(resized(photo.rgb, arguments.size)) for photo in photos])
        optimised: dict[tuple[str, str, str], tuple[Tensor, float]] = {}
        for file in arguments.translators:
            measure(file, squares, optimised)


if __name__ == "__main__":
    main()
