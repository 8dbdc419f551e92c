"""Does a kill lose anything? Commands are killed at random moments, again and again, and must end the same.

Each command runs once undisturbed. Then it is begun in a new folder, killed (SIGKILL, with all that it began)
after a random part of that time, and what goes on with it is run, perhaps killed as well, until it ends. Its
outcome must be that of the undisturbed run, to `--tolerance`. A run that was killed before its first
checkpoint begins anew.

Run `python benchmarks/kills.py --help` for the settings. Leaves `kills.json` in `--output`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image

from csd_nerf.checkpoints import whole_checkpoints
from csd_nerf.media import read_clip
from csd_nerf.nerf.runs import read_checkpoint
from csd_nerf.scenes.dataset import write_dataset

LEAST_SECONDS = 0.5
"""Of a command before it is killed: what is left is Python that starts."""


@dataclass
class Settings:
    """What to kill, how often, and what may differ."""

    output: Path
    """Folder for runs and figures; a new one."""
    kills: int = 50
    """All together, spread evenly over the commands."""
    seed: int = 0
    """Decides the moments."""
    only: tuple[str, ...] = ()
    """Of the commands, these; without it all."""
    in_a_row: int = 2
    """So often a command is killed before it is left to end."""
    tolerance: float = 1e-4
    """Greatest difference of a weight, or of a figure; pictures may differ by 2 of 255."""


@dataclass
class Command:
    """A command that works in a folder of its own.

    Attributes:
        begin: its words, given the folder.
        go_on: the words that go on with what a kill left, given the folder.
        outcome: numbers that must be the same.
    """

    begin: Callable[[Path], list[str]]
    go_on: Callable[[Path], list[str]]
    outcome: Callable[[Path], np.ndarray]


def commands_on(folder: Path) -> dict[str, Command]:
    """Every command, on a still life that is rendered, trained and edited here first."""
    data = write_dataset(folder / "still_life", views=12, size=32)
    scene, edit = folder / "runs/scene/csd-nerfacto-tiny/T", folder / "runs/scene/csd-edit-tiny/T"
    few_rays = ["--pipeline.datamanager.train-num-rays-per-batch", "128"]
    train = ["ns-train", "csd-nerfacto-tiny", "--data", str(data), *_runs(folder), *few_rays]
    call([*train, "--max-num-iterations", "40"])
    small = [
        *("--prompt", "make it night", "--max-num-iterations", "12", "--pipeline.fits-per-round", "4"),
        *("--pipeline.render-size", "32", "--pipeline.picture-size", "32", "--pipeline.picture-views", "2"),
        *("--pipeline.turntable-frames", "3", "--pipeline.particles", "2", "--steps-per-save", "3"),
    ]
    ask = ["ns-train", "csd-edit-tiny", "--load-dir", str(scene), *small, *few_rays]
    call([*ask, *_runs(folder)])
    picture = folder / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(picture)
    frames = folder / "frames"
    frames.mkdir()
    for number in range(4):
        Image.fromarray(np.full((64, 64, 3), 40 * number, np.uint8)).save(frames / f"{number}.png")

    def trains(*options: str) -> Command:
        words = [*train, "--max-num-iterations", "60", "--steps-per-save", "10", *options]

        def go_on(own: Path) -> list[str]:
            found = whole_checkpoints(_models(own, "csd-nerfacto-tiny"))
            if not found:
                return [*words, *_runs(own)]
            step, file = next(reversed(found.items()))
            left = [*words, *_runs(own), "--load-checkpoint", str(file)]
            left[left.index("--max-num-iterations") + 1] = str(max(60 - step - 1, 0))
            return left

        return Command(
            lambda own: [*words, *_runs(own)], go_on, lambda own: _weights(own, "csd-nerfacto-tiny")
        )

    def edits(*options: str) -> Command:
        def go_on(own: Path) -> list[str]:
            if not whole_checkpoints(_models(own, "csd-edit-tiny")):
                return [*ask, *_runs(own), *options]
            run = own / "runs/scene/csd-edit-tiny/T"
            return ["ns-train", "csd-edit-tiny", "--load-dir", str(run), *_runs(own), *options]

        return Command(
            lambda own: [*ask, *_runs(own), *options], go_on, lambda own: _weights(own, "csd-edit-tiny")
        )

    def same(words: Callable[[Path], list[str]], outcome: Callable[[Path], np.ndarray]) -> Command:
        return Command(words, words, outcome)

    asks = ["--prompt", "make it night", "--prior", "tiny-instruct", "--steps", "12"]
    return {
        "train": trains(),
        "train, newest only": trains("--save-only-latest-checkpoint", "True"),
        "edit": edits(),
        "edit, newest only": edits("--save-only-latest-checkpoint", "True"),
        "evaluate": same(
            lambda own: ["csd-nerf", "evaluate", str(edit), "--views", "3", "--output", str(own / "e.json")],
            lambda own: _figures(own / "e.json"),
        ),
        "try": same(
            lambda own: [
                *("csd-nerf", "try", str(scene), "--prompt", "make it night", "--seeds", "2", "--views", "2"),
                *("--output", str(own / "tries")),
            ],
            lambda own: _pictures(own / "tries"),
        ),
        "image": same(
            lambda own: ["csd-nerf", "image", str(picture), *asks, "-o", str(own / "o.png"), "--force"],
            lambda own: np.asarray(Image.open(own / "o.png")).astype(float) / 255,
        ),
        "video": same(
            lambda own: ["csd-nerf", "video", str(frames), *asks, "-o", str(own / "o.mp4"), "--force"],
            lambda own: torch.stack(list(read_clip(own / "o.mp4"))).numpy(),
        ),
    }


def _runs(folder: Path) -> list[str]:
    return [
        *("--output-dir", str(folder / "runs"), "--experiment-name", "scene", "--timestamp", "T"),
        *("--vis", "tensorboard"),
    ]


def _models(folder: Path, method: str) -> Path:
    return folder / "runs/scene" / method / "T/nerfstudio_models"


def _weights(folder: Path, method: str) -> np.ndarray:
    """Of the newest checkpoint, and its step."""
    step, file = next(reversed(whole_checkpoints(_models(folder, method)).items()))
    state = read_checkpoint(file)["pipeline"]
    tensors = [value.float().flatten() for value in state.values() if isinstance(value, torch.Tensor)]
    return torch.cat([torch.tensor([float(step)]), *tensors]).numpy()


def _figures(file: Path) -> np.ndarray:
    figures = json.loads(file.read_text(encoding="utf8"))["figures"]
    numbers: list[float] = []

    def gather(value: Any) -> None:
        if isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                gather(part)
        elif isinstance(value, float):
            numbers.append(value)

    gather(figures)
    return np.array(numbers)


def _pictures(folder: Path) -> np.ndarray:
    files = sorted(folder.rglob("*.png"))
    return np.concatenate([np.asarray(Image.open(file)).astype(float).ravel() / 255 for file in files])


def call(words: list[str], seconds: float | None = None) -> tuple[int, float, str]:
    """Run a command, killed with all it began after so many seconds; its status, time, and last words."""
    program = Path(sys.executable).parent / words[0]
    began = time.monotonic()
    child = subprocess.Popen(
        [str(program), *words[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        said, _ = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        said, _ = child.communicate()
    return child.returncode, time.monotonic() - began, said.decode(errors="replace")[-2000:]


def killed_and_resumed(
    command: Command, folder: Path, seconds: float, kills: int, chance: np.random.Generator
) -> tuple[int, str]:
    """Begin a command, kill it so often, and let it end; how often it was killed, and what went wrong."""
    folder.mkdir(parents=True)
    words = command.begin(folder)
    done = 0
    for _ in range(kills):
        status, _, said = call(words, float(chance.uniform(LEAST_SECONDS, seconds)))
        if status == 0:
            return done, ""
        if status != -signal.SIGKILL:
            return done, f"exit status {status}: {said}"
        done += 1
        words = command.go_on(folder)
    status, _, said = call(words)
    return done, "" if status == 0 else f"exit status {status}: {said}"


def main(settings: Settings) -> None:
    """Kill, compare, and write the figures; exit status 1 when an outcome was lost or differs."""
    settings.output.mkdir(parents=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    commands = commands_on(settings.output)
    names = [name for name in commands if name in (settings.only or commands)]
    expected, seconds = {}, {}
    for name in names:
        folder = settings.output / "undisturbed" / name
        folder.mkdir(parents=True)
        status, seconds[name], said = call(commands[name].begin(folder))
        if status:
            raise SystemExit(f"{name} fails undisturbed: {said}")
        expected[name] = commands[name].outcome(folder)
    chance = np.random.default_rng(settings.seed)
    results: list[dict[str, Any]] = []
    turn = 0
    while sum(result["kills"] for result in results) < settings.kills:
        name = names[turn % len(names)]
        left = settings.kills - sum(result["kills"] for result in results)
        folder = settings.output / "killed" / f"{name} {turn}"
        kills, wrong = killed_and_resumed(
            commands[name], folder, seconds[name], min(settings.in_a_row, left), chance
        )
        difference = None
        if not wrong:
            outcome = commands[name].outcome(folder)
            same_shape = outcome.shape == expected[name].shape
            difference = float(np.abs(outcome - expected[name]).max()) if same_shape else float("inf")
            allowed = 2 / 255 if name in ("image", "video", "try") else settings.tolerance
            if difference > allowed:
                wrong = f"differs by {difference:g}"
            else:
                shutil.rmtree(folder)
        results.append({"command": name, "kills": kills, "difference": difference, "wrong": wrong})
        print(f"{name}: {kills} kills, {wrong or f'the same to {difference:.1e}'}", flush=True)
        (settings.output / "kills.json").write_text(json.dumps(results, indent=1), encoding="utf8")
        turn += 1
    failed = [result for result in results if result["wrong"]]
    total = sum(result["kills"] for result in results)
    print(f"{total} kills in {len(results)} runs, {len(failed)} of which were lost or differ")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main(tyro.cli(Settings))
