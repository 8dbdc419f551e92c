"""Nerfacto's fields, on a CPU by compiled kernels where nothing but their weights wants a gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.field_components.activations import trunc_exp
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.fields.base_field import get_normalized_directions
from nerfstudio.fields.density_fields import HashMLPDensityField
from nerfstudio.fields.nerfacto_field import NerfactoField
from torch import Tensor, nn

from csd_nerf.cpu_field import fields


class CpuDensityField(HashMLPDensityField):
    """A proposal network; parameters, checkpoints and values are those of its parent."""

    def density_fn(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        """Densities (..., 1) at positions (..., 3)."""
        if self.use_linear or not _suits(self.encoding, positions):
            return super().density_fn(positions, times)
        layers: Any = self.mlp_base[1].layers
        raw, inside = fields.density(
            positions.reshape(-1, 3),
            _space(self),
            self.encoding.scalings,
            self.encoding.hash_table,
            [layer.weight for layer in layers],
            [layer.bias for layer in layers],
        )
        densities = self.average_init_density * trunc_exp(raw) * inside
        return densities.view(*positions.shape[:-1], 1)


class CpuNerfactoField(NerfactoField):
    """Nerfacto's field; parameters, checkpoints and values are those of its parent."""

    def forward(self, ray_samples: RaySamples, compute_normals: bool = False) -> dict[FieldHeadNames, Tensor]:
        """Densities (R, S, 1) and colours (R, S, 3), 0..1, of samples (R, S)."""
        frustums = ray_samples.frustums
        positions = frustums.get_positions()
        parts: Any = self.mlp_base.model
        grid: Any = parts[0] if isinstance(parts, nn.Sequential) else None  # tiny-cuda-nn has all in one
        more_heads = compute_normals or self.use_transient_embedding or self.use_semantics
        if more_heads or not _suits(grid, positions):
            return super().forward(ray_samples, compute_normals)
        base: Any = parts[1].layers
        head: Any = self.mlp_head.layers
        of_rays, to_base = self._first_colour_layer(ray_samples)
        raw, inside, colours = fields.field(
            positions.reshape(-1, 3),
            of_rays,
            _space(self),
            grid.scalings,
            grid.hash_table,
            [*(layer.weight for layer in base), to_base, head[1].weight, head[2].weight],
            [*(layer.bias for layer in base), head[1].bias, head[2].bias],
        )
        raw, inside = (values.view(*positions.shape[:-1], 1) for values in (raw, inside))
        return {
            FieldHeadNames.RGB: colours.sigmoid().view(positions.shape),
            FieldHeadNames.DENSITY: self.activated(raw, positions) * inside,
        }

    def activated(self, raw: Tensor, positions: Tensor) -> Tensor:
        """Densities (..., 1) from what the network says of positions (..., 3)."""
        return self.average_init_density * trunc_exp(raw)

    def _first_colour_layer(self, ray_samples: RaySamples) -> tuple[Tensor, Tensor]:
        """What it makes of all that a ray's samples have in common, (R, C), and its columns for the rest."""
        directions = ray_samples.frustums.directions
        cameras = ray_samples.camera_indices
        if directions.dim() == 3 and directions.stride(1) == 0:  # those of a ray, expanded to its samples
            directions = directions[:, 0]
            cameras = cameras[:, 0] if cameras is not None else None
        shared = [self.direction_encoding(get_normalized_directions(directions.reshape(-1, 3)))]
        if self.embedding_appearance is not None:
            shared.append(self._appearance(cameras, len(shared[0])))
        first: Any = self.mlp_head.layers[0]
        of_direction, of_base, of_appearance = first.weight.split(
            [shared[0].shape[1], self.geo_feat_dim, self.appearance_embedding_dim], dim=1
        )
        columns = torch.cat([of_direction, of_appearance], dim=1)
        return F.linear(torch.cat(shared, dim=1), columns, first.bias), of_base

    def _appearance(self, cameras: Tensor | None, rays: int) -> Tensor:
        """Appearance codes (R, D): the cameras' in training, and one for all beyond."""
        codes: Any = self.embedding_appearance
        if self.training:
            assert cameras is not None
            return codes(cameras.reshape(-1))
        code = codes.mean(dim=0)
        return (code if self.use_average_appearance_embedding else torch.zeros_like(code)).expand(rays, -1)


def _suits(grid: Any, positions: Tensor) -> bool:
    """Whether the kernels can answer: on a CPU, and none of a position's coordinates wants a gradient."""
    return (
        isinstance(grid, HashEncoding)
        and grid.tcnn_encoding is None
        and grid.features_per_level == 2
        and positions.device.type == "cpu"
        and not positions.requires_grad
    )


def _space(field: HashMLPDensityField | NerfactoField) -> fields.Space:
    return fields.Space(contract=field.spatial_distortion is not None, box=field.aabb)
