"""The autoencoder in tiles: like the whole, without seams, in bounded memory."""

from __future__ import annotations

import pytest
import torch
from memory import peak_bytes

from csd_nerf.editors.tiles import decode_tiles, encode_tiles
from csd_nerf.priors import Prior


def picture(height: int, width: int) -> torch.Tensor:
    """Soft waves, whose left and right edges meet."""
    y, x = torch.linspace(0, 1, height)[:, None], torch.arange(width) / width
    waves = [torch.sin(2 * torch.pi * (k * x + k * y)) * 0.3 + 0.5 for k in (1, 2, 3)]
    return torch.stack([wave.expand(height, width) for wave in waves])


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * (a - b).square().mean().log10().item()


def test_a_picture_that_fits_in_a_tile_is_encoded_and_decoded_whole(tiny_prior: Prior) -> None:
    image = picture(96, 64)
    latents, condition = encode_tiles(tiny_prior, image, 128)
    torch.testing.assert_close(latents, tiny_prior.encode(image[None]))
    torch.testing.assert_close(condition, tiny_prior.condition(image[None]))
    torch.testing.assert_close(decode_tiles(tiny_prior, latents, 128), tiny_prior.decode(latents)[0])


def test_tiles_are_as_good_as_the_whole(tiny_prior: Prior) -> None:
    image = picture(128, 192)
    whole = tiny_prior.decode(tiny_prior.encode(image[None]))[0]
    tiled = decode_tiles(tiny_prior, encode_tiles(tiny_prior, image, 96)[0], 96)
    assert (tiled - whole).abs().mean() < 0.02
    assert psnr(tiled, image) > psnr(whole, image) - 0.5


def test_tiles_leave_no_seams(tiny_prior: Prior) -> None:
    """Where tiles begin and end, neighbouring columns differ no more than elsewhere."""
    image = picture(96, 384)
    tiled = decode_tiles(tiny_prior, encode_tiles(tiny_prior, image, 96)[0], 96)
    steps = (tiled[..., 1:] - tiled[..., :-1]).abs().mean((0, 1))
    # Every fourth pair of columns lies between two latents, at tiles' borders and elsewhere alike.
    edges = torch.tensor([start for start in range(95, 380, 4)])
    assert steps[edges].max() < 2 * steps[edges].median() + 0.01


def test_a_wrapping_picture_is_continuous_across_the_seam(tiny_prior: Prior) -> None:
    image = picture(96, 192)
    tiled = decode_tiles(tiny_prior, encode_tiles(tiny_prior, image, 96, wrap=True)[0], 96, wrap=True)
    steps = (tiled.roll(-1, 2) - tiled).abs().mean((0, 1))  # the last one crosses the seam
    assert steps[-1] <= steps[3:-1:4].max()


def test_where_the_seam_is_does_not_matter(tiny_prior: Prior) -> None:
    """A sphere turned by a whole tile spacing is encoded as before."""
    image = picture(96, 192)
    latents, _ = encode_tiles(tiny_prior, image, 96, wrap=True)
    turned, _ = encode_tiles(tiny_prior, image.roll(64, 2), 96, wrap=True)
    torch.testing.assert_close(turned, latents.roll(16, 3), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("work", ["encode", "decode"])
def test_memory_is_that_of_a_tile(tiny_prior: Prior, work: str) -> None:
    def peak(width: int) -> int:
        """Beyond picture and latents."""
        image = picture(96, width)
        latents = torch.randn(1, tiny_prior.latent_channels, 24, width // 4)
        if work == "encode":
            used = peak_bytes(lambda: encode_tiles(tiny_prior, image, 96))
            return used - 2 * 4 * latents.numel()
        return peak_bytes(lambda: decode_tiles(tiny_prior, latents, 96)) - 4 * image.numel()

    small, large = peak(192), peak(960)
    assert large < 1.1 * small
