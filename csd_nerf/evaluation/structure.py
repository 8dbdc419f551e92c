"""How well an edit keeps the layout of a view, whatever it does to its colours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from csd_nerf.evaluation.weights import DINO, weights_absent
from csd_nerf.scenes.operators import LUMA_WEIGHTS

Images = Float[Tensor, "views 3 height width"]
PerView = Float[Tensor, " views"]

DINO_SIZE = 224
"""Side in pixels of the pictures DINO is shown."""


def edge_correlation(images: Images, reference: Images) -> PerView:
    """Whether edges are in the same places: 1 for the same edges, 0 for unrelated ones. Needs no weights.

    Pearson's correlation over the pixels of a view between the lengths of the Sobel gradients (Sobel and
    Feldman 1968) of the two pictures' luma. A change of brightness or contrast of the whole picture does
    not change it. It is no published structure metric; it stands beside `self_similarity_distance` because
    it can be measured everywhere.

    Args:
        images: 0..1.
        reference: 0..1.
    """
    edges, others = (_edges(pictures).flatten(1) for pictures in (images, reference))
    edges, others = (lengths - lengths.mean(1, keepdim=True) for lengths in (edges, others))
    return F.cosine_similarity(edges, others, dim=1)


def _edges(images: Tensor) -> Tensor:
    """Length (V, H - 2, W - 2) of the gradient of the luma."""
    luma = (images * images.new_tensor(LUMA_WEIGHTS).reshape(3, 1, 1)).sum(1, keepdim=True)
    across = images.new_tensor(((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))) / 8
    gradient = F.conv2d(luma, torch.stack([across, across.T])[:, None])  # (V, 2, H - 2, W - 2)
    return gradient.norm(dim=1)


def self_similarity_distance(
    features: Float[Tensor, "views tokens channels"], reference: Float[Tensor, "views tokens channels"]
) -> PerView:
    """Structure distance: mean square difference of the self-similarities of two pictures' features.

    `mean_ij (cos(k_i, k_j) - cos(k0_i, k0_j))^2` over all pairs of tokens (Tumanyan et al. 2022, Splicing
    ViT Features for Semantic Appearance Transfer, equations 2 and 4), 0 for the same structure.

    Args:
        features: one vector for each place in each picture, such as `dino_keys`.
        reference: of the pictures compared with, at the same places.
    """
    ours, theirs = (_self_similarity(vectors) for vectors in (features, reference))
    return (ours - theirs).square().mean((1, 2))


def _self_similarity(vectors: Tensor) -> Tensor:
    unit = F.normalize(vectors, dim=-1)
    return unit @ unit.transpose(1, 2)


def load_dino(
    repository: str = DINO, *, device: torch.device | str, download: bool
) -> Callable[[Tensor], Tensor]:
    """The function that gives the keys of a ViT's last self-attention, the class token's among them.

    It takes one picture (3, H, W), 0..1, and returns (tokens, channels), the heads side by side. The
    picture is resized to 224 x 224 and normalised with ImageNet's mean and deviation, as DINO was trained.

    Args:
        repository: hub id or folder of the ViT.
        device: where it runs.
        download: fetch its weights when they are not on this machine.

    Raises:
        Unavailable: when the weights are not there, or cannot be fetched.
    """
    from transformers import ViTModel

    try:
        model: Any = ViTModel.from_pretrained(
            repository, local_files_only=not download, add_pooling_layer=False
        )
    except OSError as error:
        raise weights_absent(repository, error) from error
    model = model.to(device).eval()
    # Named `key` up to transformers 4 and `k_proj` since.
    projection = [layer for name, layer in model.named_modules() if name.endswith((".key", ".k_proj"))][-1]
    mean = torch.tensor((0.485, 0.456, 0.406), device=device).reshape(3, 1, 1)
    deviation = torch.tensor((0.229, 0.224, 0.225), device=device).reshape(3, 1, 1)

    @torch.no_grad()
    def keys(image: Tensor) -> Tensor:
        resized = F.interpolate(image[None].to(device), (DINO_SIZE,) * 2, mode="bilinear", antialias=True)
        found: list[Tensor] = []
        hook = projection.register_forward_hook(lambda layer, inputs, output: found.append(output))
        try:
            model((resized - mean) / deviation, interpolate_pos_encoding=True)
        finally:
            hook.remove()
        return found[0][0]

    return keys


def structure_distance(keys: Callable[[Tensor], Tensor], images: Images, reference: Images) -> PerView:
    """`self_similarity_distance` of the keys of each view, one view at a time.

    Args:
        keys: of `load_dino`.
        images: 0..1.
        reference: 0..1.
    """
    pairs = zip(images, reference, strict=True)
    return torch.cat([self_similarity_distance(keys(one)[None], keys(other)[None]) for one, other in pairs])
