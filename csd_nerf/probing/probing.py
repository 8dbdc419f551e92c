"""The course of a probe: edit a set of pictures together, and see what changed in all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.distillation import stein_kernel
from csd_nerf.editors.frame_canvas import FrameCanvas
from csd_nerf.editors.observer import Observer, Work
from csd_nerf.editors.passes import Pass, run_passes
from csd_nerf.priors import Prior
from csd_nerf.probing.drift import Drift, by_place, everywhere, regions
from csd_nerf.probing.settings import ProbeSettings

SHOWN = 6
"""Pictures that are shown on the way."""


@dataclass(frozen=True)
class Probed:
    """What an instruction did to a set of pictures.

    Args:
        before: the pictures, (n, 3, h, w), 0..1.
        after: edited by the instruction, of the same shape.
        change: `after` less what the other instruction makes of them, or the pictures; -1..1.
        common: what the kernel takes from the changes of the others, for every picture.
        shared: how much of the changes all have in common, 0..1: of their squares in latent space.
        places: drift by region, beyond what colours explain.
        whole: drift of whole pictures.
        compared: whether another instruction was asked.
    """

    before: Float[Tensor, "n 3 h w"]
    after: Float[Tensor, "n 3 h w"]
    change: Float[Tensor, "n 3 h w"]
    common: Float[Tensor, "n 3 h w"]
    shared: float
    places: list[Drift]
    whole: list[Drift]
    compared: bool

    @property
    def findings(self) -> list[Drift]:
        """What is reported, the largest first: of whole pictures only if there was something to compare."""
        drifts = [*self.places, *(self.whole if self.compared else [])]
        return sorted((drift for drift in drifts if drift.found), key=lambda drift: -abs(drift.mean))


@torch.no_grad()
def probe(
    pictures: Float[Tensor, "n 3 height width"],
    prompt: str,
    settings: ProbeSettings,
    *,
    masks: Mapping[str, Float[Tensor, "n height width"]] | None = None,
    loaded: Prior | None = None,
    observer: Observer | None = None,
) -> Probed:
    """Edit pictures as particles of one CSD-Edit, and test what changed beyond what it should.

    Args:
        pictures: RGB in 0..1, square, sides multiples of what the prior's autoencoder reduces them by.
        prompt: the instruction.
        settings: method, prior, steps, and what to compare with.
        masks: further regions by their names, weights 0..1 in every picture.
        loaded: the prior that the settings name, if it is loaded already.
        observer: told of the progress.

    Raises:
        InputError: settings that contradict each other, or the prior.
    """
    settings.check((prompt,))
    observer = observer or Observer()
    prompts = [prompt, settings.against] if settings.against else [prompt]
    steps = settings.descent().steps
    work = Work("edit", "Edit", steps * len(prompts), "steps")
    observer.plan([work])
    prior = loaded or settings.load_prior()
    objective = settings.objective(prior)
    prior.embed([*prompts, settings.source_prompt, ""])
    source, condition = prior.encode_source(pictures.to(prior.device))
    count = len(source)
    latents = torch.cat([source] * len(prompts))
    # Each pass draws its noise by the numbers of its own steps: both instructions are asked the same.
    passes = [
        Pass(
            FrameCanvas(
                latents[number * count : (number + 1) * count],
                source,
                condition,
                asked,
                particles=count,
                anchors=1,
            ),
            settings.descent(),
        )
        for number, asked in enumerate(prompts)
    ]
    digest = hashlib.sha256((pictures * 255).round().byte().cpu().numpy().tobytes()).hexdigest()
    run_passes(
        passes,
        latents,
        objective,
        settings,
        work,
        identity={"prompt": prompt, "pictures": digest},
        draw=lambda: torch.cat(list(prior.decode(latents[: min(SHOWN, count)]).cpu()), dim=2),
        observer=observer,
    )
    asked, other = latents[:count], latents[count:] if settings.against else source
    change = asked - other
    common = of_the_others(asked, change)
    after, without = prior.decode(asked), prior.decode(other)
    difference = (after - without).cpu()
    where = {**regions(pictures.shape[-1]), **(masks or {})}
    return Probed(
        before=pictures.cpu(),
        after=after.cpu(),
        change=difference,
        common=(prior.decode(other + common) - without).cpu(),
        shared=(count * change.mean(0).square().sum() / change.square().sum().clamp(min=1e-12)).item(),
        places=by_place(difference, pictures.cpu(), where),
        whole=everywhere(difference),
        compared=bool(settings.against),
    )


def of_the_others(
    latents: Float[Tensor, "n c h w"], change: Float[Tensor, "n c h w"]
) -> Float[Tensor, "n c h w"]:
    """What SVGD's kernel would let each picture have of the others' changes: `sum_j K_ij d_j / sum_j K_ij`.

    Over j other than i: where the sum is like a picture's own change, all share it.

    Args:
        latents: what the kernel compares.
        change: `d`.
    """
    kernel, _ = stein_kernel(latents)
    kernel = kernel.fill_diagonal_(0)
    mixed = kernel / kernel.sum(1, keepdim=True).clamp(min=1e-12) @ change.flatten(1).double()
    return mixed.view_as(change).to(change.dtype)


Item = TypeVar("Item")


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """So many of a list, evenly spread.

    Example:
        >>> spread("abcdef", 3)
        ['a', 'c', 'e']
    """
    count = min(most, len(items))
    return [items[number * len(items) // count] for number in range(count)]
