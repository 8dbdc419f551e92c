"""Beginning with a finished prior's autoencoder and text encoder, so that a new denoiser fits beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

from diffusers import AutoencoderKL
from transformers import CLIPTextModel

from training.assembly import REFINED
from training.progress import save_whole
from training.wide_vae import CHANNELS
from training.wide_vae import NAME as WIDE


def take_over(prior: Path, work: Path) -> None:
    """Write to `work` what the stages of autoencoder and text would have left; what is there stays.

    Args:
        prior: folder of `tiny-instruct`, for the autoencoder of 8 channels, or `tiny-sd`, for that of 4.
    """
    vae = AutoencoderKL.from_pretrained(prior / "vae")
    wide = vae.config.latent_channels == CHANNELS
    for stage in (WIDE,) if wide else ("vae", "decoder", REFINED):
        if not (work / f"{stage}.pt").exists():
            save_whole({"vae": vae.state_dict()}, work / f"{stage}.pt")
    if not (work / "text.pt").exists():
        shutil.copytree(prior / "tokenizer", work / "tokenizer", dirs_exist_ok=True)
        encoder = CLIPTextModel.from_pretrained(prior / "text_encoder").state_dict()
        save_whole({"encoder": encoder}, work / "text.pt")
