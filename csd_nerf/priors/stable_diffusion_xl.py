"""Stable Diffusion XL (Podell et al., 2307.01952): Stable Diffusion with two text encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from csd_nerf.priors.stable_diffusion import StableDiffusion


class StableDiffusionXL(StableDiffusion):
    """A U-Net that is told the prompt by two encoders, as words and as a whole, and the picture's size.

    An embedding has a row for each token, both encoders' hidden states side by side, and one more with the
    second encoder's vector for the prompt as a whole, filled up with zeros. So it is still one tensor a
    prompt, which nobody but this class looks into. The size told is that of the views, uncropped.

    Args:
        empty_is_zero: whether the empty prompt is zeros, rather than what the encoders make of no words.
        parts: of `LatentDiffusion`; `load_text` gives two pairs, the second encoder with projection.
    """

    def __init__(self, *, empty_is_zero: bool, **parts: Any) -> None:
        super().__init__(**parts)
        self._empty_is_zero = empty_is_zero
        sizes = 6 * self.unet.config["addition_time_embed_dim"]
        self._whole_width = self.unet.config["projection_class_embeddings_input_dim"] - sizes

    def _encode_text(self, prompts: list[str]) -> Float[Tensor, "n l d"]:
        words, whole = [], torch.empty(0)
        for tokenizer, encoder in self._load_text():
            encoder = encoder.eval().to(self.device)
            with self._own_precision():
                answer = encoder(
                    self._tokens(tokenizer, prompts, tokenizer.model_max_length).input_ids,
                    output_hidden_states=True,
                )
            words.append(answer.hidden_states[-2].float())
            whole = answer[0].float()  # of the last one: (n, p)
        rows = torch.cat(words, dim=2)
        last = functional.pad(whole, (0, rows.shape[2] - whole.shape[1]))[:, None]
        embeddings = torch.cat([rows, last], dim=1)
        if self._empty_is_zero:
            embeddings[[not prompt for prompt in prompts]] = 0
        return embeddings

    def _evaluate(
        self,
        unet: Callable[..., Any],
        rows: Float[Tensor, "m _ h w"],
        timestep: Tensor,
        text: Float[Tensor, "m l d"],
    ) -> Float[Tensor, "m c h w"]:
        height, width = (side * self.vae_factor for side in rows.shape[-2:])
        told = text.new_tensor([height, width, 0, 0, height, width])  # original size, crop's corner, size
        return unet(
            rows,
            timestep,
            encoder_hidden_states=text[:, :-1],
            added_cond_kwargs={
                "text_embeds": text[:, -1, : self._whole_width],
                "time_ids": told.expand(len(rows), -1),
            },
        ).sample
