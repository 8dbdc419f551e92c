"""PSNR, SSIM and LPIPS, and the structure measures, against plain references and known orders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from csd_nerf.evaluation.pixels import load_lpips, lpips, psnr, ssim
from csd_nerf.evaluation.structure import (
    edge_correlation,
    load_dino,
    self_similarity_distance,
    structure_distance,
)
from csd_nerf.evaluation.weights import Unavailable
from csd_nerf.scenes.operators import night, tint
from csd_nerf.scenes.still_life import orbit_cameras, render


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Two views (2, 3, 64, 64) of the still life."""
    views = [render(camera, samples_per_side=2).rgb for camera in orbit_cameras(2, size=64)]
    return torch.stack([torch.from_numpy(view).permute(2, 0, 1) for view in views])


def test_psnr_of_each_view(pictures: Tensor) -> None:
    other = torch.stack([pictures[0], pictures[1] + 0.1])
    torch.testing.assert_close(psnr(other, pictures), torch.tensor([100.0, 20.0]), atol=1e-3, rtol=0)
    noisy = pictures + 0.05 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    reference = -10 * (noisy - pictures).square().mean((1, 2, 3)).log10()
    torch.testing.assert_close(psnr(noisy, pictures), reference)


def test_ssim_of_constant_pictures_is_the_luminance_term() -> None:
    dark, light = torch.full((2, 3, 16, 16), 0.2), torch.full((2, 3, 16, 16), 0.6)
    luminance = (2 * 0.2 * 0.6 + 0.01**2) / (0.2**2 + 0.6**2 + 0.01**2)
    torch.testing.assert_close(ssim(dark, light), torch.full((2,), luminance), atol=1e-4, rtol=0)
    torch.testing.assert_close(ssim(light, light), torch.ones(2))


def test_lpips(pictures: Tensor, alexnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(Unavailable, match="no AlexNet weights.*--download"):
        load_lpips("cpu", download=False)
    shutil.copytree(alexnet / "hub", tmp_path / "hub")
    network = load_lpips("cpu", download=False)
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    distances = [lpips(network, pictures + scale * noise, pictures) for scale in (0.0, 0.05, 0.2)]
    assert torch.all(distances[0] < 1e-6)
    assert torch.all(distances[1] < distances[2]) and torch.all(distances[1] > 0.01)
    (file,) = (tmp_path / "hub" / "checkpoints").iterdir()
    file.write_bytes(b"cut short")
    with pytest.raises(Unavailable, match="cannot be read"):
        load_lpips("cpu", download=False)


def test_edges_stay_where_they_are_under_a_change_of_colours(pictures: Tensor) -> None:
    torch.testing.assert_close(edge_correlation(0.3 * pictures + 0.1, pictures), torch.ones(2))
    kept = edge_correlation(night(pictures), pictures), edge_correlation(tint(pictures, "cyan"), pictures)
    moved, unrelated = edge_correlation(pictures.roll(6, -1), pictures), pictures.flip(0)
    assert min(figures.min() for figures in kept) > 0.8
    assert moved.max() < 0.5
    assert edge_correlation(unrelated, pictures).max() < 0.3


def test_edge_correlation_of_an_edge_and_its_neighbour() -> None:
    image = torch.zeros(1, 3, 9, 9)
    image[..., 5:] = 1  # the gradient's length is 1/2 in the columns 4 and 5 of the 7 that have one
    beside = image.roll(1, -1)
    beside[..., 0] = 0
    # Two of seven columns each, one in common: (1/7 - (2/7)^2) / (2/7 - (2/7)^2).
    torch.testing.assert_close(edge_correlation(image, beside), torch.tensor([3 / 10]))


def test_self_similarity_distance_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(2, 5, 4, generator=generator) for _ in range(2))

    def cosine(a: Tensor, b: Tensor) -> float:
        return float((a * b).sum() / (a.norm() * b.norm()))

    for view in range(2):
        total = sum(
            (cosine(ours[view, i], ours[view, j]) - cosine(theirs[view, i], theirs[view, j])) ** 2
            for i in range(5)
            for j in range(5)
        )
        assert float(self_similarity_distance(ours, theirs)[view]) == pytest.approx(total / 25, rel=1e-4)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    assert self_similarity_distance(3 * ours @ rotation, ours).max() < 1e-10


def test_dino_keys_are_those_of_the_last_layer(pictures: Tensor, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                       image_size=224, patch_size=56)  # fmt: skip
    model = ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    keys = load_dino(str(tmp_path), device="cpu", download=False)

    resized = torch.nn.functional.interpolate(pictures[:1], (224, 224), mode="bilinear", antialias=True)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (resized - mean.reshape(3, 1, 1)) / deviation.reshape(3, 1, 1)
    with torch.no_grad():
        before_last = model(pixels, output_hidden_states=True).hidden_states[1]
    weights = model.state_dict()
    prefix = next(name for name in reversed(weights) if name.endswith(("key.weight", "k_proj.weight")))
    norm = next(name for name in reversed(weights) if name.endswith("layernorm_before.weight"))
    normed = torch.nn.functional.layer_norm(
        before_last, (32,), weights[norm], weights[norm.replace("weight", "bias")], config.layer_norm_eps
    )
    by_hand = normed @ weights[prefix].T + weights[prefix.replace("weight", "bias")]
    assert keys(pictures[0]).shape == (1 + 16, 32)
    torch.testing.assert_close(keys(pictures[0]), by_hand[0], atol=1e-5, rtol=1e-4)

    assert torch.all(structure_distance(keys, pictures, pictures) == 0)
    assert torch.all(structure_distance(keys, pictures.flip(0), pictures) > 0)


def test_absent_weights_are_named_with_what_to_do() -> None:
    with pytest.raises(Unavailable) as stop:
        load_dino("nobody/no-such-vit", device="cpu", download=False)
    assert "nobody/no-such-vit" in stop.value.reason
    assert "hf download nobody/no-such-vit" in stop.value.hint
