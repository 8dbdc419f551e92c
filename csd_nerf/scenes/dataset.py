"""The procedural scene as a dataset that nerfstudio's own parser loads, with its ground truth beside it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from csd_nerf.errors import InputError
from csd_nerf.scenes.still_life import OBJECT_NAMES, find_edit, orbit_cameras, render

DEPTH_UNIT = 1e-3
"""Metres per step of a depth picture: nerfstudio's default `depth_unit_scale_factor`."""


def write_dataset(
    folder: Path,
    views: int = 60,
    size: int = 128,
    edit: str | None = None,
    seed: int = 0,
    on_view: Callable[[int], None] | None = None,
) -> Path:
    """Render the still life and write it in nerfstudio's format.

    The folder gets `transforms.json`, `images/` (8-bit RGB), `depths/` (16-bit, millimetres along the
    ray) and `objects/` (8-bit, index into `object_names` of transforms.json; ground truth, not training
    masks). It appears under its name only when it is whole.

    Args:
        folder: to be made; must not exist yet.
        views: number of pictures.
        size: their side, in pixels.
        edit: a known edit to render the scene under, see `still_life.render`.
        seed: of the cameras.
        on_view: called after every picture with the number of pictures so far.

    Returns:
        `folder`.

    Raises:
        InputError: for an existing folder, an unknown edit or no views.

    Example:
        >>> import tempfile
        >>> data = write_dataset(Path(tempfile.mkdtemp()) / "scene", views=2, size=16)
        >>> sorted(path.name for path in data.iterdir())
        ['depths', 'images', 'objects', 'transforms.json']
    """
    if folder.exists():
        raise InputError(
            f"{folder} is there already",
            expected="a folder that does not exist yet",
            got="an existing one",
            hint="choose another name or remove it",
        )
    find_edit(edit)
    cameras = orbit_cameras(views, size=size, seed=seed)
    partial = folder.with_name(f".{folder.name}-unfinished")
    if partial.exists():
        shutil.rmtree(partial)
    for kind in ("images", "depths", "objects"):
        (partial / kind).mkdir(parents=True)
    frames = []
    for number, camera in enumerate(cameras):
        picture = render(camera, edit=edit)
        name = f"{number:04d}.png"
        Image.fromarray((picture.rgb * 255).round().astype(np.uint8)).save(partial / "images" / name)
        depth = (picture.depth / DEPTH_UNIT).round().astype(np.uint16)
        Image.fromarray(depth).save(partial / "depths" / name)
        Image.fromarray(picture.objects).save(partial / "objects" / name)
        frames.append(
            {
                "file_path": f"images/{name}",
                "depth_file_path": f"depths/{name}",
                "objects_file_path": f"objects/{name}",
                "transform_matrix": [*camera.camera_to_world.tolist(), [0.0, 0.0, 0.0, 1.0]],
            }
        )
        if on_view is not None:
            on_view(number + 1)
    meta = {
        "camera_model": "OPENCV",
        "w": size,
        "h": size,
        "fl_x": cameras[0].focal,
        "fl_y": cameras[0].focal,
        "cx": size / 2,
        "cy": size / 2,
        "object_names": list(OBJECT_NAMES),
        "frames": frames,
    }
    (partial / "transforms.json").write_text(json.dumps(meta, indent=1), encoding="utf8")
    os.replace(partial, folder)
    return folder
