"""Fixtures shared by the tests."""

from __future__ import annotations

import json
import os
import random
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinycudann_double
import torch
from half_precision import half_precision_on_a_cpu
from prior_folders import save_motion_adapter
from tinycudann_double import Arena

from csd_nerf.bundled import bundled_path
from csd_nerf.priors import Prior, load_prior

REPOSITORY = Path(__file__).resolve().parent.parent
LONG_FILES = {"test_demo.py", "test_training.py", "test_ranks_of_editors.py", "test_translate_command.py"}
"""Beside those of scenes."""

if "PYTEST_XDIST_WORKER" in os.environ:
    # A process for each core: threads of their own would wait for each other. What tests start inherits it.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take long first: with short ones at the end no core waits for another."""
    items.sort(key=lambda item: "nerf" not in item.path.parts and item.path.name not in LONG_FILES)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Let chance be the same in every test and in the fixtures that it sets up, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_prior() -> Prior:
    """The bundled prior on the CPU, in float32."""
    return load_prior("tiny-instruct", device="cpu", dtype=torch.float32, vae_dtype=torch.float32)


@pytest.fixture(scope="session")
def motion(tiny_prior: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of layers of motion for tiny-instruct, of 8 frames: such as add nothing, and others."""
    root = tmp_path_factory.mktemp("motion")
    return {
        name: str(save_motion_adapter(root / name, tiny_prior.unet, quiet=name == "quiet"))
        for name in ("quiet", "moving")
    }


@pytest.fixture(scope="session")
def text_to_image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-to-image model in diffusers format: the bundled prior's parts about a small untrained U-Net."""
    from diffusers import UNet2DConditionModel

    folder = tmp_path_factory.mktemp("priors") / "text-to-image"
    bundled = bundled_path("tiny-instruct")
    shutil.copytree(bundled, folder, ignore=shutil.ignore_patterns("unet"))
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionPipeline"
    (folder / "model_index.json").write_text(json.dumps(index))

    config = UNet2DConditionModel.load_config(bundled / "unet")
    torch.manual_seed(0)
    smaller = {"block_out_channels": [16, 32, 48], "attention_head_dim": [1, 2, 3]}
    unet = UNet2DConditionModel.from_config({**config, "in_channels": config["out_channels"], **smaller})
    unet.save_pretrained(folder / "unet")
    return folder


@pytest.fixture(scope="session")
def text_to_image_prior(text_to_image_folder: Path) -> Prior:
    """That model on the CPU, in float32."""
    return load_prior(str(text_to_image_folder), device="cpu", dtype=torch.float32, vae_dtype=torch.float32)


@pytest.fixture(scope="session")
def control_net_folder(text_to_image_folder: Path) -> Path:
    """An untrained ControlNet for that model that has something to say: nothing of it is zero."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    folder = text_to_image_folder.with_name("control-net")
    unet = UNet2DConditionModel.from_pretrained(text_to_image_folder, subfolder="unet")
    torch.manual_seed(1)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 16))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if not parameter.any():  # diffusers begins training at zero convolutions, and at zero biases
                parameter.normal_(std=0.2 if name.startswith("controlnet_cond") else 0.05)
    net.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with captured scenes and photos, which is not part of the repository."""
    folder = Path(os.environ.get("CSD_NERF_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the shared data, and {folder} is not there (set CSD_NERF_SHARED)")
    return folder


@pytest.fixture(scope="session")
def alexnet(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torch cache that holds AlexNet's convolutions, which LPIPS compares pictures by."""
    tool = shared / "tools/offline_lpips.py"
    if not tool.is_file():
        pytest.skip(f"needs {tool}")
    home = tmp_path_factory.mktemp("torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [str(tool), str(home)])
        runpy.run_path(str(tool), run_name="__main__")
    return home


@pytest.fixture
def tinycudann() -> Iterator[Arena]:
    """Lets fields run in a stand-in for tiny-cuda-nn, on the CPU; gives the account of what that holds."""
    with tinycudann_double.installed() as arena:
        yield arena


@pytest.fixture
def half_precision() -> Iterator[None]:
    """Lets a CPU train as a GPU does with `mixed_precision`."""
    with half_precision_on_a_cpu():
        yield


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of networks that pictures are measured with: as on a machine that never fetched any."""
    import huggingface_hub.constants

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
