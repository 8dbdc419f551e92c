"""The edit of a trained scene by score distillation: views as particles, their shared score, and the way
back into the field."""

import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar, Type  # noqa: UP035 - nerfstudio's own `_target` annotation, which tyro resolves

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.distillation.objective import NonFiniteResidual, Objective
from csd_nerf.nerf.base_pipeline import BaseEditPipeline, RunningEdit
from csd_nerf.nerf.distilled import DistilledEditConfig
from csd_nerf.nerf.prompted import require, require_at_least_one
from csd_nerf.nerf.rendering import RenderedViews, render_views


@dataclass
class EditPipelineConfig(DistilledEditConfig):
    """What to change, what proposes the change, and how large a step's work is."""

    _target: Type = field(default_factory=lambda: EditPipeline)  # noqa: UP006
    particles: int = 4
    """Views per step. They share their scores; more agree better, and cost more per step."""
    gradient_share: float = 0.25
    """Share of each view's pixels, drawn at random, that sends its gradient back (unbiased). 1 is all."""
    rays_per_chunk: int = 16384
    """Rays rendered at a time; bounds the renderer's memory whatever the number of views."""

    memory_options: ClassVar[tuple[str, ...]] = (
        "unet-batch-size", "rays-per-chunk", "vae-batch-size", "particles", "render-size", "picture-size",
    )  # fmt: skip

    @property
    def views_option(self) -> str:
        return "particles"

    def check(self) -> None:
        super().check()
        require_at_least_one(self, "particles", "rays_per_chunk")
        share = self.gradient_share
        require(0 < share <= 1, "pipeline.gradient_share", "above 0 and at most 1", share)


class EditPipeline(BaseEditPipeline):
    """Edits a trained nerfacto scene by score distillation from a frozen diffusion model.

    A step draws N training cameras, renders them differentiably, encodes the renders, asks the
    objective for a gradient on the latents and sends it back through encoder and renderer.
    """

    config: EditPipelineConfig

    def _prepare(self, edit: RunningEdit) -> None:
        self._objective = Objective(copy.copy(self.config.objective), edit.prior)
        self.datamanager.rays_per_step = self.config.particles * edit.height * edit.width

    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """One step of the edit (CSD-Edit on a NeRF, 2307.04787, section 4).

        The first loss is a surrogate: its value means nothing, its gradient is that of the objective.

        Raises:
            NonFiniteResidual: when the prior's answer is not finite.
        """
        edit = self._begun()
        config = self.config
        indices = edit.sampler(step)
        # Everything random in this step follows from here, so a resumed edit repeats no step differently.
        torch.manual_seed(edit.seed * 1_000_003 + step)
        source, condition = self._source_latents(indices)
        views = self._render(indices)
        prior = edit.prior
        self._objective.config.text_guidance = float(self.text_guidance.value)
        self._objective.config.image_guidance = float(self.image_guidance.value)
        with torch.autocast(self.device.type, enabled=False):
            views.images.register_hook(refuse_non_finite)
            latents = prior.encode(views.images)
            distilled = self._objective.gradient(
                latents.detach(),
                source,
                condition,
                prompt=self.prompt.value,
                source_prompt=config.source_prompt,
                step=step,
                max_steps=edit.max_steps,
            )
        losses = {
            "distillation": distillation_loss(distilled.gradient, latents),
            "interlevel_loss": self.model.config.interlevel_loss_mult * views.interlevel,
            "distortion_loss": self.model.config.distortion_loss_mult * views.distortion,
        }
        statistics = {**distilled.statistics, "unet_evaluations_total": self.unet_evaluations}
        metrics = {name: torch.tensor(float(value)) for name, value in statistics.items()}
        return {}, losses, metrics

    def _render(self, indices: list[int]) -> RenderedViews:
        edit = self._begun()
        # Its average appearance code: what evaluation and the viewer show is what the edit works on.
        self.model.field.eval()
        return render_views(
            self.model,
            edit.cameras,
            indices,
            rays_per_chunk=self.config.rays_per_chunk,
            gradient_share=self.config.gradient_share,
        )


def distillation_loss(gradient: Float[Tensor, "n c h w"], latents: Float[Tensor, "n c h w"]) -> Tensor:
    """A scalar whose gradient is that of the objective, as a mean over views and latent pixels.

    So it keeps its proportion to nerfacto's own losses, which are means over rays. Its value means nothing.
    """
    return (gradient * latents).sum() / latents[:, 0].numel()


def refuse_non_finite(gradient: Tensor) -> None:
    """Stop a backward pass before it reaches the field, where one NaN would spoil every later step."""
    if not gradient.isfinite().all():
        raise NonFiniteResidual("the gradient that came through the autoencoder is not finite")
