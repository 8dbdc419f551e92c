"""What every edit of a trained scene shares: its start, what a checkpoint keeps, pictures and viewer."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Optional, Protocol, Type  # noqa: UP035 - forms that tyro resolves

import torch
import tyro
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.callbacks import (
    TrainingCallback,
    TrainingCallbackAttributes,
    TrainingCallbackLocation,
)
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils import writer
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer_elements import ViewerButton, ViewerNumber, ViewerText
from torch import Tensor
from torch.nn import Parameter

from csd_nerf.errors import InputError
from csd_nerf.nerf.datamanager import EditDataManager, EditDataManagerConfig
from csd_nerf.nerf.model import CsdNerfactoModel, CsdNerfactoModelConfig
from csd_nerf.nerf.rendering import train_proposals_always
from csd_nerf.nerf.views import CameraSampler, turntable_cameras, view_size

if TYPE_CHECKING:
    from csd_nerf.priors import Prior

VISIBLE_CHANGE = 0.01
"""Mean absolute change of the pictures (0..1) below which an edit counts as not having begun."""


@dataclass
class BaseEditPipelineConfig(VanillaPipelineConfig):
    """What to change, what proposes the change, and what is left to look at."""

    _target: Type = field(default_factory=lambda: BaseEditPipeline)  # noqa: UP006
    datamanager: EditDataManagerConfig = field(default_factory=EditDataManagerConfig)
    """Cameras and photos of the capture."""
    model: CsdNerfactoModelConfig = field(default_factory=CsdNerfactoModelConfig)
    """The field; sizes follow the run in --load-dir unless given."""
    prompt: str = ""
    """What to change, as an instruction: "turn the bear into a polar bear". `--prompt` is the same."""
    prior: str = "timbrooks/instruct-pix2pix"
    """Diffusion model: a hub id, a folder in diffusers format, or `tiny-instruct`, which ships with the
    package."""
    prior_precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format of the diffusion model; `auto` takes what its device is fast in."""
    render_size: int = 512
    """Short side, in pixels, at which views go through the prior: the size it was trained at."""
    unet_batch_size: int = 20
    """U-Net rows evaluated at a time (CSD-Edit has 5 per view); bounds the diffusion model's memory."""
    vae_batch_size: int = 1
    """Views encoded at a time; bounds the autoencoder's memory."""
    compile_unet: bool = False
    """Run the U-Net through torch.compile: a minute of start-up, then faster steps on a GPU."""
    picture_views: int = 4
    """Fixed evaluation cameras shown in the before/after pictures."""
    picture_size: int = 512
    """Short side, in pixels, of the before/after pictures and the turntable."""
    steps_per_picture: int = 100
    """Steps between before/after pictures; 0 draws them at the end alone."""
    turntable_frames: int = 120
    """Frames of the turntable video written at the end; 0 writes none."""
    source_checkpoint: tyro.conf.Suppress[Optional[Path]] = None  # noqa: UP045
    """Checkpoint of the scene before the edit; recorded from --load-dir."""

    memory_options: ClassVar[tuple[str, ...]] = (
        "unet-batch-size",
        "vae-batch-size",
        "render-size",
        "picture-size",
    )
    """Options of the pipeline that bound memory, in the order in which to turn them down."""

    @property
    @abstractmethod
    def guidance(self) -> "GuidanceScales":
        """The settings that hold `text_guidance` and `image_guidance`."""

    @property
    @abstractmethod
    def guidance_option(self) -> str:
        """The option under which a user finds them, such as `--pipeline.objective`."""

    @property
    @abstractmethod
    def views_at_once(self) -> int:
        """Distinct views that are edited together."""

    @property
    @abstractmethod
    def texts(self) -> list[str]:
        """All that the prior will be asked with, so that an unusable text encoder shows at the start."""

    def check(self) -> None:
        """Refuse numbers that a step cannot work with.

        Raises:
            InputError: naming the option.
        """
        require_at_least_one(
            self, "render_size", "unet_batch_size", "vae_batch_size", "picture_views", "picture_size"
        )
        for name in ("steps_per_picture", "turntable_frames"):
            value = getattr(self, name)
            require(value >= 0, f"pipeline.{name}", "at least 1, or 0 for none", value)
        size = self.picture_size
        require(size % 2 == 0, "pipeline.picture_size", "an even number, as the video needs", size)

    @abstractmethod
    def check_prior(self, *, image_conditioned: bool) -> None:
        """Refuse a kind of prior that cannot be asked what this edit asks; see `Prior.image_conditioned`."""


class GuidanceScales(Protocol):
    """Settings with the two scales that the viewer can change."""

    text_guidance: float
    image_guidance: float


def require(holds: bool, option: str, expected: str, got: object) -> None:
    """Refuse a value of an option unless `holds`.

    Raises:
        InputError: naming the option as it is given on the command line.
    """
    if not holds:
        flag = f"--{option.replace('_', '-')}"
        raise InputError(f"{flag} cannot be used", expected=expected, got=str(got), hint=f"change {flag}")


def require_at_least_one(config: BaseEditPipelineConfig, *names: str) -> None:
    """Refuse numbers of the pipeline below 1; see `require`."""
    for name in names:
        require(getattr(config, name) >= 1, f"pipeline.{name}", "at least 1", getattr(config, name))


class BaseEditPipeline(VanillaPipeline):
    """Edits a trained nerfacto scene with a frozen diffusion model; how is the subclass's matter.

    The diffusion model is loaded by `begin_edit` alone: viewing, rendering and evaluating an edited scene
    never needs it, and it is not a submodule, so no checkpoint contains it.
    """

    config: BaseEditPipelineConfig
    datamanager: EditDataManager
    model: CsdNerfactoModel

    def __init__(self, config: BaseEditPipelineConfig, device: str, **options: Any) -> None:
        super().__init__(config, device, **options)
        train_proposals_always(self.model)
        # Public attributes: the viewer shows them, and their values are what a step uses.
        self.prompt = ViewerText("Prompt", config.prompt)
        self.text_guidance = ViewerNumber("Text guidance", config.guidance.text_guidance)
        self.image_guidance = ViewerNumber("Image guidance", config.guidance.image_guidance)
        self.reset = ViewerButton("Reset to source", cb_hook=lambda _: self._reset_to_source())
        self._edit: RunningEdit | None = None
        self._evaluations_before = 0

    # ---------------------------------------------------------------- state

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Load an edited scene or a source scene; see `CsdNerfactoModel.load_scene` for errors."""
        self.model.load_scene(loaded_state, origin="the checkpoint")
        if "_extra_state" in loaded_state:
            self.set_extra_state(loaded_state["_extra_state"])

    def get_extra_state(self) -> dict[str, Any]:
        """Saved with a checkpoint: what the viewer may have changed, beside what the configuration said, and
        the work done."""
        return {
            "configured": self._configured(),
            "current": {
                "prompt": self.prompt.value,
                "text_guidance": float(self.text_guidance.value),
                "image_guidance": float(self.image_guidance.value),
            },
            "unet_evaluations": self.unet_evaluations,
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over what the viewer had changed, except where the command line now says otherwise, and count
        on from the work done."""
        # Absent from edits that were saved before it was counted.
        self._evaluations_before = state.get("unet_evaluations", 0)
        configured = self._configured()
        for name, value in state["current"].items():
            if state["configured"][name] == configured[name]:
                getattr(self, name).value = value

    def _configured(self) -> dict[str, Any]:
        guidance = self.config.guidance
        return {
            "prompt": self.config.prompt,
            "text_guidance": guidance.text_guidance,
            "image_guidance": guidance.image_guidance,
        }

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """Field and proposal networks: an edit leaves the cameras alone."""
        return {
            "fields": list(self.model.field.parameters()),
            "proposal_networks": list(self.model.proposal_networks.parameters()),
        }

    # ---------------------------------------------------------------- the edit

    @property
    def unet_evaluations(self) -> int:
        """Rows that went through the U-Net since the edit began; by it, methods compare at equal cost."""
        return self._evaluations_before + (self._edit.prior.unet_evaluations if self._edit else 0)

    def begin_edit(self, source: Mapping[str, Any], *, seed: int, max_steps: int, origin: str) -> None:
        """Load the source scene and the diffusion model; draw the `before` pictures.

        Args:
            source: `pipeline` entry of the source scene's checkpoint.
            seed: with the step number, decides every random choice of that step.
            max_steps: of the whole edit, for annealed timesteps.
            origin: the source checkpoint, for error messages.

        Raises:
            InputError: when the scene, the prior, the render size or the number of views do not fit.
        """
        from csd_nerf.priors import load_prior  # pulls in diffusers and transformers

        config = self.config
        self.model.load_scene(source, origin)
        self.model.camera_optimizer.requires_grad_(False)
        cameras = self.datamanager.train_dataset.cameras
        sampler = CameraSampler(cameras, config.views_at_once, seed)
        prior = load_prior(
            config.prior,
            device=self.device,
            dtype=None if config.prior_precision == "auto" else getattr(torch, config.prior_precision),
            unet_batch_size=config.unet_batch_size,
            vae_batch_size=config.vae_batch_size,
            compile_unet=config.compile_unet,
        )
        height, width = view_size(cameras, config.render_size, prior.vae_factor)
        self._edit = RunningEdit(
            prior=prior,
            sampler=sampler,
            cameras=self.datamanager.train_cameras(height, width),
            height=height,
            width=width,
            seed=seed,
            max_steps=max_steps,
            source_weights={name: value.cpu().clone() for name, value in self.model.state_dict().items()},
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
        """Latents and conditioning latents (N, c, h, w) of the source photos; each made once."""
        edit = self._begun()
        prior = edit.prior
        for index in indices:
            if index not in edit.source_latents:
                photo = self.datamanager.train_photos([index], edit.height, edit.width)
                edit.source_latents[index] = (prior.encode(photo)[0].cpu(), prior.condition(photo)[0].cpu())
        source, condition = zip(*(edit.source_latents[index] for index in indices), strict=True)
        return torch.stack(source).to(self.device), torch.stack(condition).to(self.device)

    def _begun(self) -> "RunningEdit":
        if self._edit is None:
            raise RuntimeError("begin_edit comes before the first step")
        return self._edit

    # ---------------------------------------------------------------- pictures

    @torch.no_grad()
    def eval_pictures(self) -> Tensor:
        """Renders (V, 3, H, W) of the fixed evaluation cameras, 0..1, on the CPU."""
        config = self.config
        size = view_size(self.datamanager.train_dataset.cameras, config.picture_size, 2)
        cameras, _ = self.datamanager.eval_cameras(*size, config.picture_views)
        return self.draw(cameras)

    def draw(self, cameras: Cameras) -> Tensor:
        """Pictures (V, 3, H, W) of the scene as it is now, 0..1, on the CPU."""
        return torch.stack([self._picture(cameras, index) for index in range(len(cameras))])

    def _picture(self, cameras: Cameras, index: int) -> Tensor:
        training = self.model.training
        self.model.eval()
        rgb = self.model.get_outputs_for_camera(cameras[index : index + 1])["rgb"]
        self.model.train(training)
        return rgb.permute(2, 0, 1).float().cpu()

    def write_pictures(self, folder: Path, step: int, *, final: bool = False) -> None:
        """Save a before/after sheet as `step-*.png` and show it in tensorboard.

        Args:
            folder: of the pictures.
            step: steps done.
            final: also save both rows by themselves, as `before.png` and `after.png`.
        """
        from csd_nerf.nerf.pictures import save_png, sheet

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

    def write_turntable(self, path: Path) -> None:
        """Save an orbit around the edited scene as an mp4."""
        from csd_nerf.nerf.pictures import save_video

        config = self.config
        train_cameras = self.datamanager.train_dataset.cameras.to(self.device)
        size = view_size(train_cameras, config.picture_size, 2)
        cameras = turntable_cameras(train_cameras, config.turntable_frames, *size)
        frames = (self._picture(cameras, index).permute(1, 2, 0) for index in range(len(cameras)))
        save_video(frames, path)

    # ---------------------------------------------------------------- hooks

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """Pictures at intervals and at the end.

        Nerfacto's own callbacks are left out: they anneal the proposal sampling of an untrained scene.
        """
        trainer = attributes.trainer
        if trainer is None or attributes.optimizers is None or self._edit is None:
            return []
        self._edit.optimizers = attributes.optimizers
        folder, max_steps = trainer.base_dir / "pictures", self._edit.max_steps

        def at_interval(step: int) -> None:
            done = step + 1
            every = self.config.steps_per_picture
            if every and done % every == 0 and done < max_steps:
                self.write_pictures(folder, done)

        def at_end(step: int) -> None:
            self.write_pictures(folder, step + 1, final=True)
            if self.config.turntable_frames:
                self.write_turntable(trainer.base_dir / "turntable.mp4")
            if writer.is_initialized():
                writer.write_out_storage()  # nerfstudio writes for the last time before this runs
            CONSOLE.print(f"Pictures and turntable: {trainer.base_dir}")

        after_step, after_all = (
            TrainingCallbackLocation.AFTER_TRAIN_ITERATION,
            TrainingCallbackLocation.AFTER_TRAIN,
        )
        return [
            TrainingCallback([after_step], at_interval, update_every_num_iters=1),
            TrainingCallback([after_all], at_end),
        ]

    def _reset_to_source(self) -> None:
        """Put the source scene back and forget the optimisers' momentum; the edit goes on from there."""
        if self._edit is None:
            CONSOLE.print("Nothing to reset: this scene is being viewed, not edited.")
            return
        self.model.load_state_dict(self._edit.source_weights)
        if self._edit.optimizers is not None:
            for optimizer in self._edit.optimizers.optimizers.values():
                optimizer.state.clear()


@dataclass
class RunningEdit:
    """What exists only while an edit runs; none of it reaches a checkpoint.

    Attributes:
        prior: the diffusion model.
        sampler: which training views a step takes.
        cameras: all training cameras, cropped to the shape of the views.
        height, width: of the views, in pixels.
        seed: with the step number, decides every random choice.
        max_steps: of the whole edit.
        source_weights: of the scene before the edit, on the CPU.
        source_latents: latents and conditioning latents of the source photos, made when first needed.
        before: pictures of the source scene from the evaluation cameras.
        optimizers: of the trainer.
    """

    prior: "Prior"
    sampler: CameraSampler
    cameras: Cameras
    height: int
    width: int
    seed: int
    max_steps: int
    source_weights: dict[str, Tensor]
    source_latents: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    before: Tensor = field(default_factory=lambda: torch.empty(0))
    optimizers: Optimizers | None = None
