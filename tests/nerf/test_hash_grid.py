from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.field_components.encodings import HashEncoding
from torch.utils.checkpoint import checkpoint

from csd_nerf.nerf.hash_grid import encode
from csd_nerf.nerf.methods import METHODS


@pytest.fixture
def grid() -> HashEncoding:
    """Nerfstudio's own, with features that tell corners apart; its finest level collides in the table."""
    torch.manual_seed(0)
    return HashEncoding(
        num_levels=4,
        min_res=8,
        max_res=200,
        log2_hashmap_size=12,
        features_per_level=2,
        hash_init_scale=1.0,
        implementation="torch",
    )


def positions() -> torch.Tensor:
    """Random ones, and those where a position lies on a cell's face."""
    inside = torch.rand(5, 100, 3, generator=torch.Generator().manual_seed(1))
    faces = torch.tensor([0.0, 0.125, 0.5, 1.0])
    return torch.cat([inside.reshape(-1, 3), torch.cartesian_prod(faces, faces, faces)])


def test_equals_nerfstudios_own_forward_and_backward(grid: HashEncoding) -> None:
    wanted = torch.randn(len(positions()), 8, generator=torch.Generator().manual_seed(2))

    def features_and_gradient(function: Any) -> tuple[torch.Tensor, torch.Tensor]:
        grid.zero_grad()
        features = function(positions())
        features.backward(wanted)
        assert grid.hash_table.grad is not None
        return features.detach(), grid.hash_table.grad

    plain = features_and_gradient(grid.pytorch_fwd)
    torch.testing.assert_close(
        features_and_gradient(lambda at: encode(grid, at)), plain, atol=1e-5, rtol=1e-5
    )
    checkpointed = features_and_gradient(lambda at: checkpoint(encode, grid, at, use_reentrant=False))
    torch.testing.assert_close(checkpointed, plain, atol=1e-5, rtol=1e-5)


def test_keeps_leading_dimensions(grid: HashEncoding) -> None:
    at = torch.rand(2, 3, 5, 3)
    torch.testing.assert_close(encode(grid, at), grid.pytorch_fwd(at))


@pytest.mark.parametrize(
    ("poses", "frozen", "fast"), [("off", False, True), ("SO3xR3", False, False), ("SO3xR3", True, True)]
)
def test_optimised_poses_keep_the_encoding_that_has_a_gradient_for_them(
    poses: Any, frozen: bool, fast: bool
) -> None:
    config = copy.deepcopy(METHODS["csd-nerfacto-tiny"].pipeline.model)
    config.camera_optimizer = CameraOptimizerConfig(mode=poses)
    box = SceneBox(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
    model = config.setup(scene_box=box, num_train_data=1, metadata={}, device="cpu", grad_scaler=None)
    if frozen:  # as in an edit
        model.freeze_poses()
    grids = [module for module in model.modules() if isinstance(module, HashEncoding)]
    assert len(grids) == 2
    for module in grids:
        at = torch.rand(4, 3, requires_grad=True)
        module(at).sum().backward()
        assert (at.grad is None) == fast
