"""What happens to the views of a round between drawing and fitting: one function for each way to edit them.

An edit is made once, of the settings and the prior, and then called in every round with the views as they are
by then; it returns what they should look like. It knows nothing of the scene.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.distillation.descent import edit_latents
from csd_nerf.distillation.flow_edit import check_flow_edit, flow_edit
from csd_nerf.distillation.objective import Objective
from csd_nerf.distillation.residuals import Guidance
from csd_nerf.distillation.sampling import sample_edit
from csd_nerf.distillation.transport import independent, svgd
from csd_nerf.nerf.translating import TranslatorPrior
from csd_nerf.priors.base import Prior

if TYPE_CHECKING:
    from csd_nerf.nerf.edit_pipeline import EditPipelineConfig


@dataclass(frozen=True)
class RoundViews:
    """The views of a round, and what is asked of them.

    Attributes:
        images: (N, 3, H, W), 0..1, the scene as it is now.
        source: scaled latents of the photos of these views, (N, c, h, w). For a prior for clips the views are
            P ways through the capture, one after the other, and these are of clips, (P, c, f, h, w).
        condition: `Prior.condition` of the photos, (N, k, h, w) or (P, k, f, h, w).
        prompt: as the viewer has it now; so is `guidance`.
        guidance: scales of both kinds.
        number: of the round, 0-based.
        rounds: of the whole edit.
        generator: source of all that is random in the edit; None is torch's own.
    """

    images: Float[Tensor, "n 3 height width"]
    source: Float[Tensor, "_ c *f h w"]
    condition: Float[Tensor, "_ k *f h w"]
    prompt: str
    guidance: Guidance
    number: int
    rounds: int
    generator: torch.Generator | None = None

    @property
    def particles(self) -> Tensor:
        """The images as the prior takes them: pictures, or clips (P, 3, F, H, W)."""
        return as_clips(self.images, len(self.source)) if self.source.ndim == 5 else self.images


def as_clips(pictures: Float[Tensor, "n 3 height width"], count: int) -> Float[Tensor, "p 3 f height width"]:
    """Pictures that follow one another as frames of `count` clips."""
    return pictures.unflatten(0, (count, -1)).transpose(1, 2)


def as_pictures(particles: Float[Tensor, "p 3 *f height width"]) -> Float[Tensor, "n 3 height width"]:
    """The frames of clips one after the other; pictures as they are."""
    return particles.transpose(1, 2).flatten(0, 1) if particles.ndim == 5 else particles


Edit = Callable[[RoundViews], Float[Tensor, "n 3 height width"]]
"""From the views of a round to what they should look like, not limited to 0..1."""


def descend(settings: EditPipelineConfig, prior: Prior) -> Edit:
    """Edit the views together by a few steps of score distillation in latent space.

        x_0 = encode(v)        x_k+1 = x_k - rate w(t) transport(residuals(x_k))        k = 0 ... K - 1
        targets = v + decode(x_K) - decode(x_0)

    CSD-Edit on the views of a scene (Kim et al., 2307.04787, section 4), or by the settings of the objective
    any of its relatives. As a difference of two decoded pictures the change comes without what the
    autoencoder loses of every picture.
    """
    objective = Objective(copy.deepcopy(settings.objective), prior)
    descent = settings.descent

    def edit(views: RoundViews) -> Tensor:
        objective.config.text_guidance = views.guidance.text
        objective.config.image_guidance = views.guidance.image
        start = prior.encode(views.particles)
        end = edit_latents(
            objective,
            start,
            views.source,
            views.condition,
            prompt=views.prompt,
            source_prompt=settings.source_prompt,
            descent=descent,
            first_step=views.number * descent.steps,
            of_steps=views.rounds * descent.steps,
            generator=views.generator,
        )
        return views.images + as_pictures(prior.decode(end) - prior.decode(start))

    return edit


def sample(settings: EditPipelineConfig, prior: Prior) -> Edit:
    """Edit each view by itself, by sampling from the diffusion model (Haque et al., 2303.12789).

    The view is noised to a random level and denoised under the prompt, with the photo as the picture that the
    model is shown. From the most noise, and of every view before the first fit, it is what editors do that
    edit the photos and fit the scene to them.
    """
    sampling = settings.sampling

    def edit(views: RoundViews) -> Tensor:
        return as_pictures(
            prior.decode(
                sample_edit(
                    prior,
                    prior.encode(views.particles),
                    views.condition,
                    prompt=views.prompt,
                    guidance=views.guidance,
                    start=sampling.start.sample(prior.schedule.num_timesteps, generator=views.generator),
                    steps=sampling.steps,
                    generator=views.generator,
                )
            )
        )

    return edit


def follow_flow(settings: EditPipelineConfig, prior: Prior) -> Edit:
    """Edit the views together in one annealed pass along the flow from source to edit.

        targets = v + decode(flow_edit(encode(v))) - decode(encode(v))

    Noise levels, steps and guidance are those of sampling; how views share, and whether they share their
    noise, is what the objective says.

    Raises:
        InputError: a prior that is not of flow matching, or does not edit pictures.
    """
    check_flow_edit(prior)
    sampling, sharing = settings.sampling, settings.objective
    transport = independent
    if sharing.transport == "svgd":
        transport = partial(
            svgd, bandwidth=sharing.bandwidth, normalize=sharing.normalize_kernel, kernel=sharing.kernel
        )

    def edit(views: RoundViews) -> Tensor:
        start = prior.encode(views.particles)
        end = flow_edit(
            prior,
            start,
            views.source,
            views.condition,
            prompt=views.prompt,
            guidance=views.guidance,
            start=sampling.start.sample(prior.schedule.num_timesteps, generator=views.generator),
            steps=sampling.steps,
            transport=transport,
            noise_sharing=sharing.noise,
            generator=views.generator,
        )
        return views.images + as_pictures(prior.decode(end) - prior.decode(start))

    return edit


def translate(settings: EditPipelineConfig, prior: Prior) -> Edit:
    """Let a trained translator say what each view becomes, without a diffusion model.

        targets = G(source)        of the photo of a view; of an edited scene, of the view before this edit

    Not of the view as it is now, of which a round has changed something already: night made night is darker.
    """
    assert isinstance(prior, TranslatorPrior)

    def edit(views: RoundViews) -> Tensor:
        return prior.translated(views.source, views.prompt)

    return edit


EDITS: dict[str, Callable[[EditPipelineConfig, Prior], Edit]] = {
    "descend": descend,
    "sample": sample,
    "flow-edit": follow_flow,
    "translate": translate,
}
"""By their names in `--pipeline.edit`."""
