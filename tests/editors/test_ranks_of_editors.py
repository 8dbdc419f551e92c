"""`torchrun -m csd_nerf panorama|video`: several processes edit what one does, and one of them writes."""

from __future__ import annotations

import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from processes import in_processes
from torch.multiprocessing import ProcessExitedException

from csd_nerf import ranks
from csd_nerf.cli import main
from csd_nerf.distillation import Objective

STEPS = 4
COMMON = (
    *("--prior", "tiny-instruct", "--precision", "float32", "--device", "cpu"),
    *("--steps", str(STEPS), "--preview-every", "2"),
)
PANORAMA = (
    *("panorama", "wide.png", "--prompt", "make it night", "make it winter", "--bands", "0.4", "0.6"),
    *("--window-size", "32", "--particles", "3", "-o", "edited.png", *COMMON),
)
VIDEO = (
    *("video", "frames", "--prompt", "make it night", "--size", "32", "--particles", "3"),
    *("--keyframe-stride", "2", "--no-page", "-o", "edited", *COMMON),
)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A picture of several windows and tiles, and frames."""
    rows, columns = np.mgrid[:300, :60]
    wide = np.stack([2 * columns, rows // 2, rows // 2 + 2 * columns], axis=2).astype(np.uint8)
    (tmp_path / "frames").mkdir()
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "wide.png")
    for number in range(5):
        Image.fromarray(wide[10 * number :][:32, :40]).save(tmp_path / "frames" / f"{number}.png")
    return tmp_path


def command(folder: Path, *arguments: str) -> None:
    """In one of several processes, what it prints being kept."""
    os.chdir(folder)
    with Path(f"said-{ranks.number()}.txt").open("w") as said, redirect_stdout(said):
        main(arguments)


@pytest.mark.parametrize("arguments", [PANORAMA, VIDEO], ids=["panorama", "video"])
def test_two_processes_edit_what_one_does(arguments: tuple[str, ...], sources: Path, tmp_path: Path) -> None:
    both = []
    for count in (1, 2):
        in_processes(count, command, sources, *arguments)
        edited = sources / arguments[arguments.index("-o") + 1]
        files = sorted(edited.iterdir()) if edited.is_dir() else [edited]
        both.append(np.stack([np.asarray(Image.open(file)) for file in files]).astype(int))
        edited.rename(sources / f"by-{count}{edited.suffix}")
        for file in sources.glob("edited*"):
            file.unlink()
    assert np.abs(both[0] - both[1]).max() <= 1
    assert not list(sources.glob(".edited*"))


def command_while_one_dies(folder: Path, *arguments: str) -> None:
    """The command, of which the second process ends without a word in its fifth step."""
    gradient, asked = Objective.gradient, []

    def gradient_or_end(objective: Objective, *views: Any, **question: Any) -> Any:
        asked.append(views)
        if ranks.number() == 1 and len(asked) == 5:
            os._exit(7)
        return gradient(objective, *views, **question)

    Objective.gradient = gradient_or_end
    command(folder, *arguments)


def test_when_a_process_dies_the_same_command_goes_on(sources: Path) -> None:
    with pytest.raises(ProcessExitedException):
        in_processes(2, command_while_one_dies, sources, *VIDEO)
    said = (sources / "said-0.txt").read_text()
    assert "Stopped after 4 steps" in said and "The same command goes on from there" in said
    assert (sources / ".edited.unfinished").exists() and not (sources / "edited").exists()
    in_processes(1, command, sources, *VIDEO)
    assert len(list((sources / "edited").iterdir())) == 5
