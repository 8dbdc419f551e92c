"""The scene that an edit started from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csd_nerf.errors import InputError
from csd_nerf.nerf.rendering import holding
from csd_nerf.nerf.runs import read_checkpoint

if TYPE_CHECKING:
    from csd_nerf.nerf.edit_pipeline import EditPipeline


def source_checkpoint(config: Any) -> Path:
    """The checkpoint of the scene before the edit.

    Args:
        config: of the edit's pipeline.

    Raises:
        InputError: when it is gone.
    """
    source = config.source_checkpoint
    if source is None or not source.exists():
        raise InputError(
            "the scene that this edit started from is gone",
            expected=f"{source}, for pictures before the edit and the viewer's undo",
            got="no such file",
            hint="put the source run back where it was",
        )
    return source


@contextmanager
def source_scene(pipeline: EditPipeline) -> Iterator[None]:
    """Within it, the pipeline holds the scene before the edit.

    Raises:
        InputError: when that is gone.
    """
    source = source_checkpoint(pipeline.config)
    with holding(pipeline.model, pipeline.model.state_dict()):
        pipeline.model.load_scene(read_checkpoint(source)["pipeline"], str(source))
        yield
