"""What latent diffusion models (Rombach et al., 2112.10752) have in common, from diffusers' components."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from diffusers.models import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from csd_nerf.errors import InputError
from csd_nerf.priors.attention import recorded_self_attention, up_block_self_attention
from csd_nerf.priors.base import NoiseSchedule, Text, memory_format
from csd_nerf.priors.folder import check_channels, pixels_per_latent, sample_size
from csd_nerf.priors.latent_prior import LatentPrior

TextModels = Sequence[tuple[CLIPTokenizer, CLIPTextModel | CLIPTextModelWithProjection]]


class LatentDiffusion(LatentPrior):
    """A U-Net in the latent space of a VAE, told what to do by a CLIP text encoder.

    An AutoencoderTiny, which gives scaled latents as they are, has a `scaling_factor` of 1.

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
        super().__init__(
            network=unet,
            vae=vae,
            load_text=load_text,
            schedule=schedule,
            unet_batch_size=unet_batch_size,
            vae_batch_size=vae_batch_size,
        )
        # Takes effect where gradients are enabled: in self_attention_features alone.
        unet.enable_gradient_checkpointing()
        self.unet = unet.eval().requires_grad_(False)
        self.prediction_type = prediction_type
        self.latent_channels = latent_channels
        self.scaling_factor = float(vae.config["scaling_factor"])
        self.vae_factor = pixels_per_latent(dict(vae.config))
        self.native_size = sample_size(dict(unet.config)) * self.vae_factor
        self.self_attention_layers = 0 if self.clip_frames else len(up_block_self_attention(unet))
        self._condition_channels = unet_channels - latent_channels

    @torch.no_grad()
    def predict_noise(
        self,
        noisy: Float[Tensor, "m c h w"],
        t: int,
        text: Text,
        condition: Float[Tensor, "m k h w"] | None,
    ) -> Float[Tensor, "m c h w"]:
        rows, timestep, words = self._inputs(noisy, t, text, condition)
        most = self._rows_at_once(rows)
        batches = zip(rows.split(most), words.split(most), strict=True)
        with self._own_precision():
            outputs = [
                self._evaluate(self.unet, batch, timestep, batch_words) for batch, batch_words in batches
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
        text: Text,
        condition: Float[Tensor, "m k h w"],
    ) -> list[Float[Tensor, "m _ _ _"]]:
        rows, timestep, words = self._inputs(noisy, t, text, condition)
        with self._own_precision(), recorded_self_attention(self.unet) as features:
            # Not through __call__: a compiled U-Net would pass over the hooks that record.
            self._evaluate(self.unet.forward, rows, timestep, words)
        self.unet_evaluations += len(rows)
        return features

    def _inputs(
        self, noisy: Tensor, t: int, text: Text, condition: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, timestep and text as the U-Net takes them."""
        if condition is None:
            condition = noisy.new_zeros(len(noisy), self._condition_channels, *noisy.shape[2:])
        rows = torch.cat([noisy, condition], dim=1).to(self.dtype)  # (M, c + k, h, w)
        rows = rows.contiguous(memory_format=memory_format(self.device, rows.ndim))
        words = cast(Tensor, text).to(self.dtype)  # what `_encode_text` gives
        return rows, torch.tensor(t, device=self.device), words

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

    def _scaled(self, encoded: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return encoded * self.scaling_factor

    def _unscaled(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return latents / self.scaling_factor

    def _encode_text(self, prompts: list[str]) -> Tensor:
        ((tokenizer, encoder),) = self._load_text()
        encoder = encoder.eval().to(self.device)
        with self._own_precision():
            return encoder(
                self._tokens(tokenizer, prompts, tokenizer.model_max_length).input_ids
            ).last_hidden_state.float()
