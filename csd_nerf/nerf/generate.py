"""Text-to-3D: a scene that is built from nothing until its views are what a prompt describes."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Type  # noqa: UP035 - nerfstudio's own `_target` annotation, which tyro resolves

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.utils import writer
from torch import Tensor
from torch.nn import Parameter, functional

from csd_nerf.cameras import check_short_side
from csd_nerf.distillation.objective import Objective, ObjectiveConfig
from csd_nerf.distillation.presets import preset
from csd_nerf.errors import InputError, check, check_at_least, option
from csd_nerf.nerf.controls import Controls
from csd_nerf.nerf.generated_model import GeneratedModel, GeneratedModelConfig
from csd_nerf.nerf.gradient_route import losses_through_the_renderer
from csd_nerf.nerf.orbit_data import OrbitDataManager, OrbitDataManagerConfig
from csd_nerf.nerf.prompted import PromptedPipeline, PromptedPipelineConfig, Running
from csd_nerf.nerf.rendering import render_views
from csd_nerf.nerf.viewpoints import SIDES, Viewpoints, view_prompt
from csd_nerf.seeds import begin_step


@dataclass
class GeneratePipelineConfig(PromptedPipelineConfig):
    """What to build, from where it is looked at, and how large a step's work is."""

    _target: Type = field(default_factory=lambda: GeneratePipeline)  # noqa: UP006
    datamanager: OrbitDataManagerConfig = field(default_factory=OrbitDataManagerConfig)
    """Where the cameras may be."""
    model: GeneratedModelConfig = field(default_factory=GeneratedModelConfig)
    """The field, and what is behind it."""
    name_sides: bool = True
    """Tell the prior which side it sees, by adding "front view", "side view", "back view" or "overhead view"
    to the prompt. Off for a prior that does not know these words."""
    objective: ObjectiveConfig = field(default_factory=lambda: preset("csd"))
    """How noise predictions become a gradient. Its residual is sds: there is no source to compare with."""
    particles: int = 4
    """Views per step. They share their scores; with one, CSD is SDS."""
    render_size: int = 64
    """Side, in pixels, at which views are rendered at first: the shape comes from small pictures."""
    fine_render_size: int = 128
    """Side, in pixels, at which views are rendered after `coarse_share` of the steps."""
    coarse_share: float = 0.5
    """Share of the steps, 0 to 1, that are rendered at the first size."""
    prior_size: int = 512
    """Side, in pixels, to which views are enlarged for the prior: the size it was trained at."""
    gradient_share: float = 1.0
    """Share of each view's pixels, drawn at random, that sends its gradient back (unbiased). 1 is all."""
    rays_per_chunk: int = 16384
    """Rays with a gradient that are rendered at a time; bounds the renderer's memory whatever the number of
    views."""

    @property
    def memory_options(self) -> tuple[str, ...]:
        return (
            "unet-batch-size", "rays-per-chunk", "model.eval-num-rays-per-chunk", "vae-batch-size",
            "particles", "fine-render-size", "gradient-share", "picture-size",
        )  # fmt: skip

    def check(self) -> None:
        """Refuse settings that a step cannot work with.

        Raises:
            InputError: naming the option.
        """
        super().check()
        for name in ("particles", "render_size", "fine_render_size", "prior_size", "rays_per_chunk"):
            check_at_least(f"pipeline.{name}", getattr(self, name), 1)
        share, coarse, model = self.gradient_share, self.coarse_share, self.model
        sparsity = model.sparsity_loss_mult
        residual, structure = self.objective.residual, self.objective.structure.loss
        for holds, name, expected, got in (
            (0 < share <= 1, "gradient_share", "above 0 and at most 1", share),
            (0 <= coarse <= 1, "coarse_share", "a share from 0 to 1", coarse),
            (model.blob_radius > 0, "model.blob_radius", "above 0", model.blob_radius),
            (model.blob_density >= 0, "model.blob_density", "0 or more", model.blob_density),
            (sparsity >= 0, "model.sparsity_loss_mult", "0 or more", sparsity),
            (residual == "sds", "objective.residual", "sds, which needs no source", residual),
            (structure == "none", "objective.structure.loss", "none: there is no source", structure),
        ):
            check(holds, option(f"pipeline.{name}"), expected=expected, got=got)
        self.datamanager.check()
        self.objective.check(particles=self.particles, source_prompt="")

    def check_prior(self, *, image_conditioned: bool) -> None:
        if image_conditioned:
            raise InputError(
                "this prior changes pictures and cannot make up any",
                expected="a text-to-image model, such as stable-diffusion-v1-5/stable-diffusion-v1-5",
                got=f"{self.prior}, whose U-Net must be shown the picture to change, an InstructPix2Pix",
                hint="choose another `--pipeline.prior`; to change a captured scene use `ns-train csd-edit`",
            )

    @property
    def guidance_option(self) -> str:
        return "--pipeline.objective"

    @property
    def size_option(self) -> str:
        return "prior_size"


class GeneratePipeline(PromptedPipeline):
    """Builds a scene by score distillation from a text-to-image model.

    A step draws N random cameras around the origin, renders them differentiably, encodes the renders, asks
    the objective for a gradient on the latents and sends it back through encoder and renderer. Each view is
    described by the prompt and the side that it shows.
    """

    config: GeneratePipelineConfig
    datamanager: OrbitDataManager
    model: GeneratedModel

    def __init__(self, config: GeneratePipelineConfig, device: str, **options: Any) -> None:
        super().__init__(config, device, **options)
        self._generation: Running | None = None

    @property
    def _running(self) -> Running | None:
        return self._generation

    def note_changes(self, config: Any) -> None:
        config.prompt = self.prompt.value
        config.objective.text_guidance = self.text_guidance.value

    def _make_controls(self) -> Controls:
        return Controls(self)

    def guidance_read(self) -> tuple[str, ...]:
        return () if self._begun().prior.guided_by == "itself" else ("text_guidance",)

    def rounds_done(self, step: int) -> None:
        return None

    def _configured(self) -> dict[str, Any]:
        return {"prompt": self.config.prompt, "text_guidance": self.config.objective.text_guidance}

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """Field and proposal networks, and the background where one is learned."""
        groups = super().get_param_groups()
        if self.model.environment is not None:
            groups["background"] = list(self.model.environment.parameters())
        return groups

    # ---------------------------------------------------------------- generation

    def begin(self, *, seed: int, max_steps: int) -> None:
        """Load the diffusion model.

        Args:
            seed: with the step number, decides every random choice of that step.
            max_steps: of the whole generation, for annealed timesteps and the render size.

        Raises:
            InputError: when the prior does not fit.
        """
        prior = self._load_prior()
        # Of a hub id neither is known before.
        self.config.check_prior(image_conditioned=prior.image_conditioned)
        check_short_side(self.config.prior_size, prior.vae_factor, "--pipeline.prior-size")
        self._objective = Objective(copy.copy(self.config.objective), prior)
        self._generation = Running(prior, seed, max_steps)
        # Now, not in the first step: a text encoder that cannot be loaded is bad input too.
        prompt = self.config.prompt
        prior.read_ahead(
            [prompt, "", *(view_prompt(prompt, side) for side in SIDES if self.config.name_sides)]
        )

    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """One step of text-to-3D (DreamFusion, 2209.14988; with several views CSD, 2307.04787, section 4).

        Raises:
            NonFiniteResidual: when the prior's answer is not finite.
        """
        running, config = self._begun(), self.config
        # Everything random in this step follows from here, so a resumed run repeats no step differently.
        begin_step(running.seed, step)
        viewpoints = self.datamanager.random_viewpoints(count=config.particles, seed=running.seed, step=step)
        size = self.render_size_at(step)
        self.datamanager.rays_per_step = config.particles * size**2
        self.model.view_backgrounds = torch.rand(config.particles, 3, device=self.device)
        views = render_views(
            self.model,
            viewpoints.cameras(size).to(self.device),
            list(range(config.particles)),
            rays_per_chunk=config.rays_per_chunk,
            gradient_share=config.gradient_share,
        )
        self._objective.config.text_guidance = float(self.text_guidance.value)
        pictures = functional.interpolate(
            views.images.float(), (config.prior_size, config.prior_size), mode="bilinear", antialias=True
        )
        losses, statistics = losses_through_the_renderer(
            self.model,
            self._objective,
            views,
            pictures,
            of=config.particles,
            source=torch.empty(0),  # looked at by no residual that is allowed here
            condition=running.prior.condition(pictures.detach()),
            prompt=self._prompts(viewpoints),
            step=step,
            max_steps=running.max_steps,
        )
        sparsity = self.model.config.sparsity_loss_mult * self.model.sparsity_loss(views.opacity)
        metrics = {name: torch.tensor(float(value)) for name, value in statistics.items()}
        return (
            {},
            {**losses, "sparsity_loss": sparsity},
            {**metrics, "opacity": views.opacity.detach().mean()},
        )

    def render_size_at(self, step: int) -> int:
        """Side, in pixels, of the views that a step renders."""
        config = self.config
        coarse = step < config.coarse_share * self._begun().max_steps
        return config.render_size if coarse else config.fine_render_size

    def _prompts(self, viewpoints: Viewpoints) -> str | list[str]:
        prompt = self.prompt.value
        if not self.config.name_sides:
            return prompt
        return [view_prompt(prompt, side) for side in viewpoints.sides()]

    def _begun(self) -> Running:
        if self._generation is None:
            raise RuntimeError("begin comes before the first step")
        return self._generation

    # ---------------------------------------------------------------- pictures

    def eval_pictures(self) -> Tensor:
        """Renders (V, 3, H, W) of fixed cameras around the scene, 0..1, on the CPU."""
        return self.draw(self.datamanager.orbit_cameras(self.config.picture_views, self.config.picture_size))

    def write_pictures(self, folder: Path, step: int, *, final: bool = False) -> None:
        """Save the scene from all around; see the parent. The last ones are saved as `views.png` too."""
        from csd_nerf.nerf.sheets import save_png, sheet

        views = sheet([self.eval_pictures()])
        save_png(views, folder / f"step-{step:06d}.png")
        if final:
            save_png(views, folder / "views.png")
        if writer.is_initialized():
            writer.put_image(name="Views", image=views, step=step)

    def _turntable(self) -> Cameras:
        return self.datamanager.orbit_cameras(self.config.turntable_frames, self.config.picture_size)

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """Pictures, and nerfacto's own: its sampling begins evenly and sharpens as the scene takes shape."""
        if attributes.trainer is None or self._generation is None:
            return []
        pictures = self._picture_callbacks(attributes, self._generation)
        return self.model.get_training_callbacks(attributes) + pictures
