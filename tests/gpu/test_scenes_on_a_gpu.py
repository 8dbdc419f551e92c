"""Scenes, edits and generations on a GPU, a few steps of each; with tiny-cuda-nn where it is, and without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import make_edit_config, refusal, run
from nerfstudio.utils.external import TCNN_EXISTS
from whole_runs import EDITS, Implementation, check_edit, check_generation, on, scene_of_three_steps

from csd_nerf.cli import main
from csd_nerf.errors import is_out_of_memory
from csd_nerf.nerf.cost import memory_in_use
from csd_nerf.nerf.prompted_trainer import PromptedTrainer
from csd_nerf.nerf.rendering import render_views
from csd_nerf.nerf.runs import find_run
from csd_nerf.scenes.dataset import write_dataset

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here"),
    pytest.mark.usefixtures("no_weights"),
]
WITH_TCNN = pytest.mark.skipif(not TCNN_EXISTS, reason="needs tiny-cuda-nn, which is not installed")


@pytest.fixture(scope="module", params=["torch", pytest.param("tcnn", marks=WITH_TCNN)])
def implementation(request: pytest.FixtureRequest) -> Implementation:
    return request.param


@pytest.fixture(scope="module")
def scene(implementation: Implementation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a scene of twelve pictures, 32 pixels wide."""
    folder = tmp_path_factory.mktemp("scene")
    dataset = write_dataset(folder / "still_life", views=12, size=32)
    return scene_of_three_steps(folder, dataset, "cuda", implementation)


@pytest.fixture
def full_device() -> Iterator[Any]:
    """Gives a function that leaves nothing on the device but some bytes; they are free again at the end."""
    filled = []

    def fill(but: int) -> None:
        torch.cuda.empty_cache()
        filled.append(torch.empty(torch.cuda.mem_get_info()[0] - but, dtype=torch.uint8, device="cuda"))

    yield fill
    filled.clear()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("name", EDITS)
def test_an_edit(name: str, scene: Path, implementation: Implementation, tmp_path: Path) -> None:
    check_edit(name, tmp_path, scene, "cuda", implementation)


def test_an_edit_whose_prior_is_elsewhere(
    scene: Path, implementation: Implementation, tmp_path: Path
) -> None:
    check_edit(
        *("csd-edit", tmp_path, scene, "cuda", implementation),
        pipeline__prior_device="cpu",
    )


def test_a_generation(implementation: Implementation, tmp_path: Path) -> None:
    check_generation(tmp_path, "cuda", implementation)


def test_candidates(scene: Path, tmp_path: Path) -> None:
    command = ("try", str(scene), "--prompt", "make it night", "--prompt", "make it winter", "--seeds", "2")
    for method, prior in (("csd-edit", ("--prior", "tiny-instruct")), ("csd-edit-tiny", ())):
        folder = tmp_path / method
        main((*command, "--method", method, *prior, "-o", str(folder)))
        assert len(list(folder.glob("*/candidate.json"))) == 4


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


def test_an_edit_that_runs_out_of_memory_is_kept(
    scene: Path,
    implementation: Implementation,
    full_device: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    settings: dict[str, Any] = {
        "max_num_iterations": 6,
        "pipeline__prior": "tiny-instruct",
        "pipeline__fits_per_round": 2,
        "pipeline__render_size": 256,
        **on("cuda", implementation),
    }
    usual = PromptedTrainer.train_iteration

    def without_memory(trainer: Any, step: int) -> Any:
        if step == 4:
            full_device(2**21)
        return usual(trainer, step)

    monkeypatch.setattr(PromptedTrainer, "train_iteration", without_memory)
    config = make_edit_config("csd-edit", tmp_path, scene, **settings)
    assert "memory ran out" in refusal(config, capsys)
    assert find_run(config.get_base_dir()).checkpoint.name == "step-000000003.ckpt"


@WITH_TCNN
def test_tiny_cuda_nns_word_for_it_is_recognised(full_device: Any) -> None:
    import tinycudann

    network = tinycudann.Network(32, 3, {"otype": "FullyFusedMLP", "n_neurons": 64, "n_hidden_layers": 2})
    inputs = torch.rand(2**21, 32, device="cuda")
    full_device(2**25)
    with pytest.raises(RuntimeError) as raised:
        network(inputs)
    assert is_out_of_memory(raised.value)
