"""Running the commands of a job, here or on a worker."""

from __future__ import annotations

from collections.abc import Sequence

from csd_nerf.demo.child import CommandFailed
from csd_nerf.demo.demo_settings import Progress
from csd_nerf.demo.running_stages import StageDisplay, explain, run_stage
from csd_nerf.demo.stages import Stage


def run_stages(stages: Sequence[Stage], progress: Progress, display: StageDisplay) -> str | None:
    """Do what is left of some stages, in their order.

    Returns:
        Why one of them failed, those after it being left; None when all are done.
    """
    try:
        for stage in stages:
            run_stage(stage, progress, display)
    except CommandFailed as failure:
        lines = failure.lines or [explain(failure.status)]
        return "\n".join([*lines, f"All of its output: {failure.log}"])
    return None
