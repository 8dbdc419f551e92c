"""How well an instruction prior follows the exact operators on photos it never saw.

    python benchmarks/prior_quality.py [--prior tiny-instruct] [--out results.json] [--pictures DIR]
    python benchmarks/prior_quality.py --prior FOLDER_OF_A_FLOW --against results.json

Runs diffusers' own pipeline, 20 steps: an InstructPix2Pix by DDIM with text guidance 3 and image guidance
1.5, a FLUX.1 Kontext without distilled guidance, by its own scheduler, with 2 against the empty prompt.
On the held-out objects of `CSD_NERF_SHARED/data/photos` and on views of the held-out scene `stone_horse`,
short side resized to 96 and 128 px and centre-cropped. Figures are mean PSNR in dB towards the operator's
output; painting's truth is the style network's picture, which exists for the photos only. The tint's truth
is the nearest of its four hues, each of which some seeds must reach. With `--against`, what is wanted of an
edit is what another prior gained less 1 dB, and of the sketch the usual.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxKontextPipeline, StableDiffusionInstructPix2PixPipeline
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from csd_nerf.bundled import BUNDLED_PRIORS, bundled_path  # noqa: E402
from csd_nerf.errors import exit_on_input_error  # noqa: E402
from csd_nerf.evaluation.pixels import psnr  # noqa: E402
from csd_nerf.priors.folder import read_json  # noqa: E402
from csd_nerf.scenes.operators import (  # noqa: E402
    OPERATORS,
    PAINTING_INSTRUCTION,
    TINT_HUES,
    TINT_INSTRUCTION,
    TINTS,
    hue_and_chroma,
)
from training.photos import Photo, centre_square, held_out_photos, resized, scene_photos, shared_folder  # noqa: E402

SIZES = (96, 128)
STEPS, TEXT_GUIDANCE, IMAGE_GUIDANCE, FLOW_GUIDANCE = 20, 3.0, 1.5, 2.0
SCENE, SCENE_STRIDE = "stone_horse", 8
BATCH = 8
TINT_SEEDS, HUE_TOLERANCE = 32, 15.0
WANTED_GAIN = {"night": 18.0, "winter": 16.0, "sketch": 9.0, "autumn": 9.0, "sepia": 7.0, "painting": 3.0}
SHEET_ROWS = 8
LESS_THAN_ANOTHER = 1.0
"""Gain, in dB, by which a prior may fall short of the one it is compared with."""


@dataclass(frozen=True)
class Figure:
    """Mean PSNR in dB of one edit of one set of pictures."""

    edit: str
    size: int
    pictures: str
    unedited: float
    edited: float
    autoencoder: float
    """Of the truth itself, encoded and decoded: what the best U-Net could reach."""

    @property
    def gain(self) -> float:
        return self.edited - self.unedited


@dataclass(frozen=True)
class HueCount:
    """Where the seeds of the ambiguous instruction land on one picture."""

    picture: str
    size: int
    within_tolerance: int
    counts: dict[str, int]
    largest_distance: float


def best_psnr(pictures: Tensor, truths: Tensor) -> Tensor:
    """PSNR to the nearest of several truths (N, k, 3, H, W)."""
    return torch.stack([psnr(pictures, truth) for truth in truths.unbind(1)], 1).amax(1)


class Prior:
    """The pipeline under test."""

    def __init__(self, folder: Path) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._flows = read_json(folder / "model_index.json")["_class_name"] == "FluxKontextPipeline"
        kind = FluxKontextPipeline if self._flows else StableDiffusionInstructPix2PixPipeline
        self.pipeline = kind.from_pretrained(folder)
        self.pipeline.to(device).set_progress_bar_config(disable=True)

    def edit(self, photos: Tensor, instruction: str, first_seed: int = 0) -> Tensor:
        """(N, 3, H, W) in 0..1 to the same; picture i is drawn with seed `first_seed + i`."""
        parts = []
        for start in range(0, len(photos), BATCH):
            part = photos[start : start + BATCH]
            edited = self.pipeline(
                prompt=[instruction] * len(part),
                image=part,
                num_inference_steps=STEPS,
                **self._guided(*part.shape),
                generator=[torch.Generator().manual_seed(first_seed + start + i) for i in range(len(part))],
                output_type="pt",
            ).images
            parts.append(edited.float().cpu())
        return torch.cat(parts)

    def _guided(self, count: int, _: int, height: int, width: int) -> dict[str, Any]:
        """What the pipeline is told of guidance, and Kontext's of the size, which it would choose itself."""
        if not self._flows:
            return {"guidance_scale": TEXT_GUIDANCE, "image_guidance_scale": IMAGE_GUIDANCE}
        words = min(512, self.pipeline.tokenizer_2.model_max_length)
        size = {"height": height, "width": width, "max_area": height * width, "_auto_resize": False}
        guidance = {"negative_prompt": [""] * count, "true_cfg_scale": FLOW_GUIDANCE}
        return size | guidance | {"max_sequence_length": words}

    @torch.no_grad()
    def reconstruct(self, pictures: Tensor) -> Tensor:
        vae = self.pipeline.vae
        latents = torch.cat(
            [vae.encode(part.to(vae.device) * 2 - 1).latent_dist.mode() for part in pictures.split(8)]
        )
        decoded = torch.cat([vae.decode(part).sample for part in latents.split(8)])
        return (decoded.float().cpu() / 2 + 0.5).clamp(0, 1)


def truths_of(edit: str, photos: Tensor, painted: Tensor | None) -> Tensor | None:
    """Right answers (N, k, 3, H, W), or None where there is none."""
    if edit == "painting":
        return None if painted is None else painted.unsqueeze(1)
    if edit == "tint":
        return torch.stack([tint(photos) for tint in TINTS.values()], 1)
    return OPERATORS[edit].apply(photos).unsqueeze(1)


def squares(pictures: list[Tensor], size: int) -> Tensor:
    return torch.stack([centre_square(resized(picture, size)) for picture in pictures])


def measure(
    prior: Prior, name: str, photos: list[Photo], size: int
) -> tuple[list[Figure], dict[str, Tensor]]:
    """Figures of every edit of one set of pictures, and the pictures themselves by title."""
    originals = squares([photo.rgb for photo in photos], size)
    pairs = [photo.painted for photo in photos if photo.painted is not None]
    painted = squares(pairs, size) if len(pairs) == len(photos) else None
    instructions = {edit: operator.instruction for edit, operator in OPERATORS.items()}
    instructions |= {"painting": PAINTING_INSTRUCTION, "tint": TINT_INSTRUCTION}
    figures, pictures = [], {"photo": originals}
    for edit, instruction in instructions.items():
        edited = prior.edit(originals, instruction)
        pictures[edit] = edited
        truths = truths_of(edit, originals, painted)
        if truths is None:
            continue
        if edit not in ("tint", "identity"):
            pictures[f"{edit}, true"] = truths[:, 0]
        ceiling = psnr(prior.reconstruct(truths[:, 0]), truths[:, 0])
        figure = Figure(
            edit,
            size,
            name,
            unedited=best_psnr(originals, truths).mean().item(),
            edited=best_psnr(edited, truths).mean().item(),
            autoencoder=ceiling.mean().item(),
        )
        figures.append(figure)
        print(
            f"{edit:9} {size:4} px {name:12} unedited {figure.unedited:6.2f}  edited {figure.edited:6.2f}  "
            f"gain {figure.gain:6.2f}  autoencoder {figure.autoencoder:6.2f}",
            flush=True,
        )
    return figures, pictures


def count_hues(prior: Prior, photo: Photo, size: int) -> HueCount:
    """Edit one photo under the ambiguous instruction with many seeds."""
    original = squares([photo.rgb], size)
    hues, _ = hue_and_chroma(prior.edit(original.expand(TINT_SEEDS, -1, -1, -1), TINT_INSTRUCTION))
    distances = torch.stack([((hues - hue + 180) % 360 - 180).abs() for hue in TINT_HUES.values()], 1)
    nearest, which = distances.min(1)
    counts = {name: int((which == index).sum()) for index, name in enumerate(TINT_HUES)}
    result = HueCount(photo.name, size, int((nearest <= HUE_TOLERANCE).sum()), counts, nearest.max().item())
    print(
        f"tint of {photo.name}, {size} px: {result.within_tolerance} of {TINT_SEEDS} seeds within "
        f"{HUE_TOLERANCE:.0f} degrees (largest distance {result.largest_distance:.1f}), {counts}"
        + ("" if all(counts.values()) else "  MISSED a hue"),
        flush=True,
    )
    return result


def overall(figures: list[Figure], sizes: list[int], counts: dict[str, int]) -> dict[str, dict[int, float]]:
    """Gain of each edit but identity (which has nothing to gain) at each size, over all pictures."""
    gains: dict[str, dict[int, float]] = {}
    for edit in dict.fromkeys(figure.edit for figure in figures if figure.edit != "identity"):
        for size in sizes:
            parts = [figure for figure in figures if (figure.edit, figure.size) == (edit, size)]
            total = sum(counts[part.pictures] for part in parts)
            gains.setdefault(edit, {})[size] = (
                sum(part.gain * counts[part.pictures] for part in parts) / total
            )
    return gains


def write_sheet(pictures: dict[str, Tensor], path: Path) -> None:
    """One row a photo, one column a title, in the order of `pictures`."""
    columns = [column[:: max(1, -(-len(column) // SHEET_ROWS))] for column in pictures.values()]
    sheet = torch.cat([torch.cat(list(column), 1) for column in columns], 2)  # (3, rows * H, columns * W)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((sheet.permute(1, 2, 0) * 255).round().byte().numpy()).save(path)
    print(f"{path}: columns {', '.join(pictures)}", flush=True)


def wanted_gains(against: Path | None, sizes: list[int]) -> dict[str, dict[int, float]]:
    """What each edit must gain at each size: the usual, or nearly what another prior did.

    Args:
        against: what `--out` wrote of that prior.
        sizes: of the pictures.
    """
    usual = {edit: dict.fromkeys(sizes, gain) for edit, gain in WANTED_GAIN.items()}
    if against is None:
        return usual
    gains = json.loads(against.read_text())["gains"]
    others = {
        edit: {size: gains[edit][str(size)] - LESS_THAN_ANOTHER for size in sizes} for edit in WANTED_GAIN
    }
    return others | {"sketch": usual["sketch"]}


def check(
    prior: Prior, sizes: list[int], out: Path | None, sheets: Path | None, against: Path | None
) -> None:
    """Measure everything, print the table, write what was asked for."""
    bars = wanted_gains(against, sizes)
    shared = shared_folder()
    sets = {"photos": held_out_photos(shared), SCENE: scene_photos(shared, SCENE, SCENE_STRIDE)}
    figures: list[Figure] = []
    hues: list[HueCount] = []
    for size in sizes:
        for name, photos in sets.items():
            measured, pictures = measure(prior, name, photos, size)
            figures += measured
            hues.append(count_hues(prior, photos[0], size))
            if sheets is not None:
                write_sheet(pictures, sheets / f"{name}-{size}.png")
    gains = overall(figures, sizes, {name: len(photos) for name, photos in sets.items()})
    print(f"\n{'edit':10}{'wanted':>8}" + "".join(f"{f'{size} px':>9}" for size in sizes))
    for edit, by_size in gains.items():
        wanted = bars.get(edit, {})
        reached = all(by_size[size] >= gain for size, gain in wanted.items())
        verdict = "" if not wanted else "  reached" if reached else "  MISSED"
        bar = f"{max(wanted.values()):.1f}" if wanted else ""
        print(f"{edit:10}{bar:>8}" + "".join(f"{gain:9.2f}" for gain in by_size.values()) + verdict)
    if out is not None:
        rows = [asdict(figure) | {"gain": figure.gain} for figure in figures]
        out.write_text(
            json.dumps({"figures": rows, "gains": gains, "hues": [asdict(h) for h in hues]}, indent=2)
        )


def prior_folder(name: str) -> Path:
    return bundled_path(name) if name in BUNDLED_PRIORS or not Path(name).is_dir() else Path(name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--prior", default="tiny-instruct", help="bundled name, or a folder in diffusers format"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="short sides in pixels")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--pictures", type=Path, help="write contact sheets to this folder")
    parser.add_argument("--against", type=Path, help="figures of another prior, written by --out")
    arguments = parser.parse_args()
    with exit_on_input_error():
        prior = Prior(prior_folder(arguments.prior))
        check(prior, list(arguments.sizes), arguments.out, arguments.pictures, arguments.against)


if __name__ == "__main__":
    main()
