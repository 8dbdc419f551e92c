"""`edit_image` and `edit_panorama`: pictures of any size, as tensors or PIL images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from csd_nerf.editors import regions
from csd_nerf.editors.observer import Observer, Work
from csd_nerf.editors.passes import edit_work, run
from csd_nerf.editors.settings import PictureSettings
from csd_nerf.editors.tiles import LEAST_TILE, decode_tiles, encode_tiles
from csd_nerf.editors.window_canvas import Region, WindowCanvas
from csd_nerf.editors.windows import Grid
from csd_nerf.errors import InputError
from csd_nerf.priors import Prior
from csd_nerf.priors.shared import shared

AnyPicture = TypeVar("AnyPicture", Tensor, Image.Image)
Masks = Callable[[int, int], Float[Tensor, "regions height width"]]
"""Makes the masks of regions at a size: that of the latents."""


def edit_image(
    picture: AnyPicture,
    prompt: str,
    settings: PictureSettings | None = None,
    *,
    loaded: Prior | None = None,
    observer: Observer | None = None,
) -> AnyPicture:
    """Edit a picture of any size by text.

    One smaller than a window is continued by reflection, and the continuation cut off in the end; one larger
    is edited in windows that share their scores, as a panorama.

    Args:
        picture: a tensor (3, H, W), RGB in 0..1, or a PIL image of any mode.
        prompt: an instruction, or for a text-to-image prior a description of the edited picture.
        settings: method, prior, steps and so on; None for the defaults.
        loaded: the prior that the settings name, if it is loaded already.
        observer: told of the progress.

    Returns:
        The edited picture, of the same kind and size; a PIL image is RGB, or RGBA with the source's alpha.

    Raises:
        InputError: settings that contradict each other, or the prior; a tensor of another shape.

    Example:
        >>> settings = PictureSettings(prior="tiny-instruct", steps=1)
        >>> edit_image(torch.rand(3, 50, 70), "make it night", settings).shape
        torch.Size([3, 50, 70])
    """
    settings = settings or PictureSettings()
    settings.check((prompt,))
    pixels, restore = _pixels(picture)
    prior = loaded or settings.load_prior()
    edited = _edit(
        pixels,
        [prompt],
        _everywhere,
        settings,
        prior,
        size=tuple(max(side, settings.fitting_window(prior)) for side in pixels.shape[1:]),
        observer=observer or Observer(),
    )
    return restore(edited)


def edit_panorama(
    picture: AnyPicture,
    prompt: str | Sequence[str],
    settings: PictureSettings | None = None,
    *,
    wrap: bool = False,
    shares: Sequence[float] | None = None,
    masks: Sequence[AnyPicture] | None = None,
    feather: int | None = None,
    loaded: Prior | None = None,
    observer: Observer | None = None,
) -> AnyPicture:
    """Edit a wide or large picture by text, by regions if there are several prompts.

    Args:
        picture: a tensor (3, H, W), RGB in 0..1, or a PIL image of any mode; at least a window large.
        prompt: what to change, or one prompt for each region.
        settings: method, prior, steps and so on; None for the defaults.
        wrap: the right edge continues at the left one, as in an equirectangular picture of a full sphere.
        shares: of the width, that the prompts' vertical bands take from left to right, together 1. None is
            bands of equal width.
        masks: instead of bands, where each prompt counts: (H, W) in 0..1, or PIL images, white where it does.
            Pixels that several masks want are shared.
        feather: width in pixels over which regions fade into each other; None is half a window.
        loaded: the prior that the settings name, if it is loaded already.
        observer: told of the progress.

    Returns:
        The edited picture, of the same kind and size; a PIL image is RGB, or RGBA with the source's alpha.

    Raises:
        InputError: as `edit_image`; a picture smaller than a window, or for `wrap` of a width that the
            prior's autoencoder cannot halve; prompts and regions that differ in number; a mask of another
            size; regions that leave pixels uncovered.

    Example:
        >>> settings = PictureSettings(prior="tiny-instruct", steps=1)
        >>> prompts = ["make it night", "make it winter"]
        >>> edit_panorama(torch.rand(3, 96, 200), prompts, settings, shares=[0.3, 0.7]).shape
        torch.Size([3, 96, 200])
    """
    settings = settings or PictureSettings()
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    settings.check(tuple(prompts))
    pixels, restore = _pixels(picture)
    where = _masks(prompts, shares, masks, pixels)
    prior = loaded or settings.load_prior()
    _check_size(pixels, settings.fitting_window(prior), prior.vae_factor, wrap)
    edited = _edit(
        pixels,
        prompts,
        where,
        settings,
        prior,
        wrap=wrap,
        size=tuple(pixels.shape[1:]),
        feather=feather,
        observer=observer or Observer(),
    )
    return restore(edited)


def _edit(
    pixels: Float[Tensor, "3 height width"],
    prompts: list[str],
    masks: Masks,
    settings: PictureSettings,
    prior: Prior,
    *,
    size: tuple[int, ...],
    wrap: bool = False,
    feather: int | None = None,
    observer: Observer,
) -> Float[Tensor, "3 height width"]:
    """The edit behind both, of a picture that is continued to `size` and to what the autoencoder takes."""
    factor, window = prior.vae_factor, settings.fitting_window(prior)
    tile = max(window, LEAST_TILE)
    height, width = pixels.shape[1:]
    padded = reflected(pixels, *(-(-side // factor) * factor for side in size))
    rows, columns = (side // factor for side in padded.shape[1:])
    tiles = len(Grid.over(rows, columns, tile // factor, wrap=wrap).places)
    encoding = Work("encode", "Encode", tiles, "tiles")
    decoding = Work("decode", "Decode", tiles, "tiles")
    editing = edit_work(settings)
    observer.plan([encoding, editing, decoding])

    together = shared(prior)
    objective = settings.objective(together)
    # Now, not in the first step: a text encoder that cannot be loaded is bad input too.
    prior.read_ahead([*prompts, settings.source_prompt, ""])
    observer.start(encoding)
    source, condition = encode_tiles(
        together, padded, tile, wrap=wrap, done=lambda number: observer.advance(encoding, number)
    )
    observer.finish(encoding)
    del padded

    fade = window / 2 if feather is None else feather
    weights = regions.blended(masks(rows, columns), fade / factor, wrap=wrap).to(prior.device)
    canvas = WindowCanvas(
        source,
        condition,
        [Region(prompt, weight) for prompt, weight in zip(prompts, weights, strict=True)],
        window=window // factor,
        particles=settings.particles,
        wrap=wrap,
    )

    def draw(asked: Prior = prior, done: Callable[[int], None] = lambda number: None) -> Tensor:
        picture = decode_tiles(asked, canvas.latents, tile, wrap=wrap, done=done)
        return picture[:, :height, :width]

    identity = {
        "prompts": prompts,
        "window_size": window,
        "wrap": wrap,
        "picture": _digest(pixels),
        "regions": _digest(weights),
    }
    run(canvas, objective, settings, editing, identity=identity, draw=draw, observer=observer)
    observer.start(decoding)
    edited = draw(together, lambda number: observer.advance(decoding, number))
    observer.finish(decoding)
    return edited


def reflected(picture: Float[Tensor, "c h w"], height: int, width: int) -> Float[Tensor, "c height width"]:
    """A picture continued to the right and below by reflection, as often as it takes.

    Example:
        >>> reflected(torch.tensor([[[1, 2, 3]]]), 1, 8)
        tensor([[[1, 2, 3, 2, 1, 2, 3, 2]]])
    """
    rows, columns = (
        _bounced(side, wanted) for side, wanted in zip(picture.shape[1:], (height, width), strict=True)
    )
    return picture[:, rows[:, None], columns]


def _bounced(side: int, wanted: int) -> Tensor:
    period = max(2 * (side - 1), 1)
    position = torch.arange(wanted) % period
    return torch.minimum(position, period - position) if side > 1 else torch.zeros(wanted, dtype=torch.long)


def _everywhere(height: int, width: int) -> Tensor:
    return torch.ones(1, height, width)


def _masks(
    prompts: Sequence[str], shares: Sequence[float] | None, masks: Sequence[Any] | None, pixels: Tensor
) -> Masks:
    """Where each prompt counts, checked."""
    height, width = pixels.shape[1:]
    if not prompts:
        regions.check_count(prompts, 1, "regions")
    if masks is not None:
        if shares is not None:
            raise InputError(
                "regions are given twice", expected="shares or masks", got="both", hint="leave one out"
            )
        regions.check_count(prompts, len(masks), "masks")
        tensors = [_mask(mask) for mask in masks]
        regions.check_masks(tensors, height, width)
        return lambda rows, columns: torch.cat([_reduced(mask, rows, columns) for mask in tensors])
    if shares is None:
        shares = [1 / len(prompts)] * len(prompts)
    regions.check_count(prompts, len(shares), "bands")
    regions.check_shares(shares)
    return lambda rows, columns: regions.bands(shares, rows, columns)


def _mask(mask: Any) -> Float[Tensor, "h w"]:
    if isinstance(mask, Image.Image):
        values = torch.from_numpy(np.array(mask.convert("LA"))).float() / 255
        return values[..., 0] * values[..., 1]  # what is transparent counts as black
    return mask.float()


def _reduced(mask: Float[Tensor, "h w"], rows: int, columns: int) -> Float[Tensor, "1 rows columns"]:
    return functional.adaptive_avg_pool2d(mask[None], (rows, columns))


def _check_size(pixels: Tensor, window: int, factor: int, wrap: bool) -> None:
    height, width = pixels.shape[1:]
    if min(height, width) < window:
        raise InputError(
            "the picture is smaller than a window",
            expected=f"{window} pixels at least along each side",
            got=f"{width} x {height} pixels",
            hint="take smaller windows (--window-size), a larger picture, or `csd-nerf image`, which "
            "continues small pictures",
        )
    if wrap and width % factor:
        raise InputError(
            "a picture of this width cannot wrap",
            expected=f"a width divisible by {factor}, by which the prior's autoencoder reduces it",
            got=f"{width} pixels",
            hint=f"scale it to a width of {round(width / factor) * factor}",
        )


def _pixels(picture: AnyPicture) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """RGB (3, H, W) of a picture, and how an edited one becomes what it was."""
    if isinstance(picture, Image.Image):
        upright = ImageOps.exif_transpose(picture)
        alpha = upright.convert("RGBA").getchannel("A") if upright.has_transparency_data else None
        values = np.array(upright.convert("RGB"))
        return torch.from_numpy(values).permute(2, 0, 1) / 255, lambda edited: _image(edited, alpha)
    if picture.ndim != 3 or len(picture) != 3 or not picture.is_floating_point():
        raise InputError(
            "the tensor is not a picture",
            expected="(3, height, width) of floating-point numbers in 0..1",
            got=f"{tuple(picture.shape)} of {picture.dtype}",
            hint="for a batch, edit one picture after the other",
        )
    return picture.detach().float().cpu(), lambda edited: edited.to(picture)


def _image(edited: Tensor, alpha: Image.Image | None) -> Image.Image:
    image = Image.fromarray((edited * 255).round().byte().permute(1, 2, 0).numpy())
    if alpha is not None:
        image.putalpha(alpha)
    return image


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.cpu().contiguous().numpy().tobytes()).hexdigest()
