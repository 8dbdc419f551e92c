"""Every method in half precision, as on a GPU: it trains, goes on, is evaluated and rendered.

Here on a CPU, the fields in a stand-in for tiny-cuda-nn; `tests/gpu` does the same where there is a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from half_precision import half_precision_on_a_cpu
from tinycudann_double import installed
from whole_runs import EDITS, check_edit, check_generation, scene_of_three_steps

from csd_nerf.nerf.methods import METHODS

pytestmark = pytest.mark.usefixtures("as_on_a_gpu", "no_weights")


@pytest.fixture(scope="module")
def as_on_a_gpu() -> Iterator[None]:
    with installed(), half_precision_on_a_cpu():
        yield


@pytest.fixture(scope="module")
def scene(as_on_a_gpu: None, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scene_of_three_steps(tmp_path_factory.mktemp("scene"), dataset, "cpu", "tcnn")


@pytest.mark.parametrize("name", EDITS)
def test_an_edit(name: str, scene: Path, tmp_path: Path) -> None:
    check_edit(name, tmp_path, scene, "cpu", "tcnn")


def test_a_generation(tmp_path: Path) -> None:
    check_generation(tmp_path, "cpu", "tcnn")


def test_no_method_is_left_out() -> None:
    tried = {name.split(",")[0] for name in EDITS} | {"csd-nerfacto", "csd-generate"}
    assert tried == {name for name in METHODS if not name.endswith("-tiny")}
