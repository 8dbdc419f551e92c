"""What the weights of today's editors take at their full size, computed without weights.

    python benchmarks/prior_memory.py

Every part is built from its configuration on torch's meta device, where tensors have shapes and no numbers,
and counted as the loading counts it (`csd_nerf.priors.memory`): networks and text encoders in 16 bits, or 8
or 4 in their linear layers. "Loading" is the most at one time, while prompts are read: network, autoencoder
and text encoders; "editing" is what stays. Activations, the scene and its optimisers come on top.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from csd_nerf.priors.memory import GIGABYTE  # noqa: E402
from csd_nerf.priors.quantized import Quantization, weight_bytes  # noqa: E402

QUANTIZATIONS: tuple[Quantization, ...] = ("none", "int8", "nf4")


@dataclass(frozen=True)
class Model:
    """An editor's parts, each a function that builds it.

    Attributes:
        network: U-Net or transformer.
        vae: autoencoder.
        text: text encoders.
        text_dtype: precision of the text encoders.
        text_quantized: whether text encoders are, too.
    """

    network: Callable[[], Any]
    vae: Callable[[], Any]
    text: tuple[Callable[[], Any], ...]
    text_dtype: torch.dtype = torch.bfloat16
    text_quantized: bool = True


def diffusers_model(name: str, **config: Any) -> Callable[[], Any]:
    def build() -> Any:
        import diffusers

        return getattr(diffusers, name)(**config)

    return build


def transformers_model(name: str, config_name: str, **config: Any) -> Callable[[], Any]:
    def build() -> Any:
        import transformers

        return getattr(transformers, name)(getattr(transformers, config_name)(**config))

    return build


VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
VAE_4, VAE_16 = (diffusers_model("AutoencoderKL", latent_channels=channels, **VAE) for channels in (4, 16))
CLIP_LARGE = transformers_model(
    "CLIPTextModel",
    "CLIPTextConfig",
    hidden_size=768,
    intermediate_size=3072,
    num_attention_heads=12,
    num_hidden_layers=12,
)
CLIP_BIG = transformers_model(
    "CLIPTextModelWithProjection",
    "CLIPTextConfig",
    hidden_size=1280,
    intermediate_size=5120,
    num_attention_heads=20,
    num_hidden_layers=32,
    projection_dim=1280,
)
T5 = transformers_model(
    "T5EncoderModel",
    "T5Config",
    d_model=4096,
    d_ff=10240,
    d_kv=64,
    num_heads=64,
    num_layers=24,
    vocab_size=32128,
    feed_forward_proj="gated-gelu",
)
QWEN_VL = transformers_model(
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen2_5_VLConfig",
    text_config={
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
        "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [16, 24, 24]},
    },
    vision_config={
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
    },
)


def qwen3(hidden: int, inner: int, *, tied: bool) -> Callable[[], Any]:
    return transformers_model(
        "Qwen3ForCausalLM",
        "Qwen3Config",
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        tie_word_embeddings=tied,
    )


def klein(double: int, single: int, heads: int, hidden: int) -> Callable[[], Any]:
    return diffusers_model(
        "Flux2Transformer2DModel",
        in_channels=128,
        num_layers=double,
        num_single_layers=single,
        num_attention_heads=heads,
        attention_head_dim=128,
        joint_attention_dim=3 * hidden,
        guidance_embeds=False,
    )


def unet(**config: Any) -> Callable[[], Any]:
    return diffusers_model("UNet2DConditionModel", in_channels=8, **config)


VAE_FLUX2 = diffusers_model("AutoencoderKLFlux2")
MODELS = {
    "InstructPix2Pix": Model(
        unet(cross_attention_dim=768), VAE_4, (CLIP_LARGE,), torch.float32, text_quantized=False
    ),
    "InstructPix2Pix on SDXL": Model(
        unet(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=(1, 2, 10),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        VAE_4,
        (CLIP_LARGE, CLIP_BIG),
        torch.float32,
        text_quantized=False,
    ),
    "FLUX.2 klein 4B": Model(klein(5, 20, 24, 2560), VAE_FLUX2, (qwen3(2560, 9728, tied=True),)),
    "FLUX.2 klein 9B KV": Model(klein(8, 24, 32, 4096), VAE_FLUX2, (qwen3(4096, 12288, tied=False),)),
    "FLUX.1 dev, Kontext dev": Model(
        diffusers_model("FluxTransformer2DModel", guidance_embeds=True), VAE_16, (CLIP_LARGE, T5)
    ),
    "LongCat-Image-Edit": Model(
        diffusers_model("LongCatImageTransformer2DModel", num_layers=10, num_single_layers=20),
        VAE_16,
        (QWEN_VL,),
    ),
    "Qwen-Image-Edit": Model(
        diffusers_model("QwenImageTransformer2DModel", zero_cond_t=True),
        diffusers_model("AutoencoderKLQwenImage"),
        (QWEN_VL,),
    ),
}


@dataclass(frozen=True)
class Taken:
    """Bytes: most at one time, and what stays."""

    loading: float
    editing: float


def on_meta(build: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return build()


def bytes_of(part: Any, dtype: torch.dtype, quantization: Quantization) -> float:
    """What the weights of a part take; those that are tied are one."""
    return sum(
        weight_bytes(name, list(weight.shape), dtype, quantization)
        for name, weight in part.named_parameters()
    )


def taken(network: Any, vae: Any, texts: list[Any], model: Model, quantization: Quantization) -> Taken:
    editing = bytes_of(network, torch.bfloat16, quantization) + bytes_of(vae, torch.bfloat16, "none")
    of_text: Quantization = quantization if model.text_quantized else "none"
    return Taken(editing + sum(bytes_of(text, model.text_dtype, of_text) for text in texts), editing)


def table() -> list[str]:
    """Rows of Markdown."""
    heads = [f"{name}: loading, editing" for name in ("16 bits", "int8", "nf4")]
    rows = [f"| model | network | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    for name, model in MODELS.items():
        network, vae = on_meta(model.network), on_meta(model.vae)
        texts = [on_meta(text) for text in model.text]
        count = sum(weight.numel() for weight in network.parameters()) / 1e9
        cells = [f"{count:.2f} billion"]
        for quantization in QUANTIZATIONS:
            size = taken(network, vae, texts, model, quantization)
            cells.append(f"{size.loading / GIGABYTE:.1f} GB, {size.editing / GIGABYTE:.1f} GB")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print("\n".join(table()))


if __name__ == "__main__":
    main()
