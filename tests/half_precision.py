"""Training on a CPU as a GPU does with `mixed_precision`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch


@contextmanager
def half_precision_on_a_cpu() -> Iterator[None]:
    """In float16 under autocast, with a loss scale; nerfstudio would do without both there."""
    from nerfstudio.engine import trainer

    begin = trainer.Trainer.__init__

    def begin_mixed(self: Any, config: Any, *arguments: Any, **options: Any) -> None:
        begin(self, config, *arguments, **options)
        self.mixed_precision = config.mixed_precision

    usual = torch.get_autocast_dtype("cpu")
    torch.set_autocast_dtype("cpu", torch.float16)
    try:
        with (
            patch.object(trainer.Trainer, "__init__", begin_mixed),
            patch.object(trainer, "GradScaler", partial(torch.amp.GradScaler, "cpu")),
        ):
            yield
    finally:
        torch.set_autocast_dtype("cpu", usual)
