"""A scene that nerfstudio's own processes train: their weights agree, one saves, and it can be edited."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nerf_runs import make_config, make_edit_config, refusal, run
from nerfstudio.pipelines import base_pipeline
from nerfstudio.scripts import train as nerfstudio_train
from processes import in_processes
from torch.nn.parallel import DistributedDataParallel

from csd_nerf.nerf.runs import find_run

STEPS = 3


def scene_config(output: Path, dataset: Path, **changes: Any) -> Any:
    """Of a scene, saved after every second step."""
    settings = {"max_num_iterations": STEPS, "steps_per_save": 2, "timestamp": "scene", **changes}
    rays = {"pipeline__datamanager__train_num_rays_per_batch": 256}
    return make_config("csd-nerfacto-tiny", output, dataset, **rays, **settings)


class OnCPU(DistributedDataParallel):
    """Without the number of a GPU."""

    def __init__(self, model: Any, device_ids: Any, **options: Any) -> None:
        super().__init__(model, **options)


def worker(config: Any, output: Path) -> None:
    """nerfstudio's, on a CPU by gloo: what it says to GPUs alone is left out."""
    rank = int(os.environ.pop("RANK"))
    for name in ("WORLD_SIZE", "LOCAL_RANK"):  # nerfstudio's launcher sets none
        del os.environ[name]
    gpus = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2)
    nerfstudio_train.torch = SimpleNamespace(cuda=gpus, manual_seed=torch.manual_seed)
    base_pipeline.DDP = OnCPU
    base_pipeline.dist = SimpleNamespace(barrier=lambda device_ids: torch.distributed.barrier())
    meeting = f"file://{output / 'meeting'}"
    nerfstudio_train._distributed_worker(rank, trained, 2, 2, 0, meeting, config, device_type="cpu")


def trained(local_rank: int, world_size: int, config: Any, global_rank: int) -> None:
    """nerfstudio's `train_loop`, which also leaves the weights and the rays of each process."""
    nerfstudio_train._set_random_seed(config.machine.seed + global_rank)
    trainer = config.setup(local_rank=local_rank, world_size=world_size)
    trainer.setup()
    trainer.train()
    _, batch = trainer.pipeline.datamanager.next_train(STEPS)
    known = {"weights": trainer.pipeline.model.state_dict(), "pixels": batch["indices"]}
    torch.save(known, config.output_dir / f"{global_rank}.pt")


@pytest.mark.long
def test_a_scene_of_two_processes_of_nerfstudio(dataset: Path, tmp_path: Path) -> None:
    config = scene_config(tmp_path, dataset)
    config.save_config()
    in_processes(2, worker, config, tmp_path)

    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert not torch.equal(first["pixels"], second["pixels"])
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
    folder = config.get_base_dir()
    saved = sorted(path.name for path in folder.glob("nerfstudio_models/*"))
    assert saved == ["step-000000002.ckpt"] and not list(folder.glob(".nerfstudio_models*"))

    edit = make_edit_config("csd-edit-tiny", tmp_path, folder, max_num_iterations=1)
    source = run(edit).pipeline._edit.source_weights
    assert all(torch.equal(source[name], value) for name, value in first["weights"].items())
    on = scene_config(tmp_path / "on", dataset, load_dir=folder, max_num_iterations=1)  # more
    assert run(on).steps_done == STEPS + 1
    assert find_run(on.get_base_dir()).checkpoint.name == f"step-{STEPS:09d}.ckpt"


def test_processes_that_nerfstudio_could_not_begin_are_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    several = scene_config(tmp_path, dataset, machine__num_devices=2)
    assert "--machine.num-devices cannot be used" in refusal(several, capsys)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "begins its processes itself" in refusal(scene_config(tmp_path, dataset), capsys)
