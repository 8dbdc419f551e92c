"""The formats of captures besides nerfstudio's own: what a folder is, and the words that let it be read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs

COLMAP_MODELS = ("colmap/sparse/0", "sparse/0", "sparse", "0")
"""Where a model may be beside its photos: as `ns-process-data` and as COLMAP itself write it, and moved."""

_LENS = ("fl_x", "fl_y", "cx", "cy", "h", "w")
_NGP_ANGLES = ("fl_x", "x_fov", "camera_angle_x")
"""Each of which is enough of a lens for instant-ngp."""
_LONGEST_READ = 1600
"""Pixels of a photo's long side, from which nerfstudio looks for a reduced copy (its MAX_AUTO_RESOLUTION)."""


@dataclass(frozen=True)
class Format:
    """What a folder of photos and cameras is.

    Attributes:
        name: of it, as in "this is NAME".
        parser: nerfstudio's dataparser for it, as `ns-train` calls it; None where there is none.
        settings: of the dataparser, where they differ from its own.
        conversion: the command of `ns-process-data` to run where there is no dataparser.
    """

    name: str
    parser: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    conversion: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """That end an `ns-train` command on such a folder."""
        if self.parser is None:
            return ()
        options = ((f"--{name.replace('_', '-')}", str(value)) for name, value in self.settings.items())
        return (self.parser, *(word for option in options for word in option))

    @property
    def hint(self) -> str:
        """What to do with such a folder, where nerfstudio's own format is expected."""
        if self.parser is None:
            return f"this is {self.name}: run `{self.conversion}` and pass `--data SCENE`"
        return f"this is {self.name}: end the command with `{' '.join(self.words)}`"

    def dataparser(self, data: Path) -> DataParserConfig:
        """The configuration that the words stand for; only of a format with a dataparser."""
        import nerfstudio.engine.trainer  # noqa: F401 - its data managers cannot be imported before it
        from nerfstudio.configs.dataparser_configs import dataparsers

        assert self.parser is not None, f"nothing reads {self.name}"
        return replace(dataparsers[self.parser], data=data, **self.settings)


RECORD3D = Format(
    "an export of Record3D", conversion="ns-process-data record3d --data EXPORT --output-dir SCENE"
)
_LLFF = Format(
    "LLFF's format, without a COLMAP model beside it",
    conversion="ns-process-data images --data IMAGES --output-dir SCENE",
)
_BLENDER = Format("a set of Blender's pictures", "blender-data")
_INSTANT_NGP = Format("a capture in instant-ngp's format", "instant-ngp-data")


def format_of(data: Path) -> Format | None:
    """The format of a capture; None of nerfstudio's own, and of what is not recognised.

    Args:
        data: its folder, or its transforms.json.
    """
    file = data if data.suffix == ".json" else data / "transforms.json"
    if file.is_file():
        return _INSTANT_NGP if _is_instant_ngp(file) else None
    for model in COLMAP_MODELS:
        if any((data / model / f"cameras.{ending}").exists() for ending in ("bin", "txt")):
            return Format("a COLMAP model", "colmap", {"colmap_path": model, **_photos_of_colmap(data)})
    if (data / "transforms_train.json").exists():
        return _BLENDER
    if (data / "poses_bounds.npy").exists():
        return _LLFF
    if (data / "EXR_RGBD").exists() or (data / "metadata.json").exists():
        return RECORD3D
    return None


def read_split(dataparser: DataParser, split: str) -> DataparserOutputs:
    """Photos and cameras of a split, as its dataparser reads them.

    nerfstudio's for instant-ngp takes the only photo of a split for a number, and a part of its pose for a
    camera: such a photo is taken out of all of them.
    """
    outputs = dataparser.get_dataparser_outputs(split)
    if not outputs.cameras.shape:
        config: Any = dataparser.config
        whole = replace(config, eval_mode="all").setup().get_dataparser_outputs(split)
        index = whole.image_filenames.index(outputs.image_filenames[0])
        outputs.cameras = whole.cameras[index : index + 1]
    return outputs


def _photos_of_colmap(data: Path) -> dict[str, Any]:
    """Large photos as they are, where there are no reduced copies: nerfstudio would ask to make some."""
    photos = sorted(path for path in (data / "images").rglob("*") if path.is_file())
    try:
        longest = max(Image.open(photos[0]).size) if photos else 0
    except (OSError, SyntaxError, ValueError):  # for the check of the photos to name
        return {}
    factor = 1
    while longest / factor > _LONGEST_READ:
        factor *= 2
    return {} if factor == 1 or (data / f"images_{factor}").exists() else {"downscale_factor": 1}


def _is_instant_ngp(file: Path) -> bool:
    """Whether it has the lens that instant-ngp needs, and not all that nerfstudio needs."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        frames = content["frames"]
        complete = all(name in content or all(name in frame for frame in frames) for name in _LENS)
        return not complete and any(name in content for name in _NGP_ANGLES)
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return False
