"""Edits that replace the scene's training pictures, on which the scene then trains as on photos."""

import copy
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Type  # noqa: UP035 - forms that tyro and nerfstudio resolve

import torch
import torch.nn.functional as F
from nerfstudio.model_components.losses import distortion_loss, interlevel_loss
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from csd_nerf.distillation.descent import DescentConfig, edit_latents
from csd_nerf.distillation.objective import Objective, ObjectiveConfig
from csd_nerf.distillation.residuals import Guidance
from csd_nerf.distillation.sampling import sample_edit
from csd_nerf.distillation.schedule import TimestepRange
from csd_nerf.errors import InputError
from csd_nerf.nerf.base_pipeline import BaseEditPipeline, BaseEditPipelineConfig, RunningEdit
from csd_nerf.nerf.distilled import DistilledEditConfig
from csd_nerf.nerf.perceptual import PatchLpips
from csd_nerf.nerf.prompted import require, require_at_least_one
from csd_nerf.nerf.source_field import edited_everywhere
from csd_nerf.nerf.training_pictures import TrainingPictures, as_bytes


@dataclass
class DatasetEditPipelineConfig(BaseEditPipelineConfig):
    """Which training views are replaced when, and how the scene learns from them."""

    _target: Type = field(default_factory=lambda: DatasetEditPipeline)  # noqa: UP006
    steps_per_update: int = 2000
    """Training steps of the scene from one edit of training views to the next; the first comes at once."""
    views_per_update: int = 16
    """Training views that are edited at a time, spread over the capture. Each is taken once before any is
    taken again."""
    pixel_loss: Literal["mse", "l1"] = "mse"
    """How a rendered pixel is compared with that of the training picture: squared or absolute difference."""
    lpips_weight: float = 0.0
    """Weight of LPIPS between patches of --pipeline.datamanager.patch-size pixels; 0 does without. Needs
    torchvision's AlexNet weights (downloaded on first use)."""

    memory_options: ClassVar[tuple[str, ...]] = (
        "unet-batch-size", "datamanager.train-num-rays-per-batch", "vae-batch-size", "views-per-update",
        "render-size", "picture-size",
    )  # fmt: skip

    @property
    def views_option(self) -> str:
        return "views_per_update"

    def check(self) -> None:
        super().check()
        require_at_least_one(self, "steps_per_update", "views_per_update")
        manager, weight = self.datamanager, self.lpips_weight
        for name in ("patch_size", "train_num_rays_per_batch"):
            value = getattr(manager, name)
            require(value >= 1, f"pipeline.datamanager.{name}", "at least 1", value)
        patch = manager.patch_size
        require(weight >= 0, "pipeline.lpips_weight", "a number above 0, or 0 for none", weight)
        require(
            patch <= self.render_size,
            "pipeline.datamanager.patch_size",
            f"at most the render size, {self.render_size}",
            patch,
        )
        if weight:
            require(patch >= 32, "pipeline.datamanager.patch_size", "at least 32, for LPIPS", patch)


class DatasetEditPipeline(BaseEditPipeline):
    """Edits a trained nerfacto scene by editing what it is trained on.

    Every `steps_per_update` steps some training views are rendered, edited by the diffusion model, and put in
    the place of their photos; in all steps the scene trains on the pictures as they are by then. A checkpoint
    holds the edited pictures.
    """

    config: DatasetEditPipelineConfig

    def begin_edit(self, source: Mapping[str, Any], *, seed: int, max_steps: int, origin: str) -> None:
        # First, because it may be missing: not after minutes of loading.
        self._lpips = PatchLpips(self.device) if self.config.lpips_weight else None
        super().begin_edit(source, seed=seed, max_steps=max_steps, origin=origin)

    def _prepare(self, edit: RunningEdit) -> None:
        photos = [
            as_bytes(self.datamanager.train_photos([index], edit.height, edit.width))
            for index in range(len(edit.cameras))
        ]
        self._pictures = TrainingPictures(torch.cat(photos), edit.cameras)
        self.datamanager.rays_per_step = self.config.datamanager.train_num_rays_per_batch

    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """One training step of the scene, after an edit of training views where the schedule has one.

        Raises:
            NonFiniteResidual: when the prior's answer is not finite.
        """
        edit, config = self._begun(), self.config
        # Everything random in this step follows from here, so a resumed edit repeats no step differently.
        torch.manual_seed(edit.seed * 1_000_003 + step)
        evaluations = self.unet_evaluations
        number, since = divmod(step, config.steps_per_update)
        if since == 0:
            self._update(edit.sampler(number), step)
        rays, colours = self._pictures.sample(
            config.datamanager.train_num_rays_per_batch, config.datamanager.patch_size
        )
        # Its average appearance code: what evaluation and the viewer show is what the edit works on.
        self.model.field.eval()
        with edited_everywhere(self.model):
            outputs = self.model(rays)
        rendered = outputs["rgb"].float()
        levels = outputs["weights_list"], outputs["ray_samples_list"]
        compare = F.l1_loss if config.pixel_loss == "l1" else F.mse_loss
        losses = {
            "rgb_loss": compare(rendered, colours),
            "interlevel_loss": self.model.config.interlevel_loss_mult * interlevel_loss(*levels),
            "distortion_loss": self.model.config.distortion_loss_mult * distortion_loss(*levels),
        }
        if self._lpips is not None:
            lpips = self._lpips(rendered, colours, config.datamanager.patch_size)
            losses["lpips_loss"] = config.lpips_weight * lpips
        statistics: dict[str, Any] = {
            "psnr": -10 * torch.log10(F.mse_loss(rendered.detach(), colours)),
            "edited_views": len(self._pictures.edited),
            "unet_evaluations": self.unet_evaluations - evaluations,
            "unet_evaluations_total": self.unet_evaluations,
        }
        return outputs, losses, {name: torch.tensor(float(value)) for name, value in statistics.items()}

    @torch.no_grad()
    def _update(self, indices: list[int], step: int) -> None:
        """Replace the training pictures of some cameras by edits of the scene as it is now."""
        edit = self._begun()
        prior = edit.prior
        if len(indices) > 1:
            CONSOLE.print(f"Step {step}: editing {len(indices)} training views")
        with torch.autocast(self.device.type, enabled=False):
            with edited_everywhere(self.model):
                views = self.draw(edit.cameras[torch.tensor(indices)])
            latents = prior.encode(views.to(self.device))
            source, condition = self._source_latents(indices)
            edited = prior.decode(self._edit_latents(latents, source, condition, step))
        self._pictures.replace(indices, edited)

    @abstractmethod
    def _edit_latents(self, latents: Tensor, source: Tensor, condition: Tensor, step: int) -> Tensor:
        """Edited latents (N, c, h, w).

        Args:
            latents: of the renders of N training views as they are now.
            source: of the photos of these views.
            condition: `prior.condition` of the photos.
            step: of the scene's training, 0-based.
        """

    def get_extra_state(self) -> dict[str, Any]:
        """What the viewer may have changed, and the edited training pictures."""
        state = super().get_extra_state()
        return state if self._edit is None else {**state, "pictures": self._pictures.state()}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over what the viewer had changed; while editing, the edited training pictures as well."""
        super().set_extra_state(state)
        if self._edit is not None:
            self._pictures.load_state(state["pictures"])

    def _reset_to_source(self) -> None:
        super()._reset_to_source()
        if self._edit is not None:
            self._pictures.restore()


@dataclass
class CsdDatasetPipelineConfig(DistilledEditConfig, DatasetEditPipelineConfig):
    """Training views are edited together by score distillation in latent space."""

    _target: Type = field(default_factory=lambda: CsdDatasetPipeline)  # noqa: UP006
    objective: ObjectiveConfig = field(default_factory=lambda: ObjectiveConfig(normalize_kernel=False))
    """How noise predictions become a gradient."""
    descent: DescentConfig = field(default_factory=DescentConfig)
    """How the latents of the views follow it."""

    def check(self) -> None:
        super().check()
        self.descent.check("--pipeline.descent.")


class CsdDatasetPipeline(DatasetEditPipeline):
    """The schedule of CSD-Edit for scenes (Kim et al., 2307.04787, section 4): many views at a time, rarely.

    The views are the particles of one CSD-Edit in latent space. It starts from the renders, and compares with
    the photos.
    """

    config: CsdDatasetPipelineConfig

    def _prepare(self, edit: RunningEdit) -> None:
        self._objective = Objective(copy.copy(self.config.objective), edit.prior)
        super()._prepare(edit)

    def _edit_latents(self, latents: Tensor, source: Tensor, condition: Tensor, step: int) -> Tensor:
        self._objective.config.text_guidance = float(self.text_guidance.value)
        self._objective.config.image_guidance = float(self.image_guidance.value)
        return edit_latents(
            self._objective,
            latents,
            source,
            condition,
            prompt=self.prompt.value,
            source_prompt=self.config.source_prompt,
            descent=self.config.descent,
        )


@dataclass
class SamplingConfig:
    """How a diffusion model edits a picture by sampling."""

    steps: int = 20
    """DDIM steps of an edit."""
    text_guidance: float = 7.5
    """How strongly the prompt is followed."""
    image_guidance: float = 1.5
    """How closely the source picture is kept."""
    min_timestep: float = 0.02
    """Least noise that an edit starts from, as a fraction of the prior's schedule; drawn evenly."""
    max_timestep: float = 0.98
    """Most noise that an edit starts from, as a fraction of the prior's schedule."""

    @property
    def start(self) -> TimestepRange:
        """Where an edit starts.

        Raises:
            InputError: the bounds are out of order.
        """
        return TimestepRange(self.min_timestep, self.max_timestep)


@dataclass
class SampledDatasetPipelineConfig(DatasetEditPipelineConfig):
    """Training views are edited one by one, each by itself, by sampling from the diffusion model."""

    _target: Type = field(default_factory=lambda: SampledDatasetPipeline)  # noqa: UP006
    steps_per_update: int = 10
    """Training steps of the scene from one edit of training views to the next; the first comes at once."""
    views_per_update: int = 1
    """Training views that are edited at a time. Each is taken once before any is taken again."""
    pixel_loss: Literal["mse", "l1"] = "l1"
    """How a rendered pixel is compared with that of the training picture: squared or absolute difference."""
    lpips_weight: float = 1.0
    """Weight of LPIPS between patches of --pipeline.datamanager.patch-size pixels; 0 does without. Needs
    torchvision's AlexNet weights (downloaded on first use)."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How a view is edited."""

    @property
    def guidance(self) -> SamplingConfig:
        return self.sampling

    @property
    def guidance_option(self) -> str:
        return "--pipeline.sampling"

    @property
    def texts(self) -> list[str]:
        return [self.prompt, ""]

    def check(self) -> None:
        super().check()
        require(self.sampling.steps >= 1, "pipeline.sampling.steps", "at least 1", self.sampling.steps)
        _ = self.sampling.start

    def check_prior(self, *, image_conditioned: bool) -> None:
        if not image_conditioned:
            raise InputError(
                "Instruct-NeRF2NeRF cannot ask a text-to-image model",
                expected="a prior that is shown the source and told what to change, an InstructPix2Pix",
                got="a prior whose U-Net takes the noisy latents alone, as of a text-to-image model",
                hint="use timbrooks/instruct-pix2pix or tiny-instruct",
            )


class SampledDatasetPipeline(DatasetEditPipeline):
    """Instruct-NeRF2NeRF (Haque et al., 2303.12789): one view at a time, often.

    The render of a view is noised to a random level and denoised under the prompt, with the photo as the
    picture that the model is shown.
    """

    config: SampledDatasetPipelineConfig

    def _prepare(self, edit: RunningEdit) -> None:
        # The kind of a model from the hub is known only now.
        self.config.check_prior(image_conditioned=edit.prior.image_conditioned)
        super()._prepare(edit)

    def _edit_latents(self, latents: Tensor, source: Tensor, condition: Tensor, step: int) -> Tensor:
        sampling, prior = self.config.sampling, self._begun().prior
        return sample_edit(
            prior,
            latents,
            condition,
            prompt=self.prompt.value,
            guidance=Guidance(float(self.text_guidance.value), float(self.image_guidance.value)),
            start=sampling.start.sample(prior.schedule.num_timesteps),
            steps=sampling.steps,
        )
