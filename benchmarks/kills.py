"""Does a kill lose anything? Commands are killed at random moments, again and again, and must end the same.

Each command runs once undisturbed. Then it is begun in a new folder, killed (SIGKILL, with all that it began)
after a random part of that time, and what goes on with it is run, perhaps killed as well, until it ends. Its
outcome must be that of the undisturbed run, to `--tolerance`. A run that was killed before its first
checkpoint begins anew.

Run `python benchmarks/kills.py --help` for the settings. Leaves `kills.json` in `--output`. It can be killed
itself: the same command goes on.
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
from safetensors.torch import load_file

from csd_nerf.checkpoints import whole_checkpoints
from csd_nerf.files import whole_file, write_text
from csd_nerf.media import read_clip
from csd_nerf.nerf.runs import read_checkpoint
from csd_nerf.scenes.dataset import write_dataset

OF_PICTURES = ("image", "panorama", "video", "try")
"""Commands whose outcome is rounded to 8 bits."""

LEAST_SECONDS = 0.5
"""Of a command before it is killed: what is left is Python that starts."""

SMALLEST_DEMO = """
import sys
from pathlib import Path
from csd_nerf.demo.demo_command import Demo
from csd_nerf.demo.demo_settings import Sizes

FEW_RAYS = ("--pipeline.datamanager.train-num-rays-per-batch", "128", "--steps-per-save", "4")
SMALL = ("--pipeline.render-size", "32", "--pipeline.picture-size", "32", "--pipeline.fits-per-round", "4")
sizes = Sizes(
    views=10, size=32, picture_size=32, turntable_size=16, turntable_frames=2,
    train_arguments=FEW_RAYS, edit_arguments=(*SMALL, *FEW_RAYS),
)
Demo(Path(sys.argv[1]), prompt="make it night", train_steps=20, edit_steps=12).run(sizes)
"""
"""`csd-nerf demo`, whose sizes are no options."""

SMALLEST_COMPARISON = """
machine: {device_type: cpu}
mixed_precision: false
pipeline:
  prior: tiny-instruct
  particles: 2
  fits_per_round: 4
  render_size: 32
  picture_size: 32
  picture_views: 1
  descent: {steps: 2}
  datamanager: {photo_size: 32}
"""
"""Recipe for `csd-nerf compare`."""


@dataclass
class Settings:
    """What to kill, how often, and what may differ."""

    output: Path
    """Folder for runs and figures."""
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
    data = folder / "still_life"
    scene, edit = folder / "runs/scene/csd-nerfacto-tiny/T", folder / "runs/scene/csd-edit-tiny/T"
    few_rays = ["--pipeline.datamanager.train-num-rays-per-batch", "128"]
    train = ["ns-train", "csd-nerfacto-tiny", "--data", str(data), *_runs(folder), *few_rays]
    small = [
        *("--prompt", "make it night", "--max-num-iterations", "12", "--pipeline.fits-per-round", "4"),
        *("--pipeline.render-size", "32", "--pipeline.picture-size", "32", "--pipeline.picture-views", "2"),
        *("--pipeline.turntable-frames", "3", "--pipeline.particles", "2", "--steps-per-save", "3"),
    ]
    ask = ["ns-train", "csd-edit-tiny", "--load-dir", str(scene), *small, *few_rays]
    picture, wide, frames = folder / "picture.png", folder / "wide.png", folder / "frames"
    recipe = folder / "moment.yaml"
    if not recipe.exists():  # written last
        write_dataset(data, views=12, size=32)
        call([*train, "--max-num-iterations", "40"])
        call([*ask, *_runs(folder)])
        for file, height, width in ((picture, 64, 64), (wide, 96, 224)):
            pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(file)
        frames.mkdir(exist_ok=True)
        for number in range(4):
            Image.fromarray(np.full((64, 64, 3), 40 * number, np.uint8)).save(frames / f"{number}.png")
        recipe.write_text(SMALLEST_COMPARISON, encoding="utf8")

    def trains(*options: str) -> Command:
        words = [*train, "--max-num-iterations", "60", "--steps-per-save", "10", *options]

        def go_on(own: Path) -> list[str]:
            found = whole_checkpoints(_models(own, "csd-nerfacto-tiny"))
            if not found:
                return [*words, *_runs(own)]
            step, file = next(reversed(found.items()))
            if step == 59:  # killed after its last checkpoint: nothing is left to do
                return ["python", "-c", ""]
            left = [*words, *_runs(own), "--load-checkpoint", str(file)]
            left[left.index("--max-num-iterations") + 1] = str(59 - step)
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
            lambda own: _figures(json.loads((own / "e.json").read_text(encoding="utf8"))["figures"]),
        ),
        "demo": same(
            lambda own: ["python", "-c", SMALLEST_DEMO, str(own / "demo")],
            lambda own: np.concatenate(
                [
                    _weights_in(own / "demo" / "runs/scene/csd-nerfacto-tiny/demo/nerfstudio_models"),
                    _weights_in(own / "demo" / "runs/edit/csd-edit-tiny/demo/nerfstudio_models"),
                    [(own / "demo" / name).exists() for name in ("index.html", "pictures/turntable.mp4")],
                ]
            ),
        ),
        "compare": same(
            lambda own: [
                *("csd-nerf", "compare", "--output", str(own / "compare"), "--load-dir", str(scene)),
                *("--prompts", "make it night", "--methods", "csd-edit", "--seeds", "0", "--views", "2"),
                *("--evaluations", "200", "--recipe", str(recipe), "--turntable-frames", "2"),
            ],
            lambda own: _compared(own / "compare"),
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
        "panorama": same(
            lambda own: ["csd-nerf", "panorama", str(wide), *asks, "-o", str(own / "o.png"), "--force"],
            lambda own: np.asarray(Image.open(own / "o.png")).astype(float) / 255,
        ),
        "translate": same(
            lambda own: [
                *("csd-nerf", "translate", "train", "--data", str(data / "images"), *asks[:4]),
                *("--size", "32", "--particles", "2", "--steps", "200", "--no-page", "--force"),
                *("-o", str(own / "o.safetensors")),
            ],
            lambda own: np.concatenate(
                [value.numpy().ravel() for value in load_file(own / "o.safetensors").values()]
            ),
        ),
        "probe": same(
            lambda own: [
                *("csd-nerf", "probe", "--data", str(data / "images"), *asks, "--size", "32", "--force"),
                *("--particles", "8", "-o", str(own / "o.html")),
            ],
            lambda own: _figures(json.loads((own / "o.json").read_text(encoding="utf8"))["by_place"]),
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
    return _weights_in(_models(folder, method))


def _weights_in(models: Path) -> np.ndarray:
    """Of the newest checkpoint, and its step."""
    step, file = next(reversed(whole_checkpoints(models).items()))
    state = read_checkpoint(file)["pipeline"]
    tensors = [value.float().flatten() for value in state.values() if isinstance(value, torch.Tensor)]
    return torch.cat([torch.tensor([float(step)]), *tensors]).numpy()


def _compared(folder: Path) -> np.ndarray:
    """The figures of all rows; the report is there."""
    rows = json.loads((folder / "results.json").read_text(encoding="utf8"))["rows"]
    figures = _figures([row["evaluation"]["figures"] for row in rows])
    return np.append(figures, (folder / "report.html").exists())


def _figures(figures: Any) -> np.ndarray:
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


def undisturbed(command: Command, folder: Path) -> tuple[np.ndarray, float]:
    """What a command's outcome is and how long it takes; kept in its folder for the next time."""
    kept = folder / "outcome.npz"
    if not kept.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        status, seconds, said = call(command.begin(folder))
        if status:
            raise SystemExit(f"{folder.name} fails undisturbed: {said}")
        print(f"{folder.name}: {seconds:.0f} s", flush=True)
        with whole_file(kept) as partial, partial.open("wb") as file:
            np.savez(file, outcome=command.outcome(folder), seconds=seconds)
    with np.load(kept) as saved:
        return saved["outcome"], float(saved["seconds"])


def main(settings: Settings) -> None:
    """Kill, compare, and write the figures; exit status 1 when an outcome was lost or differs."""
    settings.output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    commands = commands_on(settings.output)
    names = [name for name in commands if name in (settings.only or commands)]
    file = settings.output / "kills.json"
    results: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf8")) if file.exists() else []
    while (left := settings.kills - sum(result["kills"] for result in results)) > 0:
        turn = len(results)
        name = names[turn % len(names)]
        expected, seconds = undisturbed(commands[name], settings.output / "undisturbed" / name)
        folder = settings.output / "killed" / f"{name} {turn}"
        shutil.rmtree(folder, ignore_errors=True)
        kills, wrong = killed_and_resumed(
            commands[name],
            folder,
            seconds,
            min(settings.in_a_row, left),
            np.random.default_rng([settings.seed, turn]),
        )
        difference = None
        if not wrong:
            outcome = commands[name].outcome(folder)
            difference = float("inf")
            if outcome.shape == expected.shape:
                difference = float(np.abs(outcome - expected).max())
            allowed = 2 / 255 if name in OF_PICTURES else settings.tolerance
            if difference > allowed:
                wrong = f"differs by {difference:g}"
            else:
                shutil.rmtree(folder)
        results.append({"command": name, "kills": kills, "difference": difference, "wrong": wrong})
        print(f"{name}: {kills} kills, {wrong or f'the same to {difference:.1e}'}", flush=True)
        write_text(file, json.dumps(results, indent=1))
    failed = [result for result in results if result["wrong"]]
    total = sum(result["kills"] for result in results)
    print(f"{total} kills in {len(results)} runs, {len(failed)} of which were lost or differ")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main(tyro.cli(Settings))
