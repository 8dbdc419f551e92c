"""The kernels of a CPU against nerfstudio's own path: values and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.fields.density_fields import HashMLPDensityField
from nerfstudio.fields.nerfacto_field import NerfactoField
from nerfstudio.model_components import losses
from nerfstudio.model_components.ray_samplers import ProposalNetworkSampler
from torch import Tensor

from csd_nerf import threads
from csd_nerf.cpu_field.field_kernels import BLOCK
from csd_nerf.nerf import cpu_sampling
from csd_nerf.nerf.cpu_fields import CpuNerfactoField
from csd_nerf.nerf.cpu_sampling import CpuProposalSampler
from csd_nerf.nerf.generated_model import BlobField
from csd_nerf.nerf.methods import METHODS
from csd_nerf.nerf.model import CsdNerfactoModel

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {},
    # Two proposals, odd widths, rays that blocks cut, and nerfacto's photo codes.
    "odd": {
        "num_levels": 3,
        "hidden_dim": 23,
        "hidden_dim_color": 17,
        "num_proposal_iterations": 2,
        "num_proposal_samples_per_ray": (19, 11),
        "num_nerf_samples_per_ray": 7,
        "proposal_net_args_list": [
            {"hidden_dim": 5, "log2_hashmap_size": 10, "num_levels": 2, "max_res": 64, "use_linear": False},
            {"hidden_dim": 9, "log2_hashmap_size": 11, "num_levels": 3, "max_res": 90, "use_linear": False},
        ],
        "use_appearance_embedding": True,
    },
    "box": {"disable_scene_contraction": True, "proposal_initial_sampler": "uniform"},
    "single jitter": {"use_single_jitter": True},
    # Its grid less fine: a cell of 1/2048 makes much of the last digit of a position.
    "full": {name: getattr(METHODS["csd-nerfacto"].pipeline.model, name) for name in (
        "num_levels", "hidden_dim", "hidden_dim_color", "num_proposal_iterations",
        "num_proposal_samples_per_ray", "num_nerf_samples_per_ray", "proposal_net_args_list",
    )} | {"log2_hashmap_size": 14, "max_res": 256},
}  # fmt: skip


def model(method: str = "csd-nerfacto-tiny", **sizes: Any) -> CsdNerfactoModel:
    """An untrained scene whose grids tell corners apart and whose densities are neither nothing nor walls."""
    config = copy.deepcopy(METHODS[method].pipeline.model)
    for name, value in sizes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    box = SceneBox(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.5, 1.0]]))
    built = config.setup(scene_box=box, num_train_data=4, metadata={}, device="cpu", grad_scaler=None)
    for name, parameter in built.named_parameters():
        if name.endswith("hash_table"):
            torch.nn.init.uniform_(parameter, -1, 1)
    built.field.average_init_density = 1.0
    return built


def rays(count: int = 37) -> RayBundle:
    """From inside and outside of the box, not a whole number of blocks."""
    source = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=source), dim=1)
    return RayBundle(
        origins=torch.randn(count, 3, generator=source),
        directions=directions,
        pixel_area=torch.ones(count, 1),
        camera_indices=torch.randint(4, (count, 1), generator=source),
        metadata={"directions_norm": torch.ones(count, 1)},
    )


@contextmanager
def nerfstudios_own(scene: CsdNerfactoModel) -> Iterator[None]:
    """Let every part answer as its parent class does."""
    plain = [partial(HashMLPDensityField.density_fn, network) for network in scene.proposal_networks]
    with (
        patch.object(CpuNerfactoField, "forward", NerfactoField.forward),
        patch.object(scene, "density_fns", plain),
        patch.object(CpuProposalSampler, "generate_ray_samples", ProposalNetworkSampler.generate_ray_samples),
    ):
        yield


def pass_of(scene: CsdNerfactoModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and losses on some rays, and the gradients that they ask for."""
    torch.manual_seed(2)
    scene.zero_grad()
    outputs = scene(rays())
    levels = outputs.pop("weights_list"), outputs.pop("ray_samples_list")
    assert all(len(of_level) == scene.config.num_proposal_iterations + 1 for of_level in levels)
    outputs["interlevel"], outputs["distortion"] = (
        cpu_sampling.interlevel_loss(*levels),
        cpu_sampling.distortion_loss(*levels),
    )
    outputs |= {f"weights {number}": weights for number, weights in enumerate(levels[0])}
    wanted = torch.rand(outputs["rgb"].shape, generator=torch.Generator().manual_seed(3))
    loss = (outputs["rgb"] - wanted).square().sum() + outputs["accumulation"].square().sum()
    (loss + 50 * outputs["interlevel"] + 50 * outputs["distortion"]).backward()
    gradients = {name: p.grad for name, p in scene.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in outputs.items()}, gradients


@pytest.mark.parametrize("cores", [1, 3])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_scene_in_training_is_nerfstudios(
    sizes: dict[str, Any], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "CORES", cores)
    scene = model(**sizes).train()
    scene.proposal_sampler.set_anneal(0.7)
    with nerfstudios_own(scene):
        outputs, gradients = pass_of(scene)
    own_outputs, own_gradients = pass_of(scene)
    torch.testing.assert_close(own_outputs, outputs, atol=2e-5, rtol=1e-4)
    assert own_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        # The last digit of a sample's position makes a difference in a fine cell.
        tolerance = 3e-3 * float(gradient.abs().max())
        torch.testing.assert_close(own_gradients[name], gradient, atol=tolerance, rtol=1e-3, msg=name)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_scene_that_is_looked_at_is_nerfstudios(sizes: dict[str, Any]) -> None:
    scene = model(**sizes).eval()
    with torch.no_grad(), nerfstudios_own(scene):
        outputs = scene(rays())
    with torch.no_grad():
        torch.testing.assert_close(scene(rays()), outputs, atol=2e-5, rtol=1e-4)


def test_a_generated_scene_is_the_blob_of_the_reference() -> None:
    scene = model("csd-generate").train()
    assert isinstance(scene.field, BlobField)
    with nerfstudios_own(scene):
        outputs, gradients = pass_of(scene)
    own_outputs, own_gradients = pass_of(scene)
    torch.testing.assert_close(own_outputs, outputs, atol=2e-5, rtol=1e-4)
    assert own_gradients.keys() == gradients.keys()


def test_a_core_more_changes_nothing_but_rounding_and_a_repetition_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = model().train()
    passes = []
    for cores in (2, 2, 1):
        monkeypatch.setattr(threads, "CORES", cores)
        passes.append(pass_of(scene))
    first, again, alone = passes
    torch.testing.assert_close(again, first, atol=0, rtol=0)
    torch.testing.assert_close(alone[0], first[0], atol=1e-6, rtol=1e-5)
    for name, gradient in first[1].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(alone[1][name], gradient, atol=1e-5 * scale, rtol=1e-4)


def test_poses_that_are_optimised_get_their_gradient() -> None:
    scene = model(camera_optimizer=CameraOptimizerConfig(mode="SO3xR3")).train()
    _, gradients = pass_of(scene)
    assert gradients["camera_optimizer.pose_adjustment"].abs().max() > 0


def test_a_weight_that_is_not_a_number_shows() -> None:
    scene = model().train()
    with torch.no_grad():
        scene.field.mlp_head.layers[1].weight[0, 0] = float("nan")
        assert scene(rays())["rgb"].isnan().any()


@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, 3 * BLOCK + 1])
def test_any_number_of_samples_fills_its_blocks(count: int) -> None:
    scene = model()
    positions = torch.randn(count, 3, generator=torch.Generator().manual_seed(4))
    network = scene.proposal_networks[0]
    plain = HashMLPDensityField.density_fn(network, positions)
    torch.testing.assert_close(network.density_fn(positions), plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("own", "reference"),
    [
        (cpu_sampling.interlevel_loss, losses.interlevel_loss),
        (cpu_sampling.distortion_loss, losses.distortion_loss),
    ],
)
def test_regularisers_pull_as_nerfstudios(
    own: Callable[..., Tensor], reference: Callable[..., Tensor]
) -> None:
    def gradients(loss: Callable[..., Tensor]) -> list[Tensor | None]:
        torch.manual_seed(5)
        scene = model(**SIZES["odd"]).train()
        outputs = scene(rays())
        for weights in outputs["weights_list"]:
            weights.retain_grad()
        loss(outputs["weights_list"], outputs["ray_samples_list"]).backward()
        return [weights.grad for weights in outputs["weights_list"]]

    for mine, theirs in zip(gradients(own), gradients(reference), strict=True):
        if theirs is None:
            assert mine is None
        else:
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)
