"""Do edits stay where their sources are? Shift and zoom of pictures edited by sampling and by distillation.

    python benchmarks/registration.py [--prior tiny-instruct] [--photos 3] [--size 128] [--out results.json]

Photos of the scene `bear` in `CSD_NERF_SHARED`, spread over the capture, whole, their short side resized.
*Sampling* is 20 steps from the most noise with the guidance of `refit-baseline`, *distillation* is `csd-nerf
image` with its defaults, both with the same prior. Beside them are
what has not moved, the photo's exact edit and the photo through the prior's autoencoder, and what has: the
sampled pictures moved by 2 pixels to the right.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from csd_nerf.comparison.budget import method_config  # noqa: E402
from csd_nerf.distillation import Guidance, sample_edit  # noqa: E402
from csd_nerf.editors import PictureSettings, edit_image  # noqa: E402
from csd_nerf.errors import exit_on_input_error  # noqa: E402
from csd_nerf.evaluation.registration import registration  # noqa: E402
from csd_nerf.evaluation.structure import edge_correlation  # noqa: E402
from csd_nerf.priors import Prior, load_prior  # noqa: E402
from csd_nerf.scenes.operators import OPERATORS, PAINTING_INSTRUCTION, TINT_INSTRUCTION  # noqa: E402
from training.photos import resized, scene_photos, shared_folder  # noqa: E402

STEPS = 20
SCENE, MOVED = "bear", 2
INSTRUCTIONS = {
    "night": OPERATORS["night"].instruction,
    "sketch": OPERATORS["sketch"].instruction,
    "tint": TINT_INSTRUCTION,
    "painting": PAINTING_INSTRUCTION,
}


@dataclass(frozen=True)
class Row:
    """Where the pictures of one edit are, against the photos. Lists have one entry for each photo."""

    edit: str
    way: str
    right: list[float]  # pixels
    down: list[float]  # pixels
    zoom: list[float]  # percent, above 0 where things became larger
    edges: float  # edge correlation, mean

    def __str__(self) -> str:
        places = zip(self.right, self.down, self.zoom, strict=True)
        shown = "   ".join(f"{right:+.2f} {down:+.2f} {zoom:+.2f} %" for right, down, zoom in places)
        return f"{self.edit:9} {self.way:15} {self.edges:5.2f}   {shown}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prior", default="tiny-instruct", help="a bundled editor")
    parser.add_argument("--photos", type=int, default=3)
    parser.add_argument("--size", type=int, default=128, help="short side in pixels")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    photos = load_photos(options.photos, options.size)
    prior = load_prior(options.prior, device="cpu")
    rows = []
    print(f"{'':25} edges   shift right, down in pixels, zoom; of each photo")
    for edit, instruction in INSTRUCTIONS.items():
        for way, pictures in edits(edit, instruction, photos, options.prior, prior):
            rows.append(measured(edit, way, pictures, photos))
            print(rows[-1], flush=True)
    rows.append(measured("none", "autoencoder", prior.decode(prior.encode(photos)), photos))
    print(rows[-1])
    if options.out:
        options.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def load_photos(count: int, size: int) -> Tensor:
    """Photos (count, 3, H, W), 0..1, spread over the capture."""
    found = scene_photos(shared_folder(), SCENE, every=1)
    chosen = torch.linspace(0, len(found) - 1, count + 1)[:-1].round().long()
    return torch.stack([resized(found[number].rgb, size).clamp(0, 1) for number in chosen])


def edits(edit: str, instruction: str, photos: Tensor, name: str, prior: Prior) -> list[tuple[str, Tensor]]:
    """The photos after the edit, by the ways to make it."""
    sampling = method_config("refit-baseline", "tiny").pipeline.sampling
    sampled = sample_edit(
        prior,
        prior.encode(photos),
        prior.condition(photos),
        prompt=instruction,
        guidance=Guidance(sampling.text_guidance, sampling.image_guidance),
        start=sampling.start.sample(prior.schedule.num_timesteps),
        steps=STEPS,
        generator=torch.Generator().manual_seed(0),
    )
    sampled = prior.decode(sampled).clamp(0, 1)
    settings = PictureSettings(prior=name)
    distilled = torch.stack([edit_image(photo, instruction, settings, loaded=prior) for photo in photos])
    ways = [
        ("sampling", sampled),
        ("distillation", distilled),
        (f"sampling, {MOVED} px", sampled.roll(MOVED, -1)),
    ]
    return ways + ([("exact", OPERATORS[edit].apply(photos))] if edit in OPERATORS else [])


def measured(edit: str, way: str, pictures: Tensor, photos: Tensor) -> Row:
    found = registration(pictures, photos)
    zoom = 100 * (found.zoom - 1)
    edges = float(edge_correlation(pictures, photos).mean())
    return Row(edit, way, found.right.tolist(), found.down.tolist(), zoom.tolist(), edges)


if __name__ == "__main__":
    with exit_on_input_error():
        main()
