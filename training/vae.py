"""Stage 1: the autoencoder. 4 latent channels at a quarter of the resolution, 0.7 M parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor, nn

from csd_nerf.evaluation.pixels import psnr
from csd_nerf.scenes.operators import OPERATORS, TINTS, identity
from training.fitting import fit
from training.photos import Photo, resized
from training.progress import Job, save_whole

CROP = 64
BATCH = 16
PEAK_LEARNING_RATE = 1.2e-3
GRADIENT_WEIGHT, PERCEPTUAL_WEIGHT, KL_WEIGHT = 0.5, 0.1, 4e-4
SHORT_SIDES = (96, 112, 128, 144, 160, 224)
RAW_DEVIATION = 2.0
"""Deviation of the unscaled latents. Not 1, so that code which forgets the scaling factor is wrong by 2."""
CROPS_TO_NORMALISE_BY = 512
"""Whose latents have it, when all is trained."""

Edit = Callable[[Tensor], Tensor]

EDITS: tuple[Edit, ...] = (*(operator.apply for operator in OPERATORS.values()), *TINTS.values())
_SHARE_UNEDITED, _SHARE_PAINTED = 0.3, 0.15


def new_vae(latent_channels: int = 4) -> AutoencoderKL:
    """The untrained autoencoder."""
    return AutoencoderKL(
        block_out_channels=(32, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=96,
        scaling_factor=1 / RAW_DEVIATION,
        force_upcast=False,
    )


class Perceptual(nn.Module):
    """Distance between normalised AlexNet activations, after LPIPS (Zhang et al. 2018, equation 1, w = 1)."""

    _MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, weights: Path) -> None:
        super().__init__()
        state = load_file(weights)
        names = sorted({name.rsplit(".", 1)[0] for name in state}, key=lambda name: int(name.split(".")[-1]))
        self.kernels = [(state[f"{name}.weight"], state[f"{name}.bias"]) for name in names]

    def features(self, images: Tensor) -> list[Tensor]:
        mean, deviation = (images.new_tensor(v).reshape(3, 1, 1) for v in (self._MEAN, self._DEVIATION))
        hidden = (images - mean) / deviation
        layers = []
        for index, (weight, bias) in enumerate(self.kernels):
            if index in (1, 2):
                hidden = F.max_pool2d(hidden, 3, 2)
            stride, padding = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))[index]
            hidden = F.relu(
                F.conv2d(hidden, weight.to(images.device), bias.to(images.device), stride, padding)
            )
            layers.append(F.normalize(hidden.float(), dim=1, eps=1e-6))
        return layers

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Scalar distance of two batches (N, 3, H, W) in 0..1."""
        with torch.no_grad():
            wanted = self.features(targets)
        distances = [((a - b) ** 2).sum(1).mean() for a, b in zip(self.features(images), wanted, strict=True)]
        return torch.stack(distances).mean()


class Crops:
    """Random crops of photos, edited or not: what the autoencoder must be able to show."""

    def __init__(self, photos: list[Photo], edits: tuple[Edit, ...] = EDITS) -> None:
        self.edits = edits
        self.plain = [_uint8(resized(photo.rgb, side)) for photo in photos for side in SHORT_SIDES[::2]]
        self.painted = [
            _uint8(resized(photo.painted, side))
            for photo in photos
            if photo.painted is not None
            for side in SHORT_SIDES[1::2]
        ]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, 3, CROP, CROP) float in 0..1."""
        return torch.stack([edit(crop) for crop, edit in self.pairs(count, generator)])

    def pairs(self, count: int, generator: torch.Generator) -> list[tuple[Tensor, Edit]]:
        """`count` crops (3, CROP, CROP) in 0..1, and what is to be done to each."""
        return [self._one(generator) for _ in range(count)]

    def _one(self, generator: torch.Generator) -> tuple[Tensor, Edit]:
        kind = torch.rand((), generator=generator).item()
        painted = kind < _SHARE_PAINTED and bool(self.painted)
        pool = self.painted if painted else self.plain
        picture = pool[_index(len(pool), generator)]
        top = _index(picture.shape[1] - CROP + 1, generator)
        left = _index(picture.shape[2] - CROP + 1, generator)
        crop = picture[:, top : top + CROP, left : left + CROP].float() / 255
        if _index(2, generator):
            crop = crop.flip(-1)
        if painted or kind > 1 - _SHARE_UNEDITED:
            return crop, identity
        return crop, self.edits[_index(len(self.edits), generator)]


Distance = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(decoded pictures and wanted ones, (n, 3, h, w), and how far apart their features are) to a loss."""


def train_vae(job: Job, photos: list[Photo], perceptual_weights: Path) -> None:
    """Train, then write `work/vae.pt`; see `fit_vae`."""
    torch.manual_seed(job.seed)

    def distance(decoded: Tensor, images: Tensor, perceived: Tensor) -> Tensor:
        pixels = F.l1_loss(decoded, images) * 2
        edges = F.l1_loss(decoded.diff(dim=-1), images.diff(dim=-1)) + F.l1_loss(
            decoded.diff(dim=-2), images.diff(dim=-2)
        )
        return pixels + GRADIENT_WEIGHT * edges + PERCEPTUAL_WEIGHT * perceived

    fit_vae(
        "vae",
        job,
        new_vae(),
        Crops(photos),
        distance,
        perceptual_weights,
        peak_learning_rate=PEAK_LEARNING_RATE,
    )


def fit_vae(
    name: str,
    job: Job,
    vae: AutoencoderKL,
    crops: Crops,
    distance: Distance,
    perceptual_weights: Path,
    *,
    peak_learning_rate: float,
) -> None:
    """Train both halves of `vae`, then write `work/NAME.pt`; goes on from `work/NAME-checkpoint.pt`."""
    worker = job.worker
    vae.to(worker.device)
    optimiser = torch.optim.AdamW(
        vae.parameters(), lr=peak_learning_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    perceptual = Perceptual(perceptual_weights)

    def loss_of(fraction: float, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        images = crops.draw(BATCH // worker.count, generator).to(worker.device)
        with torch.autocast(worker.device.type, torch.bfloat16):
            posterior = vae.encode(images * 2 - 1).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(worker.device)
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample.float() / 2 + 0.5
            perceived = perceptual(decoded, images)
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        return distance(decoded, images, perceived) + KL_WEIGHT * divergence, {
            "perceived": perceived,
            "psnr": psnr(decoded.detach().clamp(0, 1), images).mean(),
        }

    progress = fit(name, job, {"vae": vae}, optimiser, loss_of)
    if worker.leads:
        images = crops.draw(CROPS_TO_NORMALISE_BY, worker.generator(job.seed, -1))
        normalise_latents(vae, images.to(worker.device))
        save_whole({"vae": vae.state_dict(), "progress": progress.state_dict()}, job.work / f"{name}.pt")
    worker.wait()


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, images: Tensor) -> None:
    """Fold each channel's mean and deviation into the quant convolutions: mean 0, `RAW_DEVIATION`."""
    means = torch.cat([vae.encode(part * 2 - 1).latent_dist.mean for part in images.split(32)])
    centre = means.mean((0, 2, 3))  # (c,)
    gain = RAW_DEVIATION / means.std((0, 2, 3))
    channels = centre.numel()
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += post.weight[:, :, 0, 0] @ centre
    post.weight /= gain.reshape(1, -1, 1, 1)
    quant.weight[:channels] *= gain.reshape(-1, 1, 1, 1)
    quant.bias[:channels] = (quant.bias[:channels] - centre) * gain
    quant.bias[channels:] += 2 * gain.log()


def load_vae(work: Path, device: torch.device, name: str = "vae", latent_channels: int = 4) -> AutoencoderKL:
    """The autoencoder that `fit_vae` left, frozen."""
    vae = new_vae(latent_channels)
    vae.load_state_dict(torch.load(work / f"{name}.pt", map_location="cpu", weights_only=True)["vae"])
    return vae.to(device).eval().requires_grad_(False)


def _uint8(picture: Tensor) -> Tensor:
    return (picture * 255).round().to(torch.uint8)


def _index(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator).item())
