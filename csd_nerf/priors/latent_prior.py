"""What priors in the latent space of a VAE have in common, whatever network denoises there."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from csd_nerf.errors import InputError, check
from csd_nerf.priors.base import NoiseSchedule, Prior, Text, joined, memory_format

log = logging.getLogger(__name__)


class LatentPrior(Prior):
    """A VAE and text encoders about a network, which is the subclass's matter.

    The VAE runs in its own dtype and gives and takes float32.

    Args:
        network: what denoises; says where the prior is, and in which precision.
        vae: autoencoder.
        load_text: loads tokenizers and text encoders, in pairs; called when a new prompt comes, nothing of
            it is kept.
        schedule: noise levels the network was trained with.
        unet_batch_size, vae_batch_size: most rows, pictures, to go through at once.
    """

    def __init__(
        self,
        *,
        network: Any,
        vae: Any,
        load_text: Callable[[], Sequence[tuple[Any, Any]]],
        schedule: NoiseSchedule,
        unet_batch_size: int,
        vae_batch_size: int,
    ) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.schedule = schedule
        self.device = network.device
        self.dtype = network.dtype
        self.unet_batch_size = unet_batch_size
        self.vae_batch_size = vae_batch_size
        self.unet_evaluations = 0
        self._load_text = load_text
        self._embeddings: dict[str, Text] = {}  # prompt -> its row

    def encode(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n c h w"]:
        self._check_size(images)
        return self._scaled(self._batched(self._encode_batch, images))

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 height width"]:
        return self._batched(self._decode_batch, self._unscaled(latents)).clamp(0, 1)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str], condition: Float[Tensor, "n k h w"] | None = None) -> Text:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._embeddings]
        if new:
            text = self._encode_text(new)
            self._embeddings.update((prompt, text[row : row + 1]) for row, prompt in enumerate(new))
        return joined([self._embeddings[prompt] for prompt in prompts])

    @abstractmethod
    def _scaled(self, encoded: Float[Tensor, "n _ _ _"]) -> Float[Tensor, "n c h w"]:
        """Scaled latents of what the VAE gives."""

    @abstractmethod
    def _unscaled(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n _ _ _"]:
        """And back."""

    @abstractmethod
    def _encode_text(self, prompts: list[str]) -> Text:
        """What the network is told, a row for each prompt."""

    def _batched(self, function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """A part of the VAE, in micro-batches that the backward pass computes again; a single one is kept."""
        batches = inputs.split(self.vae_batch_size)
        if len(batches) == 1:
            return function(inputs)
        return torch.cat([checkpoint(function, batch, use_reentrant=False) for batch in batches])

    def _rows_at_once(self, rows: Tensor) -> int:
        """How many of rows of latents go through the network at once."""
        return max(self.unet_batch_size // (rows.shape[2] if self.clip_frames else 1), 1)

    def _check_size(self, images: Tensor) -> None:
        check_dimensions(images, self.clip_frames)
        if self.clip_frames:
            self._check_frames(images.shape[2])
        height, width = images.shape[-2:]
        if height % self.vae_factor or width % self.vae_factor:
            raise InputError(
                "the picture size does not suit the prior's VAE",
                expected=f"height and width divisible by {self.vae_factor}",
                got=f"{height} x {width}",
                hint=f"the nearest size is {self._fitting(height)} x {self._fitting(width)}",
            )

    def _check_frames(self, count: int) -> None:
        fits = (count - 1) % self.frame_factor == 0
        nearest = max(round((count - 1) / self.frame_factor), 0) * self.frame_factor + 1
        check(
            fits,
            "the length of the clip does not suit the prior's VAE",
            expected=f"a multiple of {self.frame_factor} frames and one more",
            got=f"{count} frames",
            hint=f"the nearest length is {nearest}",
        )

    def _encode_batch(self, images: Tensor) -> Tensor:
        with self._own_precision():
            encoded = self.vae.encode(self._vae_input(images.float() * 2 - 1))
        # Of an AutoencoderTiny latents, else a posterior.
        latents = encoded.latents if "latents" in encoded else encoded.latent_dist.mode()
        return latents.float().contiguous()

    def _decode_batch(self, unscaled: Tensor) -> Tensor:
        with self._own_precision():
            return self.vae.decode(self._vae_input(unscaled)).sample.float().contiguous() / 2 + 0.5

    def _vae_input(self, batch: Tensor) -> Tensor:
        form = memory_format(self.device, batch.ndim, of="autoencoder")
        return batch.to(self.vae.dtype).contiguous(memory_format=form)

    def _tokens(self, tokenizer: Any, prompts: list[str], limit: int) -> Any:
        """Tokens of each prompt, as many as the text encoder takes, and which of them count."""
        for prompt, tokens in zip(prompts, tokenizer(prompts).input_ids, strict=True):
            if len(tokens) > limit:
                log.warning("the text encoder cuts the prompt off after %d tokens: %r", limit, prompt)
        tokens = tokenizer(
            prompts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
        )
        return tokens.to(self.device)

    def _own_precision(self) -> torch.autocast:
        """Keep a caller's autocast from choosing other precisions than those of the models."""
        return torch.autocast(self.device.type, enabled=False)

    def _fitting(self, side: int) -> int:
        return max(round(side / self.vae_factor), 1) * self.vae_factor


def check_dimensions(images: Tensor, clip_frames: int) -> None:
    """See that a model for clips is given clips, and one for pictures pictures.

    Args:
        images: that it is given.
        clip_frames: of the model, see `Prior`.

    Raises:
        InputError: it is the other way round.
    """
    wanted = (
        "clips (n, channels, frames, height, width)"
        if clip_frames
        else "pictures (n, channels, height, width)"
    )
    check(
        images.ndim == (5 if clip_frames else 4),
        f"the prior is one for {'clips' if clip_frames else 'pictures'}",
        expected=wanted,
        got=tuple(images.shape),
        hint="use a prior for pictures" if clip_frames else "use a prior for clips",
    )
