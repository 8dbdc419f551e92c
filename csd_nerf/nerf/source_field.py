"""What an edit must not change comes from a frozen copy of the source's field."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.fields.base_field import Field
from nerfstudio.models.nerfacto import NerfactoModel
from torch import Tensor

Inside = Callable[[Tensor], Tensor]
"""From positions (..., 3) to whether each is in the part of space that is edited, (...)."""


def keep_source_field(model: NerfactoModel, *, inside: Inside | None, geometry: bool) -> None:
    """Let a frozen copy of the model's field answer for what is not to be edited, from now on.

    A hash grid's entries and the MLPs behind it are shared by places far apart, and Adam moves every entry
    that gets a gradient at all by about the learning rate: a loss alone keeps the surroundings of an edit
    only roughly. And density and the features of colour come out of one MLP, so that no choice of trained
    parameters changes the one and spares the other. With two fields both are exact, and what is edited keeps
    the whole capacity.

    The copy is `model.source_field`. It goes into checkpoints, and a model that opens them must have one too.

    Args:
        model: before its first use.
        inside: the part of space that is edited; None is all of it.
        geometry: take densities from the source everywhere, so that only colours change.
    """
    model.source_field = copy.deepcopy(model.field).requires_grad_(False)
    if geometry:
        model.proposal_networks.requires_grad_(False)
    model.field.forward = partial(_joined, model.field, model.source_field, inside, geometry)  # type: ignore[method-assign]


def _joined(
    edited: Field,
    source: Field,
    inside: Inside | None,
    geometry: bool,
    ray_samples: RaySamples,
    compute_normals: bool = False,
) -> dict[FieldHeadNames, Tensor]:
    """What `Field.forward` returns for (R, S) samples, each answered by the field that it belongs to."""
    source.train(edited.training)  # as to appearance codes, which the edit takes as evaluation does
    with torch.no_grad():
        outputs = dict(source(ray_samples, compute_normals))
    names = {FieldHeadNames.RGB} if geometry else outputs.keys()
    if inside is None:
        answers = Field.forward(edited, ray_samples, compute_normals)
        return {**outputs, **{name: answers[name] for name in names}}
    belongs = inside(ray_samples.frustums.get_positions())
    if belongs.any():
        answers = Field.forward(edited, ray_samples[belongs], compute_normals)
        for name in names:
            outputs[name] = outputs[name].index_put((belongs,), answers[name])
    return outputs
