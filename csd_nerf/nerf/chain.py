"""What a run was made from, back to the scene that was captured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csd_nerf.nerf.cost import Cost, read_cost
from csd_nerf.nerf.runs import find_run


@dataclass(frozen=True)
class Link:
    """A run of a chain.

    Attributes:
        folder: of the run.
        method: its name; empty for checkpoints without a config.yml, and of what is gone.
        prompt: of an edit; empty for the scene that was captured.
        strength: how much of the edit is shown, 0..1.
        cost: of the edit, where it was counted.
        gone: whether it was moved or removed since.
    """

    folder: Path
    method: str = ""
    prompt: str = ""
    strength: float = 1.0
    cost: Cost | None = None
    gone: bool = False

    def picture(self, name: str) -> Path | None:
        """Its picture `before.png` or `after.png`; None where it has none."""
        file = self.folder / "pictures" / name
        return file if file.exists() else None


def chain_of(path: Path) -> list[Link]:
    """The runs from the captured scene to this one. Where one is gone, those before it are unknown: the chain
    begins with the one that is gone.

    Args:
        path: a run folder, its config.yml, its folder of checkpoints, or one checkpoint.

    Raises:
        InputError: there is no run at the path.
    """
    links: list[Link] = []
    start: Path | None = path
    while start is not None:
        run = find_run(start)
        folder = run.checkpoint.parent.parent
        config: Any = run.config
        if not hasattr(getattr(config, "pipeline", None), "source_checkpoint"):  # no edit
            links.append(Link(folder, str(config.method_name) if config else ""))
            break
        links.append(_edit(folder, config))
        start = config.pipeline.source_checkpoint
        if start is not None and not start.exists():
            links.append(Link(start.parent.parent, gone=True))
            break
        if start is not None and start.parent.parent in (link.folder for link in links):
            break  # a configuration that somebody changed
    return links[::-1]


def _edit(folder: Path, config: Any) -> Link:
    pipeline = config.pipeline
    return Link(folder, str(config.method_name), pipeline.prompt, pipeline.strength, read_cost(folder))
