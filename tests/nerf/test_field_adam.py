"""The optimiser of fields: entries of hash grids go a share of the way, in either layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import run
from nerfstudio.field_components.mlp import MLPWithHashEncoding
from tinycudann_double import Arena, NetworkWithInputEncoding
from torch import nn

from csd_nerf.errors import InputError
from csd_nerf.nerf.field_adam import FieldAdamConfig
from csd_nerf.nerf.hash_grid import grid_entries, mark_hash_grids
from csd_nerf.nerf.runs import find_run, read_checkpoint

SHARE = 0.2


def density(implementation: str, **sizes: int) -> MLPWithHashEncoding:
    """Layers behind a hash grid, marked."""
    torch.manual_seed(0)
    sizes = {"num_levels": 3, "log2_hashmap_size": 6, "layer_width": 16, "out_dim": 5, **sizes}
    module = MLPWithHashEncoding(implementation=implementation, **sizes)  # type: ignore[arg-type]
    mark_hash_grids(module)
    return module


def trained(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """All parameters after four steps on given gradients, the last of them twice as fast."""
    generator = torch.Generator().manual_seed(1)
    for step in range(4):
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        if step == 3:
            for group in optimizer.param_groups:
                group["lr"] *= 2
        optimizer.step()
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_is_adam_with_a_group_of_entries_at_a_share_of_the_rate(weight_decay: float) -> None:
    module = density("torch")
    config = FieldAdamConfig(lr=0.01, weight_decay=weight_decay, hash_grid=SHARE)
    found = trained(module, config.setup(module.parameters()))

    module = density("torch")
    encoder, layers = module.model
    groups = [{"params": encoder.parameters(), "lr": 0.01 * SHARE}, {"params": layers.parameters()}]
    plain = torch.optim.Adam(groups, lr=0.01, eps=config.eps, weight_decay=weight_decay)
    torch.testing.assert_close(found, trained(module, plain), atol=1e-6, rtol=1e-6)


def test_the_whole_share_is_plain_adam() -> None:
    module = density("torch")
    assert type(FieldAdamConfig(hash_grid=1).setup(module.parameters())) is torch.optim.Adam


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=r"(?s)hash_grid.*0 to 1"):
        FieldAdamConfig(hash_grid=share).setup(density("torch").parameters())


@pytest.mark.parametrize(
    "sizes", [{}, {"num_levels": 8, "out_dim": 16}, {"layer_width": 64, "num_layers": 3, "out_dim": 17}]
)
def test_entries_in_the_layout_of_tiny_cuda_nn(tinycudann: Arena, sizes: dict[str, int]) -> None:
    """Layers first, of widths padded to 16; they go the whole way and the entries their share."""
    module = density("tcnn", **sizes)
    assert isinstance(module.model, NetworkWithInputEncoding)
    entries = grid_entries(module.model.params)
    assert entries is not None and len(entries) == module.num_levels * 2**6 * 2
    assert entries.abs().max() < 2e-4 < module.model.params.abs().max()  # as initialised
    before = module.model.params.detach().clone()
    optimizer = FieldAdamConfig(lr=0.01, hash_grid=SHARE).setup(module.parameters())
    module.model.params.grad = torch.ones_like(module.model.params)
    optimizer.step()
    moved = (before - module.model.params.detach()) / 0.01
    layers, grid = moved.tensor_split([len(moved) - len(entries)])
    torch.testing.assert_close(layers, torch.ones_like(layers), atol=1e-3, rtol=0)
    torch.testing.assert_close(grid, torch.full_like(grid, SHARE), atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", ["csd-edit-tiny", "in2n-baseline"])
def test_the_first_step_of_an_edit(method: str, edit_config: Any, scene_run: Path) -> None:
    """It moves whatever has a gradient by the method's rate, and entries by their share of it."""
    config = edit_config(method, recipe=None if method == "csd-edit-tiny" else "tiny", max_num_iterations=1)
    edited = run(config).pipeline.model.state_dict()
    source = read_checkpoint(find_run(scene_run).checkpoint)["pipeline"]
    moved = {
        name: float((value - source[f"_model.{name}"]).abs().max())
        for name, value in edited.items()
        if name.startswith("field.mlp")
    }
    grid = moved.pop("field.mlp_base.model.0.hash_table")
    adam = config.optimizers["fields"]["optimizer"]
    assert grid == pytest.approx(adam.lr * adam.hash_grid, rel=1e-2)
    assert max(moved.values()) == pytest.approx(adam.lr, rel=1e-2)
