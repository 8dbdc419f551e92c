"""What keeps the layout of the source in place: a loss on the prior's features, and its gradient.

Notation as in `csd_nerf.distillation.residuals`. Unlike a residual, a structure loss is differentiated
through the U-Net.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from csd_nerf.distillation.residuals import Views
from csd_nerf.errors import InputError, check, option
from csd_nerf.priors.base import Prior, Text, as_many

RELEASED_SCALE = 2000.0
"""What the released code of DDS and CDS multiplies the residual by, and the structure loss not."""
_LOSS_SCALE = 2.0**12
"""Shared among thousands of features, the loss leaves each a gradient that can underflow in float16."""


@dataclass
class StructureConfig:
    """What holds the edit to the source's layout. The defaults are those published for CDS."""

    loss: Literal["none", "cut"] = "none"
    """Structure loss: none, or cut (every place should look more like the same place in the source than like
    any other, to the prior's self-attention). cut costs a pass through the U-Net with gradient."""
    weight: float = 3.0
    """Weight of the structure loss beside a residual of weight 1, in the units of CDS."""
    layers: tuple[int, ...] = ()
    """Which self-attention layers of the U-Net's up blocks are compared, 0 being the coarsest; all of them
    where none is given."""
    patch_sizes: tuple[int, ...] = (1, 2)
    """Sides of the patches that are compared, in pixels of a layer's map."""
    num_patches: int = 256
    """Patches drawn at random from each map, all if it has fewer."""
    temperature: float = 0.07
    """How much more alike than others the matching patches must be; less asks for more."""
    direction: Literal["cut", "released"] = "cut"
    """Which way patches are matched: cut (each of the edit's patches among the source's, as CUT does) or
    released (each of the source's among the edit's, as the code of CDS does)."""

    def check(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            InputError: naming the setting.
        """
        for name, holds, expected in (
            ("weight", 0 <= self.weight < float("inf"), "a number that is not negative"),
            ("layers", all(layer >= 0 for layer in self.layers), "numbers of layers, from 0 on"),
            (
                "patch_sizes",
                bool(self.patch_sizes) and min(self.patch_sizes) >= 1,
                "sides of 1 pixel or more",
            ),
            ("num_patches", self.num_patches >= 2, "at least 2, as patches are told apart"),
            ("temperature", 0 < self.temperature < float("inf"), "a number above 0"),
        ):
            check(
                holds,
                f"the structure loss cannot work with this {name}",
                expected=expected,
                got=getattr(self, name),
                hint=f"leave {option(f'pipeline.objective.structure.{name}')} at its default",
            )


def check_structure(config: StructureConfig, prior: Prior) -> None:
    """See that a prior has what the structure loss looks at.

    Raises:
        InputError: numbers that mean nothing; no self-attention in the prior's up blocks; no such layer.
    """
    config.check()
    count = prior.self_attention_layers
    if config.loss == "cut" and not count:
        raise InputError(
            "the structure loss cut looks at self-attention, and the prior has none in its up blocks",
            expected="a U-Net with transformer blocks on its way up, as Stable Diffusion's",
            got="no such layer",
            hint="use the structure loss none, or another prior",
        )
    if config.loss == "cut" and max(config.layers, default=0) >= count:
        raise InputError(
            "the structure loss is to look at a layer that the prior does not have",
            expected=f"numbers from 0 to {count - 1}",
            got=f"layers {' '.join(map(str, config.layers))}",
            hint="leave the layers out to compare all of them",
        )


def patch_nce(
    target: Sequence[Float[Tensor, "n _ _ _"]],
    source: Sequence[Float[Tensor, "n _ _ _"]],
    config: StructureConfig,
    *,
    seed: int = 0,
) -> Float[Tensor, " n"]:
    """PatchNCE (Park et al., CUT, 2007.15651) without MLP heads, as CDS uses it (Nam et al., 2311.18608).

    Of each map and patch size, with `q_i` and `k_i` the normalised means of patch i in target and source,

        L = - mean_i log( exp(q_i k_i / tau) / sum_j exp(q_i k_j / tau) )

    and the sum over maps and patch sizes. With the direction "released" the source's patches are the queries:
    the sum goes over `q_j k_i`.

    Args:
        target: maps (n, channels, height, width) of the views as they are now.
        source: the same maps of the source; no gradient goes there.
        config: patch sizes and their number, temperature, direction.
        seed: of the locations, which are the same in target and source and in all views.

    Returns:
        The loss of each view, in float32 at least.

    Raises:
        InputError: a map too small for two patches.

    Example:
        >>> maps = [torch.randn(2, 8, 4, 6)]
        >>> patch_nce(maps, maps, StructureConfig()).shape
        torch.Size([2])
    """
    draw = torch.Generator().manual_seed(seed)
    losses = []
    for edited, original in zip(target, source, strict=True):
        for size in config.patch_sizes:
            queries, keys = _patches(edited, size), _patches(original.detach(), size)
            chosen = torch.randperm(queries.shape[1], generator=draw)[: config.num_patches].to(queries.device)
            likeness = queries[:, chosen] @ keys[:, chosen].mT / config.temperature  # (n, p, p)
            if config.direction == "released":
                likeness = likeness.mT
            matching = likeness.diagonal(dim1=1, dim2=2)
            losses.append((likeness.logsumexp(2) - matching).mean(1))
    return torch.stack(losses).sum(0)


def structure_gradient(
    prior: Prior, views: Views, config: StructureConfig, *, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n c h w"]]:
    """The structure loss of each view and `weight h w / 2000 dL/dx`, to be added to a residual of weight 1.

    The features are those of the branch with the prompt; the source's prompt is its description, or for a
    prior that takes instructions the empty one. CDS descends `2000 / (h w) s x + 3 L`: its residual is a mean
    over the latents' pixels times 2000, its structure loss is not. In the units of a residual that is the
    factor above, whatever the size of the views.

    Views go through the U-Net `prior.unet_batch_size` at a time, so memory does not grow with their number.

    Args:
        prior, views: as for a residual.
        config: the structure loss, checked by `check_structure`.
        generator: source of the locations.
    """
    device = generator.device if generator is not None else "cpu"
    seed = int(torch.randint(2**31, (), generator=generator, device=device))
    count = len(views.latents)
    source_text = as_many(views.empty_text if prior.image_conditioned else views.source_text, count)
    target_text = as_many(views.target_text, count)
    losses, gradients = [], []
    for start in range(0, count, prior.unet_batch_size):
        rows = slice(start, start + prior.unet_batch_size)
        with torch.no_grad():
            source = _features(prior, views, rows, views.source[rows], source_text[rows], config)
        with torch.enable_grad(), torch.autocast(views.latents.device.type, enabled=False):
            latents = views.latents[rows].detach().requires_grad_()
            target = _features(prior, views, rows, latents, target_text[rows], config)
            loss = patch_nce(target, source, config, seed=seed)
            (gradient,) = torch.autograd.grad((_LOSS_SCALE * loss).sum(), latents)
        losses.append(loss.detach())
        gradients.append(gradient / _LOSS_SCALE)
    height, width = views.latents.shape[2:]
    return torch.cat(losses), config.weight * height * width / RELEASED_SCALE * torch.cat(gradients)


def _features(
    prior: Prior, views: Views, rows: slice, latents: Tensor, text: Text, config: StructureConfig
) -> list[Tensor]:
    """The maps of the chosen layers, of some of the views."""
    noisy = prior.schedule.add_noise(latents, views.noise[rows], views.t)
    maps = prior.self_attention_features(noisy, views.t, text, views.condition[rows])
    return [maps[layer] for layer in config.layers] if config.layers else maps


def _patches(features: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "n p c"]:
    """Normalised means of the patches that fit side by side."""
    height, width = features.shape[2:]
    if (height // size) * (width // size) < 2:
        raise InputError(
            "the views are too small for the structure loss",
            expected=f"maps with room for two patches of {size} x {size} pixels",
            got=f"a map of {height} x {width} pixels in the U-Net",
            hint="make the views larger, or leave out coarse layers or large patches",
        )
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    pooled = functional.avg_pool2d(features, size) if size > 1 else features
    return functional.normalize(pooled.flatten(2), dim=1).mT
