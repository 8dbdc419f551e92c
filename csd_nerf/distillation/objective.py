"""The objective: from the latents of N views to the gradient that edits them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.distillation.features import load_feature
from csd_nerf.distillation.residuals import (
    PUBLISHED_WEIGHTING,
    RESIDUALS,
    WITH_SOURCE_PROMPT,
    Guidance,
    Views,
    check_fit,
)
from csd_nerf.distillation.schedule import TimestepRange, weight
from csd_nerf.distillation.structure import StructureConfig, check_structure, structure_gradient
from csd_nerf.distillation.transport import (
    check_bandwidth,
    described,
    independent,
    stein_direction,
    stein_kernel,
)
from csd_nerf.errors import InputError, check
from csd_nerf.priors.base import Prior


class NonFiniteResidual(ArithmeticError):
    """What the prior says holds NaN or infinity, so the step must not be applied."""


NoiseSharing = Literal["per-particle", "shared", "still"]
"""See `ObjectiveConfig.noise`."""


@dataclass
class ObjectiveConfig:
    """What is distilled and how.

    The defaults are CSD-Edit as published for scenes, with two changes explained in docs/methods/formulas.md:
    the bandwidth leaves out the diagonal, and the kernel's rows sum to one.
    """

    residual: Literal["csd-edit", "dreamcatalyst", "ssd", "dvrf", "dds", "pds", "sds"] = "csd-edit"
    """What the prior is asked: csd-edit (instruction against the source without one; needs an
    InstructPix2Pix), dreamcatalyst or ssd (two forms of it with a pull back to the source), dvrf
    (velocities instead of noise; needs a model of flow matching that edits pictures), dds (prompt against a
    description of the source; needs a text-to-image model), pds (the same, and a pull back to the source) or
    sds (prompt against the noise; either)."""
    eta: Literal["rising"] | float = "rising"
    """Of dvrf: rising from 0 to 1 over the edit, as published, or a number between; 0 pulls back to the
    source the most, 1 is FlowEdit's direction, without a pull."""
    transport: Literal["svgd", "independent"] = "svgd"
    """How views share their scores: svgd makes them agree on one edit, independent edits each by itself."""
    kernel: Literal["rbf", "imq"] = "rbf"
    """SVGD kernel: rbf (Gaussian, as published) or imq (inverse multiquadric, by which far views share
    more)."""
    distance: Literal["latents", "colours", "lpips"] = "latents"
    """What the SVGD kernel compares: latents (the noisy ones, as published for edits), or of the views'
    decoded pictures colours (reduced to 16 x 16) or lpips (as published for text-to-3D; needs AlexNet's
    weights). Of pictures costs a pass through the decoder with gradient."""
    bandwidth: Literal["median", "paper"] | float = "median"
    """Width of the SVGD kernel: median (of the squared distances between views), paper (the same with the
    zero diagonal; needs 3 views or more), or a squared distance."""
    normalize_kernel: bool = True
    """Let the rows of the SVGD kernel sum to one, so that the learning rate does not depend on the number of
    views. Off is the published form, whose steps shrink as views are added."""
    weighting: Literal["published", "one-minus-alpha", "one-over-alpha", "uniform"] = "published"
    """Weight of a step by its noise level: 1 - alphas_cumprod[t], 1 / alphas[t] (of a flow's differences of
    noise it makes ones of velocity), 1, or the one that was published with the residual: the first for sds
    and csd-edit, the last for all others."""
    min_timestep: float = 0.2
    """Least noise, as a fraction of the prior's schedule."""
    max_timestep: float = 0.5
    """Most noise, as a fraction of the prior's schedule. More of it allows larger changes."""
    timesteps: Literal["uniform", "visited", "annealed"] = "uniform"
    """Draw every step's noise level at random, evenly or as often as the prior's own sampler visits it (which
    differs for models of flow matching), or lower it steadily from most to least over the edit."""
    noise: NoiseSharing = "per-particle"
    """One noise for each view; shared, one for all of them; or still, one for all and, of clips, for all
    their frames. Target and source of a view always share theirs."""
    text_guidance: float = 7.5
    """How strongly the prompt is followed. A model with guidance distilled into it has its own."""
    image_guidance: float = 1.5
    """How closely the source picture is kept, by models that are guided by it: InstructPix2Pix."""
    structure: StructureConfig = field(default_factory=StructureConfig)
    """What holds the edit to the source's layout."""

    def check(self, *, particles: int, source_prompt: str) -> None:
        """Refuse settings that contradict each other.

        Raises:
            InputError: timesteps out of order, a guidance or an eta out of range, a bandwidth that does not
                suit the number of views, a structure loss without sense, or no `source_prompt` for a residual
                that compares with one.
        """
        _timestep_range(self)
        Guidance(self.text_guidance, self.image_guidance).check()
        check(
            self.eta == "rising" or (isinstance(self.eta, (int, float)) and 0 <= self.eta <= 1),
            "the eta of the residual dvrf",
            expected="rising, or a number from 0 to 1",
            got=self.eta,
        )
        self.structure.check()
        if self.transport == "svgd":
            check_bandwidth(self.bandwidth, particles)
        check_source_prompt(self.residual, source_prompt)


@dataclass(frozen=True)
class Distilled:
    """The outcome of one step.

    Args:
        gradient: `w(t) g` plus the structure loss's gradient, detached, float32, to be subtracted from the
            latents (times a learning rate).
        timestep: the timestep drawn, an index into the prior's schedule.
        statistics: `timestep`; root mean squares `residual_rms` and `gradient_rms`; `unet_evaluations`,
            rows that went through the U-Net in this step; with SVGD `kernel_offdiagonal_mean`, the mean of
            K_ij over i != j before normalisation (1 when there is one view); with a structure loss
            `structure_loss`, the mean over the views before its weight.
    """

    gradient: Float[Tensor, "n c h w"]
    timestep: int
    statistics: dict[str, float]


class Objective:
    """Collaborative Score Distillation (Kim et al., 2307.04787) and its relatives, by configuration.

    Args:
        config: residual, transport, structure loss, weight and timesteps.
        prior: the diffusion model. It stays frozen.

    Raises:
        InputError: a range of timesteps that is empty or out of bounds; a residual that the prior cannot
            answer; a structure loss that finds nothing to look at in it; LPIPS without its weights.

    Example:
        >>> objective = Objective(ObjectiveConfig(), prior)                             # doctest: +SKIP
        >>> latents = prior.encode(renders)                                             # doctest: +SKIP
        >>> step = objective.gradient(latents, source, condition, prompt="make it night")  # doctest: +SKIP
        >>> (step.gradient * latents).sum().backward()                                  # doctest: +SKIP
    """

    def __init__(self, config: ObjectiveConfig, prior: Prior) -> None:
        self.config = config
        self.prior = prior
        _timestep_range(config)
        check_fit(
            config.residual,
            image_conditioned=prior.image_conditioned,
            guided_by=prior.guided_by,
            flow=prior.schedule.is_flow,
        )
        check_structure(config.structure, prior)
        self._feature = load_feature(config.distance, prior) if config.transport == "svgd" else None

    def draw_timestep(
        self, *, step: int = 0, max_steps: int = 1, generator: torch.Generator | None = None
    ) -> int:
        """The timestep of a step, as `gradient` draws it, for several calls that are to share one.

        Args:
            step, max_steps: place in the edit, 0-based; used by annealed timesteps only.
            generator: source of the timestep.
        """
        return _timestep_range(self.config).sample(
            self.prior.schedule.num_timesteps,
            step=step,
            max_steps=max_steps,
            time_shift=self.prior.time_shift,
            generator=generator,
        )

    @torch.no_grad()
    def gradient(
        self,
        latents: Float[Tensor, "n c h w"],
        source: Float[Tensor, "n c h w"],
        condition: Float[Tensor, "n k h w"],
        *,
        prompt: str | Sequence[str],
        source_prompt: str = "",
        step: int = 0,
        max_steps: int = 1,
        timestep: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Distilled:
        """The gradient `w(t) * transport(residuals, noisy latents)` of the views, for descent.

        With a structure loss its gradient is added, see `structure_gradient`.

        Its inner product with the latents is a loss whose gradient is the one wanted:
        `(objective.gradient(latents, ...).gradient * latents).sum()`.

        Args:
            latents: scaled latents of the views as they are now; no gradient flows into this call.
            source: scaled latents of the unedited views.
            condition: `prior.condition` of the unedited views.
            prompt: the instruction, or for a text-to-image model a description of the edited scene; one for
                all views, or one for each.
            source_prompt: description of the source, for a text-to-image model: the residuals "dds" and "pds"
                need it, a structure loss looks at the source with it.
            step, max_steps: place in the edit, 0-based; used by annealed timesteps and a rising eta only.
            timestep: to distil at, an index into the prior's schedule; None draws it.
            generator: source of the timestep and the noise.

        Raises:
            NonFiniteResidual: the prior returned NaN or infinity.
            InputError: a bandwidth that does not suit the number of views; no source prompt for a residual
                that compares with one.
        """
        config, prior = self.config, self.prior
        check_source_prompt(config.residual, source_prompt)
        t = timestep
        if t is None:
            t = self.draw_timestep(step=step, max_steps=max_steps, generator=generator)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        target_text, source_text, empty_text = (
            prior.told(words, condition) for words in (prompts, [source_prompt], [""])
        )
        views = Views(
            latents=latents.detach().float(),
            source=source.float(),
            condition=condition,
            noise=draw_noise(latents, config.noise, generator),
            t=t,
            target_text=target_text,
            source_text=source_text,
            empty_text=empty_text,
            eta=min(step / max(max_steps - 1, 1), 1.0) if config.eta == "rising" else config.eta,
        )
        evaluations = prior.unet_evaluations
        guidance = Guidance(config.text_guidance, config.image_guidance)
        residuals = RESIDUALS[config.residual](prior, views, guidance)
        if not residuals.isfinite().all():
            raise NonFiniteResidual(f"the residual at timestep {t} is not finite (prompt {prompt!r})")

        statistics = {
            "timestep": float(t),
            "residual_rms": residuals.square().mean().sqrt().item(),
        }
        particles = prior.schedule.add_noise(views.latents, views.noise, t)
        if config.transport == "svgd":
            # A picture is one of clean latents: with a feature they are the particles.
            features, pull_back = described(views.latents if self._feature else particles, self._feature)
            kernel, repulsion = stein_kernel(features, config.bandwidth, config.kernel)
            direction = stein_direction(
                residuals, features, kernel, repulsion, config.normalize_kernel, pull_back
            )
            statistics["kernel_offdiagonal_mean"] = _offdiagonal_mean(kernel)
        else:
            direction = independent(residuals, particles)
        weighting = (
            PUBLISHED_WEIGHTING[config.residual] if config.weighting == "published" else config.weighting
        )
        gradient = weight(prior.schedule, t, weighting) * direction
        if config.structure.loss == "cut":
            losses, pull = structure_gradient(prior, views, config.structure, generator=generator)
            if not pull.isfinite().all():
                raise NonFiniteResidual(f"the structure loss's gradient at timestep {t} is not finite")
            gradient = gradient + pull
            statistics["structure_loss"] = losses.mean().item()
        statistics["unet_evaluations"] = float(prior.unet_evaluations - evaluations)
        statistics["gradient_rms"] = gradient.square().mean().sqrt().item()
        return Distilled(gradient, t, statistics)


def draw_noise(
    latents: Float[Tensor, "n c *f h w"], sharing: NoiseSharing, generator: torch.Generator | None
) -> Float[Tensor, "n c *f h w"]:
    """Noise for the views of a step; see `ObjectiveConfig.noise`."""
    shape = list(latents.shape)
    if sharing != "per-particle":
        shape[0] = 1
    if sharing == "still" and latents.ndim == 5:
        shape[2] = 1
    device = generator.device if generator is not None else latents.device
    return torch.randn(shape, generator=generator, device=device).to(latents.device).expand_as(latents)


def check_source_prompt(residual: str, source_prompt: str) -> None:
    """See that a residual that compares with a description of the source is given one.

    Raises:
        InputError: it is not.
    """
    if residual in WITH_SOURCE_PROMPT and not source_prompt.strip():
        raise InputError(
            f"the residual {residual} needs a description of the source",
            expected="what the scene shows now, such as 'a stone bear'",
            got="an empty source prompt",
            hint="add `--pipeline.source-prompt` (of `csd-nerf` commands `--source-prompt`), or use the "
            "residual csd-edit, which needs none, with an InstructPix2Pix prior",
        )


def _timestep_range(config: ObjectiveConfig) -> TimestepRange:
    return TimestepRange(config.min_timestep, config.max_timestep, config.timesteps)


def _offdiagonal_mean(kernel: Float[Tensor, "n n"]) -> float:
    count = len(kernel)
    return ((kernel.sum() - kernel.trace()) / (count * (count - 1))).item() if count > 1 else 1.0
