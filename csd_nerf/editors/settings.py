"""What decides an edit of a picture or a clip. A field's docstring is its help on the command line."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Optional

from csd_nerf.devices import Device, present_device
from csd_nerf.errors import check, check_at_least, option

if TYPE_CHECKING:
    from csd_nerf.distillation import DescentConfig, Objective, ObjectiveConfig
    from csd_nerf.distillation.presets import LatentEditConfig
    from csd_nerf.priors import Prior

Method = Literal["csd-edit", "dds", "cds", "sds", "pds", "csd"]


@dataclass
class EditSettings:
    """How a picture or a clip is edited. Values left out are those of the method, or what suits the prior."""

    clips_too: ClassVar[bool] = False
    """Whether the prior may also be one for clips."""

    method: Method = "csd-edit"
    """csd-edit follows an instruction and needs an InstructPix2Pix. dds, cds and pds compare two descriptions
    and need a text-to-image prior and `--source-prompt`; sds and csd follow a description alone, with
    either."""
    source_prompt: str = ""
    """What the source shows, for dds, cds and pds: "a photo of a palace by day"."""
    prior: str = "timbrooks/instruct-pix2pix"
    """Diffusion model: a hub id, a folder in diffusers format, or one that ships with the package, knows a
    few words and runs on a laptop: `tiny-instruct` for csd-edit, `tiny-sd` for the other methods."""
    steps: Optional[int] = None  # noqa: UP045
    """Steps of the edit; each goes over everything once. Default 200, with tiny-instruct 20."""
    learning_rate: Optional[float] = None  # noqa: UP045
    """Of the first step; it falls in ten stairs by a tenth each. Default 0.25 with csd-edit
    (tiny-instruct 0.6)."""
    text_guidance: Optional[float] = None  # noqa: UP045
    """How strongly the prompt is followed. Default that of the method, 7.5 with csd-edit (tiny-instruct
    3.5)."""
    image_guidance: float = 1.5
    """How closely the source is kept, by an InstructPix2Pix."""
    min_timestep: Optional[float] = None  # noqa: UP045
    """Least noise, as a fraction of the prior's schedule. Default that of the method."""
    max_timestep: Optional[float] = None  # noqa: UP045
    """Most noise, as a fraction; more of it allows larger changes. Default that of the method, 0.5 with
    csd-edit (tiny-instruct 0.6)."""
    transport: Optional[Literal["svgd", "independent"]] = None  # noqa: UP045
    """Whether particles share their scores (svgd) or not. Default that of the method."""
    particles: int = 16
    """Most particles (windows, frames) that share their scores."""
    seed: int = 0
    """Decides every random choice: another answer to an ambiguous prompt."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA GPU if there is one."""
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format of the U-Net; auto takes float16 on a GPU, bfloat16 on a CPU that computes in it, else
    float32."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """Bits of the prior's weights, for large ones on small cards: none (as in its precision), int8, or nf4 (4
    bits). Needs bitsandbytes: `pip install 'csd-nerf[quantized]'`."""
    vae: str = ""
    """Another autoencoder for the prior, a hub id or a folder in diffusers format: one retrained, or a small
    fast one such as madebyollin/taesd (for Stable Diffusion 1 and 2). Empty for the prior's own."""
    vae_precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format of the autoencoder; auto takes bfloat16 where the device computes in it, unless the
    autoencoder asks for more, else float32."""
    unet_batch_size: int = 20
    """U-Net rows evaluated at a time (csd-edit has 5 per particle); bounds memory."""

    def objective_config(self) -> "ObjectiveConfig":
        """The method's settings, or what suits the prior, with what was given put in."""
        config = self._usual().objective
        config.image_guidance = self.image_guidance
        self._put_in(config, ("text_guidance", "min_timestep", "max_timestep", "transport"))
        return config

    def descent(self) -> "DescentConfig":
        """Steps and learning rate, as given or as suits method and prior."""
        descent = self._usual().descent
        self._put_in(descent, ("steps", "learning_rate"))
        return descent

    def _usual(self) -> "LatentEditConfig":
        from csd_nerf.distillation.presets import latent_edit

        return latent_edit(self.method, self.prior)

    def _put_in(self, config: Any, names: tuple[str, ...]) -> None:
        """Set what was given; the rest is left as it is."""
        for name in names:
            if (given := getattr(self, name)) is not None:
                setattr(config, name, given)

    def check(self, prompts: tuple[str, ...]) -> None:
        """Refuse what can be seen to be wrong without the prior's weights.

        Raises:
            InputError: an empty prompt, a number that means nothing, no such prior, a method that the prior
                cannot answer, no source prompt for a method that needs one.
        """
        from csd_nerf.distillation.residuals import check_fit
        from csd_nerf.priors import check_prior, check_vae
        from csd_nerf.priors.folder import guided_by, is_image_conditioned

        for prompt in prompts:
            check(
                bool(prompt.strip()),
                "the prompt is empty",
                expected="what to change, in words",
                got=repr(prompt),
                hint='give one, such as --prompt "make it night"',
            )
        descent = self.descent()
        for name, value, least in (
            ("steps", descent.steps, 1),
            ("particles", self.particles, 1),
            ("seed", self.seed, 0),
            ("unet_batch_size", self.unet_batch_size, 1),
        ):
            check_at_least(name, value, least)
        descent.check("--")
        config = self.objective_config()
        config.check(particles=self.particles, source_prompt=self.source_prompt)
        folder = check_prior(self.prior, clips_too=self.clips_too)
        if folder is not None:
            check_fit(
                config.residual,
                image_conditioned=is_image_conditioned(folder),
                guided_by=guided_by(folder),
            )
        check_vae(self.vae, folder)

    def load_prior(self) -> "Prior":
        """The prior, where and as these settings say.

        Raises:
            InputError: see `csd_nerf.priors.load_prior`.
        """
        from csd_nerf.priors import as_dtype, load_prior

        return load_prior(
            self.prior,
            device=self.present_device(),
            dtype=as_dtype(self.precision),
            quantization=self.quantization,
            vae=self.vae,
            vae_dtype=as_dtype(self.vae_precision),
            unet_batch_size=self.unet_batch_size,
            clips_too=self.clips_too,
            **self._prior_options(),
        )

    def _prior_options(self) -> dict[str, Any]:
        """What else `load_prior` is to be told."""
        return {}

    def present_device(self) -> Literal["cuda", "cpu"]:
        """Where to compute."""
        return present_device(self.device)

    def objective(self, prior: "Prior") -> "Objective":
        """The objective, on a prior that is loaded."""
        from csd_nerf.distillation import Objective

        return Objective(self.objective_config(), prior)

    def outcome(self) -> dict[str, Any]:
        """Everything that decides the outcome, as JSON: an edit can only go on with the same."""
        machine = ("device", "precision", "quantization", "vae_precision", "unet_batch_size")
        mine = {name: value for name, value in dataclasses.asdict(self).items() if name not in machine}
        descent, objective = dataclasses.asdict(self.descent()), dataclasses.asdict(self.objective_config())
        return {**mine, **descent, **objective}


@dataclass
class PictureSettings(EditSettings):
    """How a picture or panorama is edited, in windows."""

    window_size: Optional[int] = None  # noqa: UP045
    """Side of the windows in pixels. Default the size that the prior was trained at: 512 of Stable
    Diffusion's kin, 96 of tiny-instruct."""

    def check(self, prompts: tuple[str, ...]) -> None:
        super().check(prompts)
        check_at_least("window_size", self.window_size, 1)

    def fitting_window(self, prior: "Prior") -> int:
        """Side of the windows in pixels.

        Raises:
            InputError: it does not suit the prior.
        """
        size, factor = self.window_size or prior.native_size, prior.vae_factor
        nearest = max(round(size / factor), 1) * factor
        multiple = f"a multiple of {factor}, such as {nearest}"
        check(size % factor == 0, option("window_size"), expected=multiple, got=size)
        return size


@dataclass
class VideoSettings(EditSettings):
    """How a clip is edited. Its frames are the particles; with a prior for clips, overlapping stretches."""

    clips_too: ClassVar[bool] = True

    motion: str = ""
    """Layers of motion that make a prior for clips of one for pictures: a hub id or folder of a motion
    adapter, such as guoyww/animatediff-motion-adapter-v1-5-3 for Stable Diffusion 1.5."""
    clip_frames: Optional[int] = None  # noqa: UP045
    """Frames that a prior for clips sees at once; longer clips are cut into overlapping stretches, which
    share their scores. Default as many as it was made for."""
    size: Optional[int] = None  # noqa: UP045
    """Short side in pixels at which frames are edited and written; a smaller clip keeps its size. Default the
    size that the prior was trained at: 512 of Stable Diffusion's kin, 96 of tiny-instruct."""
    noise: Literal["shared", "per-particle", "still"] = "shared"
    """One noise for all frames of a step, so that what does not move is edited alike in all of them and
    colours do not flicker; or one for each, as in CSD's released code. With a prior for clips shared is one
    clip of noise for all stretches; still is one noise for all their frames, too, which suits tiny-video."""
    kernel: Literal["imq", "rbf"] = "imq"
    """SVGD kernel between frames: imq (inverse multiquadric), by which frames far apart in the clip still
    share, or rbf (Gaussian), as published, by which with one noise for all only near ones do."""
    anchors: Optional[int] = None  # noqa: UP045
    """Of the particles in a group, how many are frames from all over the clip that all groups share. A clip
    of no more frames than `--particles` is one group. Default a quarter of the particles."""
    keyframe_stride: int = 1
    """Edit every so many frames first, and those between in a quarter of the steps, with the edited ones on
    either side to go by: faster, and less true to what moves. 1 edits all frames alike."""

    def objective_config(self) -> "ObjectiveConfig":
        config = super().objective_config()
        config.noise, config.kernel = self.noise, self.kernel
        return config

    def check(self, prompts: tuple[str, ...]) -> None:
        from csd_nerf.priors import check_motion, check_prior
        from csd_nerf.priors.folder import is_for_clips

        super().check(prompts)
        folder = check_prior(self.prior, clips_too=True)
        check_motion(self.motion, folder)
        if folder is not None or self.motion:
            self.check_kind(bool(self.motion) or (folder is not None and is_for_clips(folder)))
        for name in ("size", "anchors", "keyframe_stride", "clip_frames"):
            check_at_least(name, getattr(self, name), 1)
        check(
            self.particles >= 2,
            option("particles"),
            expected="at least 2: a shared frame, and one to share it with",
            got=self.particles,
        )
        check(
            self.shared_frames() < self.particles,
            option("anchors"),
            expected=f"fewer than the {self.particles} particles of a group",
            got=self.anchors,
        )

    def check_kind(self, for_clips: bool) -> None:
        """Refuse options that mean nothing to the kind of prior.

        Args:
            for_clips: whether it is one for clips (`Prior.clip_frames`).

        Raises:
            InputError: anchors or keyframes with one for clips, a length of clips with one for pictures.
        """
        for name, holds, other in (
            ("anchors", self.anchors is None or not for_clips, "clips, which sees neighbouring frames"),
            ("keyframe_stride", self.keyframe_stride <= 1 or not for_clips, "clips, which sees neighbours"),
            ("clip_frames", self.clip_frames is None or for_clips, "pictures, which sees single frames"),
        ):
            check(
                holds,
                option(name),
                expected="no such option" if name != "keyframe_stride" else "1",
                got=f"{getattr(self, name)}, with a prior for {other}",
                hint="leave it out, or use a prior for " + ("pictures" if for_clips else "clips"),
            )

    def fitting_frames(self, prior: "Prior") -> int:
        """How many frames a prior for clips sees at once.

        Raises:
            InputError: as many do not suit it.
        """
        return prior.frames_at_once(self.clip_frames, option("clip_frames"))

    def _prior_options(self) -> dict[str, Any]:
        return {"motion": self.motion}

    def shared_frames(self) -> int:
        """The number of anchors, as given or by default."""
        return max(self.particles // 4, 1) if self.anchors is None else self.anchors
