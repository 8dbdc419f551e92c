"""What latent diffusion models (Rombach et al., 2112.10752) have in common, from diffusers' components."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.models import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from csd_nerf.errors import InputError
from csd_nerf.priors.attention import recorded_self_attention, up_block_self_attention
from csd_nerf.priors.base import NoiseSchedule, Prior, memory_format
from csd_nerf.priors.folder import check_channels, pixels_per_latent, sample_size

log = logging.getLogger(__name__)

TextModels = Sequence[tuple[CLIPTokenizer, CLIPTextModel | CLIPTextModelWithProjection]]


class LatentDiffusion(Prior):
    """A U-Net in the latent space of a VAE, told what to do by a CLIP text encoder.

    The VAE runs in its own dtype and gives and takes float32. An AutoencoderTiny, which gives scaled latents
    as they are, has a `scaling_factor` of 1.

    Args:
        unet: U-Net; how many channels it takes beside the noisy latents is the subclass's matter.
        vae: autoencoder; its `scaling_factor` applies to the latents.
        load_text: loads the tokenizer and the text encoder, a pair of which there is one unless the subclass
            says otherwise; called when a new prompt comes, nothing of it is kept.
        schedule: noise levels the U-Net was trained with.
        prediction_type: what the U-Net predicts, "epsilon" or "v_prediction".
        unet_batch_size, vae_batch_size: most rows, pictures, to go through at once.

    Raises:
        InputError: the U-Net is of another kind than the class.
    """

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL | AutoencoderTiny,
        load_text: Callable[[], TextModels],
        schedule: NoiseSchedule,
        prediction_type: str = "epsilon",
        unet_batch_size: int,
        vae_batch_size: int,
    ) -> None:
        unet_channels, latent_channels = unet.config["in_channels"], vae.config["latent_channels"]
        if check_channels(unet_channels, latent_channels) != self.image_conditioned:
            raise InputError(
                f"the U-Net is not that of {type(self).__name__}",
                expected=f"{(1 + self.image_conditioned) * latent_channels} input channels",
                got=f"{unet_channels} input channels and {latent_channels} latent channels",
                hint="let load_prior choose the class",
            )
        # Takes effect where gradients are enabled: in self_attention_features alone.
        unet.enable_gradient_checkpointing()
        self.unet = unet.eval().requires_grad_(False)
        self.vae = vae.eval().requires_grad_(False)
        self.schedule = schedule
        self.prediction_type = prediction_type
        self.latent_channels = latent_channels
        self.scaling_factor = float(vae.config["scaling_factor"])
        self.vae_factor = pixels_per_latent(dict(vae.config))
        self.native_size = sample_size(dict(unet.config)) * self.vae_factor
        self.device = unet.device
        self.dtype = unet.dtype
        self.unet_batch_size = unet_batch_size
        self.vae_batch_size = vae_batch_size
        self.unet_evaluations = 0
        self.self_attention_layers = len(up_block_self_attention(unet))
        self._condition_channels = unet_channels - latent_channels
        self._load_text = load_text
        self._embeddings: dict[str, Tensor] = {}  # prompt -> (L, d)

    def encode(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n c h w"]:
        self._check_size(images)
        return self._batched(self._encode_batch, images) * self.scaling_factor

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 height width"]:
        return self._batched(self._decode_batch, latents / self.scaling_factor).clamp(0, 1)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Float[Tensor, "n l d"]:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._embeddings]
        if new:
            self._embeddings.update(zip(new, self._encode_text(new), strict=True))
        return torch.stack([self._embeddings[prompt] for prompt in prompts])

    @torch.no_grad()
    def predict_noise(
        self,
        noisy: Float[Tensor, "m c h w"],
        t: int,
        text: Float[Tensor, "m l d"],
        condition: Float[Tensor, "m k h w"] | None,
    ) -> Float[Tensor, "m c h w"]:
        rows, timestep, text = self._inputs(noisy, t, text, condition)
        batches = zip(rows.split(self.unet_batch_size), text.split(self.unet_batch_size), strict=True)
        with self._own_precision():
            outputs = [
                self._evaluate(self.unet, batch, timestep, batch_text) for batch, batch_text in batches
            ]
        self.unet_evaluations += len(rows)
        predicted = torch.cat(outputs).float().contiguous()
        if self.prediction_type == "v_prediction":
            # v = alpha eps - sigma x (Salimans and Ho, 2202.00512), hence eps = alpha v + sigma x_t.
            return self.schedule.alphas[t].item() * predicted + self.schedule.sigmas[t].item() * noisy
        return predicted

    def self_attention_features(
        self,
        noisy: Float[Tensor, "m c h w"],
        t: int,
        text: Float[Tensor, "m l d"],
        condition: Float[Tensor, "m k h w"],
    ) -> list[Float[Tensor, "m _ _ _"]]:
        rows, timestep, text = self._inputs(noisy, t, text, condition)
        with self._own_precision(), recorded_self_attention(self.unet) as features:
            # Not through __call__: a compiled U-Net would pass over the hooks that record.
            self._evaluate(self.unet.forward, rows, timestep, text)
        self.unet_evaluations += len(rows)
        return features

    def _inputs(
        self, noisy: Tensor, t: int, text: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, timestep and text as the U-Net takes them."""
        if condition is None:
            condition = noisy.new_zeros(len(noisy), self._condition_channels, *noisy.shape[2:])
        rows = torch.cat([noisy, condition], dim=1).to(self.dtype)  # (M, c + k, h, w)
        rows = rows.contiguous(memory_format=memory_format(self.device))
        return rows, torch.tensor(t, device=self.device), text.to(self.dtype)

    def _evaluate(
        self,
        unet: Callable[..., Any],
        rows: Float[Tensor, "m _ h w"],
        timestep: Tensor,
        text: Float[Tensor, "m l d"],
    ) -> Float[Tensor, "m c h w"]:
        """What the U-Net says of rows from `_inputs`: of all of them at once.

        Args:
            unet: the U-Net, or its `forward`.
            rows: noisy latents, then the condition.
            timestep, text: as from `_inputs`.
        """
        return unet(rows, timestep, encoder_hidden_states=text).sample

    def _batched(self, function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """A part of the VAE, in micro-batches that the backward pass computes again; a single one is kept."""
        batches = inputs.split(self.vae_batch_size)
        if len(batches) == 1:
            return function(inputs)
        return torch.cat([checkpoint(function, batch, use_reentrant=False) for batch in batches])

    def _check_size(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if height % self.vae_factor or width % self.vae_factor:
            raise InputError(
                "the picture size does not suit the prior's VAE",
                expected=f"height and width divisible by {self.vae_factor}",
                got=f"{height} x {width}",
                hint=f"the nearest size is {self._fitting(height)} x {self._fitting(width)}",
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
        return batch.to(self.vae.dtype).contiguous(memory_format=memory_format(self.device))

    def _encode_text(self, prompts: list[str]) -> Tensor:
        ((tokenizer, encoder),) = self._load_text()
        encoder = encoder.eval().to(self.device)
        with self._own_precision():
            return encoder(self._tokens(tokenizer, prompts)).last_hidden_state.float()

    def _tokens(self, tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
        limit = tokenizer.model_max_length
        for prompt, tokens in zip(prompts, tokenizer(prompts).input_ids, strict=True):
            if len(tokens) > limit:
                log.warning("the text encoder cuts the prompt off after %d tokens: %r", limit, prompt)
        tokens = tokenizer(
            prompts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
        )
        return tokens.input_ids.to(self.device)

    def _own_precision(self) -> torch.autocast:
        """Keep a caller's autocast from choosing other precisions than those of the models."""
        return torch.autocast(self.device.type, enabled=False)

    def _fitting(self, side: int) -> int:
        return max(round(side / self.vae_factor), 1) * self.vae_factor
