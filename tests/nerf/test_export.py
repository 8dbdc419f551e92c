"""`ns-export` of edits and of generated scenes, which train on no rays of photos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import make_config, run
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils.eval_utils import eval_setup

Make = Any

EDITS: dict[str, dict[str, Any]] = {
    "csd-edit-tiny": {
        "pipeline__region__source": "box",
        "pipeline__region__box_center": (0.0, 0.0, 0.0),
        "pipeline__region__box_size": (50.0, 50.0, 50.0),
    },
    "csd-edit-dataset": {"pipeline__particles": 3, "pipeline__descent__steps": 1},
    "refit-baseline": {"pipeline__particles": 2, "pipeline__sampling__steps": 2},
    "in2n-baseline": {"pipeline__sampling__steps": 2},  # its patches are as large as the photos
}
GENERATED: dict[str, Any] = {
    "recipe": "tiny",
    "prompt": "a bear at night",
    "max_num_iterations": 1,
    "timestamp": "generated",
    "pipeline__datamanager__orbit_views": 3,
    "pipeline__datamanager__orbit_size": 24,
    "pipeline__picture_size": 32,
    "pipeline__picture_views": 1,
    "pipeline__turntable_frames": 0,
}


@pytest.fixture(params=[*EDITS, "csd-generate"])
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def config_file(method: str, edit_config: Make, tmp_path: Path) -> Path:
    """The config.yml of a run of a step."""
    if method == "csd-generate":
        config = make_config(method, tmp_path, None, **GENERATED)
    else:
        recipe = {} if method.endswith("tiny") else {"recipe": "tiny"}
        few: dict[str, Any] = {"max_num_iterations": 1, "pipeline__turntable_frames": 0}
        config = edit_config(method, **recipe, **few, **EDITS[method])
    return run(config).base_dir / "config.yml"


def test_a_run_can_be_exported_as_points(
    method: str, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    get = InputDataset.__getitem__
    monkeypatch.setattr(
        InputDataset, "__getitem__", lambda data, index: read.append(index) or get(data, index)
    )
    _, pipeline, _, _ = eval_setup(config_file)
    manager = pipeline.datamanager
    assert not read  # photos are read when points are asked for
    manager.train_pixel_sampler.num_rays_per_batch = 300
    for _ in range(2):
        rays, batch = manager.next_train(0)
        assert rays.shape == (300,) and batch["image"].shape == (300, 3)
        which, row, column = batch["indices"].unbind(1)
        assert len(which.unique()) == len(manager.train_dataset)
        place = torch.stack([row, column], dim=1) + 0.5
        expected = manager.train_dataset.cameras.generate_rays(which[:, None], coords=place)
        torch.testing.assert_close(rays.origins, expected.origins)
        torch.testing.assert_close(rays.directions, expected.directions)
        photos = torch.stack([get(manager.train_dataset, int(index))["image"][..., :3] for index in which])
        torch.testing.assert_close(batch["image"], photos[torch.arange(300), row, column])
        with torch.no_grad():
            outputs = pipeline.model(rays)
        assert {"rgb", "depth", "accumulation"} <= outputs.keys()
    assert len(read) == len(manager.train_dataset)  # once each


@pytest.fixture
def exporter() -> Any:
    """The module behind `ns-export`."""
    try:
        from nerfstudio.scripts import exporter
    except (ImportError, OSError) as error:
        pytest.skip(f"nerfstudio's exporter cannot be imported here: {error}")
    return exporter


def test_ns_export_writes_all_that_the_readme_names(exporter: Any, config_file: Path, tmp_path: Path) -> None:
    points, rays = {"num_points": 400, "normal_method": "open3d"}, {"num_rays_per_batch": 500}
    exporter.ExportPointCloud(config_file, tmp_path / "points", **points, **rays).main()
    assert (tmp_path / "points" / "point_cloud.ply").stat().st_size > 400 * 3 * 4

    exporter.ExportPoissonMesh(
        config_file, tmp_path / "poisson", texture_method="point_cloud", **points, **rays
    ).main()
    assert (tmp_path / "poisson" / "poisson_mesh.ply").stat().st_size > 500

    exporter.ExportTSDFMesh(
        config_file, tmp_path / "tsdf", downscale_factor=1, resolution=[16] * 3, texture_method="tsdf"
    ).main()
    assert (tmp_path / "tsdf" / "tsdf_mesh.ply").stat().st_size > 100

    exporter.ExportCameraPoses(config_file, tmp_path / "cameras").main()
    frames = json.loads((tmp_path / "cameras" / "transforms_train.json").read_text())
    _, pipeline, _, _ = eval_setup(config_file)
    assert len(frames) == len(pipeline.datamanager.train_dataset) and "transform" in frames[0]
