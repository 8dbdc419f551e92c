"""A dataset's masks as the region of an edit: white is where to edit."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from nerfstudio.data.datasets.base_dataset import InputDataset
from PIL import Image
from torch import Tensor

from csd_nerf.cameras import fit_photo
from csd_nerf.errors import InputError
from csd_nerf.media.picture_files import read_picture

WHITE = 128
"""From this grey value (of 255) on, a pixel of a mask counts as white when empty masks are looked for."""


def read_mask(dataset: InputDataset, index: int, height: int, width: int) -> Float[Tensor, "1 height width"]:
    """A view's mask, cropped and resampled as its photo is: the share of each pixel that is white, 0..1."""
    return fit_photo(read_picture(mask_files(dataset)[index]).whiteness[..., None], height, width)


def mask_files(dataset: InputDataset) -> list[Path]:
    """The masks of a dataset, one for each view.

    Raises:
        InputError: when it has none.
    """
    files = dataset._dataparser_outputs.mask_filenames
    if not files:
        raise InputError(
            "the dataset has no masks",
            expected="a `mask_path` in every frame of transforms.json, white where to edit",
            got="frames without one",
            hint="add masks, pass another --data, or give a box: --pipeline.region.source box",
        )
    return list(files)


def check_masks(dataset: InputDataset, *, allow_empty: bool) -> list[bool]:
    """See that every view has a mask of its photo's size with something white in it.

    Args:
        dataset: the training split.
        allow_empty: accept views without white, as long as one view has some.

    Returns:
        Whether each mask has white.

    Raises:
        InputError: for masks that are absent, cannot be read, are of another size than their photos, or have
            no white.
    """
    masks, photos = mask_files(dataset), dataset.image_filenames
    brightest = {}
    for mask, photo in zip(masks, photos, strict=True):
        size, brightest[mask] = _size_and_brightest(mask)
        with Image.open(photo) as picture:
            wanted = picture.size
        if size != wanted:
            raise InputError(
                f"the mask {mask} has another size than its photo",
                expected=f"{wanted[0]} x {wanted[1]} pixels, as {photo.name}",
                got=f"{size[0]} x {size[1]} pixels",
                hint="make the masks from the photos as they are in the dataset",
            )
    empty = [mask for mask in masks if brightest[mask] < WHITE]
    if len(empty) == len(masks) or (empty and not allow_empty):
        names = ", ".join(mask.name for mask in empty[:5]) + (" ..." if len(empty) > 5 else "")
        hint = "correct the masks: 255 is where to edit, 0 where not"
        if len(empty) < len(masks):
            hint += "; if the region is out of sight there, --pipeline.region.allow-empty-masks True"
        raise InputError(
            f"{len(empty)} of {len(masks)} masks have no white",
            expected=f"white (255) where to edit in {'every mask' if not allow_empty else 'some masks'}",
            got=f"nothing brighter than {max(brightest[mask] for mask in empty)} in {names}",
            hint=hint,
        )
    return [brightest[mask] >= WHITE for mask in masks]


def _size_and_brightest(mask: Path) -> tuple[tuple[int, int], int]:
    try:
        white = read_picture(mask).whiteness
    except InputError as error:
        raise InputError(
            f"the mask {mask} cannot be read",
            expected="a grey picture, white where to edit",
            got=error.got,
            hint="make it again, or remove `mask_path` from transforms.json and give the region as a box",
        ) from error
    height, width = white.shape
    return (width, height), round(float(white.max()) * 255)
