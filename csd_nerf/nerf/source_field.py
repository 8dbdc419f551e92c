"""What an edit must not change comes from a frozen copy of the source's field."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    The proposal networks are frozen too. They say where along a ray the fields are asked: as long as they
    are the source's, a ray without a sample in `inside` has the source's colour to the last bit.

    The copy is `model.source_field`. It goes into checkpoints, and a model that opens them must have one too.

    Args:
        model: before its first use.
        inside: the part of space that is edited; None is all of it.
        geometry: take densities from the source everywhere, so that only colours change.
    """
    model.source_field = copy.deepcopy(model.field).requires_grad_(False)
    model.proposal_networks.requires_grad_(False)
    model.field.forward = _JoinedFields(model.field, model.source_field, inside, geometry)  # type: ignore[method-assign]


@contextmanager
def edited_everywhere(model: NerfactoModel) -> Iterator[None]:
    """For a while, let the edited field answer outside of `inside` too: for the renders of an edit step.

    A diffusion model turns a bear to night when the picture turns to night, and hardly when the bear alone
    may. So the edit is of the whole scene, and where it shows is a matter of looking at it. Where densities
    are the source's, they stay that. Does nothing to a model without a `source_field`.
    """
    fields = model.field.forward
    if not isinstance(fields, _JoinedFields):
        yield
        return
    fields.everywhere = True
    try:
        yield
    finally:
        fields.everywhere = False


class _JoinedFields:
    """`Field.forward` for (R, S) samples, each answered by the field that it belongs to."""

    def __init__(self, edited: Field, source: Field, inside: Inside | None, geometry: bool) -> None:
        self._edited = edited
        # Its class's, as this takes the place of the instance's.
        self._answer_of_edited = partial(type(edited).forward, edited)
        self._source = source
        self._inside = inside
        self._geometry = geometry
        self.everywhere = False

    def __call__(
        self, ray_samples: RaySamples, compute_normals: bool = False
    ) -> dict[FieldHeadNames, Tensor]:
        everywhere = self._inside is None or self.everywhere
        if everywhere and not self._geometry:
            return self._answer_of_edited(ray_samples, compute_normals)
        # As to appearance codes, which the edit takes as evaluation does.
        self._source.train(self._edited.training)
        with torch.no_grad():
            outputs = dict(self._source(ray_samples, compute_normals))
        names = {FieldHeadNames.RGB} if self._geometry else outputs.keys()
        if everywhere:
            answers = self._answer_of_edited(ray_samples, compute_normals)
            return {**outputs, **{name: answers[name] for name in names}}
        assert self._inside is not None
        belongs = self._inside(ray_samples.frustums.get_positions())
        if belongs.any():
            answers = Field.forward(self._edited, ray_samples[belongs], compute_normals)
            for name in names:
                outputs[name] = outputs[name].index_put((belongs,), answers[name])
        return outputs
