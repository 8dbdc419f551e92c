"""Make the bundled priors from scratch: `tiny-instruct`, `tiny-sd` and the depth ControlNet `tiny-depth`; and
`tiny-flow`, an editor of flow matching in the format of FLUX.1 Kontext; and `tiny-video`, layers of motion in
the U-Net that `tiny-instruct` begins as.

    python -m training --out csd_nerf/bundled --work ../bundled-priors-work

Reads photos and LPIPS's AlexNet from `CSD_NERF_SHARED` (default `../shared` next to the repository). Each
stage leaves a file in the working folder; a run that was killed goes on where it was. `tiny-flow` alone,
beside the autoencoder that is bundled:

    python -m training --out OUT --work WORK --take-over csd_nerf/bundled/tiny_instruct \\
        --stages wide-latents words flow export
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from csd_nerf.errors import exit_on_input_error
from training import parallel
from training.photos import shared_folder
from training.plan import STAGES, STEPS, Plan, follow
from training.progress import Budget


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished priors' folders")
    parser.add_argument(
        "--work", type=Path, default=Path("../bundled-priors-work"), help="folder for the stages' files"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, help="default: 2 on a CPU, 1 on a GPU; part of the recipe")
    parser.add_argument("--seed", type=int, default=0)
    for stage, steps in STEPS.items():
        parser.add_argument(f"--{stage}-steps", type=int, default=steps)
        parser.add_argument(f"--{stage}-minutes", type=float, help="a time instead of a number of steps")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="only these")
    parser.add_argument(
        "--take-over", type=Path, help="a finished prior's folder: its autoencoder and text encoder are taken"
    )
    arguments = parser.parse_args()
    given = vars(arguments)
    arguments.work.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        shared=shared_folder(),
        work=arguments.work,
        out=arguments.out,
        budgets={
            stage: Budget(*(given[f"{stage.replace('-', '_')}_{unit}"] for unit in ("steps", "minutes")))
            for stage in STEPS
        },
        seed=arguments.seed,
        stages=tuple(arguments.stages),
        taken_over=arguments.take_over,
    )
    processes = arguments.processes or (2 if arguments.device == "cpu" else 1)
    with exit_on_input_error():
        parallel.run(follow, plan, processes=processes, device=arguments.device, folder=arguments.work)


if __name__ == "__main__":
    main()
