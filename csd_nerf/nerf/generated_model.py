"""A nerfacto in a ball about the origin that starts as a soft blob before a background of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Type  # noqa: UP035 - nerfstudio's own `_target` annotation, which tyro resolves

import torch
import tyro
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.field_components.encodings import SHEncoding
from nerfstudio.field_components.mlp import MLP
from nerfstudio.model_components.scene_colliders import SphereCollider
from nerfstudio.utils import colormaps
from torch import Tensor, nn
from torch.nn import functional

from csd_nerf.nerf.cpu_fields import CpuNerfactoField
from csd_nerf.nerf.model import CsdNerfactoModel, CsdNerfactoModelConfig
from csd_nerf.nerf.orbit_data import SCENE_RADIUS


@dataclass
class GeneratedModelConfig(CsdNerfactoModelConfig):
    """The field of a generated scene, and what is behind it."""

    _target: Type = field(default_factory=lambda: GeneratedModel)  # noqa: UP006
    background: Literal["environment", "random", "white"] = "environment"
    """What is behind the scene: environment (a colour that is learned for every direction), random (a new
    colour for every view, so that nothing can hide in it; white when looked at) or white."""
    blob_density: float = 10.0
    """How dense the blob is at its centre that a scene begins as; 0 begins with an even fog."""
    blob_radius: float = 0.5
    """Radius of that blob; the scene's is 1."""
    sparsity_loss_mult: float = 2.5e-4
    """Weight of the opacity of the pixels: more keeps the space around the object emptier, too much empties
    it altogether."""
    disable_scene_contraction: tyro.conf.Suppress[bool] = True
    """The scene ends at radius 1: there is nothing beyond to be contracted."""
    background_color: tyro.conf.Suppress[Any] = "black"
    """Replaced by `background`."""
    proposal_initial_sampler: Literal["piecewise", "uniform"] = "uniform"
    """Even steps through the ball: nothing in it is farther away than the rest."""
    camera_optimizer: CameraOptimizerConfig = field(default_factory=lambda: CameraOptimizerConfig(mode="off"))
    """There are no poses to correct."""


class BlobField(CpuNerfactoField):
    """Nerfacto's field in the unit ball, with a density that is high about the origin from the start.

    Args:
        blob_density: `b`.
        blob_radius: `r`.
        args, options: of the parent.
    """

    def __init__(self, *args: Any, blob_density: float, blob_radius: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self.blob_density, self.blob_radius = blob_density, blob_radius

    def get_density(self, ray_samples: RaySamples) -> tuple[Tensor, Tensor]:
        """`softplus(h(x) + b (1 - |x| / r))` inside the ball and 0 outside (Magic3D, 2211.10440).

        Without the second term, views from all around begin with fog and each settles for a picture of its
        own right in front of the camera. The exponential that nerfacto has for the softplus would take the
        gradients of such a blob far up.
        """
        _, features = super().get_density(ray_samples)
        raw: Tensor = self._density_before_activation  # type: ignore[assignment]
        return self.activated(raw, ray_samples.frustums.get_positions()), features

    def activated(self, raw: Tensor, positions: Tensor) -> Tensor:
        """As of `get_density`."""
        distance = positions.norm(dim=-1, keepdim=True)
        blob = self.blob_density * (1 - distance / self.blob_radius)
        return functional.softplus(raw.to(distance) + blob) * (distance < SCENE_RADIUS)


class Environment(nn.Module):
    """A colour for every direction, smooth: a small network of spherical harmonics, near grey at first."""

    def __init__(self) -> None:
        super().__init__()
        self.encoding = SHEncoding(levels=3, implementation="torch")
        self.network = MLP(
            in_dim=self.encoding.get_out_dim(),
            num_layers=2,
            layer_width=16,
            out_dim=3,
            out_activation=nn.Sigmoid(),
            implementation="torch",
        )

    def forward(self, directions: Tensor) -> Tensor:
        """Colours (..., 3), 0..1, of unit directions (..., 3)."""
        return self.network(self.encoding(directions).to(directions.dtype))


class GeneratedModel(CsdNerfactoModel):
    """`CsdNerfactoModel` with a blob in it and a background behind it."""

    config: GeneratedModelConfig
    view_backgrounds: Tensor
    """Colours (N, 3), 0..1, behind the views of a training step, for the background `random`."""

    def populate_modules(self) -> None:
        """Build nerfacto about a `BlobField`, in a ball, and what is behind."""
        super().populate_modules()
        self.collider = SphereCollider(torch.zeros(3), SCENE_RADIUS)  # type: ignore[assignment]
        self.environment = Environment() if self.config.background == "environment" else None
        self.view_backgrounds = torch.ones(1, 3)

    def _field_type(self) -> Callable[..., CpuNerfactoField]:
        config = self.config
        return partial(BlobField, blob_density=config.blob_density, blob_radius=config.blob_radius)

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:  # type: ignore[override]
        """The parent's, before the background."""
        self.renderer_rgb.background_color = self._behind(ray_bundle)
        return super().get_outputs(ray_bundle)

    def _behind(self, rays: RayBundle) -> Tensor:
        """Colours (R, 3) or (3,) behind the rays."""
        if self.environment is not None:
            return self.environment(rays.directions)
        if self.config.background == "random" and self.training:
            assert rays.camera_indices is not None
            return self.view_backgrounds[rays.camera_indices[:, 0]]
        return torch.ones(3, device=rays.origins.device)

    def sparsity_loss(self, accumulation: Tensor) -> Tensor:
        """`mean sqrt(o^2 + 0.01)` of the opacities `o` of pixels, DreamFusion's (2209.14988, appendix A)."""
        return (accumulation.square() + 0.01).sqrt().mean()

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """What can be said of a picture without a photo to compare it with, for `ns-eval`.

        Returns:
            `opacity`, the mean of the pixels', and the pictures of colour, opacity and depth.
        """
        accumulation = outputs["accumulation"]
        pictures = {
            "img": outputs["rgb"],
            "accumulation": colormaps.apply_colormap(accumulation),
            "depth": colormaps.apply_depth_colormap(outputs["depth"], accumulation=accumulation),
        }
        return {"opacity": float(accumulation.mean())}, pictures
