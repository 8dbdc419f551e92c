"""All metrics of one edit, from the pictures of the scene before and after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from csd_nerf.evaluation.clip import (
    ClipModel,
    direction_consistency,
    directional_similarity,
    load_clip,
    text_similarity,
)
from csd_nerf.evaluation.colours import colour_spread
from csd_nerf.evaluation.consistency import hue_deviation
from csd_nerf.evaluation.figures import Better, Figure, Figures, Missing, summarize
from csd_nerf.evaluation.neighbours import Baseline
from csd_nerf.evaluation.pixels import LPIPS_NETWORK, load_lpips, lpips, psnr, ssim
from csd_nerf.evaluation.registration import registration
from csd_nerf.evaluation.reprojection import PosedPictures, change_of, contrast, reprojection_error
from csd_nerf.evaluation.structure import edge_correlation, load_dino, structure_distance
from csd_nerf.evaluation.weights import DINO, Unavailable
from csd_nerf.scenes.operators import hue_and_chroma

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class KnownEdit:
    """What a perfect edit looks like, and the pictures to compare with it.

    Attributes:
        name: of the exact operator.
        answer: (E, 3, H, W), 0..1, the right pictures.
        before, after: (E, 3, H, W), the scene from the same cameras.
    """

    name: str
    answer: Tensor
    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class DrawnEdit:
    """Everything that is measured of an edit.

    Attributes:
        before: the source scene: evaluation views first, then their neighbours.
        after: the edit from the same cameras. Views that were edited one by one, and belong to no scene,
            come with the source scene's depths.
        count: of evaluation views.
        short, long: pairs of views.
        known: None for an edit without a known answer.
        inside: (E, H, W), which pixels of the evaluation views show something in the region of the edit; None
            for an edit that is everywhere.
        source_text: a description of the scene before the edit; empty when there is none.
        text: a description of the scene after it; empty when there is none.
    """

    before: PosedPictures
    after: PosedPictures
    count: int
    short: Baseline
    long: Baseline
    known: KnownEdit | None = None
    inside: Tensor | None = None
    source_text: str = ""
    text: str = ""


@dataclass(frozen=True)
class Networks:
    """The networks that some metrics need: loaded, or why they are not."""

    lpips: Any  # of `load_lpips`, or Unavailable
    dino: Callable[[Tensor], Tensor] | Unavailable
    clip: ClipModel | Unavailable


def load_networks(device: torch.device | str, *, clip: str, download: bool) -> Networks:
    """Load what can be had.

    Args:
        device: where they run.
        clip: hub id or folder of the CLIP.
        download: fetch weights that are not on this machine.
    """
    return Networks(
        lpips=_attempt(lambda: load_lpips(device, download=download)),
        dino=_attempt(lambda: load_dino(device=device, download=download)),
        clip=_attempt(lambda: load_clip(clip, device=device, download=download)),
    )


def _attempt(load: Callable[[], Loaded]) -> Loaded | Unavailable:
    try:
        return load()
    except Unavailable as absent:
        return absent


def _loaded(network: Loaded | Unavailable) -> Loaded:
    if isinstance(network, Unavailable):
        raise network
    return network


class _Findings:
    """Figures as they are found; a metric that is unavailable is noted, and the next one follows."""

    def __init__(self) -> None:
        self.measured: list[Figure] = []
        self.missing: list[Missing] = []

    @contextmanager
    def of(self, *names: str) -> Iterator[None]:
        """The metrics that what follows measures, for when it cannot."""
        try:
            yield
        except Unavailable as absent:
            self.missing += [Missing(name, absent.reason, absent.hint) for name in names]

    def add(
        self,
        name: str,
        after: Tensor,
        better: Better,
        before: Tensor | None = None,
        *,
        unit: str = "",
        network: str = "",
    ) -> None:
        """Take up a figure from one value for each view or pair (N)."""
        earlier = None if before is None else before.tolist()
        self.measured.append(
            summarize(name, after.tolist(), better, before=earlier, unit=unit, network=network)
        )


def measure(edit: DrawnEdit, networks: Networks) -> Figures:
    """Every metric of docs/evaluation.md that can be had.

    Args:
        edit: pictures on the CPU.
        networks: of `load_networks`.
    """
    findings = _Findings()
    before, after = edit.before.images[: edit.count], edit.after.images[: edit.count]
    _known_edit(findings, edit.known, networks)
    _clip(findings, edit, networks)
    for name, baseline in (("short", edit.short), ("long", edit.long)):
        _reprojection(findings, edit, name, baseline)
    _colours(findings, before, after)
    if edit.inside is not None:
        _region(findings, (after - before).abs().mean(1), edit.inside)
    _distances(findings, "source", after, before, networks)
    findings.add("edge_correlation", edge_correlation(after, before), "higher")
    _registration(findings, before, after)
    with findings.of("structure_distance"):
        keys = _loaded(networks.dino)
        distance = structure_distance(keys, after, before)
        findings.add("structure_distance", distance, "lower", network=f"{DINO}, last layer's keys")
    return Figures(tuple(findings.measured), tuple(findings.missing))


def _distances(
    findings: _Findings,
    reference: str,
    after: Tensor,
    target: Tensor,
    networks: Networks,
    before: Tensor | None = None,
) -> None:
    """PSNR, SSIM and LPIPS to the source or to the right answer."""
    known = before is not None
    for name, metric, unit in (("psnr", psnr, "dB"), ("ssim", ssim, "")):
        earlier = metric(before, target) if before is not None else None
        better: Better = "higher" if known else "neither"
        findings.add(f"{name}_to_{reference}", metric(after, target), better, earlier, unit=unit)
    with findings.of(f"lpips_to_{reference}"):
        network = _loaded(networks.lpips)
        findings.add(
            f"lpips_to_{reference}",
            lpips(network, after, target),
            "lower" if known else "neither",
            lpips(network, before, target) if before is not None else None,
            network=LPIPS_NETWORK,
        )


def _known_edit(findings: _Findings, known: KnownEdit | None, networks: Networks) -> None:
    with findings.of("psnr_to_known_edit", "ssim_to_known_edit", "lpips_to_known_edit"):
        if known is None:
            raise Unavailable(
                "the prompt is not the instruction of an exact operator",
                "only the instructions in csd_nerf/scenes/operators.py have a known answer",
            )
        _distances(findings, "known_edit", known.after, known.answer, networks, known.before)


def _clip(findings: _Findings, edit: DrawnEdit, networks: Networks) -> None:
    with findings.of("clip_directional_similarity", "clip_text_similarity", "clip_direction_consistency"):
        clip = _loaded(networks.clip)
        before, after = clip.images(edit.before.images), clip.images(edit.after.images)
        named = clip.description
        with findings.of("clip_directional_similarity", "clip_text_similarity"):
            if not edit.text:
                raise Unavailable(
                    "an instruction does not describe the edited scene",
                    'pass --text "a bear at night" and --source-text "a bear"',
                )
            text = clip.text(edit.text)
            first_before, first_after = before[: edit.count], after[: edit.count]
            similarity = text_similarity(first_after, text), text_similarity(first_before, text)
            findings.add("clip_text_similarity", similarity[0], "higher", similarity[1], network=named)
            with findings.of("clip_directional_similarity"):
                if not edit.source_text:
                    raise Unavailable(
                        "there is no description of the scene before the edit",
                        'pass --source-text "a bear"',
                    )
                source_text = clip.text(edit.source_text)
                direction = directional_similarity(first_before, first_after, source_text, text)
                findings.add("clip_directional_similarity", direction, "higher", network=named)
        with findings.of("clip_direction_consistency"):
            views, neighbours = _ends(edit.short)
            consistency = direction_consistency(
                before[views], after[views], before[neighbours], after[neighbours]
            )
            findings.add("clip_direction_consistency", consistency, "higher", network=named)


def _ends(baseline: Baseline) -> tuple[list[int], list[int]]:
    if not baseline.pairs:
        raise Unavailable("the capture has a single viewpoint", "capture it from several places")
    views, neighbours = zip(*baseline.pairs, strict=True)
    return list(views), list(neighbours)


def _reprojection(findings: _Findings, edit: DrawnEdit, length: str, baseline: Baseline) -> None:
    """Agreement of views about colours, and about how the colours have changed."""
    kinds = ("error", "relative_error", "change_error", "coverage")
    error, relative_error, change_error, coverage = (f"reprojection_{kind}_{length}" for kind in kinds)
    with findings.of(error, relative_error, change_error, coverage):
        _ends(baseline)
        before, after, change = (
            reprojection_error(views, baseline.pairs)
            for views in (edit.before, edit.after, change_of(edit.before, edit.after))
        )
        if any(found.errors.isnan().all() for found in (before, after)):
            raise Unavailable(
                "no two views show a common point", "evaluate a run whose scene was trained for longer"
            )
        findings.add(error, after.errors, "lower", before.errors)
        findings.add(
            relative_error,
            after.errors / contrast(edit.after.images),
            "lower",
            before.errors / contrast(edit.before.images),
        )
        findings.add(change_error, change.errors, "lower")
        findings.add(coverage, after.coverage, "neither", before.coverage)


def _registration(findings: _Findings, before: Tensor, after: Tensor) -> None:
    """How far the edit has moved, and how much larger or smaller it has become."""
    with findings.of("registration_shift", "registration_zoom"):
        found = registration(after, before)
        if found.zoom.isnan().all():
            raise Unavailable(
                "no view after the edit has edges that lie as they did before it",
                "look at the pictures: the edit moved far, changed what is there, or the views have no edges",
            )
        findings.add("registration_shift", found.shift, "lower", unit="px")
        findings.add("registration_zoom", 100 * (found.zoom - 1).abs(), "lower", unit="%")


def _region(findings: _Findings, change: Tensor, inside: Tensor) -> None:
    """Change (E, H, W) of what is in the region and of what is not; of the latter also in the worst view."""
    for name, where in (("inside", inside), ("outside", ~inside)):
        of_views = (change * where).sum((1, 2)) / where.sum((1, 2))  # NaN where a view shows none of it
        if not of_views.isnan().all():
            findings.add(f"change_{name}", of_views, "neither" if name == "inside" else "lower")
            if name == "outside":
                worst = of_views.nan_to_num().max().view(1)
                findings.add("change_outside_worst_view", worst, "lower")


def _colours(findings: _Findings, before: Tensor, after: Tensor) -> None:
    """Figures of the set of views as a whole."""
    chroma, source_chroma = (hue_and_chroma(views)[1] for views in (after, before))
    spread, source_spread = (torch.tensor([hue_deviation(views)]) for views in (after, before))
    findings.add("hue_deviation", spread, "neither", source_spread, unit="degrees")
    findings.add("chroma", chroma, "neither", source_chroma)
    findings.add("change", (after - before).abs().mean((1, 2, 3)), "neither")
    colours = torch.tensor([colour_spread(after)]), torch.tensor([colour_spread(before)])
    findings.add("colour_spread", colours[0], "neither", colours[1])
