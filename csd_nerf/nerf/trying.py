"""Edits of a few views of a scene together, without the scene: in seconds, what an edit would be like."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.cameras import CameraSampler
from csd_nerf.distillation.residuals import Guidance
from csd_nerf.errors import check
from csd_nerf.nerf.candidate import Candidate
from csd_nerf.nerf.edit_pipeline import EditPipeline
from csd_nerf.nerf.edits import RoundViews, descend
from csd_nerf.threads import all_for_torch


@dataclass(frozen=True)
class Tried:
    """A candidate and its pictures.

    Attributes:
        candidate: what was asked, and its figures.
        pictures: (N, 3, H, W), 0..1, the edited views.
    """

    candidate: Candidate
    pictures: Float[Tensor, "n 3 h w"]


class ViewsToTry:
    """A few views of a scene, spread over the capture, to be edited in several ways.

    Args:
        pipeline: after `begin_edit`; the scene that it holds now is drawn.
        count: of the views.
        seed: which of them.

    Raises:
        InputError: there are fewer views; or the method does not edit views together by an objective.
    """

    def __init__(self, pipeline: EditPipeline, count: int, seed: int = 0) -> None:
        config = pipeline.config
        check(
            config.route == "loop" and config.edit == "descend",
            "this method has no edit that could be tried",
            expected="one that edits views together by an objective, such as csd-edit",
            got=f"route {config.route}, edit {config.edit}",
            hint="try with --method csd-edit",
        )
        check(
            not pipeline.running_prior().clip_frames,
            "views spread over the capture are no clip",
            expected="a prior for pictures",
            got=f"{config.prior}, one for clips",
            hint="edit without a try, or with a prior for pictures",
        )
        self._pipeline = pipeline
        self.indices = CameraSampler(pipeline.datamanager.train_dataset.cameras, count, seed, "--views")(0)
        self.images, self._source, self._condition = pipeline.views_with_source(self.indices)
        views_per_round = config.particles or len(pipeline.datamanager.train_dataset)
        self._rounds_kept = max(1, config.kept_views // views_per_round)
        self._edit = descend(config, pipeline.running_prior())

    def ask(self, prompt: str, guidance: Guidance, seed: int) -> Tried:
        """Edit the views, in all the rounds of the method.

        What a scene would do between them, the views do by themselves. It is fitted to the targets of the
        newest B / N rounds at once, and so comes to their mean; each view becomes that of its own. Without
        it, they go much further than the scene does: a strong guidance looks far worse than it is.

        Args:
            prompt: what to change.
            guidance: scales of both kinds.
            seed: of the noise.

        Raises:
            NonFiniteResidual: the prior's answer is not finite.
        """
        views, rounds = self.images, self._pipeline.planned_rounds()
        targets: deque[Tensor] = deque(maxlen=self._rounds_kept)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad(), all_for_torch():
            for number in range(rounds):
                asked = RoundViews(
                    images=views,
                    source=self._source,
                    condition=self._condition,
                    prompt=prompt,
                    guidance=guidance,
                    number=number,
                    rounds=rounds,
                    generator=generator,
                )
                targets.append(self._edit(asked).clamp(0, 1))
                views = torch.stack(list(targets)).mean(0)
        before, edited = self.images.float().cpu(), views.float().cpu()
        candidate = Candidate(
            prompt=prompt,
            seed=seed,
            text_guidance=guidance.text,
            image_guidance=guidance.image,
            source=str(self._pipeline.config.source_checkpoint),
            views=tuple(self.indices),
            change=float((edited - before).abs().mean()),
            agreement=agreement(before, edited),
            prior=self._pipeline.config.prior,
        )
        return Tried(candidate, edited)


def agreement(before: Float[Tensor, "n 3 h w"], after: Float[Tensor, "n 3 h w"]) -> float | None:
    """How much of the change in each view the others would have made alike, 0..1; None of a single view.

    An edit of a view is described by the affine map of colours `A_i` that comes nearest to it. With `s_i`
    the view before and `e_i` after,

        1 - mean_(i != j) (|A_j s_i - e_i| - |A_i s_i - e_i|) / |e_i - s_i|

    where the bars are mean absolute values. What no map of colours explains, such as texture, counts for
    neither side. A plain measure of our own, which needs no common points of the views.
    """
    count = len(before)
    if count < 2:
        return None
    colours, wanted = (pictures.flatten(2).transpose(1, 2).double() for pictures in (before, after))
    design = torch.cat([colours, torch.ones_like(colours[..., :1])], dim=-1)  # (N, P, 4)
    little = 1e-3 * design.shape[1] * torch.eye(4, dtype=design.dtype)
    # Of the change, so that the little that keeps it solvable draws towards no change.
    maps = torch.linalg.solve(design.mT @ design + little, design.mT @ (wanted - colours))  # (N, 4, 3)
    made = colours[:, None] + design[:, None] @ maps  # (i, j, P, 3): view i as by the edit of view j
    errors = (made - wanted[:, None]).abs().mean((2, 3))
    change = (wanted - colours).abs().mean((1, 2)).clamp(min=1e-9)
    surplus = (errors - errors.diagonal()[:, None]).sum(1) / (count - 1) / change
    return float((1 - surplus.mean()).clamp(0, 1))
