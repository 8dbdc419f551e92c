"""Scenes, edits and generations on a GPU, a few steps of each; with tiny-cuda-nn where it is, and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import make_edit_config, run
from nerfstudio.utils.external import TCNN_EXISTS
from whole_runs import Implementation, check_edit, check_generation, on, scene_of_three_steps

from csd_nerf.nerf.cost import memory_in_use
from csd_nerf.nerf.rendering import render_views
from csd_nerf.scenes.dataset import write_dataset

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here"),
    pytest.mark.usefixtures("no_weights"),
]
WITH_TCNN = pytest.param(
    "tcnn", marks=pytest.mark.skipif(not TCNN_EXISTS, reason="needs tiny-cuda-nn, which is not installed")
)


@pytest.fixture(scope="module", params=["torch", WITH_TCNN])
def implementation(request: pytest.FixtureRequest) -> Implementation:
    return request.param


@pytest.fixture(scope="module")
def scene(implementation: Implementation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a scene of twelve pictures, 32 pixels wide."""
    folder = tmp_path_factory.mktemp("scene")
    dataset = write_dataset(folder / "still_life", views=12, size=32)
    return scene_of_three_steps(folder, dataset, "cuda", implementation)


@pytest.mark.parametrize(
    "name",
    [
        "csd-edit",
        "csd-edit, published gradient",
        "csd-edit, region and frozen geometry",
        "csd-edit-dataset",
        "in2n-baseline",
    ],
)
def test_an_edit(name: str, scene: Path, implementation: Implementation, tmp_path: Path) -> None:
    check_edit(name, tmp_path, scene, "cuda", implementation)


def test_a_generation(implementation: Implementation, tmp_path: Path) -> None:
    check_generation(tmp_path, "cuda", implementation)


def test_memory_between_the_passes_does_not_grow_with_the_views(
    scene: Path, implementation: Implementation, tmp_path: Path
) -> None:
    """Of the whole device, so that what tiny-cuda-nn holds counts: a few bytes a pixel, not its samples."""
    settings: dict[str, Any] = {
        "max_num_iterations": 1,
        "pipeline__prior": "tiny-instruct",
        **on("cuda", implementation),
    }
    pipeline = run(make_edit_config("csd-edit", tmp_path, scene, **settings)).pipeline.train()
    cameras = pipeline.datamanager.train_cameras(512, 512)

    def step(views: int) -> int:
        rendered = render_views(pipeline.model, cameras, list(range(views)), rays_per_chunk=16384)
        rendered.images.sum().backward()
        torch.cuda.synchronize()
        return memory_in_use("cuda")

    few, many = step(1), step(6)
    assert (many - few) / (5 * 512 * 512) < 1000
