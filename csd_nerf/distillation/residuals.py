"""What the prior says about each view: one function per published residual, all with one signature.

Notation: `x` are the latents as they are now and `x~` those of the unedited source; both are noised with the
*same* noise at the same timestep, `x_t = alpha_t x + sigma_t eps` and `x~_t = alpha_t x~ + sigma_t eps`.
`e(z; y)` is the noise predicted in `z` given the prompt `y`, after classifier-free guidance. A prior that
edits pictures (`Prior.image_conditioned`) is given the source picture as well; a text-to-image model is not.
Residuals are for descent: subtracting them from `x` follows the edit. The U-Net's Jacobian is dropped, as in
all score distillation.

The functions take any kind of prior. Which make sense together is `check_fit`'s to say, and what they cost
`evaluations`'.

Every function makes one call to `Prior.predict_noise` for all views and all branches of guidance; the prior
cuts it into micro-batches.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.distillation.schedule import Weighting
from csd_nerf.errors import InputError, check
from csd_nerf.priors.base import GuidedBy, NoiseSchedule, Prior, Text, as_many, joined


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance scales.

    Args:
        text: `w_txt`, how strongly the prompt is followed; a model with guidance distilled into it has its
            own.
        image: `w_img`, how closely the source picture is kept; only models guided by it know of any.
    """

    text: float = 7.5
    image: float = 1.5

    def combine(self, plain: Tensor, image: Tensor, text: Tensor) -> Tensor:
        """Guided noise of a model that is shown a picture (Brooks et al., 2211.09800, equation 3).

            e = e(0,0) + w_img (e(img,0) - e(0,0)) + w_txt (e(img,y) - e(img,0))

        Args:
            plain: `e(0,0)`, no picture and no prompt.
            image: `e(img,0)`, the picture and the empty prompt.
            text: `e(img,y)`, the picture and the prompt.
        """
        return plain + self.image * (image - plain) + self.text * (text - image)

    def check(self) -> None:
        """See that both scales can be followed.

        Raises:
            InputError: one is below 0, or not a number.
        """
        for name, scale in (("text", self.text), ("image", self.image)):
            check(
                math.isfinite(scale) and scale >= 0,
                f"the {name} guidance is out of range",
                expected="a number from 0 on",
                got=scale,
                hint=f"change --{name}-guidance, of ns-train --pipeline.objective.{name}-guidance",
            )

    def combine_text(self, plain: Tensor, text: Tensor) -> Tensor:
        """Guided noise of a model that is guided by the prompt alone (Ho and Salimans, 2207.12598).

            e = e(0) + w_txt (e(y) - e(0))

        Args:
            plain: `e(0)`, the empty prompt.
            text: `e(y)`, the prompt.
        """
        return plain + self.text * (text - plain)


@dataclass(frozen=True)
class Views:
    """The N views of one step and everything a residual needs to know about them.

    Args:
        latents: `x`, scaled latents of the views as they are now.
        source: `x~`, scaled latents of the unedited views.
        condition: what the prior is shown of the source pictures (`Prior.condition`).
        noise: `eps`, standard normal.
        t: timestep, an index into the prior's noise schedule.
        target_text: the prompt (`Prior.embed`), one row for all views or one for each.
        source_text: the description of the source, in as many rows; used by `dds` and `pds`, and by the
            structure loss of a text-to-image model.
        empty_text: the empty prompt, in as many rows.
        eta: of `dvrf` alone, 0 to 1.
    """

    latents: Float[Tensor, "n c h w"]
    source: Float[Tensor, "n c h w"]
    condition: Float[Tensor, "n k h w"]
    noise: Float[Tensor, "n c h w"]
    t: int
    target_text: Text
    source_text: Text
    empty_text: Text
    eta: float = 0.0


Residual = Callable[[Prior, Views, Guidance], Tensor]


def sds(prior: Prior, views: Views, guidance: Guidance) -> Float[Tensor, "n c h w"]:
    """Score Distillation Sampling (Poole et al., 2209.14988, equation 3): `s = e(x_t; y) - eps`."""
    noisy = prior.schedule.add_noise(views.latents, views.noise, views.t)
    (predicted,) = _guided_noise(prior, views, guidance, (noisy, views.target_text))
    return predicted - views.noise


def dds(prior: Prior, views: Views, guidance: Guidance) -> Float[Tensor, "n c h w"]:
    """Delta Denoising Score (Hertz et al., 2304.07090): `s = e(x_t; y) - e(x~_t; y_src)`.

    The source branch takes away the part of the score that has nothing to do with the edit.
    """
    noisy = prior.schedule.add_noise(views.latents, views.noise, views.t)
    noisy_source = prior.schedule.add_noise(views.source, views.noise, views.t)
    target, source = _guided_noise(
        prior, views, guidance, (noisy, views.target_text), (noisy_source, views.source_text)
    )
    return target - source


def csd_edit(prior: Prior, views: Views, guidance: Guidance) -> Float[Tensor, "n c h w"]:
    """CSD-Edit (Kim et al., 2307.04787): `s = e(x_t; img, y) - e(x~_t; img, empty)`, img being the source.

    In the source branch the prompt is empty, so e(img,y) and e(img,0) are the same, and evaluated once. The
    residual is zero at the source with an empty prompt.
    """
    noisy = prior.schedule.add_noise(views.latents, views.noise, views.t)
    noisy_source = prior.schedule.add_noise(views.source, views.noise, views.t)
    target, source = _guided_noise(prior, views, guidance, (noisy, views.target_text), (noisy_source, None))
    return target - source


def pds(prior: Prior, views: Views, guidance: Guidance) -> Float[Tensor, "n c h w"]:
    """Posterior Distillation Sampling (Koo et al., 2311.13831), in closed form.

        s = psi(t) (x - x~)  +  chi(t) [ e(x_t; y) - e(x~_t; y_src) ]

    The paper matches the stochastic latents `z = (x_t' - mu(x_t, e)) / sigma_t` of target and source, noised
    alike at t and at the earlier t'. The noise at t' is in both and cancels; the rest is this sum. The first
    term pulls the views back to the source, hardest at little noise. The weights are in the formula.
    As many U-Net evaluations as `dds`.
    """
    psi, chi = pds_coefficients(prior.schedule, views.t)
    return psi * (views.latents - views.source) + chi * dds(prior, views, guidance)


def pds_coefficients(schedule: NoiseSchedule, t: int) -> tuple[float, float]:
    """`psi(t)` and `chi(t)` of `pds`, as the released code computes them.

    It walks a grid of 500 timesteps, so that t' lies two steps of a schedule of 1000 before t, but takes the
    `beta_t` of a single step. With the beta of both steps psi would be zero and PDS a weighted DDS.

        c_0 = sqrt(abar') beta_t / (1 - abar)       c_1 = sqrt(1 - beta_t) (1 - abar') / (1 - abar)
        sigma_t^2 = beta_t (1 - abar') / (1 - abar)
        psi = (sqrt(abar') - c_0 - c_1 sqrt(abar)) / sigma_t
        chi = c_0 sqrt((1 - abar) / abar) / sigma_t

    Args:
        schedule: of a DDPM-type model, `abar_t = alphas[t]^2`.
        t: timestep; t' is the first one where there is none so far before.
    """
    kept = schedule.alphas.double() ** 2
    abar, earlier = kept[t].item(), kept[max(t - schedule.num_timesteps // _PDS_GRID, 0)].item()
    beta = 1 - abar / kept[t - 1].item() if t else 1 - abar
    c_0 = earlier**0.5 * beta / (1 - abar)
    c_1 = (1 - beta) ** 0.5 * (1 - earlier) / (1 - abar)
    sigma = (beta * (1 - earlier) / (1 - abar)) ** 0.5
    psi = (earlier**0.5 - c_0 - c_1 * abar**0.5) / sigma
    return psi, c_0 * ((1 - abar) / abar) ** 0.5 / sigma


_PDS_GRID = 500


def dreamcatalyst(prior: Prior, views: Views, guidance: Guidance) -> Float[Tensor, "n c h w"]:
    """DreamCatalyst (Kim et al., 2407.11394): `csd_edit`, and a pull back to the source that grows with t.

        s = (0.2 + 0.8 (t/T)^(1/e)) s_csd-edit  +  0.075 exp(t/T) (x - x~)

    So that much noise, at which the prior changes most, does not carry the view away. Published with t
    annealed from 0.9 T to 0.2 T. As many U-Net evaluations as `csd_edit`.
    """
    level = views.t / prior.schedule.num_timesteps
    pull = _IDENTITY_PULL * math.exp(level) * (views.latents - views.source)
    return (0.2 + 0.8 * level ** (1 / math.e)) * csd_edit(prior, views, guidance) + pull


def ssd(prior: Prior, views: Views, guidance: Guidance) -> Float[Tensor, "n c h w"]:
    """Stable Score Distillation of a model that is shown the picture: the source branch is not guided.

        s = e(x_t; img, y) - e(x~_t; 0, 0)  +  0.075 exp(t/T) (x_t - x~_t)

    Both are noised alike, so that the last difference is that of the clean latents times alpha_t.
    """
    noisy = prior.schedule.add_noise(views.latents, views.noise, views.t)
    noisy_source = prior.schedule.add_noise(views.source, views.noise, views.t)
    (predicted,) = _guided_noise(prior, views, guidance, (noisy, views.target_text))
    nothing = as_many(views.empty_text, len(noisy))
    plain = prior.predict_noise(noisy_source, views.t, nothing, torch.zeros_like(views.condition))
    level = views.t / prior.schedule.num_timesteps
    return predicted - plain + _IDENTITY_PULL * math.exp(level) * (noisy - noisy_source)


_IDENTITY_PULL = 0.075


def dvrf(prior: Prior, views: Views, guidance: Guidance) -> Float[Tensor, "n c h w"]:
    """Delta Velocity Rectified Flow (Beaudouin et al., 2509.05342), of a model that is shown the picture.

        z~ = x~_s        z = x_s + eta s (x - x~)
        g = v(z; img, y) - v(z~; img, empty)  +  (1 - eta) (x - x~)

    `v = eps - x` is the velocity from picture to noise, s the noise level. With eta 0 it is `csd_edit` over
    1 - s; with eta 1 it is the direction of FlowEdit (Kulikov et al., 2412.08629), which has no pull and
    looks further along the edit instead. Published with eta rising from 0 to 1 and s falling. As many
    evaluations as `csd_edit`.
    """
    alpha, sigma = prior.schedule.alphas[views.t].item(), prior.schedule.sigmas[views.t].item()
    change = views.latents - views.source
    noisy = prior.schedule.add_noise(views.latents, views.noise, views.t) + views.eta * sigma * change
    noisy_source = prior.schedule.add_noise(views.source, views.noise, views.t)
    target, source = _guided_noise(prior, views, guidance, (noisy, views.target_text), (noisy_source, None))
    # The noise is z + (1 - s) v; z and z~ differ by (1 - s + eta s) (x - x~).
    velocities = (target - source - (alpha + views.eta * sigma) * change) / alpha
    return velocities + (1 - views.eta) * change


RESIDUALS: dict[str, Residual] = {
    "sds": sds, "dds": dds, "csd-edit": csd_edit, "pds": pds, "dreamcatalyst": dreamcatalyst, "ssd": ssd,
    "dvrf": dvrf,
}  # fmt: skip
PUBLISHED_WEIGHTING: dict[str, Weighting] = {
    "sds": "one-minus-alpha", "dds": "uniform", "csd-edit": "one-minus-alpha", "pds": "uniform",
    "dreamcatalyst": "uniform", "ssd": "uniform", "dvrf": "uniform",
}  # fmt: skip
WITH_INSTRUCTION = ("csd-edit", "dreamcatalyst", "ssd", "dvrf")
"""Residuals that ask a model which is shown the source what an instruction changes in it."""
WITH_SOURCE_PROMPT = ("dds", "pds")
"""Residuals that compare with a description of the source."""


_QUESTIONS = {
    "sds": (1, 0, 0), "dds": (2, 0, 0), "csd-edit": (1, 1, 0), "pds": (2, 0, 0),
    "dreamcatalyst": (1, 1, 0), "ssd": (1, 0, 1), "dvrf": (1, 1, 0),
}  # fmt: skip
"""What a residual asks about a view: guided with a prompt, guided without one, and not guided."""


def rows_of_a_question(guided_by: GuidedBy, *, with_prompt: bool = True) -> int:
    """Evaluations of the network for one guided answer; without a prompt the last two branches are one.

    Example:
        >>> [rows_of_a_question(kind) for kind in ("picture-and-text", "text", "itself")]
        [3, 2, 1]
    """
    branches = {"picture-and-text": 3, "text": 2, "itself": 1}[guided_by]
    return branches if with_prompt else max(branches - 1, 1)


def evaluations(residual: str, guided_by: GuidedBy) -> int:
    """Evaluations of the network a view, by a residual with a prior (`Prior.guided_by`).

    Example:
        >>> [evaluations("csd-edit", kind) for kind in ("picture-and-text", "text", "itself")]
        [5, 3, 2]
    """
    with_prompt, without, unguided = _QUESTIONS[residual]
    empty = rows_of_a_question(guided_by, with_prompt=False)
    return with_prompt * rows_of_a_question(guided_by) + without * empty + unguided


def check_fit(
    residual: str, *, image_conditioned: bool, guided_by: GuidedBy | None = None, flow: bool | None = None
) -> None:
    """See that a residual asks what a kind of prior can answer.

    Args:
        residual: name of a residual.
        image_conditioned: whether the prior is a model that edits pictures by instruction
            (`Prior.image_conditioned`), or else a text-to-image model.
        guided_by: see `Prior.guided_by`; None where it is not known yet.
        flow: whether its noise levels are those of flow matching (`NoiseSchedule.is_flow`); None where it is
            not known yet.

    Raises:
        InputError: csd-edit, dreamcatalyst, ssd or dvrf with a text-to-image model; dds or pds with one that
            takes instructions; ssd with one that cannot do without the picture; pds with flow matching, dvrf
            without it.
    """
    if residual == "pds" and flow:
        raise InputError(
            "the residual pds cannot ask a model of flow matching",
            expected="a model with the noise levels of DDPM, from which the weights of pds are computed",
            got="noise levels on a straight line, as of FLUX",
            hint="use the residual dds, or stable-diffusion-v1-5/stable-diffusion-v1-5",
        )
    if residual in WITH_INSTRUCTION and not image_conditioned:
        raise InputError(
            f"the residual {residual} cannot ask a text-to-image model",
            expected="a prior that is shown the source picture and told what to change, an InstructPix2Pix",
            got="a prior whose U-Net takes the noisy latents alone, as of a text-to-image model",
            hint="use timbrooks/instruct-pix2pix or tiny-instruct, or the residual dds with a source prompt",
        )
    if residual == "dvrf" and flow is False:
        raise InputError(
            "the residual dvrf cannot ask a model without flow matching",
            expected="a model that predicts velocities from picture to noise, as FLUX.1 Kontext",
            got="noise levels of DDPM, as of an InstructPix2Pix",
            hint="use the residual csd-edit or dreamcatalyst",
        )
    if residual in WITH_SOURCE_PROMPT and image_conditioned:
        raise InputError(
            f"the residual {residual} cannot ask a model that takes instructions",
            expected="a text-to-image prior, which knows what a description of the source looks like",
            got="a prior that is shown the source picture, as an InstructPix2Pix is",
            hint="use stable-diffusion-v1-5/stable-diffusion-v1-5 or another text-to-image model, or the "
            "residual csd-edit",
        )
    if residual == "ssd" and guided_by not in (None, "picture-and-text"):
        raise InputError(
            "the residual ssd asks for an answer without the picture, and the prior was not trained for that",
            expected="a prior that is guided by the picture, too: an InstructPix2Pix",
            got="a prior that edits pictures and always needs one, as FLUX.1 Kontext",
            hint="use the residual csd-edit or dreamcatalyst",
        )


Question = tuple[Tensor, Text | None]  # noisy (N, c, h, w), text of 1 or N rows or None for empty
Branch = tuple[Tensor, Text, Tensor]  # noisy (N, c, h, w), text of 1 or N rows, condition (N, k, h, w)


def _guided_noise(
    prior: Prior, views: Views, guidance: Guidance, *questions: Question
) -> tuple[Float[Tensor, "n c h w"], ...]:
    return guided_noise(prior, views.t, views.empty_text, views.condition, guidance, *questions)


def guided_noise(
    prior: Prior,
    t: int,
    empty_text: Text,
    condition: Float[Tensor, "n k h w"],
    guidance: Guidance,
    *questions: Question,
) -> tuple[Float[Tensor, "n c h w"], ...]:
    """The guided noise `e(z; y)` of every question (z, y): all branches of guidance, all views, in one call.

    For the empty prompt the branch with the prompt is the one without, and is not evaluated twice.

    Args:
        prior: the diffusion model, which says how it is guided.
        t: timestep of all.
        empty_text: the empty prompt, of 1 or n rows.
        condition: what the prior is shown of the views, for every question the same.
        guidance: scales of both kinds of guidance.
        questions: noisy latents (n, c, h, w), and a text of 1 or n rows, or None for the empty prompt.
    """
    groups = [_branches(prior, empty_text, condition, noisy, text) for noisy, text in questions]
    rows, texts, conditions = zip(*itertools.chain(*groups), strict=True)
    predicted = prior.predict_noise(
        torch.cat(rows),
        t,
        joined([as_many(text, len(condition)) for text in texts]),
        torch.cat(conditions),
    )
    answers = iter(predicted.chunk(len(rows)))
    guided = []
    for group, (noisy, text) in zip(groups, questions, strict=True):
        parts = [next(answers) for _ in group]
        if text is None:
            parts.append(parts[-1])
        guided.append(prior.settled(_combined(prior, guidance, parts), parts[-1], noisy, t))
    return tuple(guided)


def _combined(prior: Prior, guidance: Guidance, parts: list[Tensor]) -> Tensor:
    if prior.guided_by == "itself":
        return parts[0]
    return guidance.combine_text(*parts) if prior.guided_by == "text" else guidance.combine(*parts)


def _branches(
    prior: Prior, empty_text: Text, condition: Tensor, noisy: Tensor, text: Text | None
) -> list[Branch]:
    """The branches of guidance, in the order in which `Guidance` combines them."""
    if prior.guided_by == "itself":
        return [(noisy, empty_text if text is None else text, condition)]
    branches = [(noisy, empty_text, condition)]
    if prior.guided_by == "picture-and-text":
        branches.insert(0, (noisy, empty_text, torch.zeros_like(condition)))
    if text is not None:
        branches.append((noisy, text, condition))
    return branches
