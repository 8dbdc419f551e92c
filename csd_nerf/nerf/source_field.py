"""What an edit must not change, or only in part, comes from a frozen copy of the source's field."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.fields.base_field import Field
from nerfstudio.models.nerfacto import NerfactoModel
from torch import Tensor

Inside = Callable[[Tensor], Tensor]
"""From positions (..., 3) to whether each is in the part of space that is edited, (...)."""
Answers = dict[FieldHeadNames, Tensor]
"""What a field says of samples: densities (R, S, 1), colours (R, S, 3)."""


def keep_source_field(
    model: NerfactoModel, *, inside: Inside | None = None, geometry: bool = False, strength: float = 1.0
) -> None:
    """Let a frozen copy of the model's field answer for what is not to be edited, from now on.

    A hash grid's entries and the MLPs behind it are shared by places far apart, and Adam moves every entry
    that gets a gradient at all by about the learning rate: a loss alone keeps the surroundings of an edit
    only roughly. And density and the features of colour come out of one MLP, so that no choice of trained
    parameters changes the one and spares the other. With two fields both are exact, and what is edited keeps
    the whole capacity.

    The proposal networks say where along a ray the fields are asked. With `inside` or `geometry` they are
    frozen: as long as they are the source's, a ray without a sample in `inside` has the source's colour to
    the last bit. An edit that is everywhere trains them, and a frozen copy of them is kept as well.

    The copies are `model.source_field` and `model.source_proposal_networks`. They go into checkpoints, and a
    model that opens them must have them too.

    Args:
        model: that was not trained yet.
        inside: the part of space that is edited; None is all of it.
        geometry: take densities from the source everywhere, so that only colours change.
        strength: see `set_strength`.
    """
    joined = model.field.__dict__.pop("forward", None)  # of geometry alone: is replaced
    assert joined is None or isinstance(joined, _JoinedFields)
    model.source_field = copy.deepcopy(model.field).requires_grad_(False)
    fields = _JoinedFields(model.field, model.source_field, inside, geometry)
    if inside is not None or geometry:
        model.proposal_networks.requires_grad_(False)
    else:
        networks = copy.deepcopy(model.proposal_networks).requires_grad_(False)
        model.source_proposal_networks = networks
        # Where all rounds share a network there is but one of it.
        last = len(networks) - 1
        of_source: list[Any] = [networks[min(place, last)] for place in range(len(model.density_fns))]
        model.density_fns = [
            _JoinedDensities(edited, network.density_fn, fields)
            for edited, network in zip(model.density_fns, of_source, strict=True)
        ]
    model.field.forward = fields  # type: ignore[method-assign]
    set_strength(model, strength)


def keeps_source_field(model: NerfactoModel) -> bool:
    """Whether the source's field has a part in the scene."""
    return isinstance(model.field.forward, _JoinedFields)


def strength_of(model: NerfactoModel) -> float:
    """How much of the edit is shown, 0..1; see `set_strength`."""
    return model.field.forward.strength if isinstance(model.field.forward, _JoinedFields) else 1.0


def set_strength(model: NerfactoModel, strength: float) -> None:
    """Show a mixture of source and edit, as of two media in one place: 0 is the source and 1 the edit, to the
    last bit.

        density = (1 - s) density_source + s density_edit
        colour  = ((1 - s) density_source colour_source + s density_edit colour_edit) / density

    Where only one of them has a surface, it is that one's colour that is seen there, and thinner.

    Args:
        model: after `keep_source_field`.
        strength: s, in 0..1.
    """
    fields = model.field.forward
    assert isinstance(fields, _JoinedFields), "keep_source_field comes first"
    fields.strength = strength


@contextmanager
def edited_everywhere(model: NerfactoModel) -> Iterator[None]:
    """For a while, let the edited field answer outside of `inside` too, in full strength: for the renders of
    an edit step.

    A diffusion model turns a bear to night when the picture turns to night, and hardly when the bear alone
    may. So the edit is of the whole scene, and where and how strongly it shows is a matter of looking at it.
    Where densities are the source's, they stay that. Does nothing to a model without a `source_field`.
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
    """`Field.forward` for (R, S) samples, each answered by the field that it belongs to, or by both."""

    def __init__(self, edited: Field, source: Field, inside: Inside | None, geometry: bool) -> None:
        self._edited = edited
        # Its class's, as this takes the place of the instance's.
        self._answer_of_edited = partial(type(edited).forward, edited)
        self._source = source
        self._inside = inside
        self._geometry = geometry
        self.strength = 1.0
        self.everywhere = False

    @property
    def share(self) -> float:
        """Of the edit in what is answered now."""
        return 1.0 if self.everywhere else self.strength

    def __call__(self, ray_samples: RaySamples, compute_normals: bool = False) -> Answers:
        everywhere = self._inside is None or self.everywhere
        if everywhere and not self._geometry and self.share == 1:
            return self._answer_of_edited(ray_samples, compute_normals)
        # As to appearance codes, which the edit takes as evaluation does.
        self._source.train(self._edited.training)
        with torch.no_grad():
            outputs = dict(self._source(ray_samples, compute_normals))
        if self.share == 0:
            return outputs
        if everywhere:
            return self._joined(outputs, self._answer_of_edited(ray_samples, compute_normals))
        assert self._inside is not None
        belongs = self._inside(ray_samples.frustums.get_positions())
        if belongs.any():
            source = {name: values[belongs] for name, values in outputs.items()}
            answers = self._joined(source, Field.forward(self._edited, ray_samples[belongs], compute_normals))
            for name in outputs:
                outputs[name] = outputs[name].index_put((belongs,), answers[name])
        return outputs

    def _joined(self, source: Mapping[FieldHeadNames, Tensor], edited: Answers) -> Answers:
        """What is shown of samples that are edited."""
        if self._geometry:
            edited = {**source, FieldHeadNames.RGB: edited[FieldHeadNames.RGB]}
        if self.share == 1:
            return edited
        of_source, of_edit = (answers[FieldHeadNames.DENSITY] for answers in (source, edited))
        density = torch.lerp(of_source, of_edit, self.share)
        weight = self.share * of_edit / density.clamp(min=torch.finfo(density.dtype).tiny)
        mixed = {name: torch.lerp(values, edited[name], weight) for name, values in source.items()}
        return {**mixed, FieldHeadNames.DENSITY: density}


class _JoinedDensities:
    """Densities (..., 1) of a proposal network at positions (..., 3), mixed as those of the fields are."""

    def __init__(
        self, edited: Callable[..., Tensor], source: Callable[..., Tensor], fields: _JoinedFields
    ) -> None:
        self._edited, self._source, self._fields = edited, source, fields

    def __call__(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        share = self._fields.share
        if share == 1:
            return self._edited(positions, times)
        with torch.no_grad():
            source = self._source(positions, times)
        return source if share == 0 else torch.lerp(source, self._edited(positions, times), share)
