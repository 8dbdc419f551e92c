"""The procedural scenes as datasets that nerfstudio's own parser loads, with the ground truth beside it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from csd_nerf.errors import InputError
from csd_nerf.scenes.casting import Scene
from csd_nerf.scenes.interiors import CORRIDOR_SCENE, ROOM_SCENE
from csd_nerf.scenes.still_life import STILL_LIFE

SCENES: dict[str, Scene] = {"still-life": STILL_LIFE, "room": ROOM_SCENE, "corridor": CORRIDOR_SCENE}
"""By name: things on a table from all around, a room from its middle, a corridor along its length."""

DEPTH_UNIT = 1e-3
"""Metres per step of a depth picture: nerfstudio's default `depth_unit_scale_factor`."""


def write_dataset(
    folder: Path,
    views: int = 60,
    size: int = 128,
    edit: str | None = None,
    seed: int = 0,
    on_view: Callable[[int], None] | None = None,
    *,
    scene: Literal["still-life", "room", "corridor"] = "still-life",
) -> Path:
    """Render a procedural scene and write it in nerfstudio's format.

    The folder gets `transforms.json`, `images/` (8-bit RGB), `depths/` (16-bit, millimetres along the
    ray) and `objects/` (8-bit, index into `object_names` of transforms.json; ground truth, not training
    masks). It appears under its name only when it is whole.

    Args:
        folder: to be made; must not exist yet.
        views: number of pictures.
        size: their side, in pixels.
        edit: a known edit to render the scene under, see `Scene.render`.
        seed: of the cameras.
        on_view: called after every picture with the number of pictures so far.
        scene: which of `SCENES`.

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
    shown = SCENES[scene]
    shown.find_edit(edit)
    cameras = shown.cameras(views, size=size, seed=seed)
    partial = folder.with_name(f".{folder.name}-unfinished")
    if partial.exists():
        shutil.rmtree(partial)
    for kind in ("images", "depths", "objects"):
        (partial / kind).mkdir(parents=True)
    frames = []
    for number, camera in enumerate(cameras):
        picture = shown.render(camera, edit=edit)
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
        "object_names": list(shown.object_names),
        "frames": frames,
    }
    (partial / "transforms.json").write_text(json.dumps(meta, indent=1), encoding="utf8")
    os.replace(partial, folder)
    return folder
