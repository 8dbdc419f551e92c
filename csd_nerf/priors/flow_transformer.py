"""What transformers of flow matching that edit pictures have in common (Lipman et al., 2210.02747)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from csd_nerf.priors.attention import recorded_joint_attention
from csd_nerf.priors.base import Text
from csd_nerf.priors.flow_prior import TIMESTEPS, FlowPrior
from csd_nerf.priors.folder import NATIVE_TOKENS, PATCH, pixels_per_latent


class FlowTransformer(FlowPrior):
    """A transformer that sees the noisy picture's and the source picture's tokens in one sequence.

    It predicts the velocity from picture to noise, `v = eps - x`, in `x_s = (1 - s) x + s eps`; the noise is
    `x_s + (1 - s) v`. A token is a square of 2 x 2 of the VAE's latents, and its numbers are the channels of
    the latents outside: c is four times the VAE's, `vae_factor` twice its own.

    Args:
        transformer: of the subclass's class.
        vae, parts: of `FlowPrior`.
    """

    image_conditioned = True
    _picture_first = False

    def __init__(self, *, transformer: Any, vae: Any, **parts: Any) -> None:
        super().__init__(transformer=transformer, vae=vae, **parts)
        # Takes effect where gradients are enabled: in self_attention_features alone.
        transformer.enable_gradient_checkpointing()
        self.self_attention_layers = len(transformer.transformer_blocks)
        self.latent_channels = transformer.config["in_channels"]
        self.vae_factor = PATCH * pixels_per_latent(dict(vae.config))
        # A transformer of this kind does not say for which size it was made; its autoencoder does, or none.
        native = dict(vae.config).get("sample_size") or NATIVE_TOKENS * self.vae_factor
        self.native_size = min(native) if isinstance(native, list | tuple) else native

    @torch.no_grad()
    def condition(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n k h w"]:
        """The pictures' own latents."""
        return self.encode(images)

    @torch.no_grad()
    def encode_source(
        self, images: Float[Tensor, "n 3 height width"], shown: Tensor | None = None
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n k h w"]]:
        if shown is not None and shown is not images:
            return super().encode_source(images, shown)
        latents = self.encode(images)
        return latents, latents

    @torch.no_grad()
    def predict_noise(
        self,
        noisy: Float[Tensor, "m c h w"],
        t: int,
        text: Text,
        condition: Float[Tensor, "m k h w"] | None,
    ) -> Float[Tensor, "m c h w"]:
        """See `Prior.predict_noise`; without a condition the picture's tokens are left out."""
        tokens, places = self._sequence(noisy, condition)
        height, width = noisy.shape[2:]
        velocities = []
        for start in range(0, len(tokens), self.unet_batch_size):
            rows = slice(start, start + self.unet_batch_size)
            with self._own_precision():
                answer = self._answer(tokens[rows], places, self._time(t, len(tokens[rows])), text[rows])
            velocities.append(answer[:, : height * width].float())
        self.unet_evaluations += len(tokens)
        velocity = torch.cat(velocities).mT.unflatten(2, (height, width)).contiguous()
        return noisy + self.schedule.alphas[t].item() * velocity

    def self_attention_features(
        self,
        noisy: Float[Tensor, "m c h w"],
        t: int,
        text: Text,
        condition: Float[Tensor, "m k h w"],
    ) -> list[Float[Tensor, "m _ _ _"]]:
        """See `Prior.self_attention_features`: of the blocks in which words and pictures have weights of
        their own, what the noisy picture's tokens get from the attention of all."""
        tokens, places = self._sequence(noisy, condition)
        size = (noisy.shape[2], noisy.shape[3])
        first = tokens.shape[1] - size[0] * size[1] if self._picture_first else 0
        with self._own_precision(), recorded_joint_attention(self.transformer, first, size) as features:
            # Not through __call__: a compiled transformer would pass over the hooks that record.
            self._evaluate(self.transformer.forward, tokens, places, self._time(t, len(tokens)), text)
        self.unet_evaluations += len(tokens)
        return features

    def _sequence(
        self, noisy: Float[Tensor, "m c h w"], condition: Float[Tensor, "m k h w"] | None
    ) -> tuple[Float[Tensor, "m tokens c"], Float[Tensor, "tokens axes"]]:
        """All tokens of each row, in the transformer's precision, and where they are."""
        pictures = [noisy]
        if condition is not None and condition.shape[1]:
            pictures.append(self._picture_tokens(condition))
        tokens = [picture.flatten(2).mT.to(self.dtype) for picture in pictures]
        height, width = noisy.shape[2:]
        places = [self._places(height, width, order) for order in range(len(pictures))]
        if self._picture_first:
            tokens, places = tokens[::-1], places[::-1]
        return torch.cat(tokens, dim=1), torch.cat(places).to(self.device, torch.float32)

    def _picture_tokens(self, condition: Float[Tensor, "m k h w"]) -> Float[Tensor, "m c h w"]:
        """What of a condition the transformer sees."""
        return condition

    def _time(self, t: int, count: int) -> Float[Tensor, " m"]:
        return torch.full((count,), t, dtype=self.dtype, device=self.device) / TIMESTEPS

    def _answer(
        self,
        tokens: Float[Tensor, "m tokens c"],
        places: Float[Tensor, "tokens axes"],
        time: Float[Tensor, " m"],
        text: Text,
    ) -> Float[Tensor, "m tokens c"]:
        """As `_evaluate`, by whichever way is fast."""
        return self._evaluate(self.transformer, tokens, places, time, text)

    @abstractmethod
    def _evaluate(
        self,
        transformer: Callable[..., Any],
        tokens: Float[Tensor, "m tokens c"],
        places: Float[Tensor, "tokens axes"],
        time: Float[Tensor, " m"],
        text: Text,
    ) -> Float[Tensor, "m tokens c"]:
        """The velocities that the transformer says, those of the noisy picture's tokens first.

        Args:
            transformer: the transformer, or its `forward`.
            tokens, places: from `_sequence`.
            time: s, 0 to 1.
            text: what `_encode_text` gives.
        """

    @abstractmethod
    def _places(self, height: int, width: int, order: int) -> Tensor:
        """Where each token of a picture is, (height * width, axes).

        Args:
            height, width: in tokens.
            order: 0 for the noisy picture, 1 for the source.
        """


class ShiftedLatents(FlowTransformer):
    """A transformer on the latents of an autoencoder like FLUX.1's.

    Args:
        parts: of `FlowTransformer`; the VAE is an `AutoencoderKL` whose latents are shifted and scaled.
    """

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self._scale = float(self.vae.config["scaling_factor"])
        self._shift = float(self.vae.config["shift_factor"] or 0)

    def _scaled(self, encoded: Float[Tensor, "n _ _ _"]) -> Float[Tensor, "n c h w"]:
        return functional.pixel_unshuffle((encoded - self._shift) * self._scale, PATCH)

    def _unscaled(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n _ _ _"]:
        return functional.pixel_shuffle(latents, PATCH) / self._scale + self._shift
