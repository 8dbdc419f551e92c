"""An edit in another strength, saved as a run of its own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import yaml

from csd_nerf.files import whole_file
from csd_nerf.nerf.cost import read_cost, write_cost
from csd_nerf.nerf.edited_run import EditedRun
from csd_nerf.nerf.runs import find_run, read_checkpoint
from csd_nerf.nerf.sheets import save_png, sheet

BESIDE_CONFIG = "dataparser_transforms.json"
"""What nerfstudio leaves in a run folder, beside the configuration, for cameras of other programs."""


def save_blend(run: EditedRun, strength: float, folder: Path) -> None:
    """Save an edit as a run that shows so much of it, and beside it pictures of before and after.

    The fields of source and edit are both in its checkpoint.

    Args:
        run: of the edit. Its pipeline shows it at this strength afterwards.
        strength: 0 is the source, 1 the edit.
        folder: to be made; written whole or not at all.

    Raises:
        InputError: the scene that the edit started from is gone, or the file system refuses.
    """
    pipeline = run.pipeline
    pipeline.show_at(0)
    before = pipeline.eval_pictures()
    pipeline.show_at(strength)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(folder) as partial:
        (partial / "pictures").mkdir(parents=True)
        save_png(sheet([before]), partial / "pictures" / "before.png")
        save_png(sheet([pipeline.eval_pictures()]), partial / "pictures" / "after.png")
        config: Any = copy.deepcopy(find_run(run.checkpoint).config)
        config.pipeline.strength = strength
        config.run_folder = folder
        (partial / "config.yml").write_text(yaml.dump(config), encoding="utf8")  # as nerfstudio
        checkpoints = partial / config.relative_model_dir
        checkpoints.mkdir()
        torch.save(_checkpoint(run, strength), checkpoints / run.checkpoint.name)
        transforms = run.folder / BESIDE_CONFIG
        if transforms.exists():
            (partial / BESIDE_CONFIG).write_bytes(transforms.read_bytes())
        cost = read_cost(run.folder)
        if cost is not None:
            write_cost(partial, cost)


def _checkpoint(run: EditedRun, strength: float) -> dict[str, Any]:
    """The edit's, with the weights of both scenes."""
    saved = read_checkpoint(run.checkpoint)
    model = {f"_model.{name}": value for name, value in run.pipeline.model.state_dict().items()}
    state = {**saved["pipeline"]["_extra_state"], "strength": {"configured": strength, "current": strength}}
    return {**saved, "pipeline": {**saved["pipeline"], **model, "_extra_state": state}}
