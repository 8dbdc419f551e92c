"""The U-Nets: `tiny-instruct`'s is shown the photo's unscaled latents too, `tiny-sd`'s is not.

`tiny-instruct`'s is trained beside the autoencoder of 4 channels, which is then refined on its edits, and
goes on beside the one of 8. `tiny-video` has layers of motion in the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from csd_nerf.scenes.operators import TINTS
from training.denoising import Batch, diffused, load_average, train_denoiser
from training.latents import NAME as LATENTS
from training.latents import PAINTED, Variant, read_latents
from training.progress import Job
from training.text import UNKNOWN, load_text, tokenize
from training.vae import RAW_DEVIATION
from training.wide_vae import CHANNELS as WIDE_CHANNELS
from training.wide_vae import LATENTS as WIDE_LATENTS
from training.wordings import EDITS, captions, unknown_sentences, with_extra_words, wordings

PEAK_LEARNING_RATE = 4e-4
DROPPED = 0.05
"""Probability of each: no text, no photo, neither. For classifier-free guidance on both."""


@dataclass(frozen=True)
class UnetRecipe:
    """What sets the training of one denoiser apart."""

    name: str
    """Of its files in the working folder."""
    shown_photo: bool
    """Whether it sees the photo that is to be edited."""
    shares: dict[str, float]
    """Share of the samples by edit."""
    texts: Callable[[str], list[str]]
    """Every way to ask for an edit."""
    photo_dropped: bool = True
    """Whether the photo it is shown is left out at times: for guidance on both."""
    latents: str = LATENTS
    """The stage that encodes what it learns from."""
    channels: int = 4
    """Of those latents."""
    begins_as: UnetRecipe | None = None
    """The finished one, beside an autoencoder of fewer channels, that it begins as; None: from scratch."""


INSTRUCT = UnetRecipe(
    name="instruct",
    shown_photo=True,
    shares={
        "sketch": 0.22, "painting": 0.18, "tint": 0.15, "winter": 0.13, "autumn": 0.12,
        "night": 0.07, "sepia": 0.06, "identity": 0.04, UNKNOWN: 0.03,
    },
    texts=wordings,
)  # fmt: skip
"""The hardest edits most often; unknown instructions are taught to change nothing."""

WIDE_INSTRUCT = replace(
    INSTRUCT,
    name="wide-instruct",
    latents=WIDE_LATENTS,
    channels=WIDE_CHANNELS,
    begins_as=INSTRUCT,
)

TEXT_TO_IMAGE = UnetRecipe(
    name="text-to-image",
    shown_photo=False,
    shares={
        "identity": 0.24, "sketch": 0.15, "painting": 0.14, "winter": 0.10, "autumn": 0.10,
        "night": 0.08, "sepia": 0.07, "tint": 0.06, UNKNOWN: 0.06,
    },
    texts=captions,
)  # fmt: skip
"""Photos most often: they are the source of every comparison. Whatever is no style is called a photo too."""


def new_unet(recipe: UnetRecipe) -> UNet2DConditionModel:
    """The untrained denoiser, 5.3 M parameters."""
    return UNet2DConditionModel(
        sample_size=24,
        in_channels=recipe.channels * (2 if recipe.shown_photo else 1),
        out_channels=recipe.channels,
        block_out_channels=(48, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=96,
        attention_head_dim=(1, 3, 4),
        norm_num_groups=16,
    )


@torch.no_grad()
def widened(narrow: UNet2DConditionModel, recipe: UnetRecipe) -> UNet2DConditionModel:
    """A U-Net of more latent channels that at first knows those of `narrow`, which come first, alone.

    `training.wide_vae` begins with the same ones.
    """
    unet = new_unet(recipe)
    few = narrow.config.out_channels
    shown = [torch.arange(start, start + few) for start in range(0, unet.config.in_channels, recipe.channels)]
    for name, parameter in unet.named_parameters():
        known = narrow.get_parameter(name)
        if name == "conv_in.weight":
            parameter.zero_()[:, torch.cat(shown)] = known
        elif name.startswith("conv_out."):
            parameter.zero_()[:few] = known
        else:
            parameter.copy_(known)
    return unet


class Samples:
    """Draws instructions, photos and the edits that answer them."""

    def __init__(
        self,
        recipe: UnetRecipe,
        variants: list[Variant],
        texts: dict[str, Tensor],
        empty_text: Tensor,
    ) -> None:
        self.recipe = recipe
        self.edited = [variant for variant in variants if PAINTED not in variant.targets]
        self.painted = [variant for variant in variants if PAINTED in variant.targets]
        self.texts, self.empty_text = texts, empty_text
        self.shares = torch.tensor(list(recipe.shares.values()))

    def draw(self, count: int, window: int, generator: torch.Generator) -> Batch:
        """`count` samples of `window` x `window` latents."""
        rows = [self._one(window, generator) for _ in range(count)]
        return Batch(*(torch.stack(column).float() for column in zip(*rows, strict=True)))

    def _one(self, window: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        edit = list(self.recipe.shares)[int(torch.multinomial(self.shares, 1, generator=generator))]
        pool = self.painted if edit == "painting" else self.edited
        variant = pool[_index(len(pool), generator)]
        target = variant.targets[self._target(edit, generator)]
        top = _index(target.shape[-2] - window + 1, generator)
        left = _index(target.shape[-1] - window + 1, generator)
        here = (..., slice(top, top + window), slice(left, left + window))
        text = self.texts[edit][_index(len(self.texts[edit]), generator)]
        photo = variant.source[here]
        dropped = torch.rand((), generator=generator).item()
        if dropped < 2 * DROPPED:
            text = self.empty_text
        if self.recipe.photo_dropped and DROPPED <= dropped < 3 * DROPPED:
            photo = torch.zeros_like(photo)
        if not self.recipe.shown_photo:
            photo = photo[:0]
        return target[here] / RAW_DEVIATION, photo, text

    @staticmethod
    def _target(edit: str, generator: torch.Generator) -> str:
        if edit == "painting":
            return PAINTED
        if edit == "tint":
            return list(TINTS)[_index(len(TINTS), generator)]
        return "identity" if edit == UNKNOWN else edit


def texts_by_edit(recipe: UnetRecipe, seed: int) -> dict[str, list[str]]:
    """What is said for every edit, as it is and with stray words; the canonical wording a tenth of it."""
    generator = torch.Generator().manual_seed(seed)
    texts = {edit: recipe.texts(edit) for edit in EDITS}
    texts = {edit: [*plain, *with_extra_words(plain, generator)] for edit, plain in texts.items()}
    texts = {edit: texts[edit] + texts[edit][:1] * (len(texts[edit]) // 10) for edit in EDITS}
    texts[UNKNOWN] = unknown_sentences(600, generator)
    return texts


@torch.no_grad()
def text_tables(recipe: UnetRecipe, work: Path, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Embeddings (n, L, d) of the texts of every edit, and (L, d) of the empty text."""
    tokenizer, encoder = load_text(work)
    embed = {
        edit: encoder(tokenize(tokenizer, sentences)).last_hidden_state
        for edit, sentences in texts_by_edit(recipe, seed).items()
    }
    return embed, encoder(tokenize(tokenizer, [""])).last_hidden_state[0]


def train_unet(
    recipe: UnetRecipe,
    job: Job,
    snapshot: Callable[[], None],
) -> None:
    """Train what the recipe says it begins as; see `train_denoiser` for what it leaves."""
    worker, work = job.worker, job.work
    torch.manual_seed(job.seed)
    first = recipe.begins_as
    unet = new_unet(recipe) if first is None else widened(load_unet(first, work), recipe)
    unet.to(worker.device)
    # Written-out attention: for so few tokens the fused kernel's backward takes a third of a step on a CPU.
    unet.set_attn_processor(AttnProcessor())
    variants = read_latents(work, worker.count, recipe.latents)
    samples = Samples(recipe, variants, *text_tables(recipe, work, job.seed))

    def predict(noisy: Tensor, times: Tensor, photos: Tensor, text: Tensor) -> Tensor:
        return unet(torch.cat([noisy, photos], 1), times, text).sample

    train_denoiser(
        recipe.name,
        job,
        unet,
        predict,
        samples.draw,
        diffused,
        peak_learning_rate=PEAK_LEARNING_RATE,
        snapshot=snapshot,
    )


def load_unet(recipe: UnetRecipe, work: Path) -> UNet2DConditionModel:
    """The U-Net with the averaged weights that `train_unet` left, frozen."""
    unet = new_unet(recipe)
    load_average(unet, recipe.name, work)
    return unet


def _index(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator).item())
