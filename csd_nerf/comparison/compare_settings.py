"""What is compared, and how: everything that decides the figures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Instruction:
    """What is asked of the methods.

    Attributes:
        prompt: what to change, for models that take instructions.
        description: what the edited scene shows, for text-to-image models and CLIP; empty when not given.
    """

    prompt: str
    description: str = ""

    @property
    def folder(self) -> str:
        """A name for files, different for different prompts."""
        plain = re.sub(r"[^a-z0-9]+", "-", self.prompt.lower()).strip("-")[:40]
        if plain.replace("-", " ") == self.prompt:
            return plain
        return f"{plain}-{hashlib.sha256(self.prompt.encode()).hexdigest()[:6]}".strip("-")


@dataclass(frozen=True)
class Budget:
    """What an edit may spend.

    Attributes:
        amount: of the unit.
        unit: rows through the U-Net, or minutes of wall time that the steps of the edit take.
    """

    amount: float
    unit: Literal["evaluations", "minutes"]

    def __str__(self) -> str:
        if self.unit == "evaluations":
            return f"{self.amount} U-Net evaluations"
        return "1 minute" if self.amount == 1 else f"{self.amount:g} minutes"

    @property
    def folder(self) -> str:
        """A name for files."""
        return str(self.amount) if self.unit == "evaluations" else f"{self.amount:g}-minutes"


@dataclass(frozen=True)
class Measures:
    """What all edits of a comparison share; a folder holds edits with one of these.

    Attributes:
        data: dataset, absolute; None for that of `source`, or the rendered still life.
        source: checkpoint of the scene, absolute; None for one that is trained on the way.
        train_steps: of a scene that is trained on the way.
        recipe: name, or absolute path.
        evaluations: budgets in U-Net evaluations, rising; each edit is measured when it has spent one.
            Empty where the budgets are in minutes.
        views: evaluation cameras.
        size: short side of the measured pictures, in pixels.
        source_description: what the scene shows before the edit; empty when not given.
        clip: hub id or folder.
        per_view_steps: DDIM steps of the edits view by view.
        turntable_frames: of the videos.
        minutes: budgets in minutes, rising, instead of those in evaluations.
    """

    data: str | None
    source: str | None
    train_steps: int
    recipe: str | None
    evaluations: tuple[int, ...]
    views: int
    size: int
    source_description: str
    clip: str
    per_view_steps: int
    turntable_frames: int
    minutes: tuple[float, ...] = ()

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """Rising."""
        evaluations = (Budget(amount, "evaluations") for amount in self.evaluations)
        return (*evaluations, *(Budget(amount, "minutes") for amount in self.minutes))

    def as_json(self) -> dict[str, Any]:
        """As JSON gives it back: lists instead of tuples."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


@dataclass(frozen=True)
class CompareSettings:
    """A comparison. What is asked for may grow from one call to the next; the measures stay.

    Attributes:
        measures: shared by all edits.
        instructions: that the methods are given.
        methods: names, see `csd_nerf.comparison.budget`.
        seeds: of the edits.
        given: run folders of edits that were made elsewhere, absolute.
        download: fetch weights of metrics that are not on this machine.
    """

    measures: Measures
    instructions: tuple[Instruction, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    given: tuple[Path, ...]
    download: bool
