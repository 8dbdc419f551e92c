"""The options of `csd-nerf compare`."""

from __future__ import annotations

import shlex
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from csd_nerf.evaluation.weights import CLIP

PLACEMENT = ("ray", "gpus_per_edit", "cpus_per_edit", "memory_per_edit")
"""Options that say where edits run, and not what they are."""


@dataclass
class CompareOptions:
    """What is to be compared, and how."""

    output: Path = Path("csd-nerf-compare")
    """Folder for everything: report, figures, pictures, runs and logs."""
    data: Path | None = None
    """A captured scene in nerfstudio's format. Without it and --load-dir a still life is rendered."""
    load_dir: Path | None = None
    """Run folder of the trained scene. Without it one is trained by csd-nerfacto-tiny."""
    prompts: tuple[str, ...] = ()
    """Instructions to follow, each in quotes."""
    descriptions: tuple[str, ...] = ()
    """For each instruction what the edited scene shows, for CLIP and for text-to-image methods (dds-edit and
    its kin): "a bear statue at night". The bundled prior's instructions bring their own."""
    source_description: str = ""
    """What the scene shows before: "a bear statue"."""
    methods: tuple[str, ...] = ("csd-edit", "in2n-baseline", "per-view")
    """Editing methods of nerfstudio, and per-view: each view by itself, by InstructPix2Pix."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the edits; their spread is in the report."""
    evaluations: tuple[int, ...] = ()
    """Budgets in U-Net evaluations, rising: every edit is measured when it has spent one, and goes on to the
    next. Without this and --minutes: 1600 4800."""
    minutes: tuple[float, ...] = ()
    """Budgets in minutes instead, which the steps of each edit may take on this machine, rising."""
    recipe: str | None = None
    """Settings of all methods: `tiny` (two CPU cores, with the bundled priors), or a YAML file."""
    runs: tuple[Path, ...] = ()
    """Run folders of edits of this scene that are there already, to be measured beside the others. Without
    prompts they are compared by themselves."""
    train_steps: int = 2000
    """Steps of a scene that is trained on the way."""
    views: int = 12
    """Evaluation cameras; fewer when there are fewer."""
    size: int | None = None
    """Short side of the measured pictures in pixels. Without it: csd-edit's --pipeline.picture-size."""
    per_view_steps: int = 20
    """Sampling steps of per-view."""
    turntable_frames: int = 24
    """Frames of the report's videos, of the first seed; 0 for none."""
    clip: str = CLIP
    """CLIP to measure with: a hub id, or a folder in transformers' format."""
    download: bool = False
    """Fetch weights of metrics that are not here: CLIP (1.7 GB), DINO (0.3 GB), AlexNet (0.2 GB)."""
    ray: tuple[str, ...] | None = None
    """Run edits beside each other as tasks of Ray: `--ray` on the cluster of this machine, which is begun if
    there is none, or `--ray ADDRESS`. Needs `pip install 'csd-nerf[cluster]'`."""
    gpus_per_edit: float | None = None
    """With --ray, GPUs of an edit; a fraction lets several share one. Without it: 1 where there are any."""
    cpus_per_edit: int = 1
    """With --ray, cores of an edit."""
    memory_per_edit: float = 4.0
    """With --ray, GiB of memory that are set aside for an edit."""

    def command_line(self, *, placed: bool = True) -> str:
        """The command with these options, defaults left out.

        Args:
            placed: with where its edits run, which decides none of the figures.
        """
        words = ["csd-nerf", "compare"]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.default is not MISSING and value == field.default:
                continue
            if not placed and field.name in PLACEMENT:
                continue
            words.append(f"--{field.name.replace('_', '-')}")
            if not isinstance(value, bool):
                words += map(str, value) if isinstance(value, tuple) else [str(value)]
        return shlex.join(words)
