"""Training a translator: what an objective says of a batch of its pictures goes back into its weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.distillation import NonFiniteResidual, Objective
from csd_nerf.editors.loop import one_more_skipped
from csd_nerf.editors.observer import Observer, Work
from csd_nerf.priors import Prior
from csd_nerf.seeds import step_seed
from csd_nerf.translation.crops import Crops
from csd_nerf.translation.learner import Learner
from csd_nerf.translation.model_file import TrainedTranslator
from csd_nerf.translation.network import Translator
from csd_nerf.translation.settings import TranslatorSettings

SHOWN = 6
"""Pictures that are shown on the way."""


def train_translator(
    pictures: Sequence[Float[Tensor, "3 _ _"]],
    prompts: Sequence[str],
    settings: TranslatorSettings,
    *,
    loaded: Prior | None = None,
    observer: Observer | None = None,
) -> tuple[TrainedTranslator, Crops]:
    """Train a network that does to pictures what an objective asks for (Hertz et al., 2304.07090).

    In every step crops of different pictures p are the particles, under one of the prompts,

        x~ = encode(p)        x = encode(G(p))
        g = Objective.gradient(x; x~) + identity_weight (x - x~)
        change = decode(x - step_length g) - decode(x)
        loss = 1/2N sum_i |G(p_i) - (G(p_i) + change_i)|^2        the second G(p) without a gradient

    G learns to make the step that an edit of its pictures would take next. The paper's network gives
    latents, and its loss has the gradient g. Ours gives pictures, without an autoencoder's losses and time;
    a gradient sent back to them through the encoder leaves what the encoder does not see to chance, the step
    as decoded pictures does not. The text guidance rises from 1, and an identity term holds on to the
    source, as in the paper.

    Args:
        pictures: to learn from, RGB in 0..1, of any sizes; see `Pictures` for those on disk.
        prompts: instructions, or for a text-to-image prior descriptions; each becomes a target.
        settings: method, prior, steps and so on.
        loaded: the prior that the settings name, if it is loaded already.
        observer: told of the progress.

    Returns:
        The translator with averaged weights, and the crops.

    Raises:
        InputError: settings that contradict each other, or the prior; five steps in a row without a finite
            gradient.
    """
    settings.check(tuple(prompts))
    observer = observer or Observer()
    reading = Work("read", "Read pictures", len(pictures), "pictures")
    training = Work("train", "Train", settings.steps, "steps")
    observer.plan([reading, training])
    prior = loaded or settings.load_prior()
    size = settings.crop_size(prior)
    objective = settings.objective(prior)
    prior.embed([*prompts, settings.source_prompt, ""])  # what cannot be loaded is bad input too
    observer.start(reading)
    crops = Crops(pictures, size, lambda number: observer.advance(reading, number))
    observer.finish(reading)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = Translator(len(prompts)).to(prior.device)
    learner = Learner(network)
    identity = {**settings.outcome(), "prompts": list(prompts), "pictures": crops.digest}
    start = observer.resume(identity, learner.state)
    observer.start(training, start)
    skipped = 0
    for step in range(start, settings.steps):
        generator = torch.Generator().manual_seed(step_seed(settings.seed, step))
        target = int(torch.randint(len(prompts), (), generator=generator))
        before = crops.draw(settings.particles, generator).to(prior.device)
        objective.config.text_guidance = settings.guidance(step)
        try:
            loss = distillation_loss(
                network,
                before,
                target,
                objective,
                prompt=prompts[target],
                source_prompt=settings.source_prompt,
                step_length=settings.step_length(),
                identity_weight=settings.identity_weight,
                step=step,
                max_steps=settings.steps,
                generator=generator,
            )
        except NonFiniteResidual as error:
            skipped = one_more_skipped(skipped, error)
        else:
            skipped = 0
            learner.descend(loss, step, settings.descent().rate(step))
        observer.advance(training, step + 1)
        observer.step(step + 1, learner.state, lambda: drawn(learner, network, crops, len(prompts)))
    observer.finish(training)
    learner.show_average()
    made_by = {"method": settings.method, "prior": settings.prior, "size": str(size)}
    return TrainedTranslator(network.eval(), tuple(prompts), made_by), crops


def distillation_loss(
    network: Translator,
    before: Float[Tensor, "n 3 height width"],
    target: int,
    objective: Objective,
    *,
    prompt: str,
    source_prompt: str,
    step_length: float,
    identity_weight: float,
    step: int = 0,
    max_steps: int = 1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """The loss of a step, see `train_translator`. Its gradient at the translated pictures is `-change / N`
    wherever they are and stay in 0..1; else it leads back there.

    Args:
        network: the translator.
        before: pictures, RGB in 0..1.
        target: number of the target.
        objective: says how latents are to move.
        prompt, source_prompt, step, max_steps, generator: see `Objective.gradient`.
        step_length: by which latents are moved.
        identity_weight: of the distance to the source.

    Raises:
        NonFiniteResidual: the prior returned NaN or infinity.
    """
    prior = objective.prior
    after = network(before, target)
    with torch.no_grad():
        source, condition = prior.encode_source(before)
        shown = after.clamp(0, 1)
        latents = prior.encode(shown)
        distilled = objective.gradient(
            latents,
            source,
            condition,
            prompt=prompt,
            source_prompt=source_prompt,
            step=step,
            max_steps=max_steps,
            generator=generator,
        )
        direction = distilled.gradient + identity_weight * (latents - source)
        change = prior.decode(latents - step_length * direction) - prior.decode(latents)
        wanted = (shown + change).clamp(0, 1)
    return (after - wanted).square().sum() / (2 * len(before))


@torch.no_grad()
def drawn(learner: Learner, network: Translator, crops: Crops, targets: int) -> Tensor:
    """A row of pictures, and below it a row of what becomes of them for each target; (3, H, W), 0..1."""
    before = crops.shown(SHOWN).to(learner.state.device)
    learner.show_average()
    rows = [before, *(network(before, target) for target in range(targets))]
    learner.show_weights()
    return torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1).clamp(0, 1).cpu()
