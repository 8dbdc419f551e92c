"""A procedural scene, trained for a moment, that the tests of the plugin edit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nerf_runs import make_config, make_edit_config, run

from csd_nerf.scenes.dataset import write_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of the still life, 32 pixels wide."""
    return write_dataset(tmp_path_factory.mktemp("data") / "still_life", views=12, size=32)


@pytest.fixture(scope="session")
def scene_run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a scene trained for 60 steps."""
    config = make_config(
        "csd-nerfacto-tiny",
        tmp_path_factory.mktemp("scene"),
        dataset,
        max_num_iterations=60,
        timestamp="scene",
        pipeline__datamanager__train_num_rays_per_batch=512,
    )
    return run(config).base_dir


@pytest.fixture
def edit_config(scene_run: Path, tmp_path: Path) -> Any:
    """Makes configurations of a small edit of that scene."""

    def make(method: str = "csd-edit-tiny", **changes: Any) -> Any:
        return make_edit_config(method, tmp_path, scene_run, **changes)

    return make
