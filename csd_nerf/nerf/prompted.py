"""What every method shares that asks a diffusion model: prompt, prior, pictures, what a checkpoint keeps."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Type  # noqa: UP035 - nerfstudio's `_target`

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.callbacks import (
    TrainingCallback,
    TrainingCallbackAttributes,
    TrainingCallbackLocation,
)
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.utils import writer
from torch import Tensor
from torch.nn import Parameter
from typing_extensions import Self

from csd_nerf import ranks
from csd_nerf.errors import check, check_at_least, option
from csd_nerf.nerf.controls import Controls
from csd_nerf.nerf.model import CsdNerfactoModel
from csd_nerf.nerf.rendering import train_proposals
from csd_nerf.nerf.requests import Setting
from csd_nerf.nerf.scene_pipeline import ScenePipeline, ScenePipelineConfig
from csd_nerf.priors import check_prior, check_vae
from csd_nerf.priors.elsewhere import Elsewhere, same_device
from csd_nerf.priors.loading import check_device
from csd_nerf.priors.quantized import check_quantization
from csd_nerf.priors.shared import shared

if TYPE_CHECKING:
    from csd_nerf.priors import Prior


@dataclass
class PromptedPipelineConfig(ScenePipelineConfig):
    """The prompt, what is asked with it, and what is left to look at."""

    clips_too: ClassVar[bool] = False
    """Whether the prior may be one for clips."""

    _target: Type = field(default_factory=lambda: PromptedPipeline)  # noqa: UP006
    prompt: str = ""
    """In words, what is wanted. `--prompt` is the same."""
    prior: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """Diffusion model: a hub id, a folder in diffusers format, or the name of one that ships with the
    package."""
    prior_device: str = ""
    """Device of the diffusion model, such as `cuda:1`, where it is not to be on that of the scene. The views
    of an edit's next round are then edited while the scene is fitted to those of this one. Of several
    processes it is that of the first, and the others have those after it."""
    prior_precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format of the diffusion model; `auto` takes what its device is fast in."""
    prior_quantization: Literal["none", "int8", "nf4"] = "none"
    """Bits of the diffusion model's weights, for large ones on small cards: none (as in its precision), int8,
    or nf4 (4 bits). Needs bitsandbytes: `pip install 'csd-nerf[quantized]'`."""
    vae: str = ""
    """Another autoencoder for the prior, a hub id or a folder in diffusers format: one retrained, or a small
    fast one such as madebyollin/taesd (for Stable Diffusion 1 and 2). Empty for the prior's own."""
    vae_precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format of the autoencoder; `auto` takes bfloat16 where the device computes in it, unless the
    autoencoder asks for more, else float32."""
    unet_batch_size: int = 20
    """U-Net rows evaluated at a time; bounds the diffusion model's memory."""
    vae_batch_size: int = 1
    """Views encoded at a time; bounds the autoencoder's memory. Where a gradient goes through it and not all
    views are in one batch, it encodes twice."""
    compile_unet: bool = False
    """Run the U-Net through torch.compile: a minute of start-up, then faster steps on a GPU."""
    picture_views: int = 4
    """Fixed evaluation cameras shown in the pictures."""
    picture_size: int = 512
    """Short side, in pixels, of the pictures and the turntable."""
    steps_per_picture: int = 100
    """Steps between pictures; 0 draws them at the end alone."""
    turntable_frames: int = 120
    """Frames of the turntable video written at the end; 0 writes none."""

    @property
    @abstractmethod
    def memory_options(self) -> tuple[str, ...]:
        """Options of the pipeline that bound memory, in the order in which to turn them down."""

    def check(self) -> None:
        """Refuse numbers that a step cannot work with.

        Raises:
            InputError: naming the option; an autoencoder that the prior cannot have; an absent device.
        """
        for name in ("unet_batch_size", "vae_batch_size", "picture_views", "picture_size"):
            check_at_least(f"pipeline.{name}", getattr(self, name), 1)
        for name in ("steps_per_picture", "turntable_frames"):
            value = getattr(self, name)
            check(value >= 0, option(f"pipeline.{name}"), expected="at least 1, or 0 for none", got=value)
        check(
            self.picture_size % 2 == 0,
            option("pipeline.picture_size"),
            expected="an even number, as the video needs",
            got=self.picture_size,
        )
        check_quantization(self.prior_quantization)
        if self.prior_device:
            check_device(self.prior_device)
        if self.vae:
            check_vae(self.vae, check_prior(self.prior, clips_too=self.clips_too))

    @abstractmethod
    def check_prior(self, *, image_conditioned: bool) -> None:
        """Refuse a kind of prior that cannot be asked what is asked here; see `Prior.image_conditioned`."""

    @property
    def asked(self) -> str:
        """What is asked, by its name or path."""
        return self.prior

    @property
    @abstractmethod
    def guidance_option(self) -> str:
        """The option under which a user finds the guidance scales, such as `--pipeline.objective`."""

    @property
    @abstractmethod
    def size_option(self) -> str:
        """Name of the setting with the size, in pixels, at which views go through the prior."""


@dataclass
class Running:
    """What exists only while training runs; none of it reaches a checkpoint.

    Attributes:
        prior: the diffusion model.
        seed: with the step number, decides every random choice of that step.
        max_steps: in all, for what changes over the steps.
        optimizers: of the trainer.
    """

    prior: "Prior"
    seed: int
    max_steps: int
    optimizers: Optimizers | None = None


class PromptedPipeline(ScenePipeline):
    """A nerfacto scene and a frozen diffusion model that is asked about it.

    The diffusion model is loaded when training begins: viewing, rendering and evaluating never need it, and
    it is not a submodule, so no checkpoint contains it.
    """

    config: PromptedPipelineConfig
    model: CsdNerfactoModel
    changeable: tuple[str, ...] = ("prompt", "text_guidance")
    """Names of the settings that may be changed while a run goes on, and are saved with a checkpoint."""

    def __init__(self, config: PromptedPipelineConfig, device: str, **options: Any) -> None:
        super().__init__(config, device, **options)
        train_proposals(self.model)
        self.prompt = Setting(config.prompt)
        self.text_guidance = Setting(float(self._configured()["text_guidance"]))
        self.controls = self._make_controls()  # public: the viewer looks for it here
        self._evaluations_before = 0

    def train(self, mode: bool = True) -> Self:
        """The parent's. nerfstudio asks for it before every step, and to say it to each of hundreds of parts
        takes longer than to draw random rays: only where it is not so already."""
        return self if self.training == self.model.training == mode else super().train(mode)

    # ---------------------------------------------------------------- state

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Load a scene; see `CsdNerfactoModel.load_scene` for errors."""
        self.model.load_scene(loaded_state, origin="the checkpoint")
        if "_extra_state" in loaded_state:
            self.set_extra_state(loaded_state["_extra_state"])

    def get_extra_state(self) -> dict[str, Any]:
        """Saved with a checkpoint: what the viewer may have changed, beside what the configuration said, and
        the work done."""
        values = {name: getattr(self, name).value for name in self.changeable}
        current = {name: value if isinstance(value, str) else float(value) for name, value in values.items()}
        return {
            "configured": self._configured(),
            "current": current,
            "unet_evaluations": self.unet_evaluations,
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over what the viewer had changed, except where the command line now says otherwise, and count
        on from the work done."""
        # Absent from runs that were saved before it was counted.
        self._evaluations_before = state.get("unet_evaluations", 0)
        configured = self._configured()
        for name in self.changeable:
            if state["configured"].get(name) == configured[name]:
                getattr(self, name).value = state["current"][name]

    @abstractmethod
    def _configured(self) -> dict[str, Any]:
        """What the configuration says of the `changeable`, by name."""

    @abstractmethod
    def note_changes(self, config: Any) -> None:
        """Let a configuration of this pipeline, its own or a copy, say what was changed since."""

    @abstractmethod
    def _make_controls(self) -> Controls:
        """What a viewer shows of a run."""

    @abstractmethod
    def guidance_read(self) -> tuple[str, ...]:
        """Names of the guidance scales that the prior reads; known once it is loaded."""

    def check_words(self, prompt: str) -> None:
        """See that a prompt can be asked with; its embedding is then made.

        Raises:
            InputError: it is blank.
        """
        check(
            bool(prompt.strip()),
            "the prompt is blank",
            expected="what is wanted, in words",
            got=repr(prompt),
            hint="write some, and press Apply",
        )
        if self._running is not None:
            self._running.prior.read_ahead([prompt])

    def plan(self, steps: int) -> None:
        """Let the whole run have so many steps."""
        if self._running is not None:
            self._running.max_steps = steps

    @abstractmethod
    def rounds_done(self, step: int) -> tuple[int, int] | None:
        """Rounds finished by so many steps, and those of the whole run; None where steps are all there is."""

    @property
    def unet_evaluations(self) -> int:
        """Rows that went through the U-Net since the run began; by it, methods compare at equal cost."""
        running = self._running
        return self._evaluations_before + (running.prior.unet_evaluations if running else 0)

    @property
    @abstractmethod
    def _running(self) -> "Running | None":
        """What exists while training runs, and only then."""

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """Field and proposal networks."""
        return {
            "fields": list(self.model.field.parameters()),
            "proposal_networks": list(self.model.proposal_networks.parameters()),
        }

    def _load_prior(self) -> "Prior":
        from csd_nerf.priors import as_dtype, load_prior

        config = self.config
        device = ranks.own_device(config.prior_device) if config.prior_device else self.device
        prior = load_prior(
            config.prior,
            device=device,
            dtype=as_dtype(config.prior_precision),
            quantization=config.prior_quantization,
            vae=config.vae,
            vae_dtype=as_dtype(config.vae_precision),
            unet_batch_size=config.unet_batch_size,
            vae_batch_size=config.vae_batch_size,
            compile_unet=config.compile_unet,
            **self._prior_options(),
        )
        together = shared(prior)
        if same_device(device, self.device):
            return together
        return Elsewhere(together, torch.device(self.device))

    def _prior_options(self) -> dict[str, Any]:
        """What else `load_prior` is to be told."""
        return {}

    # ---------------------------------------------------------------- pictures

    def draw(self, cameras: Cameras) -> Tensor:
        """Pictures (V, 3, H, W) of the scene as it is now, 0..1, on the CPU."""
        return torch.stack([self._picture(cameras, index) for index in range(len(cameras))])

    def _picture(self, cameras: Cameras, index: int) -> Tensor:
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            rgb = self.model.get_outputs_for_camera(cameras[index : index + 1])["rgb"]
        self.model.train(training)
        return rgb.permute(2, 0, 1).float().cpu()

    @abstractmethod
    def write_pictures(self, folder: Path, step: int, *, final: bool = False) -> None:
        """Save pictures as `step-*.png` and show them in tensorboard.

        Args:
            folder: of the pictures.
            step: steps done.
            final: whether these are the last.
        """

    def write_turntable(self, path: Path) -> None:
        """Save an orbit around the scene as an mp4."""
        from csd_nerf.nerf.sheets import save_video

        cameras = self._turntable()
        save_video((self._picture(cameras, index).permute(1, 2, 0) for index in range(len(cameras))), path)

    @abstractmethod
    def _turntable(self) -> Cameras:
        """`turntable_frames` cameras on a closed orbit, on the device."""

    # ---------------------------------------------------------------- hooks

    def _picture_callbacks(
        self, attributes: TrainingCallbackAttributes, running: Running
    ) -> list[TrainingCallback]:
        """Pictures at intervals and at the end."""
        trainer = attributes.trainer
        assert trainer is not None
        running.optimizers = attributes.optimizers
        folder = trainer.base_dir / "pictures"

        def at_interval(step: int) -> None:
            done = step + 1
            every = self.config.steps_per_picture
            if every and done % every == 0 and done < running.max_steps:
                self.write_pictures(folder, done)

        def at_end(step: int) -> None:
            self.write_pictures(folder, step + 1, final=True)
            if self.config.turntable_frames:
                self.write_turntable(trainer.base_dir / "turntable.mp4")
            if writer.is_initialized():
                _write_out_pictures()  # nerfstudio writes for the last time before this runs

        after_step, after_all = (
            TrainingCallbackLocation.AFTER_TRAIN_ITERATION,
            TrainingCallbackLocation.AFTER_TRAIN,
        )
        return [
            TrainingCallback([after_step], at_interval, update_every_num_iters=1),
            TrainingCallback([after_all], at_end),
        ]


def _write_out_pictures() -> None:
    """To tensorboard and the like; the terminal's writer would paint its rows over what was printed since."""
    writers = list(writer.EVENT_WRITERS)
    writer.EVENT_WRITERS[:] = [each for each in writers if not isinstance(each, writer.LocalWriter)]
    try:
        writer.write_out_storage()
    finally:
        writer.EVENT_WRITERS[:] = writers
