"""The edit of a trained scene: its settings, its start, its steps, what a checkpoint keeps, and pictures.

A step is `EditPipeline.get_train_loss_dict`. It goes the way of the loop (`edit_loop`, `edits`), or that of
the published gradient (`gradient_route`).
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import (  # noqa: UP035 - the forms that tyro resolves
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    Optional,
    Type,
)

import torch
import torch.nn.functional as F
import tyro
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.utils import writer
from nerfstudio.utils.rich_utils import CONSOLE
from rich.text import Text
from torch import Tensor
from torch.nn import Parameter

from csd_nerf import ranks
from csd_nerf.cameras import CameraSampler, PathSampler, turntable_cameras, view_size
from csd_nerf.distillation.descent import DescentConfig
from csd_nerf.distillation.objective import Objective, ObjectiveConfig
from csd_nerf.distillation.relevance import relevance
from csd_nerf.distillation.residuals import Guidance, check_fit
from csd_nerf.distillation.schedule import TimestepRange
from csd_nerf.distillation.transport import check_bandwidth
from csd_nerf.errors import InputError, check, check_at_least, option
from csd_nerf.nerf.before import SceneBefore
from csd_nerf.nerf.candidate import Candidate, read_candidate, read_pictures
from csd_nerf.nerf.datamanager import EditDataManager, EditDataManagerConfig
from csd_nerf.nerf.edit_ahead import EditAhead
from csd_nerf.nerf.edit_controls import EditControls
from csd_nerf.nerf.edit_loop import NO_CHANGE, Fit, NoOpAlarm, draw
from csd_nerf.nerf.edits import EDITS, Edit, RoundViews, as_clips
from csd_nerf.nerf.gradient_route import losses_through_the_renderer
from csd_nerf.nerf.model import CsdNerfactoModel, CsdNerfactoModelConfig, holds_source, is_of_source
from csd_nerf.nerf.perceptual import PatchLpips
from csd_nerf.nerf.prompted import PromptedPipeline, PromptedPipelineConfig, Running
from csd_nerf.nerf.region import RegionConfig, find_region, region_picture, spread, surface
from csd_nerf.nerf.region_box import MovableBox, RegionBox, by_name
from csd_nerf.nerf.region_hull import Hull
from csd_nerf.nerf.region_relevance import CLEAR, VIEWS, RelevantVoxels
from csd_nerf.nerf.rendering import StillView, holding, render_still, render_views, train_proposals
from csd_nerf.nerf.requests import Setting
from csd_nerf.nerf.runs import read_checkpoint
from csd_nerf.nerf.source_field import (
    Inside,
    keep_source_field,
    keeps_source_field,
    set_strength,
    strength_of,
)
from csd_nerf.nerf.source_scene import source_checkpoint
from csd_nerf.nerf.targets import Targets, as_bytes
from csd_nerf.nerf.translating import TranslatorPrior
from csd_nerf.pixel_rays import PixelRays
from csd_nerf.priors.control import ControlConfig
from csd_nerf.priors.elsewhere import Elsewhere
from csd_nerf.seeds import begin_step
from csd_nerf.threads import all_for_torch

if TYPE_CHECKING:
    from csd_nerf.priors import Prior


@dataclass
class SamplingConfig:
    """How a diffusion model edits a picture by sampling."""

    steps: int = 20
    """DDIM steps of an edit; of flow-edit, steps along the flow."""
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
class EditPipelineConfig(PromptedPipelineConfig):
    """What to change, what proposes the change, how the scene takes it in, and what is left to look at."""

    clips_too: ClassVar[bool] = True

    _target: Type = field(default_factory=lambda: EditPipeline)  # noqa: UP006
    datamanager: EditDataManagerConfig = field(default_factory=EditDataManagerConfig)
    """Cameras and photos of the capture. Its train-num-rays-per-batch are the rays of a fit, its patch-size
    the side of the patches that they are drawn in."""
    model: CsdNerfactoModelConfig = field(default_factory=CsdNerfactoModelConfig)
    """The field; sizes follow the run in --load-dir unless given."""
    prompt: str = ""
    """What to change, as an instruction: "turn the bear into a polar bear". `--prompt` is the same."""
    source_prompt: str = ""
    """What the scene shows now, for a text-to-image prior; the residuals `dds` and `pds` need it."""
    prior: str = "timbrooks/instruct-pix2pix"
    """Diffusion model: a hub id, a folder in diffusers format, or `tiny-instruct`, `tiny-flow`, `tiny-sd` or,
    for ways through the capture as clips, `tiny-video`, which ship with the package."""
    motion: str = ""
    """Layers of motion that make a prior for clips of one for pictures: a hub id or folder of a motion
    adapter."""
    control: ControlConfig = field(default_factory=ControlConfig)
    """A ControlNet beside a text-to-image prior: the edit keeps to the source's depth or edges."""
    region: RegionConfig = field(default_factory=RegionConfig)
    """Where to edit; elsewhere the source is shown."""
    strength: float = 1.0
    """How much of the edit is shown, 0..1: 0 is the source and 1 the edit, between them colours and densities
    of both are mixed. What is trained does not depend on it. Below 1 it costs a second field."""
    freeze_geometry: bool = False
    """Edit colours only: densities stay exactly those of the source. Costs a second field."""
    render_size: int = 512
    """Short side, in pixels, at which views go through the prior: the size it was trained at."""

    route: Literal["loop", "gradient"] = "loop"
    """How an edit reaches the scene: loop (views are drawn, edited, and the scene is fitted to them) or
    gradient (of score distillation, through encoder and renderer, as published; several times the price)."""
    edit: Literal["descend", "sample", "flow-edit", "translate"] = "descend"
    """How the views of a round are edited: descend (together, by --pipeline.objective), sample (each by
    itself, by --pipeline.sampling), flow-edit (together, in one annealed pass by --pipeline.sampling that
    shares as the objective says; needs a prior of flow matching) or translate (by --pipeline.translator, in
    milliseconds and without a diffusion model). The route gradient has no rounds and follows the
    objective."""
    translator: Optional[Path] = None  # noqa: UP045
    """For `translate`: what `csd-nerf translate train` wrote. The prompt must be one that it was trained
    for."""
    particles: int = 4
    """Views that are edited together. They share their scores; more agree better, and cost more. 0 is every
    training view. Of a prior for clips, ways through the capture."""
    clip_views: Optional[int] = None  # noqa: UP045
    """Of a prior for clips: training views on a way through the capture, which are a clip to it. Default as
    many as it was made for, or as there are."""
    fits_per_round: int = 16
    """Steps in which the scene is fitted to its targets, from one round of edited views to the next. 0 edits
    once, at the start."""
    kept_views: int = 16
    """How many edited views the scene is fitted to, the newest; 0 is every training view, with its photo for
    as long as it has not been edited."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """How noise predictions become a gradient on the latents of the views."""
    descent: DescentConfig = field(
        default_factory=lambda: DescentConfig(steps=2, learning_rate=2.0, decay=1.0)
    )
    """How the latents of a round follow the objective."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How a view is edited by `sample` and `flow-edit`."""
    pixel_loss: Literal["mse", "l1"] = "l1"
    """How a fitted pixel is compared with its target: squared or absolute difference."""
    lpips_weight: float = 0.0
    """Weight of LPIPS between patches of --pipeline.datamanager.patch-size pixels in a fit; 0 does without.
    Needs torchvision's AlexNet weights (downloaded on first use)."""
    gradient_share: float = 0.25
    """Of the route gradient: share of each view's pixels, drawn at random, that sends its gradient back
    (unbiased). 1 is all."""
    rays_per_chunk: int = 16384
    """Of the route gradient: rays with a gradient that are rendered at a time; bounds the renderer's memory
    whatever the number of views."""
    candidate: Optional[Path] = None  # noqa: UP045
    """A candidate of `csd-nerf try`, TRY_FOLDER/NUMBER, that is to become the edit: its prompt, its guidance
    and its seed, and its edited views are the first that the scene is fitted to."""
    source_checkpoint: tyro.conf.Suppress[Optional[Path]] = None  # noqa: UP045
    """Checkpoint of the scene before the edit; recorded from --load-dir."""
    source_was_edited: tyro.conf.Suppress[bool] = False
    """Whether that scene is an edit itself: what it looks like is then the source, and not the photos."""

    @property
    def memory_options(self) -> tuple[str, ...]:
        """Options that bound memory, in the order in which to turn them down."""
        by_route = {
            "loop": ("datamanager.train-num-rays-per-batch",),
            "gradient": ("rays-per-chunk", "gradient-share"),
        }[self.route]
        return (
            "unet-batch-size", *by_route, "model.eval-num-rays-per-chunk", "vae-batch-size", "particles",
            "render-size", "picture-size",
        )  # fmt: skip

    def round_of(self, step: int) -> int:
        """The round, 0-based, that a step (0-based) of the loop belongs to."""
        return step // self.fits_per_round if self.fits_per_round else 0

    @property
    def distils(self) -> bool:
        """Whether the edit follows the objective, on either route."""
        return self.route == "gradient" or self.edit == "descend"

    @property
    def translates(self) -> bool:
        """Whether a translator makes the edit, and no diffusion model is asked."""
        return self.route == "loop" and self.edit == "translate"

    @property
    def asked(self) -> str:
        return str(self.translator) if self.translates else self.prior

    @property
    def guidance(self) -> ObjectiveConfig | SamplingConfig:
        """The settings that hold `text_guidance` and `image_guidance`, found under `guidance_option`."""
        return self.objective if self.distils else self.sampling

    @property
    def guidance_option(self) -> str:
        return "--pipeline.objective" if self.distils else "--pipeline.sampling"

    @property
    def texts(self) -> list[str]:
        """All that the prior will be asked with, so that an unusable text encoder shows at the start."""
        return [self.prompt] if self.translates else [self.prompt, self.source_prompt, ""]

    @property
    def size_option(self) -> str:
        return "render_size"

    def check(self) -> None:
        super().check()
        manager, share = self.datamanager, self.gradient_share
        for name in ("render_size", "rays_per_chunk"):
            check_at_least(f"pipeline.{name}", getattr(self, name), 1)
        for name in ("patch_size", "train_num_rays_per_batch"):
            check_at_least(f"pipeline.datamanager.{name}", getattr(manager, name), 1)
        for name, meaning in (
            ("particles", "at least 1, or 0 for every training view"),
            ("fits_per_round", "at least 1, or 0 to edit once"),
            ("kept_views", "at least 1, or 0 for every training view"),
        ):
            value = getattr(self, name)
            check(value >= 0, option(f"pipeline.{name}"), expected=meaning, got=value)
        check(
            self.route == "gradient" or not self.kept_views or self.kept_views >= self.particles,
            option("pipeline.kept_views"),
            expected=f"at least {self.particles}, the views of a round, or 0 for every training view",
            got=self.kept_views,
        )
        check(0 < share <= 1, option("pipeline.gradient_share"), expected="above 0 and at most 1", got=share)
        check(
            self.lpips_weight >= 0,
            option("pipeline.lpips_weight"),
            expected="a number above 0, or 0 for none",
            got=self.lpips_weight,
        )
        check(
            manager.patch_size <= self.render_size,
            option("pipeline.datamanager.patch_size"),
            expected=f"at most the render size, {self.render_size}",
            got=manager.patch_size,
        )
        if self.lpips_weight:
            without = "raise it, or do without LPIPS: --pipeline.lpips-weight 0"
            check_at_least("pipeline.datamanager.patch_size", manager.patch_size, 32, without)
        check(
            self.candidate is None or (self.route == "loop" and self.edit == "descend"),
            "--pipeline.candidate",
            expected="none with this method, which fits the scene to no edited views of an objective",
            got=self.candidate,
        )
        self.region.check()
        check_strength(self.strength, option("pipeline.strength"))
        self._check_translator()
        if self.distils:
            self.objective.check(particles=self.particles or 1000, source_prompt=self.source_prompt)
            self.descent.check("--pipeline.descent.")
        else:
            check_at_least("pipeline.sampling.steps", self.sampling.steps, 1)
            _ = self.sampling.start
            Guidance(self.sampling.text_guidance, self.sampling.image_guidance).check()
        if self.route == "loop" and self.edit == "flow-edit":
            check(
                self.objective.distance == "latents",
                option("pipeline.objective.distance"),
                expected="latents, which are all that flow-edit compares",
                got=self.objective.distance,
            )
            if self.objective.transport == "svgd":
                check_bandwidth(self.objective.bandwidth, self.particles or 1000)

    def check_clips(self) -> None:
        """Refuse what cannot be asked of a prior for clips.

        Raises:
            InputError: naming the option.
        """
        for name, holds, expected, got in (
            ("route", self.route == "loop", "loop", self.route),
            ("particles", self.particles > 0, "a number of clips", self.particles),
            ("region.source", self.region.source != "auto", "a box, masks or none", self.region.source),
            ("control.net", not self.control.net, "none", self.control.net),
        ):
            check(
                holds,
                option(f"pipeline.{name}"),
                expected=f"{expected} with a prior for clips",
                got=got,
                hint="change it, or use a prior for pictures",
            )

    def check_prior(self, *, image_conditioned: bool) -> None:
        if self.distils:
            check_fit(self.objective.residual, image_conditioned=image_conditioned)
        elif not image_conditioned and not self.translates:
            raise InputError(
                "an edit by sampling cannot ask a text-to-image model",
                expected="a prior that is shown the source and told what to change, an InstructPix2Pix",
                got="a prior whose U-Net takes the noisy latents alone, as of a text-to-image model",
                hint="use timbrooks/instruct-pix2pix or tiny-instruct",
            )

    def _check_translator(self) -> None:
        check(
            self.translates or self.translator is None,
            "--pipeline.translator",
            expected="none, but with --pipeline.edit translate and --pipeline.route loop",
            got=self.translator,
        )
        if not self.translates:
            return
        check(
            self.translator is not None,
            "there is no translator to make the edit",
            expected="--pipeline.translator with a file that `csd-nerf translate train` wrote",
            got="none",
        )
        for name, holds, expected in (
            ("prior_device", not self.prior_device, "none"),
            ("control.net", not self.control.net, "none"),
            ("motion", not self.motion, "none"),
            ("region.source", self.region.source != "auto", "none, box or masks"),
        ):
            check(
                holds,
                option(f"pipeline.{name}"),
                expected=f"{expected}, where a translator makes the edit and no diffusion model is asked",
                got=attrgetter(name)(self),
            )


def check_strength(strength: float, name: str) -> None:
    """Refuse a strength that is none.

    Raises:
        InputError: by this name of it.
    """
    check(0 <= strength <= 1, name, expected="from 0, the source, to 1, the edit", got=strength)


class EditPipeline(PromptedPipeline):
    """Edits a trained nerfacto scene with a frozen diffusion model."""

    config: EditPipelineConfig
    datamanager: EditDataManager
    controls: EditControls
    changeable = ("prompt", "text_guidance", "image_guidance")

    def __init__(self, config: EditPipelineConfig, device: str, **options: Any) -> None:
        # First: the parent asks `_configured`, which tells of the box.
        self._box = MovableBox(config.region.box()) if config.region.source == "box" else None
        self._hull = Hull() if config.region.source == "masks" else None
        self._relevant = RelevantVoxels() if config.region.source == "auto" else None
        self._voxels = self._hull or self._relevant
        self._where = self._box or self._voxels
        super().__init__(config, device, **options)
        self.model.freeze_poses()
        if self._keeps_proposals or config.strength < 1:
            self._keep_source(config.strength)
        self.image_guidance = Setting(float(config.guidance.image_guidance))
        self._edit: RunningEdit | None = None

    @property
    def _running(self) -> "RunningEdit | None":
        return self._edit

    @property
    def _keeps_proposals(self) -> bool:
        """Whether the edit leaves the source's proposal networks as they are."""
        return self._where is not None or self.config.freeze_geometry

    @property
    def inside(self) -> Inside | None:
        """Which positions the edit shows in; None where that is everywhere."""
        return self._where.contains if self._where else None

    def _keep_source(self, strength: float) -> None:
        geometry = self.config.freeze_geometry
        keep_source_field(self.model, inside=self.inside, geometry=geometry, strength=strength)

    # ---------------------------------------------------------------- strength

    @property
    def strength(self) -> float:
        """How much of the edit is shown, 0..1."""
        return strength_of(self.model)

    def show_at(self, strength: float) -> None:
        """Show so much of the edit from now on, also in what is rendered and saved; nothing is trained anew.

        Not while the scene is drawn by another thread.

        Args:
            strength: 0 is the source, 1 the edit, to the last bit.

        Raises:
            InputError: it is not in 0..1; the scene that the edit started from is gone, and was not kept.
        """
        check_strength(strength, "the strength")
        if not keeps_source_field(self.model):
            if strength == 1:
                return
            self._take_source()
        set_strength(self.model, strength)

    def _take_source(self) -> None:
        """Keep the source beside the edit from now on, as its checkpoint has it."""
        source = source_checkpoint(self.config)
        weights = read_checkpoint(source)["pipeline"]
        self._keep_source(strength=1.0)
        self.model.load_source(weights, str(source))
        if self._edit is not None:
            kept = {name: value for name, value in self.model.state_dict().items() if is_of_source(name)}
            self._edit.source_weights |= {name: value.cpu().clone() for name, value in kept.items()}

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """As the parent's. What the source has to say comes from the checkpoint if it is there, whatever the
        configuration says, else from the scene that the edit started from.

        Raises:
            InputError: as the parent, or when that scene is needed and gone.
        """
        held = holds_source(loaded_state)
        if held and not keeps_source_field(self.model):
            self._keep_source(self.config.strength)
        super().load_pipeline(loaded_state, step)
        if keeps_source_field(self.model) and not held:
            source = source_checkpoint(self.config)
            self.model.load_source(read_checkpoint(source)["pipeline"], str(source))

    # ---------------------------------------------------------------- state

    def get_extra_state(self) -> dict[str, Any]:
        """The parent's, where the edit shows, and while it runs what the scene is fitted to."""
        ahead = self._edit.ahead.state() if self._edit and self._edit.ahead else None  # waits, and so counts
        state = super().get_extra_state()
        if self._box:
            state["current"] |= self._box.state()
        if self._voxels:
            state["hull"] = self._voxels.state()
        state["strength"] = {"configured": self.config.strength, "current": self.strength}
        if self._edit is not None and self.config.route == "loop":
            state["targets"] = self._edit.targets.state()
            state["round"] = self._edit.round
            state["ahead"] = ahead
        return state

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """As the parent's; a hull is the one that was saved, wherever the masks are now, and so is what was
        relevant."""
        super().set_extra_state(state)
        if self._box:
            said, configured = state["configured"], self._configured()
            current = state["current"]
            self._box.load_state(
                {name: current[name] for name in self._box.state() if said.get(name) == configured[name]}
            )
        if self._voxels:
            self._voxels.load_state(state["hull"])
        strength = state.get("strength")  # absent from runs before it could be changed
        if strength and strength["configured"] == self.config.strength and keeps_source_field(self.model):
            set_strength(self.model, strength["current"])
        if self._edit is not None and self.config.route == "loop":
            self._edit.targets.load_state(state["targets"])
            self._edit.round = state["round"]
            if self._edit.ahead:
                self._edit.ahead.load_state(state.get("ahead"))  # absent from runs before there was any

    def _configured(self) -> dict[str, Any]:
        guidance = self.config.guidance
        return {
            "prompt": self.config.prompt,
            "text_guidance": guidance.text_guidance,
            "image_guidance": guidance.image_guidance,
            **(by_name(self.config.region.box()) if self._box else {}),
        }

    def note_changes(self, config: Any) -> None:
        config.prompt, guidance = self.prompt.value, self._guidance()
        config.guidance.text_guidance, config.guidance.image_guidance = guidance.text, guidance.image
        if self._box:
            box = self._box.box
            config.region = RegionConfig("box", box.center, box.size, box.rotation)
        config.strength = self.strength
        config.source_checkpoint = self.config.source_checkpoint
        config.source_was_edited = self.config.source_was_edited

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """Field and proposal networks, the latter unless they are kept; an edit leaves cameras alone."""
        groups = super().get_param_groups()
        if self._keeps_proposals:
            del groups["proposal_networks"]
        return groups

    def _load_prior(self) -> "Prior":
        if self.config.translates:
            assert self.config.translator is not None
            return TranslatorPrior(self.config.translator, self.device)
        return super()._load_prior()

    def _prior_options(self) -> dict[str, Any]:
        return {"control": self.config.control, "motion": self.config.motion, "clips_too": True}

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
        # First, because it may be missing: not after minutes of loading.
        lpips = PatchLpips(self.device) if config.lpips_weight else None
        self.model.load_scene(source, origin)
        cameras = self.datamanager.train_dataset.cameras
        views = config.particles or len(cameras)
        if not config.fits_per_round:  # of a budget that pays for more views than there are
            views = min(views, len(cameras))
        sampler: CameraSampler | PathSampler = CameraSampler(cameras, views, seed, "--pipeline.particles")
        if where := self._box or self._hull:
            dataset = self.datamanager.train_dataset
            find_region(where, config.region, self.model, dataset, config.render_size)
        prior = self._load_prior()
        clip_views = self._clip_views(prior, len(cameras))
        if clip_views:
            sampler = PathSampler(cameras, views, clip_views, seed, "--pipeline.particles")
        height, width = view_size(cameras, config.render_size, prior.vae_factor)
        # Of a hub id the kind is known only now.
        config.check_prior(image_conditioned=prior.image_conditioned)
        rays = PixelRays(self.datamanager.train_cameras(height, width))
        manager = config.datamanager
        self._edit = RunningEdit(
            prior=prior,
            sampler=sampler,
            clip_views=clip_views,
            rays=rays,
            height=height,
            width=width,
            seed=seed,
            max_steps=max_steps,
            source_weights={name: value.cpu().clone() for name, value in self.model.state_dict().items()},
            targets=Targets(rays, config.kept_views, self._photos(rays, height, width)),
            fit=Fit(
                rays=manager.train_num_rays_per_batch,
                patch_size=manager.patch_size,
                absolute=config.pixel_loss == "l1",
                lpips=lpips,
                lpips_weight=config.lpips_weight,
            ),
        )
        if config.route == "gradient":
            self._edit.objective = Objective(copy.deepcopy(config.objective), prior)
            self.datamanager.rays_per_step = views * height * width
        else:
            self._edit.edit = EDITS[config.edit](config, prior)
            if isinstance(prior, Elsewhere):
                self._edit.ahead = EditAhead(self._edit.edit, torch.device(self.device))
            self.datamanager.rays_per_step = manager.train_num_rays_per_batch
        # Now, not in the first step: a text encoder that cannot be loaded is bad input too.
        prior.read_ahead(config.texts)
        if prior.text_sees_picture:
            self._read_about_all_views()
        self._edit.before = self.eval_pictures()

    def _clip_views(self, prior: "Prior", count: int) -> int:
        """How many of the training views a way through the capture has; 0 of a prior for pictures.

        Raises:
            InputError: so many do not suit the prior, or are more than the scene is fitted to.
        """
        config, name = self.config, option("pipeline.clip_views")
        if not prior.clip_frames:
            if config.clip_views is not None:
                prior.frames_at_once(config.clip_views, name)  # says that it sees none
            return 0
        config.check_clips()  # of a hub id the kind is known only now
        views = config.clip_views
        if views is None:
            most = min(prior.clip_frames, max(count // config.particles, 1))
            views = most - (most - 1) % prior.frame_factor
        views = prior.frames_at_once(views, name)
        check(
            not config.kept_views or config.kept_views >= views * config.particles,
            option("pipeline.kept_views"),
            expected=f"at least {views * config.particles}, the views of {config.particles} clips of {views}",
            got=config.kept_views,
            hint=f"pass it, or shorter clips ({name}), or fewer (--pipeline.particles)",
        )
        return views

    def _photos(self, rays: PixelRays, height: int, width: int) -> Tensor | None:
        """All source pictures as bytes, where the scene is fitted to those that are not edited yet."""
        if self.config.kept_views or self.config.route == "gradient":
            return None
        count = len(self.datamanager.train_dataset)
        if self.config.source_was_edited:  # the scene that the model holds now
            return torch.cat([as_bytes(draw(self.model, rays, [view])) for view in range(count)])
        return torch.cat(
            [as_bytes(self.datamanager.train_photos([view], height, width)) for view in range(count)]
        )

    # Methods, for nerfstudio's viewer reads every property before the edit begins.

    def running_prior(self) -> "Prior":
        """The diffusion model, while the edit runs."""
        return self._begun().prior

    def planned_rounds(self) -> int:
        """Of the whole edit."""
        return self.config.round_of(self._begun().max_steps - 1) + 1

    @torch.no_grad()
    def views_with_source(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Training views of the scene as it is now (N, 3, H, W), 0..1; latents of their source pictures, and
        what the prior is shown of these."""
        return draw(self.model, self._begun().rays, indices), *self._source_latents(indices)

    @torch.no_grad()
    def find_relevant(self, prompt: str) -> None:
        """Let the edit show where the diffusion model says that a prompt changes something, if that is to be
        the region. Before the first step, with the source scene in the model.

        Raises:
            InputError: it says so nowhere.
        """
        if self._relevant is None:
            return
        edit = self._begun()
        indices = spread(len(edit.cameras))[:VIEWS]
        generator = torch.Generator().manual_seed(edit.seed)
        latents, condition = self._source_latents(indices)
        source_prompt = self.config.source_prompt
        maps = relevance(edit.prior, latents, condition, prompt, source_prompt, generator)
        edit.relevance = F.interpolate(
            maps[:, None], (edit.height, edit.width), mode="bilinear", align_corners=False
        )
        surfaces = torch.stack([surface(self.model, edit.rays, view) for view in indices])
        vote = self._relevant.vote(surfaces, edit.relevance.flatten(1))
        said = f"The prompt is about {vote.share:.1%} of what the views show: pictures/region.png"
        CONSOLE.print(Text(said), soft_wrap=True)
        if vote.separation < CLEAR:
            self.warn(
                "What the prompt changes and what not are not clearly apart "
                f"({vote.separation:.2f}, and not at least {CLEAR}). It may be about the whole scene, or in "
                "words that the diffusion model does not know: look at pictures/region.png."
            )

    def follow(self, candidate: Candidate) -> None:
        """Let an edit that has not begun have the guidance and the seed of a candidate."""
        edit = self._begun()
        self.text_guidance.value = candidate.text_guidance
        self.image_guidance.value = candidate.image_guidance
        edit.seed = edit.sampler.seed = candidate.seed

    def begin_with(self, folder: Path) -> None:
        """Take the edited views of a candidate of `csd-nerf try` as the first that the scene is fitted to.

        Raises:
            InputError: it is none, or one of another scene or size.
        """
        edit, candidate = self._begun(), read_candidate(folder)
        source = self.config.source_checkpoint
        check(
            source is not None and Path(candidate.source).resolve() == source.resolve(),
            f"{folder} was tried on another scene",
            expected=str(source),
            got=candidate.source,
            hint="pass the scene that it was tried on as --load-dir, or try again",
        )
        pictures = read_pictures(folder, candidate.views, edit.height, edit.width)
        edit.targets.put(list(candidate.views), pictures)

    # ---------------------------------------------------------------- a step

    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """One step of the edit.

        Raises:
            NonFiniteResidual: when the prior's answer is not finite. The next step then tries again.
        """
        edit = self._begun()
        # Everything random in this step follows from here, so a resumed edit repeats no step differently.
        begin_step(edit.seed, step)
        evaluations = self.unet_evaluations
        if self.config.route == "gradient":
            losses, statistics = self._published_step(edit, step)
        else:
            losses, statistics = self._loop_step(edit, step)
        statistics |= {
            "unet_evaluations": self.unet_evaluations - evaluations,
            "unet_evaluations_total": self.unet_evaluations,
        }
        return {}, losses, {name: torch.tensor(float(value)) for name, value in statistics.items()}

    def _loop_step(self, edit: "RunningEdit", step: int) -> tuple[dict[str, Tensor], dict[str, float]]:
        """A fit, after a round of edited views where one is due; see `edit_loop`."""
        number = self.config.round_of(step)
        # Its first step always begins it: made again, because memory ran out in it, it comes out the same.
        if number != edit.round or number != self.config.round_of(step - 1):
            self._check_followed(edit)
            self._begin_round(edit, number)
            edit.round = number
        # An edit goes on from a trained scene: its proposals are kept up as often as nerfacto's own are then.
        train_proposals(self.model, step % self.model.config.proposal_update_every == 0)
        losses, difference = edit.fit.losses(self.model, edit.targets)
        statistics = {"round": number, "difference": float(difference), "kept_views": len(edit.targets.views)}
        return losses, statistics

    @torch.no_grad()
    def _begin_round(self, edit: "RunningEdit", number: int) -> None:
        """Keep what views should look like, of the scene as it is or, edited ahead, as it was a round ago."""
        assert edit.edit is not None
        indices, rounds = edit.sampler(number), self.planned_rounds()
        with torch.autocast(self.device.type, enabled=False):
            edited = edit.ahead.take(number) if edit.ahead else None
            if edited is None:
                drawn = self._round_views(edit, number, rounds)
                with all_for_torch():
                    edited = drawn.images, edit.edit(drawn)
            if edit.ahead and number + 1 < rounds:
                edit.ahead.begin(self._round_views(edit, number + 1, rounds))
        views, targets = edited
        edit.targets.put(indices, targets)
        edit.watched = (indices[0], views[0], targets[0])
        self.warn(edit.alarm.asked(views, targets))

    def _round_views(self, edit: "RunningEdit", number: int, rounds: int) -> RoundViews:
        """The views of a round, of the scene as it is, and what is asked of them."""
        indices = edit.sampler(number)
        images, source, condition = self.views_with_source(indices)
        # A thread that edits them has random numbers of its own, which follow from this step all the same.
        seed = int(torch.randint(2**62, ())) if edit.ahead else None
        return RoundViews(
            images=images,
            source=source,
            condition=condition,
            prompt=self.prompt.value,
            guidance=self._guidance(),
            number=number,
            rounds=rounds,
            generator=None if seed is None else torch.Generator().manual_seed(seed),
        )

    def _check_followed(self, edit: "RunningEdit") -> None:
        """See what a round has done to one of its views."""
        if edit.watched is None or not self.config.kept_views or not edit.alarm.watches_followed:
            return
        index, view, target = edit.watched
        self.warn(edit.alarm.followed(view, draw(self.model, edit.rays, [index])[0], target))

    def _published_step(self, edit: "RunningEdit", step: int) -> tuple[dict[str, Tensor], dict[str, float]]:
        """One gradient of score distillation, straight into the field (2307.04787, section 4)."""
        assert edit.objective is not None
        indices = edit.sampler(step)
        source, condition = self._source_latents(indices)
        # Its average appearance code: what evaluation and the viewer show is what the edit works on.
        self.model.field.eval()
        views = render_views(
            self.model,
            edit.cameras,
            indices,
            only=ranks.share(len(indices)),
            rays_per_chunk=self.config.rays_per_chunk,
            gradient_share=self.config.gradient_share,
        )
        guidance = self._guidance()
        edit.objective.config.text_guidance = guidance.text
        edit.objective.config.image_guidance = guidance.image
        return losses_through_the_renderer(
            self.model,
            edit.objective,
            views,
            views.images,
            of=len(indices),
            source=source,
            condition=condition,
            prompt=self.prompt.value,
            source_prompt=self.config.source_prompt,
            step=step,
            max_steps=edit.max_steps,
        )

    def _guidance(self) -> Guidance:
        return Guidance(float(self.text_guidance.value), float(self.image_guidance.value))

    def warn(self, message: str | None) -> None:
        """Say something that is not as it should be; None is nothing."""
        if message is not None:
            CONSOLE.print(Text(message, "bold yellow"), soft_wrap=True)

    @torch.no_grad()
    def _source_latents(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Latents (N, c, h, w) of the source pictures, or (P, c, f, h, w) of clips of them, and what the
        prior is shown of these; each made once.

        Not between rendering and its backward pass: the source scene may be put in for a moment.
        """
        edit, config = self._begun(), self.config
        prior, together = edit.prior, edit.clip_views or 1
        particles = [tuple(indices[first : first + together]) for first in range(0, len(indices), together)]
        for particle in particles:
            if particle not in edit.source_latents:
                views = (
                    [self._source_view(index) for index in particle]
                    if prior.shown == "depth" or config.source_was_edited
                    else []
                )
                if config.source_was_edited:
                    photos = torch.stack([view.image for view in views])
                else:
                    photos = self.datamanager.train_photos(particle, edit.height, edit.width)
                shown = torch.stack([view.depth for view in views]) if prior.shown == "depth" else None
                asked = as_clips(photos, 1) if edit.clip_views else photos
                latents, condition = prior.encode_source(asked, shown)
                edit.source_latents[particle] = (latents[0].cpu(), condition[0].cpu())
        sources, conditions = zip(*(edit.source_latents[particle] for particle in particles), strict=True)
        return torch.stack(sources).to(self.device), torch.stack(conditions).to(self.device)

    def _read_about_all_views(self) -> None:
        """Let a text encoder that sees the pictures read the prompts about all of them, loaded once."""
        views = range(len(self.datamanager.train_dataset))
        _, conditions = self._source_latents(list(views))
        texts = self.config.texts
        self._begun().prior.embed(
            [text for text in texts for _ in views], conditions.repeat(len(texts), 1, 1, 1)
        )

    def _source_view(self, index: int) -> StillView:
        """A training view, rendered from the scene before the edit."""
        edit = self._begun()
        with holding(self.model, edit.source_weights):
            return render_still(self.model, edit.rays.of_view(index))

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
                why = f"Only nerfstudio's own metrics: {error.problem}."
                CONSOLE.print(Text(why, "bold yellow"), soft_wrap=True)
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
        # Of an edit in a region, most of a picture is not to move.
        if not self.inside and change < NO_CHANGE and step >= 2 * max(1, self.config.steps_per_picture):
            guidance = self.config.guidance_option
            CONSOLE.print(
                f"[bold yellow]After {step} steps the renders have moved by only {change:.4f} (of 1). Try a "
                f"higher {guidance}.text-guidance, a lower {guidance}.image-guidance, or "
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
        if not ranks.leads():
            return []
        self.write_region(attributes.trainer.base_dir / "pictures")
        return self._picture_callbacks(attributes, self._edit)

    def write_region(self, folder: Path) -> None:
        """Save `region.png`: where the edit shows, if that is not everywhere."""
        from csd_nerf.nerf.sheets import save_png

        edit = self._begun()
        if self.inside is None:
            return
        with holding(self.model, edit.source_weights):
            picture = region_picture(
                self.model, edit.cameras, self.inside, self.config.picture_views, edit.relevance
            )
        save_png(picture, folder / "region.png")

    # ---------------------------------------------------------------- a viewer

    def _make_controls(self) -> EditControls:
        return EditControls(self)

    def guidance_read(self) -> tuple[str, ...]:
        both = ("text_guidance", "image_guidance")
        return {"itself": (), "text": both[:1], "picture-and-text": both}[self._begun().prior.guided_by]

    def rounds_done(self, step: int) -> tuple[int, int] | None:
        if self._edit is None or self.config.route == "gradient" or not self.config.fits_per_round:
            return None
        planned = self.planned_rounds()
        return planned if step >= self._edit.max_steps else self.config.round_of(step), planned

    def show_before(self, is_looked_at: Callable[[], bool]) -> None:
        """Offer the scene before the edit as an output of the model, `rgb_before`.

        Args:
            is_looked_at: see `SceneBefore`.

        Raises:
            InputError: that scene is gone.
        """
        if self._edit is None:
            source_checkpoint(self.config)
        self.model.scene_before = SceneBefore(self._scene_before, is_looked_at)

    def _scene_before(self) -> CsdNerfactoModel:
        """A model of the scene that the edit started from; a step's random numbers stay what they are."""
        if self._edit is None:
            source = source_checkpoint(self.config)
            weights, origin = read_checkpoint(source)["pipeline"], str(source)
        else:
            weights = {f"_model.{name}": value for name, value in self._edit.source_weights.items()}
            origin = "the scene before the edit"
        dataset = self.datamanager.train_dataset
        with torch.random.fork_rng():
            model: CsdNerfactoModel = copy.deepcopy(self.config.model).setup(
                scene_box=dataset.scene_box,
                num_train_data=len(dataset),
                metadata=dataset.metadata,
                device=self.device,
            )
        # As the model of a scene that was never edited: without what an edit keeps of its own source.
        weights = {
            name: value for name, value in weights.items() if not is_of_source(name.removeprefix("_model."))
        }
        model.load_scene(weights, origin)
        return model.to(self.device).eval()

    def reset_to_source(self) -> None:
        """Put the source scene back and forget the optimisers' momentum; a round begins at the next step."""
        edit = self._begun()
        self.model.load_state_dict(edit.source_weights)
        if edit.optimizers is not None:
            for optimizer in edit.optimizers.optimizers.values():
                optimizer.state.clear()
        edit.targets.restore()
        edit.round = edit.watched = None
        if edit.ahead:
            edit.ahead.forget()

    @property
    def is_undone(self) -> bool:
        """Whether the source is shown, and the edit is kept to come back to."""
        return self._edit is not None and self._edit.undone is not None

    def undo(self) -> None:
        """Show the source; `redo` shows the edit again, and it can then be gone on with."""
        edit = self._begun()
        assert edit.optimizers is not None
        edit.undone = Undone(
            weights={name: value.clone() for name, value in self.model.state_dict().items()},
            optimizers=copy.deepcopy(
                {name: optimizer.state_dict() for name, optimizer in edit.optimizers.optimizers.items()}
            ),
            targets=edit.targets.state(),
            round=edit.round,
            watched=edit.watched,
        )
        self.reset_to_source()

    def redo(self) -> None:
        """Show the edit that was undone.

        Raises:
            InputError: the next one was given a box, and this one had none.
        """
        edit = self._begun()
        assert edit.undone is not None and edit.optimizers is not None
        check(
            edit.undone.weights.keys() == self.model.state_dict().keys(),
            "the edit that was undone was everywhere",
            expected="a redo before a box is chosen",
            got="a box",
            hint="press Start for an edit in the box; the other one is still in its folder",
        )
        undone, edit.undone = edit.undone, None
        self.model.load_state_dict(undone.weights)
        edit.optimizers.load_optimizers(undone.optimizers)
        edit.targets.load_state(undone.targets)
        edit.round, edit.watched = undone.round, undone.watched

    def begin_anew(self) -> None:
        """Let what is shown, the source, be the start of an edit of its own."""
        edit = self._begun()
        self.reset_to_source()
        edit.undone, edit.alarm = None, NoOpAlarm()
        self._evaluations_before = -edit.prior.unet_evaluations
        self.find_relevant(self.prompt.value)

    def take_as_source(self, checkpoint: Path) -> None:
        """Let the edited scene be the source of the edit that `begin_anew` begins.

        Args:
            checkpoint: of that scene, everywhere and in full strength.
        """
        edit = self._begun()
        self.config.source_checkpoint, self.config.source_was_edited = checkpoint, True
        if keeps_source_field(self.model):  # of a strength that was tried
            self.model.load_source(read_checkpoint(checkpoint)["pipeline"], str(checkpoint))
        edit.source_weights = {name: value.cpu().clone() for name, value in self.model.state_dict().items()}
        edit.source_latents.clear()
        edit.targets.photos = self._photos(edit.rays, edit.height, edit.width)
        edit.before = self.eval_pictures()
        if edit.prior.text_sees_picture:
            self._read_about_all_views()
        if self.model.scene_before is not None:
            self.model.scene_before.forget()

    @property
    def box(self) -> RegionBox | None:
        """Where the edit shows, if that is a box."""
        return self._box.box if self._box else None

    def move_box(self, box: RegionBox) -> None:
        """Let the edit show in another box.

        Raises:
            InputError: it has no volume.
        """
        box.check()
        assert self._box is not None
        self._box.box = box

    def keep_to_box(self, box: RegionBox) -> None:
        """Let an edit that has not begun be in a box and not everywhere; its optimisers are to be made anew.

        Raises:
            InputError: the box has no volume, or there is nothing of the scene in it.
        """
        box.check()
        edit, config = self._begun(), self.config
        check(
            not keeps_source_field(self.model),
            "the box comes too late",
            expected="a run without --pipeline.freeze-geometry, the strength of which was not changed",
            got="two fields in use already",
            hint="begin the edit anew, with --pipeline.region.source box",
        )
        region = RegionConfig("box", box.center, box.size, box.rotation)
        where = MovableBox(box)
        find_region(where, region, self.model, self.datamanager.train_dataset, config.render_size)
        self.model.load_state_dict(edit.source_weights)
        keep_source_field(self.model, inside=where.contains)
        edit.source_weights = {name: value.cpu().clone() for name, value in self.model.state_dict().items()}
        config.region, self._box, self._where = region, where, where


@dataclass(frozen=True)
class Undone:
    """An edit while its source is shown.

    Attributes:
        weights: of the scene after it.
        optimizers: their states, by groups of parameters.
        targets: see `Targets.state`.
        round, watched: see `RunningEdit`.
    """

    weights: dict[str, Tensor]
    optimizers: dict[str, Any]
    targets: dict[str, Tensor]
    round: int | None
    watched: tuple[int, Tensor, Tensor] | None


@dataclass(kw_only=True)
class RunningEdit(Running):
    """What exists only while an edit runs.

    Attributes:
        sampler: which training views a step takes.
        clip_views: how many of these, one after the other, are a clip; 0 where each is a picture.
        rays: of all training cameras, cropped to the shape of the views.
        height, width: of the views, in pixels.
        source_weights: of the scene before the edit, on the CPU.
        source_latents: latents of the source photos, and `Prior.condition` of them or of the source scene's
            depth, made when first needed; by view, or by the views of a clip.
        targets: what the scene is fitted to.
        fit: how.
        edit: what makes targets of views; of the loop alone.
        ahead: edits the views of the next round meanwhile; of a prior with a device of its own.
        objective: of the route gradient alone.
        alarm: watches for an edit that does nothing.
        round: number of the newest; None before the first.
        watched: a view of that round: its camera, what it looked like, and its target.
        before: pictures of the source scene from the evaluation cameras.
        undone: the edit, while its source is shown.
        relevance: (V, 1, H, W) of the prompt in some views, where it was asked for.
    """

    sampler: CameraSampler | PathSampler
    clip_views: int
    rays: PixelRays
    height: int
    width: int
    source_weights: dict[str, Tensor]
    targets: Targets
    fit: Fit
    edit: Edit | None = None
    ahead: EditAhead | None = None
    objective: Objective | None = None
    round: int | None = None
    watched: tuple[int, Tensor, Tensor] | None = None
    alarm: NoOpAlarm = field(default_factory=NoOpAlarm)
    source_latents: dict[tuple[int, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)
    before: Tensor = field(default_factory=lambda: torch.empty(0))
    undone: Undone | None = None
    relevance: Tensor | None = None

    @property
    def cameras(self) -> Cameras:
        """All training cameras, cropped to the shape of the views."""
        return self.rays.cameras
