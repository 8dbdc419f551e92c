"""Whether pictures show what a text says, and change as the text does, by CLIP's measure.

Figures of different CLIPs do not compare: a report names the model and its pretraining.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from csd_nerf.evaluation.weights import CLIP, weights_absent

Embeddings = Float[Tensor, "views channels"]
TextEmbedding = Float[Tensor, " channels"]
PerView = Float[Tensor, " views"]


def text_similarity(images: Embeddings, text: TextEmbedding) -> PerView:
    """`cos(E(image), E(text))` of each view (Radford et al. 2021), -1..1.

    Args:
        images: of `ClipModel.images`.
        text: of `ClipModel.text`, a description of the pictures.
    """
    return F.cosine_similarity(images, text[None], dim=1)


def directional_similarity(
    source_images: Embeddings, images: Embeddings, source_text: TextEmbedding, text: TextEmbedding
) -> PerView:
    """`cos(E(after) - E(before), E(text after) - E(text before))` of each view, -1..1.

    Gal et al. 2021 (StyleGAN-NADA, equation 2), as a metric in Brooks et al. 2022 (InstructPix2Pix) and
    Instruct-NeRF2NeRF (2303.12789, section 4.2).

    Args:
        source_images: of the views before the edit.
        images: of the same views after it.
        source_text: of a description of the scene before.
        text: of a description of the scene after.
    """
    return F.cosine_similarity(images - source_images, (text - source_text)[None], dim=1)


def direction_consistency(
    source_images: Embeddings, images: Embeddings, source_neighbours: Embeddings, neighbours: Embeddings
) -> PerView:
    """`cos(E(e_i) - E(o_i), E(e_j) - E(o_j))` of each view i and its neighbour j, -1..1.

    Whether neighbouring views changed in the same direction of CLIP's space: Instruct-NeRF2NeRF
    (2303.12789, section 4.2 and supplement), with o before and e after the edit. They take adjacent frames
    of a camera path as neighbours.

    Args:
        source_images: E(o_i).
        images: E(e_i).
        source_neighbours: E(o_j).
        neighbours: E(e_j).
    """
    return F.cosine_similarity(images - source_images, neighbours - source_neighbours, dim=1)


@dataclass(frozen=True)
class ClipModel:
    """A CLIP of transformers, asked for unit embeddings.

    Attributes:
        name: hub id or folder; names architecture and pretraining.
        model: `transformers.CLIPModel`.
        tokenizer: `transformers.CLIPTokenizer`.
    """

    name: str
    model: Any
    tokenizer: Any

    @property
    def description(self) -> str:
        """Name, commit on the hub and input size, for reports."""
        config = self.model.config
        commit = getattr(config, "_commit_hash", None)
        return f"{self.name}{f'@{commit[:10]}' if commit else ''}, {config.vision_config.image_size} px"

    @torch.no_grad()
    def images(self, images: Float[Tensor, "views 3 height width"]) -> Embeddings:
        """Unit embeddings of pictures (0..1), one at a time.

        A picture is resized as a whole, bicubic and antialiased, to the model's square input, so that
        nothing is cropped away, and normalised with CLIP's mean and deviation.
        """
        size = self.model.config.vision_config.image_size
        mean = torch.tensor((0.48145466, 0.4578275, 0.40821073)).reshape(3, 1, 1)
        deviation = torch.tensor((0.26862954, 0.26130258, 0.27577711)).reshape(3, 1, 1)
        embeddings = []
        for image in images.cpu().split(1):
            resized = F.interpolate(image, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
            pooled = self.model.vision_model(((resized - mean) / deviation).to(self.model.device))
            embeddings.append(self.model.visual_projection(pooled.pooler_output).cpu())
        return F.normalize(torch.cat(embeddings), dim=1)

    @torch.no_grad()
    def text(self, text: str) -> TextEmbedding:
        """Unit embedding of a text; what exceeds the model's length is cut off."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
        pooled = self.model.text_model(tokens["input_ids"].to(self.model.device)).pooler_output
        return F.normalize(self.model.text_projection(pooled).cpu(), dim=1)[0]


def load_clip(repository: str = CLIP, *, device: torch.device | str, download: bool) -> ClipModel:
    """A CLIP by its hub id or folder.

    Args:
        repository: hub id or folder in transformers' format.
        device: where it runs.
        download: fetch its weights (1.7 GB for ViT-L/14) when they are not on this machine.

    Raises:
        Unavailable: when the weights are not there, or cannot be fetched.
    """
    from transformers import CLIPModel, CLIPTokenizer

    try:
        model: Any = CLIPModel.from_pretrained(repository, local_files_only=not download)
        tokenizer = CLIPTokenizer.from_pretrained(repository, local_files_only=not download)
    except OSError as error:
        raise weights_absent(repository, error) from error
    return ClipModel(repository, model.to(device).eval(), tokenizer)
