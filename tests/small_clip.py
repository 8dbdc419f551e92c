"""A CLIP with random weights, small enough for a test."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from csd_nerf.bundled import bundled_path


def save_small_clip(folder: Path) -> Path:
    """Save it, with the bundled prior's tokenizer, in transformers' format; returns the folder."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    shutil.copytree(bundled_path("tiny-instruct") / "tokenizer", folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**sizes, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 12},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    return folder
