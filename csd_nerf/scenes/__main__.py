"""`python -m csd_nerf.scenes --output FOLDER`: write a procedural scene as a nerfstudio dataset."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional

import tyro

from csd_nerf.errors import exit_on_input_error


@dataclass
class WriteScene:
    """Write a procedural scene as a nerfstudio dataset, with exact cameras, depth and object masks."""

    output: Path
    """Folder to make."""
    scene: Literal["still-life", "room", "corridor"] = "still-life"
    """Things on a table from all around, a furnished room from its middle, or a corridor along its length."""
    views: int = 60
    """Number of pictures."""
    size: int = 128
    """Side of the pictures, in pixels."""
    edit: Optional[str] = None  # noqa: UP045 - the form that tyro resolves on every Python
    """Known edit to render it under: an operator (`night`) or an object's ("the ball is blue")."""
    seed: int = 0
    """Of the cameras."""


def main() -> None:
    """Read the command line and write the dataset, printing a line per picture."""
    options = tyro.cli(WriteScene, prog="python -m csd_nerf.scenes")
    from csd_nerf.scenes.dataset import write_dataset

    def report(done: int) -> None:
        print(f"{done} ({100 * done / options.views:.2f}%)", flush=True)

    with exit_on_input_error():
        write_dataset(
            options.output,
            options.views,
            options.size,
            options.edit,
            options.seed,
            report,
            scene=options.scene,
        )


if __name__ == "__main__":
    main()
