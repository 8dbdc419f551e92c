"""What every edit of a trained scene shares: its start, what a checkpoint keeps, pictures and viewer."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Optional, Protocol, Type  # noqa: UP035 - the forms that tyro resolves

import torch
import tyro
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.utils import writer
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer_elements import ViewerButton, ViewerNumber
from torch import Tensor
from torch.nn import Parameter

from csd_nerf.cameras import CameraSampler, turntable_cameras, view_size
from csd_nerf.errors import InputError
from csd_nerf.nerf.datamanager import EditDataManager, EditDataManagerConfig
from csd_nerf.nerf.model import CsdNerfactoModelConfig
from csd_nerf.nerf.prompted import PromptedPipeline, PromptedPipelineConfig, Running, require_at_least_one
from csd_nerf.nerf.region import RegionConfig, find_region, region_picture
from csd_nerf.nerf.region_box import BoxControls
from csd_nerf.nerf.region_hull import Hull
from csd_nerf.nerf.rendering import holding, render_still
from csd_nerf.nerf.source_field import keep_source_field
from csd_nerf.priors.control import ControlConfig

VISIBLE_CHANGE = 0.01
"""Mean absolute change of the pictures (0..1) below which an edit counts as not having begun."""


@dataclass
class BaseEditPipelineConfig(PromptedPipelineConfig):
    """What to change, what proposes the change, and what is left to look at."""

    _target: Type = field(default_factory=lambda: BaseEditPipeline)  # noqa: UP006
    datamanager: EditDataManagerConfig = field(default_factory=EditDataManagerConfig)
    """Cameras and photos of the capture."""
    model: CsdNerfactoModelConfig = field(default_factory=CsdNerfactoModelConfig)
    """The field; sizes follow the run in --load-dir unless given."""
    prompt: str = ""
    """What to change, as an instruction: "turn the bear into a polar bear". `--prompt` is the same."""
    prior: str = "timbrooks/instruct-pix2pix"
    """Diffusion model: a hub id, a folder in diffusers format, or `tiny-instruct` or `tiny-sd`, which
    ship with the package."""
    control: ControlConfig = field(default_factory=ControlConfig)
    """A ControlNet beside a text-to-image prior: the edit keeps to the source's depth or edges."""
    region: RegionConfig = field(default_factory=RegionConfig)
    """Where to edit; elsewhere the source is shown."""
    freeze_geometry: bool = False
    """Edit colours only: densities stay exactly those of the source. Costs a second field."""
    render_size: int = 512
    """Short side, in pixels, at which views go through the prior: the size it was trained at."""
    source_checkpoint: tyro.conf.Suppress[Optional[Path]] = None  # noqa: UP045
    """Checkpoint of the scene before the edit; recorded from --load-dir."""

    memory_options: ClassVar[tuple[str, ...]] = (
        "unet-batch-size",
        "vae-batch-size",
        "render-size",
        "picture-size",
    )

    @property
    @abstractmethod
    def guidance(self) -> "GuidanceScales":
        """The settings that hold `text_guidance` and `image_guidance`, found under `guidance_option`."""

    @property
    @abstractmethod
    def views_option(self) -> str:
        """Name of the setting with the number of distinct views that are edited together."""

    @property
    def views_at_once(self) -> int:
        """Distinct views that are edited together."""
        return int(getattr(self, self.views_option))

    @property
    @abstractmethod
    def texts(self) -> list[str]:
        """All that the prior will be asked with, so that an unusable text encoder shows at the start."""

    @property
    def size_option(self) -> str:
        return "render_size"

    def check(self) -> None:
        super().check()
        require_at_least_one(self, "render_size")
        self.region.check()


class GuidanceScales(Protocol):
    """Settings with the two scales that the viewer can change."""

    text_guidance: float
    image_guidance: float


class BaseEditPipeline(PromptedPipeline):
    """Edits a trained nerfacto scene with a frozen diffusion model; how is the subclass's matter."""

    config: BaseEditPipelineConfig
    datamanager: EditDataManager
    viewer_settings = ("prompt", "text_guidance", "image_guidance")

    def __init__(self, config: BaseEditPipelineConfig, device: str, **options: Any) -> None:
        # First: the parent asks `_configured`, which tells of the box.
        self._box = BoxControls(config.region.box()) if config.region.source == "box" else None
        self._hull = Hull() if config.region.source == "masks" else None
        self._where = self._box or self._hull
        super().__init__(config, device, **options)
        if self._keeps_source:
            inside = self._where.contains if self._where else None
            keep_source_field(self.model, inside=inside, geometry=config.freeze_geometry)
        self.image_guidance = ViewerNumber("Image guidance", config.guidance.image_guidance)
        self.reset = ViewerButton("Reset to source", cb_hook=lambda _: self._reset_to_source())
        for name, element in (self._box.elements if self._box else {}).items():
            setattr(self, name, element)
        self._edit: RunningEdit | None = None

    @property
    def _running(self) -> "RunningEdit | None":
        return self._edit

    @property
    def _keeps_source(self) -> bool:
        """Whether the source's field has a part in the edited scene."""
        return self._where is not None or self.config.freeze_geometry

    def get_extra_state(self) -> dict[str, Any]:
        """The parent's, and where the edit shows."""
        state = super().get_extra_state()
        if self._box:
            state["current"] |= self._box.current()
        if self._hull:
            state["hull"] = self._hull.state()
        return state

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """As the parent's; a hull is the one that was saved, wherever the masks are now."""
        super().set_extra_state(state)
        if self._hull:
            self._hull.load_state(state["hull"])

    def _configured(self) -> dict[str, Any]:
        guidance = self.config.guidance
        return {
            "prompt": self.config.prompt,
            "text_guidance": guidance.text_guidance,
            "image_guidance": guidance.image_guidance,
            **(self._box.configured() if self._box else {}),
        }

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """Field and proposal networks, the latter unless they are kept; an edit leaves cameras alone."""
        groups = super().get_param_groups()
        if self._keeps_source:
            del groups["proposal_networks"]
        return groups

    def _prior_options(self) -> dict[str, Any]:
        return {"control": self.config.control}

    # ---------------------------------------------------------------- the edit

    def begin_edit(self, source: Mapping[str, Any], *, seed: int, max_steps: int, origin: str) -> None:
        """Load the source scene and the diffusion model; draw the `before` pictures.

        Args:
            source: `pipeline` entry of the source scene's checkpoint.
            seed: with the step number, decides every random choice of that step.
            max_steps: of the whole edit, for annealed timesteps.
            origin: the source checkpoint, for error messages.

        Raises:
            InputError: when the scene, the region, the prior, the render size or the number of views do not
                fit.
        """
        config = self.config
        self.model.load_scene(source, origin)
        self.model.camera_optimizer.requires_grad_(False)
        cameras = self.datamanager.train_dataset.cameras
        flag = f"--pipeline.{config.views_option.replace('_', '-')}"
        sampler = CameraSampler(cameras, config.views_at_once, seed, flag)
        if self._where:
            dataset = self.datamanager.train_dataset
            find_region(self._where, config.region, self.model, dataset, config.render_size)
        prior = self._load_prior()
        height, width = view_size(cameras, config.render_size, prior.vae_factor)
        source_weights = {name: value.cpu().clone() for name, value in self.model.state_dict().items()}
        train_cameras = self.datamanager.train_cameras(height, width)
        self._edit = RunningEdit(
            prior=prior,
            sampler=sampler,
            cameras=train_cameras,
            height=height,
            width=width,
            seed=seed,
            max_steps=max_steps,
            source_weights=source_weights,
        )
        self._prepare(self._edit)
        # Now, not in the first step: a text encoder that cannot be loaded is bad input too.
        prior.embed(config.texts)
        self._edit.before = self.eval_pictures()

    @abstractmethod
    def _prepare(self, edit: "RunningEdit") -> None:
        """What a subclass needs before the first step; also sets `datamanager.rays_per_step`."""

    @torch.no_grad()
    def _source_latents(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Latents (N, c, h, w) of the source photos and what the prior is shown of them; each made once.

        Not between rendering and its backward pass: for depth, the source scene is put in for a moment.
        """
        edit = self._begun()
        prior = edit.prior
        for index in indices:
            if index not in edit.source_latents:
                photo = self.datamanager.train_photos([index], edit.height, edit.width)
                shown = self._source_depth(index) if prior.shown == "depth" else photo
                edit.source_latents[index] = (prior.encode(photo)[0].cpu(), prior.condition(shown)[0].cpu())
        source, condition = zip(*(edit.source_latents[index] for index in indices), strict=True)
        return torch.stack(source).to(self.device), torch.stack(condition).to(self.device)

    def _source_depth(self, index: int) -> Tensor:
        """Depth (1, 1, H, W) of a training view, rendered from the scene before the edit."""
        edit = self._begun()
        with holding(self.model, edit.source_weights):
            return render_still(self.model, edit.cameras, index).depth[None]

    def _begun(self) -> "RunningEdit":
        if self._edit is None:
            raise RuntimeError("begin_edit comes before the first step")
        return self._edit

    # ---------------------------------------------------------------- evaluation

    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, Any]:
        """nerfstudio's metrics against the photos and, of a finished edit, those of `csd-nerf evaluate`.

        The latter are named `edit_...`, and `edit_..._before` for the scene before the edit. They are left
        out when the source scene is gone, and while the edit runs.
        """
        metrics = super().get_average_eval_image_metrics(step, output_path, get_std)
        if self._edit is None:
            from csd_nerf.nerf.evaluate_run import edit_figures  # pulls in torchmetrics and transformers

            try:
                metrics |= edit_figures(self)
            except InputError as error:
                CONSOLE.print(f"[bold yellow]Only nerfstudio's own metrics: {error.problem}.")
        return metrics

    # ---------------------------------------------------------------- pictures

    @torch.no_grad()
    def eval_pictures(self) -> Tensor:
        """Renders (V, 3, H, W) of the fixed evaluation cameras, 0..1, on the CPU."""
        config = self.config
        size = view_size(self.datamanager.train_dataset.cameras, config.picture_size, 2)
        cameras, _ = self.datamanager.eval_cameras(*size, config.picture_views)
        return self.draw(cameras)

    def write_pictures(self, folder: Path, step: int, *, final: bool = False) -> None:
        """Save a before/after sheet; see the parent.

        The last rows are also saved by themselves, as `before.png` and `after.png`.
        """
        from csd_nerf.nerf.sheets import save_png, sheet

        before, after = self._begun().before, self.eval_pictures()
        both = sheet([before, after])
        save_png(both, folder / f"step-{step:06d}.png")
        if final:
            save_png(sheet([before]), folder / "before.png")
            save_png(sheet([after]), folder / "after.png")
        if writer.is_initialized():
            writer.put_image(name="Before (top) and after", image=both, step=step)
        change = float((after - before).abs().mean())
        if change < VISIBLE_CHANGE and step >= 2 * max(1, self.config.steps_per_picture):
            option = self.config.guidance_option
            CONSOLE.print(
                f"[bold yellow]After {step} steps the renders have moved by only {change:.4f} (of 1). Try a "
                f"higher {option}.text-guidance, a lower {option}.image-guidance, or "
                "other words in the prompt."
            )

    def _turntable(self) -> Cameras:
        train_cameras = self.datamanager.train_dataset.cameras.to(self.device)
        size = view_size(train_cameras, self.config.picture_size, 2)
        return turntable_cameras(train_cameras, self.config.turntable_frames, *size)

    # ---------------------------------------------------------------- hooks

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """Pictures at intervals and at the end.

        Nerfacto's own callbacks are left out: they anneal the proposal sampling of an untrained scene.
        """
        if attributes.trainer is None or attributes.optimizers is None or self._edit is None:
            return []
        callbacks = self._picture_callbacks(attributes, self._edit)
        if self._where:
            from csd_nerf.nerf.sheets import save_png

            with holding(self.model, self._edit.source_weights):
                picture = region_picture(
                    self.model, self._edit.cameras, self._where.contains, self.config.picture_views
                )
            save_png(picture, attributes.trainer.base_dir / "pictures" / "region.png")
        return callbacks

    def _reset_to_source(self) -> None:
        """Put the source scene back and forget the optimisers' momentum; the edit goes on from there."""
        if self._edit is None:
            CONSOLE.print("Nothing to reset: this scene is being viewed, not edited.")
            return
        self.model.load_state_dict(self._edit.source_weights)
        if self._edit.optimizers is not None:
            for optimizer in self._edit.optimizers.optimizers.values():
                optimizer.state.clear()


@dataclass(kw_only=True)
class RunningEdit(Running):
    """What exists only while an edit runs.

    Attributes:
        sampler: which training views a step takes.
        cameras: all training cameras, cropped to the shape of the views.
        height, width: of the views, in pixels.
        source_weights: of the scene before the edit, on the CPU.
        source_latents: latents of the source photos, and `Prior.condition` of them or of the source scene's
            depth, made when first needed.
        before: pictures of the source scene from the evaluation cameras.
    """

    sampler: CameraSampler
    cameras: Cameras
    height: int
    width: int
    source_weights: dict[str, Tensor]
    source_latents: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    before: Tensor = field(default_factory=lambda: torch.empty(0))
