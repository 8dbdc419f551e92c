"""An edit by one process and by several, on the cores of this machine: wall and CPU seconds of its steps.

    python benchmarks/processes.py --scene SCENE_RUN

`csd-edit-tiny`, the same edit each time, by processes of one thread each that talk by gloo. Start-up and
final pictures do not count. On a machine that does other work as well, wall time says little; the CPU seconds
of the busiest process are what the edit would take on cores of its own, without what it waits for the others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from csd_nerf import ranks
from csd_nerf.nerf.methods import METHODS


@dataclass
class Options:
    """What to measure."""

    scene: Path
    """Run folder of a trained scene."""
    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes."""
    steps: int = 96
    """Of the edit."""
    out: Path = Path("benchmarks/results/processes.json")
    """File for the figures."""


def main(options: Options) -> None:
    if "RANK" in os.environ:
        be_a_rank(options)
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = []
    print(f"{'processes':>9} {'wall s':>8}  CPU s of each")
    for count in options.processes:
        with tempfile.TemporaryDirectory() as folder:
            torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
            own = ["--scene", str(options.scene), "--steps", str(options.steps), "--out", f"{folder}/row"]
            command = [sys.executable, *torchrun, __file__, *own]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found = [json.loads(Path(f"{folder}/row.{rank}").read_text()) for rank in range(count)]
        wall, busy = max(row["wall"] for row in found), [row["cpu"] for row in found]
        rows.append({"processes": count, "steps": options.steps, "wall_seconds": wall, "cpu_seconds": busy})
        print(f"{count:9} {wall:8.1f}  " + ", ".join(f"{seconds:.1f}" for seconds in busy), flush=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


def be_a_rank(options: Options) -> None:
    """Edit, as one of the processes."""
    torch.set_num_threads(1)
    config: Any = METHODS["csd-edit-tiny"]
    config.load_dir, config.output_dir = options.scene, options.out.parent
    config.prompt, config.vis = "make it night", "tensorboard"
    config.max_num_iterations = config.steps_per_save = options.steps
    config.pipeline.steps_per_picture = config.pipeline.turntable_frames = 0
    config.machine.device_type = "cpu"
    config.set_timestamp()
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    step, spent = trainer.train_iteration, {"wall": 0.0, "cpu": 0.0}

    def timed(number: int) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = step(number)
        spent["wall"] += time.perf_counter() - wall
        spent["cpu"] += time.process_time() - cpu
        return result

    trainer.train_iteration = timed
    trainer.train()
    Path(f"{options.out}.{ranks.number()}").write_text(json.dumps(spent))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
