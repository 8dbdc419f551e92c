"""FLUX.1 Kontext (Black Forest Labs, 2506.15742): edits the picture it is shown, by instruction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.priors.base import Text, TextParts
from csd_nerf.priors.flow_transformer import ShiftedLatents


class FluxKontext(ShiftedLatents):
    """FLUX.1's transformer, told the prompt as words by T5 and as a whole by CLIP.

    Args:
        parts: of `ShiftedLatents`; `load_text` gives CLIP and T5.

    Attributes:
        told_guidance: what a transformer that takes its guidance as a number is told: that of the model's own
            card.
    """

    told_guidance = 2.5

    def _encode_text(self, prompts: list[str]) -> TextParts:
        (clip_tokenizer, clip), (t5_tokenizer, t5) = self._load_text()
        clip, t5 = clip.eval().to(self.device), t5.eval().to(self.device)
        with self._own_precision():
            tokens = self._tokens(clip_tokenizer, prompts, clip_tokenizer.model_max_length)
            whole = clip(tokens.input_ids).pooler_output
            limit = min(_WORDS, t5_tokenizer.model_max_length)
            words = t5(self._tokens(t5_tokenizer, prompts, limit).input_ids).last_hidden_state
        return TextParts((words.to(self.dtype), whole.to(self.dtype)))

    def _evaluate(
        self,
        transformer: Callable[..., Any],
        tokens: Float[Tensor, "m tokens c"],
        places: Float[Tensor, "tokens 3"],
        time: Float[Tensor, " m"],
        text: Text,
    ) -> Float[Tensor, "m tokens c"]:
        assert isinstance(text, TextParts)  # what `_encode_text` gives
        words, whole = text.parts
        told = None
        if self.transformer.config["guidance_embeds"]:
            told = torch.full((len(tokens),), self.told_guidance, device=self.device)
        return transformer(
            hidden_states=tokens,
            encoder_hidden_states=words,
            pooled_projections=whole,
            timestep=time,
            img_ids=places,
            txt_ids=places.new_zeros(words.shape[1], places.shape[1]),
            guidance=told,
        ).sample

    def _places(self, height: int, width: int, order: int) -> Tensor:
        return torch.cartesian_prod(torch.tensor([order]), torch.arange(height), torch.arange(width))


_WORDS = 512
"""Tokens of T5 that the model was trained with, where its tokenizer does not say fewer; longer prompts are
cut off."""
