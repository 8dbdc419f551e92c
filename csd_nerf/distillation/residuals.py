"""What the prior says about each view: one function per published residual, all with one signature.

Notation: `x` are the latents as they are now and `x~` those of the unedited source; both are noised with the
*same* noise at the same timestep, `x_t = alpha_t x + sigma_t eps` and `x~_t = alpha_t x~ + sigma_t eps`.
`e(z; img, y)` is the noise predicted in `z` given the source picture and the prompt `y`, after
classifier-free guidance (`Guidance.combine`). Residuals are for descent: subtracting them from `x` follows
the edit. The U-Net's Jacobian is dropped, as in all score distillation.

Every function makes one call to `Prior.predict_noise` for all views and all branches of guidance; the prior
cuts it into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.distillation.schedule import Weighting
from csd_nerf.priors.base import NoiseSchedule, Prior


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance scales of InstructPix2Pix (Brooks et al., 2211.09800).

    Args:
        text: `w_txt`, how strongly the prompt is followed.
        image: `w_img`, how closely the source picture is kept.
    """

    text: float = 7.5
    image: float = 1.5

    def combine(self, plain: Tensor, image: Tensor, text: Tensor) -> Tensor:
        """Guided noise (2211.09800, equation 3).

            e = e(0,0) + w_img (e(img,0) - e(0,0)) + w_txt (e(img,y) - e(img,0))

        Args:
            plain: `e(0,0)`, no picture and no prompt.
            image: `e(img,0)`, the picture and the empty prompt.
            text: `e(img,y)`, the picture and the prompt.
        """
        return plain + self.image * (image - plain) + self.text * (text - image)


@dataclass(frozen=True)
class Views:
    """The N views of one step and everything a residual needs to know about them.

    Args:
        latents: `x`, scaled latents of the views as they are now.
        source: `x~`, scaled latents of the unedited views.
        condition: latents of the source pictures as the prior is conditioned on them (`Prior.condition`).
        noise: `eps`, standard normal.
        t: timestep, an index into the prior's noise schedule.
        target_text: embedding of the prompt, (1, L, d).
        source_text: embedding of the description of the source, (1, L, d); used by `dds` and `pds`.
        empty_text: embedding of the empty prompt, (1, L, d).
    """

    latents: Float[Tensor, "n c h w"]
    source: Float[Tensor, "n c h w"]
    condition: Float[Tensor, "n k h w"]
    noise: Float[Tensor, "n c h w"]
    t: int
    target_text: Float[Tensor, "1 l d"]
    source_text: Float[Tensor, "1 l d"]
    empty_text: Float[Tensor, "1 l d"]


Residual = Callable[[Prior, Views, Guidance], Tensor]


def sds(prior: Prior, views: Views, guidance: Guidance) -> Float[Tensor, "n c h w"]:
    """Score Distillation Sampling (Poole et al., 2209.14988, equation 3): `s = e(x_t; img, y) - eps`.

    3 U-Net evaluations a view.
    """
    noisy = prior.schedule.add_noise(views.latents, views.noise, views.t)
    plain, image, text = _predict(prior, views, _branches(views, noisy, views.target_text))
    return guidance.combine(plain, image, text) - views.noise


def dds(prior: Prior, views: Views, guidance: Guidance) -> Float[Tensor, "n c h w"]:
    """Delta Denoising Score (Hertz et al., 2304.07090): `s = e(x_t; img, y) - e(x~_t; img, y_src)`.

    The source branch takes away the part of the score that has nothing to do with the edit.
    6 U-Net evaluations a view.
    """
    noisy = prior.schedule.add_noise(views.latents, views.noise, views.t)
    noisy_source = prior.schedule.add_noise(views.source, views.noise, views.t)
    plain, image, text, source_plain, source_image, source_text = _predict(
        prior,
        views,
        _branches(views, noisy, views.target_text) + _branches(views, noisy_source, views.source_text),
    )
    return guidance.combine(plain, image, text) - guidance.combine(source_plain, source_image, source_text)


def csd_edit(prior: Prior, views: Views, guidance: Guidance) -> Float[Tensor, "n c h w"]:
    """CSD-Edit (Kim et al., 2307.04787): `s = e(x_t; img, y) - e(x~_t; img, empty)`, img being the source.

    In the source branch the prompt is empty, so e(img,y) and e(img,0) are the same: 5 U-Net evaluations a
    view instead of 6. The residual is zero at the source with an empty prompt.
    """
    noisy = prior.schedule.add_noise(views.latents, views.noise, views.t)
    noisy_source = prior.schedule.add_noise(views.source, views.noise, views.t)
    source_branches = _branches(views, noisy_source, views.empty_text)[:2]
    plain, image, text, source_plain, source_image = _predict(
        prior, views, _branches(views, noisy, views.target_text) + source_branches
    )
    return guidance.combine(plain, image, text) - guidance.combine(source_plain, source_image, source_image)


def pds(prior: Prior, views: Views, guidance: Guidance) -> Float[Tensor, "n c h w"]:
    """Posterior Distillation Sampling (Koo et al., 2311.13831), in closed form.

        s = psi(t) (x - x~)  +  chi(t) [ e(x_t; img, y) - e(x~_t; img, y_src) ]

    The paper matches the stochastic latents `z = (x_t' - mu(x_t, e)) / sigma_t` of target and source, noised
    alike at t and at the earlier t'. The noise at t' is in both and cancels; the rest is this sum. The first
    term pulls the views back to the source, hardest at little noise. The weights are in the formula.
    6 U-Net evaluations a view.
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

RESIDUALS: dict[str, Residual] = {"sds": sds, "dds": dds, "csd-edit": csd_edit, "pds": pds}
PUBLISHED_WEIGHTING: dict[str, Weighting] = {
    "sds": "one-minus-alpha", "dds": "uniform", "csd-edit": "one-minus-alpha", "pds": "uniform",
}  # fmt: skip


Branch = tuple[Tensor, Tensor, Tensor]  # noisy (N, c, h, w), embedding (1, L, d), condition (N, k, h, w)


def _branches(views: Views, noisy: Tensor, text: Tensor) -> list[Branch]:
    """The branches of guidance, in the order of `Guidance.combine`: (0,0), (img,0), (img,y)."""
    no_picture = torch.zeros_like(views.condition)
    return [
        (noisy, views.empty_text, no_picture),
        (noisy, views.empty_text, views.condition),
        (noisy, text, views.condition),
    ]


def _predict(prior: Prior, views: Views, branches: list[Branch]) -> tuple[Tensor, ...]:
    """Predicted noise of every branch, all branches and views in one call."""
    noisy, texts, conditions = zip(*branches, strict=True)
    predicted = prior.predict_noise(
        torch.cat(noisy),
        views.t,
        torch.cat([text.expand(len(views.latents), -1, -1) for text in texts]),
        torch.cat(conditions),
    )
    return predicted.chunk(len(branches))
