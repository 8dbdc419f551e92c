"""Nerfacto for scenes that will be edited: builds offline, and loads what stock nerfacto saved."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Type  # noqa: UP035 - nerfstudio's own `_target` annotation, which tyro resolves
from unittest.mock import patch

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from nerfstudio.utils.external import TCNN_EXISTS
from torch import Tensor, nn

from csd_nerf.errors import InputError
from csd_nerf.nerf.before import RGB_BEFORE, SceneBefore
from csd_nerf.nerf.cpu_fields import CpuDensityField, CpuNerfactoField
from csd_nerf.nerf.cpu_sampling import CpuProposalSampler, distortion_loss, interlevel_loss
from csd_nerf.nerf.hash_grid import mark_hash_grids, use_fast_hash_grids
from csd_nerf.threads import one_for_torch

Implementation = Literal["tcnn", "torch"]
"""What the fields run in: tiny-cuda-nn or torch. Neither loads the weights of the other."""


@dataclass
class CsdNerfactoModelConfig(NerfactoModelConfig):
    """Nerfacto without an appearance embedding; everything else has nerfacto's defaults."""

    _target: Type = field(default_factory=lambda: CsdNerfactoModel)  # noqa: UP006
    use_appearance_embedding: bool = False
    """Per-photo appearance codes. Off: an edit renders from cameras that have no code of their own."""
    lpips: bool = False
    """Also report LPIPS at evaluation. Needs torchvision's AlexNet weights (downloaded on first use)."""


class CsdNerfactoModel(NerfactoModel):
    """`NerfactoModel` that needs no network to be built and falls back to torch without a GPU."""

    config: CsdNerfactoModelConfig
    scene_before: SceneBefore | None = None
    """The scene before its edit, where there is one and a viewer that may show it."""

    def populate_modules(self) -> None:
        """Build the fields and samplers; LPIPS (an AlexNet download) only when asked for."""
        one_for_torch(self.kwargs["device"])
        if not tcnn_runs_on(self.kwargs["device"]):
            self.config.implementation = "torch"
        with _in_place_of_nerfactos(
            NerfactoField=self._field_type(),
            HashMLPDensityField=CpuDensityField,
            ProposalNetworkSampler=CpuProposalSampler,
        ):
            if self.config.lpips:
                super().populate_modules()
            else:
                self._populate_without_lpips()
        mark_hash_grids(self)
        if self.config.predict_normals:
            return
        self.field.mlp_base.register_forward_pre_hook(_without_gradient_at(self.camera_optimizer))
        if self.config.camera_optimizer.mode == "off":
            use_fast_hash_grids(self)

    def freeze_poses(self) -> None:
        """Train no pose correction, from now on, and no longer pay for gradients that only it needs."""
        self.camera_optimizer.requires_grad_(False)
        if not self.config.predict_normals:
            use_fast_hash_grids(self)

    def forward(self, ray_bundle: RayBundle) -> dict[str, Any]:  # type: ignore[override]
        """The parent's; what the field keeps for normals is let go of, and with it a part of the graph."""
        outputs = super().forward(ray_bundle)
        self.field._sample_locations = self.field._density_before_activation = None
        return outputs

    def get_outputs_for_camera(
        self, camera: Cameras, obb_box: OrientedBox | None = None
    ) -> dict[str, Tensor]:
        """The parent's; where there is a scene before, the last is `rgb_before`, which is `rgb` until looked
        at."""
        outputs: dict[str, Tensor] = super().get_outputs_for_camera(camera, obb_box)
        if self.scene_before is not None:
            drawn = self.scene_before.draw(camera, obb_box)
            outputs[RGB_BEFORE] = outputs["rgb"] if drawn is None else drawn
        return outputs

    def _field_type(self) -> Callable[..., CpuNerfactoField]:
        """What makes the field."""
        return CpuNerfactoField

    def _populate_without_lpips(self) -> None:
        # The parent constructs LPIPS unconditionally, at the end of a long method: replacing that one
        # name while it runs is the only way to keep everything else the parent's.
        with patch("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", _NoLpips):
            super().populate_modules()

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Tensor]:
        """The parent's, with the distortion of `cpu_sampling`."""
        # The metric keeps its newest value, and must not keep the graph of a step with it.
        seen = {**outputs, "rgb": outputs["rgb"].detach()}
        with _in_place_of_nerfactos(distortion_loss=distortion_loss):
            return super().get_metrics_dict(seen, batch)

    def get_loss_dict(
        self, outputs: dict[str, Any], batch: dict[str, Any], metrics_dict: dict[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """The parent's, with the proposal loss of `cpu_sampling`."""
        with _in_place_of_nerfactos(interlevel_loss=interlevel_loss):
            return super().get_loss_dict(outputs, batch, metrics_dict)

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The parent's metrics and pictures, without LPIPS unless the configuration asks for it."""
        metrics, images = super().get_image_metrics_and_images(outputs, batch)
        if not self.config.lpips:
            del metrics["lpips"]
        return metrics, images

    def load_scene(self, pipeline_state: Mapping[str, Any], origin: str) -> None:
        """Load the weights of a trained scene from the `pipeline` entry of a nerfstudio checkpoint.

        Args:
            pipeline_state: as saved by `VanillaPipeline.state_dict`; stock nerfacto's LPIPS weights
                are ignored. A scene's field is also the source's field of a model that keeps one.
            origin: where it came from, for the error message.

        Raises:
            InputError: when the checkpoint holds another method, another implementation
                (tiny-cuda-nn or torch), other field sizes or another number of cameras.
        """
        saved = _scene_weights(pipeline_state)
        own = _scene_weights({f"_model.{name}": value for name, value in self.state_dict().items()})
        saved = _with_source(saved, own, origin)
        _check_same_shapes(saved, own, origin)
        super().load_state_dict(saved, strict=False)

    def load_source(self, pipeline_state: Mapping[str, Any], origin: str) -> None:
        """Load the weights of the scene before an edit into the copies of `keep_source_field` alone.

        Args:
            pipeline_state, origin: as of `load_scene`.

        Raises:
            InputError: as `load_scene`.
        """
        own = self.state_dict()
        source = _of_source(_scene_weights(pipeline_state))
        weights = {name: source.get(name, value) for name, value in own.items()}
        self.load_scene({f"_model.{name}": value for name, value in weights.items()}, origin)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """The parent's, for weights of this model alone.

        nerfstudio opens scenes, as for ns-viewer and ns-render, in a way that leaves at random what it finds
        no weights for, and says that all were loaded.

        Raises:
            InputError: as `load_scene`.
        """
        weights, own = (_without_metrics(state) for state in (state_dict, self.state_dict()))
        _check_same_shapes(weights, own, "the checkpoint")
        return super().load_state_dict(state_dict, strict, assign)


def tcnn_runs_on(device: torch.device | str) -> bool:
    """Whether tiny-cuda-nn is installed, and can be used there."""
    return TCNN_EXISTS and torch.device(device).type == "cuda"


def implementation_of(pipeline_state: Mapping[str, Any]) -> Implementation:
    """What the fields of a scene run in, by the `pipeline` entry of its checkpoint."""
    return "tcnn" if _is_tcnn(_scene_weights(pipeline_state)) else "torch"


def _without_gradient_at(poses: nn.Module) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    """A hook before a network of positions that detaches these while no pose is trained.

    Nerfacto asks for a gradient at every position, for normals. To be able to answer, tiny-cuda-nn keeps more
    of each than of all the rest that a backward pass needs.
    """

    def detached(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        trained = torch.is_grad_enabled() and any(pose.requires_grad for pose in poses.parameters())
        return inputs if trained else (inputs[0].detach(),)

    return detached


@contextmanager
def _in_place_of_nerfactos(**replacements: Callable[..., Any]) -> Iterator[None]:
    """Let nerfacto's long methods use other classes and functions, while they run; everything else is its."""
    with ExitStack() as stack:
        for name, replacement in replacements.items():
            stack.enter_context(patch(f"nerfstudio.models.nerfacto.{name}", replacement))
        yield


class _NoLpips:
    """Stands where the parent puts LPIPS; its value is dropped again."""

    def __init__(self, **_: object) -> None: ...

    def __call__(self, *_: Tensor) -> float:
        return float("nan")


def _scene_weights(pipeline_state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The model's tensors, without the prefixes of pipeline and data parallelism and without metrics."""
    prefixed = {name.removeprefix("module."): value for name, value in pipeline_state.items()}
    model = {
        name.removeprefix("_model.").removeprefix("module."): value
        for name, value in prefixed.items()
        if name.startswith("_model.")
    }
    return _without_metrics(model)


def _without_metrics(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if not name.startswith(("lpips.", "psnr."))}


_SOURCE = ("source_field.", "source_proposal_networks.")
"""What the names of the source's weights begin with, where an edit keeps them; see `keep_source_field`."""


def holds_source(pipeline_state: Mapping[str, Any]) -> bool:
    """Whether the `pipeline` entry of a checkpoint holds the field of an edit's source, too."""
    return any(name.startswith(_SOURCE) for name in _scene_weights(pipeline_state))


def is_of_source(name: str) -> bool:
    """Whether a model's weights of this name are those of the source that an edit keeps."""
    return name.startswith(_SOURCE)


def _of_source(scene: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A scene's field and proposal networks under the names that an edit keeps its source's by."""
    return {f"source_{name}": value for name, value in scene.items() if f"source_{name}".startswith(_SOURCE)}


def _with_source(weights: dict[str, Tensor], own: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """The weights; a scene's are also those of the source, where these are wanted and none saved."""
    saved, wanted = (any(name.startswith(_SOURCE) for name in names) for names in (weights, own))
    if saved and not wanted:
        raise InputError(
            f"{origin} is an edit that keeps the field of its source",
            expected="the config.yml of its run beside it, which says how the fields are joined",
            got="a model without the field of a source",
            hint="pass the run folder, not a checkpoint by itself",
        )
    if saved or not wanted:
        return weights
    return {**weights, **{name: value for name, value in _of_source(weights).items() if name in own}}


def _check_same_shapes(saved: Mapping[str, Tensor], own: Mapping[str, Tensor], origin: str) -> None:
    if not any(name.startswith("field.") for name in saved) or not any(
        name.startswith("proposal_networks.") for name in saved
    ):
        raise InputError(
            f"{origin} is not a nerfacto scene",
            expected="a checkpoint of csd-nerfacto, csd-nerfacto-tiny or nerfacto",
            got=f"weights named {', '.join(sorted(saved)[:3]) or 'nothing'} ...",
            hint="train the scene with `ns-train csd-nerfacto --data SCENE` and pass that run",
        )
    missing, unexpected = own.keys() - saved.keys(), saved.keys() - own.keys()
    saved_is_tcnn, own_is_tcnn = (_is_tcnn(weights) for weights in (saved, own))
    if saved_is_tcnn != own_is_tcnn:
        kinds = {True: "tiny-cuda-nn", False: "torch"}
        raise InputError(
            f"{origin} was trained with the other implementation of the fields",
            expected=f"weights of the {kinds[own_is_tcnn]} implementation, the one in use here",
            got=f"weights of the {kinds[saved_is_tcnn]} implementation",
            hint="install tiny-cuda-nn and use a GPU, or train the scene again with "
            "`--pipeline.model.implementation torch`"
            if saved_is_tcnn
            else "write `implementation: torch` into the config.yml of that run",
        )
    other_shape = [name for name in own if name in saved and own[name].shape != saved[name].shape]
    if any(name.startswith("camera_optimizer.") for name in other_shape):
        name = next(name for name in other_shape if name.startswith("camera_optimizer."))
        raise InputError(
            f"{origin} was trained on another set of cameras",
            expected=f"{own[name].shape[0]} training cameras, as in the data given",
            got=f"{saved[name].shape[0]} training cameras",
            hint="pass the `--data` and the dataparser options that the scene was trained with",
        )
    if other_shape or missing or unexpected:
        name = (other_shape or sorted(missing) or sorted(unexpected))[0]
        raise InputError(
            f"{origin} has fields of other sizes",
            expected=f"{name} {tuple(own[name].shape) if name in own else 'absent'}",
            got=f"{name} {tuple(saved[name].shape) if name in saved else 'absent'}",
            hint="leave the `--pipeline.model` sizes to the run's own config.yml, "
            "or give the ones the scene was trained with",
        )


def _is_tcnn(weights: Mapping[str, Tensor]) -> bool:
    """tiny-cuda-nn keeps every network in one flat `params` tensor."""
    return any(name.startswith("field.") and name.endswith(".params") for name in weights)
