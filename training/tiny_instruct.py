"""Make `tiny-instruct`, a small real InstructPix2Pix, from scratch.

    python -m training.tiny_instruct --out csd_nerf/bundled/tiny_instruct --work ../tiny-instruct-work

Reads photos and LPIPS's AlexNet from `CSD_NERF_SHARED` (default `../shared` next to the repository). Six
stages, each of which leaves a file in the working folder; a run that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from csd_nerf.errors import exit_on_input_error
from training import parallel
from training.decoder import train_decoder
from training.export import export
from training.latents import write_latents
from training.parallel import Worker
from training.photos import cached_training_photos, shared_folder
from training.progress import Budget
from training.text import train_text
from training.unet import train_unet
from training.vae import train_vae

VAE_STEPS = 2172
DECODER_STEPS = 1800
UNET_STEPS = 14000
STAGES = ("vae", "decoder", "text", "latents", "unet", "export")


@dataclass(frozen=True)
class Plan:
    """What every worker needs to know."""

    shared: Path
    work: Path
    out: Path
    vae: Budget
    decoder: Budget
    unet: Budget
    seed: int
    stages: tuple[str, ...]


def follow(worker: Worker, plan: Plan) -> None:
    """Do the stages that are not done yet."""
    if {"vae", "decoder", "latents"} & set(plan.stages):
        if worker.leads:
            cached_training_photos(plan.shared, plan.work / "photos.pt")
        worker.wait()
        photos = cached_training_photos(plan.shared, plan.work / "photos.pt")
    alexnet = plan.shared / "weights/lpips/alexnet_features.safetensors"
    if "vae" in plan.stages and not (plan.work / "vae.pt").exists():
        train_vae(worker, photos, alexnet, plan.work, plan.vae, plan.seed)
    if "decoder" in plan.stages and not (plan.work / "decoder.pt").exists():
        train_decoder(worker, photos, alexnet, plan.work, plan.decoder, plan.seed)
    if "text" in plan.stages and worker.leads and not (plan.work / "text.pt").exists():
        train_text(plan.work, plan.seed)
    worker.wait()
    if "latents" in plan.stages:
        write_latents(worker, photos, plan.work, plan.seed)
    if "unet" in plan.stages:
        train_unet(worker, plan.work, plan.unet, plan.seed, lambda: export(plan.work, plan.work / "snapshot"))
    if "export" in plan.stages and worker.leads:
        export(plan.work, plan.out)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished prior")
    parser.add_argument(
        "--work", type=Path, default=Path("../tiny-instruct-work"), help="folder for the stages' files"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, help="default: 2 on a CPU, 1 on a GPU; part of the recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, default=VAE_STEPS)
    parser.add_argument("--decoder-steps", type=int, default=DECODER_STEPS)
    parser.add_argument("--unet-steps", type=int, default=UNET_STEPS)
    parser.add_argument("--vae-minutes", type=float, help="a time instead of a number of steps")
    parser.add_argument("--decoder-minutes", type=float, help="a time instead of a number of steps")
    parser.add_argument("--unet-minutes", type=float, help="a time instead of a number of steps")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="only these")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        shared=shared_folder(),
        work=arguments.work,
        out=arguments.out,
        vae=Budget(arguments.vae_steps, arguments.vae_minutes),
        decoder=Budget(arguments.decoder_steps, arguments.decoder_minutes),
        unet=Budget(arguments.unet_steps, arguments.unet_minutes),
        seed=arguments.seed,
        stages=tuple(arguments.stages),
    )
    processes = arguments.processes or (2 if arguments.device == "cpu" else 1)
    with exit_on_input_error():
        parallel.run(follow, plan, processes=processes, device=arguments.device, folder=arguments.work)


if __name__ == "__main__":
    main()
