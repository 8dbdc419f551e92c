"""The contract between a diffusion model and everything that distils from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.errors import check


@dataclass(frozen=True)
class NoiseSchedule:
    """Signal and noise levels of a diffusion: `x_t = alphas[t] x + sigmas[t] eps`.

    For DDPM-type models `alphas[t]^2 = alphas_cumprod[t]` and `alphas[t]^2 + sigmas[t]^2 = 1`. For models of
    flow matching `sigmas[t] = t / T` and `alphas[t] + sigmas[t] = 1`.

    Args:
        alphas: signal level of each timestep, (T,), falling.
        sigmas: noise level of each timestep, (T,), rising.
    """

    alphas: Float[Tensor, " t"]
    sigmas: Float[Tensor, " t"]

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Float[Tensor, " t"]) -> NoiseSchedule:
        return cls(alphas=alphas_cumprod.sqrt(), sigmas=(1 - alphas_cumprod).sqrt())

    @classmethod
    def flow(cls, num_timesteps: int) -> NoiseSchedule:
        """Of flow matching: on the straight line from picture to noise, s = t / T at timestep t."""
        sigmas = torch.arange(num_timesteps) / num_timesteps
        return cls(alphas=1 - sigmas, sigmas=sigmas)

    @property
    def is_flow(self) -> bool:
        """Whether signal and noise levels add up to one, rather than their squares."""
        return bool(torch.allclose(self.alphas + self.sigmas, torch.ones_like(self.alphas)))

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas)

    def add_noise(self, latents: Tensor, noise: Tensor, t: int) -> Tensor:
        """`alphas[t] * latents + sigmas[t] * noise`."""
        return self.alphas[t].item() * latents + self.sigmas[t].item() * noise


@dataclass(frozen=True)
class TextParts:
    """What a model is told by several tensors, such as words and a vector of the whole prompt.

    Args:
        parts: tensors with a row for each prompt, (n, ...).
    """

    parts: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, rows: slice | Tensor) -> TextParts:
        return TextParts(tuple(part[rows] for part in self.parts))

    def to(self, device: torch.device) -> TextParts:
        return TextParts(tuple(part.to(device) for part in self.parts))


Text: TypeAlias = Tensor | TextParts
"""What a model is told, a row for each prompt: it has a length, can be indexed by rows, and
moved by `to(device)`. What is in a row is known to the prior alone."""


def as_many(text: Text, count: int) -> Text:
    """A text for each of `count` rows: of one row that row for all, of as many as asked the same.

    Example:
        >>> as_many(torch.zeros(1, 5, 8), 3).shape
        torch.Size([3, 5, 8])
    """
    if isinstance(text, TextParts):
        return TextParts(tuple(part.expand(count, *part.shape[1:]) for part in text.parts))
    return text.expand(count, *text.shape[1:])


def joined(texts: Sequence[Text]) -> Text:
    """The rows of several texts of one prior, one after the other.

    Of `TextParts` the shorter ones are filled up with zeros along their second axis.

    Example:
        >>> joined([torch.zeros(1, 5, 8), torch.zeros(2, 5, 8)]).shape
        torch.Size([3, 5, 8])
    """
    if isinstance(texts[0], TextParts):
        rows = [text.parts for text in texts if isinstance(text, TextParts)]
        return TextParts(tuple(_stacked(parts) for parts in zip(*rows, strict=True)))
    return torch.cat([text for text in texts if isinstance(text, Tensor)])


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    longest = max(part.shape[1] for part in parts)
    return torch.cat(
        [
            torch.cat([part, part.new_zeros(len(part), longest - part.shape[1], *part.shape[2:])], 1)
            for part in parts
        ]
    )


GuidedBy = Literal["picture-and-text", "text", "itself"]
"""How a model is guided: by what the picture and what the prompt change in its answer (rows without either,
with the picture, with both), by what the prompt changes (rows without it and with it), or not from outside,
because guidance was distilled into it (one row)."""


def memory_format(
    device: torch.device, dimensions: int = 4, *, of: Literal["denoiser", "autoencoder"] = "denoiser"
) -> torch.memory_format:
    """The order of numbers in memory that a network is fast in; clips have five dimensions."""
    if dimensions == 4 and (device.type == "cuda" or of == "autoencoder"):
        return torch.channels_last
    return torch.contiguous_format  # what denoisers are faster in on CPUs


class Prior(ABC):
    """A frozen diffusion model that says how pictures, or short clips, should change.

    Deliberately not an `nn.Module`: a prior held by one would end up in its checkpoints. Pictures are RGB in
    0..1. "Scaled" latents are those that are noised and denoised, of about unit deviation. All results are
    float32.

    Of a model for clips a view is a clip: wherever this says (n, c, h, w) of latents and conditions it takes
    and gives (n, c, f, h, w), and of pictures (n, 3, frames, height, width), with
    `f = 1 + (frames - 1) / frame_factor`.

    Attributes:
        image_conditioned: whether the model edits a picture that it is shown, by instruction. A text-to-image
            model does not: it knows what a description looks like.
        guided_by: how it is guided, and so how many rows a guided answer takes. Of a model that edits
            pictures and does not say "picture-and-text", leaving the picture out is no branch of guidance.
        text_sees_picture: whether its text encoder looks at the source picture, too, so that what the model
            is told differs from view to view.
        time_shift: how much more its own sampler sees of noise than of pictures, at the size that the model
            was made for: evenly spaced u become `s = k u / (1 + (k - 1) u)`, as fractions of the schedule.
            1 is evenly.
        shown: what `condition` takes of the source views: "picture", or "depth" for a model that is shown
            their geometry.
        schedule: noise levels of the timesteps.
        latent_channels: channels c of the latents.
        vae_factor: pixels per latent along each side; picture sides must be multiples of it. Where a model
            packs what its VAE gives into larger patches, those are its latents.
        native_size: side in pixels of the square pictures that the model was made for.
        clip_frames: frames of the clips that the model was made for; 0 of a model for pictures.
        most_frames: of a clip that it can see at once; None for any number.
        frame_factor: frames per latent in time: clips must have a multiple of it and one frame more.
        device: where the models are.
        dtype: precision of the U-Net, or of the transformer in its place.
        unet_batch_size: most rows that go through the U-Net at once; a clip counts as its latents in time.
        vae_batch_size: most pictures that go through the VAE at once.
        unet_evaluations: rows the U-Net has evaluated so far.
        self_attention_layers: how many maps `self_attention_features` gives; 0 for a model without.
    """

    image_conditioned: bool
    guided_by: GuidedBy
    text_sees_picture: bool = False
    time_shift: float = 1.0
    shown: Literal["picture", "depth"] = "picture"
    schedule: NoiseSchedule
    latent_channels: int
    vae_factor: int
    native_size: int
    clip_frames: int = 0
    most_frames: int | None = None
    frame_factor: int = 1
    device: torch.device
    dtype: torch.dtype
    unet_batch_size: int
    vae_batch_size: int
    unet_evaluations: int = 0
    self_attention_layers: int

    @abstractmethod
    def encode(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n c h w"]:
        """Scaled latents, the mode of the posterior; differentiable with respect to the pictures.

        Works through `vae_batch_size` pictures at a time and, where there are more, recomputes them in the
        backward pass, so that peak memory does not grow with n beyond pictures and latents.

        Raises:
            InputError: a side is not divisible by `vae_factor`.
        """

    @abstractmethod
    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 height width"]:
        """Pictures of scaled latents, clamped to 0..1; differentiable with respect to the latents.

        Works through `vae_batch_size` pictures at a time, as `encode` does.
        """

    @abstractmethod
    def embed(self, prompts: Sequence[str], condition: Float[Tensor, "n k h w"] | None = None) -> Text:
        """What the model is told, a row for each prompt; cached by prompt.

        The text encoder is in memory only while there are prompts that the cache does not hold.

        Args:
            prompts: any number.
            condition: from `condition`, of the view that each prompt is about; looked at only where
                `text_sees_picture`.

        Raises:
            InputError: no condition for a text encoder that sees the picture.
        """

    def frames_at_once(self, asked: int | None, option: str) -> int:
        """How many frames of a clip go through the model at once.

        Args:
            asked: by the user; None is as many as the model was made for.
            option: by which they asked.

        Raises:
            InputError: as many do not suit it, or it is a model for pictures.
        """
        check(
            bool(self.clip_frames),
            option,
            expected="no such option with a prior for pictures",
            got=asked,
            hint="leave it out, or use a prior for clips",
        )
        frames, factor = asked or self.clip_frames, self.frame_factor
        nearest = max(round((frames - 1) / factor), 1) * factor + 1
        check(
            (frames - 1) % factor == 0,
            option,
            expected=f"a multiple of {factor} and one more, such as {nearest}",
            got=frames,
        )
        check(
            self.most_frames is None or frames <= self.most_frames,
            option,
            expected=f"{self.most_frames} at most, for which the prior has positions",
            got=frames,
        )
        return frames

    def told(self, prompts: Sequence[str], condition: Float[Tensor, "n k h w"]) -> Text:
        """`embed` of what is asked about n views: one row for all where that is enough, else a row for each.

        Args:
            prompts: one for all views, or one for each.
            condition: of the views.
        """
        if not self.text_sees_picture:
            return self.embed(prompts)
        return self.embed([*prompts] * (len(condition) // len(prompts)), condition)

    def read_ahead(self, prompts: Sequence[str]) -> None:
        """`embed` prompts before they are asked, as far as that can be done without a view.

        Raises:
            InputError: the text encoder cannot be loaded.
        """
        if not self.text_sees_picture:
            self.embed(prompts)

    def settled(
        self,
        guided: Float[Tensor, "n c h w"],
        prompted: Float[Tensor, "n c h w"],
        noisy: Float[Tensor, "n c h w"],
        t: int,
    ) -> Float[Tensor, "n c h w"]:
        """What the model's own sampler makes of guided noise before it is used: of most models nothing.

        Args:
            guided: noise after guidance.
            prompted: noise of the branch with the prompt.
            noisy: the latents that it is in.
            t: their timestep.
        """
        return guided

    @abstractmethod
    def condition(self, images: Float[Tensor, "n _ height width"]) -> Float[Tensor, "n k h w"]:
        """What the U-Net is shown of the source views; no gradient.

        Args:
            images: source pictures (n, 3, height, width); or, where `shown` is "depth", distances along the
                viewing axis (n, 1, height, width), above 0, in any unit, infinite where there is nothing.

        Returns:
            As many rows as there are views. A text-to-image model is shown nothing: k is 0.

        Raises:
            InputError: a side is not divisible by `vae_factor`; pictures for a model that needs depth.
        """

    @torch.no_grad()
    def encode_source(
        self,
        images: Float[Tensor, "n 3 height width"],
        shown: Float[Tensor, "n _ height width"] | None = None,
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n k h w"]]:
        """`encode` and `condition` of the source views, in one pass through the VAE where both are of one.

        Args:
            images: source pictures.
            shown: what `condition` takes; None for the pictures themselves.

        Raises:
            InputError: see `encode` and `condition`.
        """
        return self.encode(images), self.condition(images if shown is None else shown)

    @abstractmethod
    def predict_noise(
        self,
        noisy: Float[Tensor, "m c h w"],
        t: int,
        text: Text,
        condition: Float[Tensor, "m k h w"] | None,
    ) -> Float[Tensor, "m c h w"]:
        """The noise in noisy latents, whatever it is that the model itself predicts; no gradient.

        Args:
            noisy: `x_t`, scaled latents at timestep t.
            t: timestep, an index into `schedule`, one for all rows.
            text: what the model is told, for each row.
            condition: from `condition`. Of a model guided by the picture, too, a row of zeros, or None for
                all rows, is its "no picture".
        """

    @abstractmethod
    def self_attention_features(
        self,
        noisy: Float[Tensor, "m c h w"],
        t: int,
        text: Text,
        condition: Float[Tensor, "m k h w"],
    ) -> list[Float[Tensor, "m _ _ _"]]:
        """Where the model sees what belongs together: outputs of the self-attention in the U-Net's up blocks,
        or of a transformer's attention of words and pictures.

        Differentiable with respect to `noisy` where gradients are enabled. All rows go through the U-Net at
        once; the blocks' insides are computed again in the backward pass, so that they need not be kept.

        Args:
            noisy, t, text, condition: as for `predict_noise`.

        Returns:
            A map of each of the `self_attention_layers`, from coarse to fine, (m, channels, height, width) of
            that layer, in the U-Net's precision. Those of a transformer are all of the latents' size.
        """
