"""The `csd-nerf` command. A subcommand is a dataclass of its options with a method `run`.

This module and those of the dataclasses import nothing heavy, so that `csd-nerf --help` is quick; what a
subcommand works with is imported when it runs.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from csd_nerf.comparison.compare_command import Compare
from csd_nerf.demo.demo_command import Demo
from csd_nerf.editors.base_command import EditCommand
from csd_nerf.editors.picture_command import Image, Panorama
from csd_nerf.editors.video_command import Video
from csd_nerf.errors import exit_on_input_error
from csd_nerf.history.history_command import History
from csd_nerf.nerf.blend_command import Blend
from csd_nerf.nerf.evaluate_command import Evaluate
from csd_nerf.probing.probe_command import Probe
from csd_nerf.programs import begin_program
from csd_nerf.translation.translate_command import Translate
from csd_nerf.trying.try_command import Try

COMMANDS: dict[str, Callable[..., Any]] = {
    "blend": Blend,
    "compare": Compare,
    "demo": Demo,
    "evaluate": Evaluate,
    "history": History,
    "image": Image,
    "panorama": Panorama,
    "probe": Probe,
    "translate": Translate,
    "try": Try,
    "video": Video,
}

EXIT_STATUS_INTERRUPTED = 130
EXIT_STATUS_TERMINATED = 143


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a subcommand.

    Args:
        arguments: of the command line; None takes the process's own.

    Raises:
        SystemExit: 2 for bad input, 130 after Ctrl-C, 143 when terminated, 1 for other failures.
    """
    begin_program()
    arguments = sys.argv[1:] if arguments is None else arguments
    app = tyro.extras.SubcommandApp()
    for name, options in COMMANDS.items():
        app.command(name=name)(options)
    command = app.cli(
        prog="csd-nerf",
        description="Edit 3-D scenes, pictures and clips by text with Collaborative Score Distillation.",
        args=arguments,
    )
    signal.signal(signal.SIGTERM, _exit_as_terminated)
    try:
        with exit_on_input_error():
            if isinstance(command, (EditCommand, Translate)):
                command = command.with_recipe(arguments)
            command.run()
    except KeyboardInterrupt:
        raise SystemExit(EXIT_STATUS_INTERRUPTED) from None


def _exit_as_terminated(*_: Any) -> None:
    """Leave through the `finally` clauses, which stop what this process started."""
    raise SystemExit(EXIT_STATUS_TERMINATED)


if __name__ == "__main__":
    main()
