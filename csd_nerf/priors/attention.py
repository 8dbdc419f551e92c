"""Reading the self-attention of a network in diffusers' form while it runs, and leaving it as it is.

Forward hooks read what the layers put out; the attention itself stays the fused one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn


def up_block_self_attention(unet: UNet2DConditionModel) -> list[tuple[Transformer2DModel, nn.Module]]:
    """Self-attention layers (`attn1`) of the up blocks, from coarse to fine, each with its transformer."""
    return [
        (transformer, block.attn1)
        for transformer in unet.up_blocks.modules()
        if isinstance(transformer, Transformer2DModel)
        for block in transformer.transformer_blocks
        if not block.only_cross_attention
    ]


@contextmanager
def recorded_self_attention(unet: UNet2DConditionModel) -> Iterator[list[Tensor]]:
    """Collect what `up_block_self_attention` puts out during one forward pass.

    Yields:
        A list that holds a map (m, channels, height, width) of each layer once the context has ended.
    """
    sizes: dict[nn.Module, tuple[int, int]] = {}
    tokens: list[tuple[nn.Module, Tensor]] = []
    maps: list[Tensor] = []

    def note_size(transformer: nn.Module, inputs: tuple[Any, ...]) -> None:
        sizes[transformer] = inputs[0].shape[-2:]

    def recorder(transformer: nn.Module) -> Any:
        def record(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            tokens.append((transformer, output))  # (m, height * width, channels)

        return record

    layers = up_block_self_attention(unet)
    handles = [layer.register_forward_hook(recorder(transformer)) for transformer, layer in layers]
    handles += [
        transformer.register_forward_pre_hook(note_size)
        for transformer in dict.fromkeys(transformer for transformer, _ in layers)
    ]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
    # Attention flattens its map, and nothing in the tokens says how wide it was: views need not be square.
    maps += [output.mT.unflatten(-1, sizes[transformer]) for transformer, output in tokens]


@contextmanager
def recorded_joint_attention(transformer: Any, first: int, size: tuple[int, int]) -> Iterator[list[Tensor]]:
    """Collect what the attention of words and pictures puts out during one forward pass of a transformer.

    Args:
        transformer: of flow matching, with `transformer_blocks`.
        first: place of the first token of the picture in question among those of all pictures.
        size: height and width of that picture, in tokens.

    Yields:
        A list that holds a map (m, channels, height, width) of each block once the context has ended.
    """
    tokens: list[Tensor] = []

    def record(layer: nn.Module, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        tokens.append(outputs[0])  # of the pictures; those of the words come second

    maps: list[Tensor] = []
    handles = [block.attn.register_forward_hook(record) for block in transformer.transformer_blocks]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
    last = first + size[0] * size[1]
    maps += [output[:, first:last].mT.unflatten(2, size) for output in tokens]
