"""The objective: from the latents of N views to the gradient that edits them."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.distillation.residuals import PUBLISHED_WEIGHTING, RESIDUALS, Guidance, Views
from csd_nerf.distillation.schedule import TimestepRange, weight
from csd_nerf.distillation.transport import check_bandwidth, independent, stein_direction, stein_kernel
from csd_nerf.errors import InputError
from csd_nerf.priors.base import Prior


class NonFiniteResidual(ArithmeticError):
    """The prior's residual holds NaN or infinity, so the step must not be applied."""


@dataclass
class ObjectiveConfig:
    """What is distilled and how.

    The defaults are CSD-Edit as published for scenes, with two changes explained in docs/methods.md: the
    bandwidth leaves out the diagonal, and the kernel's rows sum to one.
    """

    residual: Literal["csd-edit", "dds", "pds", "sds"] = "csd-edit"
    """What the prior is asked: csd-edit (prompt against the source without prompt), dds (prompt against a
    description of the source), pds (the same, and a pull back to the source) or sds (prompt against the
    noise)."""
    transport: Literal["svgd", "independent"] = "svgd"
    """How views share their scores: svgd makes them agree on one edit, independent edits each by itself."""
    kernel: Literal["rbf", "imq"] = "rbf"
    """SVGD kernel: rbf (Gaussian, as published) or imq (inverse multiquadric, by which far views share
    more)."""
    bandwidth: Literal["median", "paper"] | float = "median"
    """Width of the SVGD kernel: median (of the squared distances between views), paper (the same with the
    zero diagonal; needs 3 views or more), or a squared distance."""
    normalize_kernel: bool = True
    """Let the rows of the SVGD kernel sum to one, so that the learning rate does not depend on the number of
    views. Off is the published form, whose steps shrink as views are added."""
    weighting: Literal["published", "one-minus-alpha", "uniform"] = "published"
    """Weight of a step by its noise level: 1 - alphas_cumprod[t], 1, or the one that was published with the
    residual: the first for sds and csd-edit, the second for dds and pds."""
    min_timestep: float = 0.2
    """Least noise, as a fraction of the prior's schedule."""
    max_timestep: float = 0.5
    """Most noise, as a fraction of the prior's schedule. More of it allows larger changes."""
    timesteps: Literal["uniform", "annealed"] = "uniform"
    """Draw every step's noise level at random, or lower it steadily from most to least over the edit."""
    noise: Literal["per-particle", "shared"] = "per-particle"
    """One noise for each view, or one for all of them. Target and source of a view always share theirs."""
    text_guidance: float = 7.5
    """How strongly the prompt is followed."""
    image_guidance: float = 1.5
    """How closely the source picture is kept."""

    def check(self, *, particles: int, source_prompt: str) -> None:
        """Refuse settings that contradict each other.

        Raises:
            InputError: timesteps out of order, a bandwidth that does not suit the number of views, or no
                `source_prompt` for a residual that compares with one.
        """
        _timestep_range(self)
        if self.transport == "svgd":
            check_bandwidth(self.bandwidth, particles)
        if self.residual in ("dds", "pds") and not source_prompt.strip():
            raise InputError(
                f"the residual {self.residual} needs a description of the source",
                expected="what the scene shows now, such as 'a stone bear'",
                got="an empty source prompt",
                hint="add `--pipeline.source-prompt`, or use the residual csd-edit, which needs none",
            )


@dataclass(frozen=True)
class Distilled:
    """The outcome of one step.

    Args:
        gradient: `w(t) g`, detached, float32, to be subtracted from the latents (times a learning rate).
        timestep: the timestep drawn, an index into the prior's schedule.
        statistics: `timestep`; root mean squares `residual_rms` and `gradient_rms`; `unet_evaluations`,
            rows that went through the U-Net in this step; with SVGD `kernel_offdiagonal_mean`, the mean of
            K_ij over i != j before normalisation (1 when there is one view).
    """

    gradient: Float[Tensor, "n c h w"]
    timestep: int
    statistics: dict[str, float]


class Objective:
    """Collaborative Score Distillation (Kim et al., 2307.04787) and its relatives, by configuration.

    Args:
        config: residual, transport, weight and timesteps.
        prior: the diffusion model. It stays frozen.

    Raises:
        InputError: a range of timesteps that is empty or out of bounds.

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

    @torch.no_grad()
    def gradient(
        self,
        latents: Float[Tensor, "n c h w"],
        source: Float[Tensor, "n c h w"],
        condition: Float[Tensor, "n k h w"],
        *,
        prompt: str,
        source_prompt: str = "",
        step: int = 0,
        max_steps: int = 1,
        generator: torch.Generator | None = None,
    ) -> Distilled:
        """The gradient `w(t) * transport(residuals, noisy latents)` of the views, for descent.

        Its inner product with the latents is a loss whose gradient is the one wanted:
        `(objective.gradient(latents, ...).gradient * latents).sum()`.

        Args:
            latents: scaled latents of the views as they are now; no gradient flows into this call.
            source: scaled latents of the unedited views.
            condition: `prior.condition` of the unedited views.
            prompt: the instruction.
            source_prompt: description of the source, used by the residuals "dds" and "pds" only.
            step, max_steps: place in the edit, 0-based; used by annealed timesteps only.
            generator: source of the timestep and the noise.

        Raises:
            NonFiniteResidual: the prior returned NaN or infinity.
            InputError: a bandwidth that does not suit the number of views.
        """
        config, prior = self.config, self.prior
        t = _timestep_range(config).sample(
            prior.schedule.num_timesteps, step=step, max_steps=max_steps, generator=generator
        )
        target_text, source_text, empty_text = prior.embed([prompt, source_prompt, ""]).split(1)
        views = Views(
            latents=latents.detach().float(),
            source=source.float(),
            condition=condition,
            noise=self._noise(latents, generator),
            t=t,
            target_text=target_text,
            source_text=source_text,
            empty_text=empty_text,
        )
        evaluations = prior.unet_evaluations
        guidance = Guidance(config.text_guidance, config.image_guidance)
        residuals = RESIDUALS[config.residual](prior, views, guidance)
        if not residuals.isfinite().all():
            raise NonFiniteResidual(f"the residual at timestep {t} is not finite (prompt {prompt!r})")

        statistics = {
            "timestep": float(t),
            "residual_rms": residuals.square().mean().sqrt().item(),
            "unet_evaluations": float(prior.unet_evaluations - evaluations),
        }
        particles = prior.schedule.add_noise(views.latents, views.noise, t)
        if config.transport == "svgd":
            kernel, repulsion = stein_kernel(particles, config.bandwidth, config.kernel)
            direction = stein_direction(residuals, particles, kernel, repulsion, config.normalize_kernel)
            statistics["kernel_offdiagonal_mean"] = _offdiagonal_mean(kernel)
        else:
            direction = independent(residuals, particles)
        weighting = (
            PUBLISHED_WEIGHTING[config.residual] if config.weighting == "published" else config.weighting
        )
        gradient = weight(prior.schedule, t, weighting) * direction
        statistics["gradient_rms"] = gradient.square().mean().sqrt().item()
        return Distilled(gradient, t, statistics)

    def _noise(self, latents: Tensor, generator: torch.Generator | None) -> Tensor:
        shape = (1 if self.config.noise == "shared" else len(latents), *latents.shape[1:])
        device = generator.device if generator is not None else latents.device
        return torch.randn(shape, generator=generator, device=device).to(latents.device).expand_as(latents)


def _timestep_range(config: ObjectiveConfig) -> TimestepRange:
    return TimestepRange(config.min_timestep, config.max_timestep, config.timesteps)


def _offdiagonal_mean(kernel: Float[Tensor, "n n"]) -> float:
    count = len(kernel)
    return ((kernel.sum() - kernel.trace()) / (count * (count - 1))).item() if count > 1 else 1.0
