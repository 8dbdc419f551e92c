"""LongCat-Image-Edit (Meituan, 2512.07584): edits the picture it is shown, by instruction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from csd_nerf.priors.base import Text
from csd_nerf.priors.flow_transformer import ShiftedLatents
from csd_nerf.priors.latent_prior import log
from csd_nerf.priors.picture_reader import PictureReader, words_and_mask


class LongCatImageEdit(ShiftedLatents, PictureReader):
    """A transformer like FLUX.1's, told the prompt by Qwen2.5-VL alone.

    Args:
        parts: of `ShiftedLatents` and `PictureReader`.
    """

    def _read(
        self, processor: Any, model: Any, prompt: str, picture: Image.Image
    ) -> Float[Tensor, "1 words width"]:
        from diffusers.image_processor import VaeImageProcessor
        from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit as published

        width, height = published.calculate_dimensions(_PICTURE_AREA, picture.width / picture.height)
        picture = VaeImageProcessor().resize(picture, height // 2, width // 2)
        seen = processor.image_processor(images=picture, return_tensors="pt").to(self.device)
        places = int(seen["image_grid_thw"].prod()) // processor.image_processor.merge_size**2

        def tokens(text: str) -> list[int]:
            return processor.tokenizer(text, add_special_tokens=False)["input_ids"]

        # What is in quotation marks is to be written, and read letter by letter.
        words = [
            token
            for part, quoted in published.split_quotation(prompt)
            for piece in (part if quoted else [part])
            for token in tokens(piece)
        ]
        if len(words) > _WORDS:
            log.warning("the text encoder cuts the prompt off after %d tokens: %r", _WORDS, prompt)
        padded = processor.tokenizer.pad(
            {"input_ids": [words[:_WORDS]]},
            max_length=_WORDS,
            padding="max_length",
            return_attention_mask=True,
            return_tensors="pt",
        )
        before, after = tokens(_BEFORE.replace(_PICTURE, _PICTURE * places)), tokens(_AFTER)
        ends = [torch.tensor([end], dtype=torch.long) for end in (before, after)]
        asked = torch.cat([ends[0], padded.input_ids.long(), ends[1]], dim=1)
        counts = torch.cat(
            [torch.ones_like(ends[0]), padded.attention_mask.long(), torch.ones_like(ends[1])], dim=1
        )
        answer = model(
            input_ids=asked.to(self.device),
            attention_mask=counts.to(self.device),
            pixel_values=seen["pixel_values"],
            image_grid_thw=seen["image_grid_thw"],
            output_hidden_states=True,
        )
        first = before.index(processor.tokenizer.convert_tokens_to_ids("<|vision_start|>"))
        return answer.hidden_states[-1][:, first : -len(after)]

    def _evaluate(
        self,
        transformer: Callable[..., Any],
        tokens: Float[Tensor, "m tokens c"],
        places: Float[Tensor, "tokens 3"],
        time: Float[Tensor, " m"],
        text: Text,
    ) -> Float[Tensor, "m tokens c"]:
        words, _ = words_and_mask(text)
        count = words.shape[1]
        word_places = places.new_zeros(count, 3)
        word_places[:, 1:] = torch.arange(count, device=places.device)[:, None]
        return transformer(
            hidden_states=tokens,
            encoder_hidden_states=words,
            timestep=time,
            img_ids=places + places.new_tensor([0, count, count]),
            txt_ids=word_places,
        ).sample

    def _places(self, height: int, width: int, order: int) -> Tensor:
        return torch.cartesian_prod(torch.tensor([1 + order]), torch.arange(height), torch.arange(width))


_PICTURE_AREA = 1024 * 1024
"""In pixels, of the pictures the model was made for; its text encoder sees them at half their size."""
_WORDS = 512
_PICTURE = "<|image_pad|>"
_BEFORE = (
    "<|im_start|>system\nAs an image editing expert, first analyze the content and attributes of the input "
    "image(s). Then, based on the user's editing instructions, clearly and precisely determine how to modify "
    "the given image(s), ensuring that only the specified parts are altered and all other aspects remain "
    "consistent with the original(s).<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|><|image_pad|><|vision_end|>"
)
"""The question that the model was trained with, before the prompt and after it."""
_AFTER = "<|im_end|>\n<|im_start|>assistant\n"
