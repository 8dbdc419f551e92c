"""Pictures and clips: read with what belongs to them, written whole or not at all."""

from csd_nerf.media.clips import Clip, read_clip
from csd_nerf.media.picture_files import (
    PICTURE_SUFFIXES,
    Picture,
    check_picture_output,
    read_picture,
    to_bytes,
    write_picture,
)
from csd_nerf.media.writing_clips import CLIP_SUFFIXES, check_clip_output, write_clip

__all__ = [
    "CLIP_SUFFIXES",
    "Clip",
    "check_clip_output",
    "read_clip",
    "write_clip",
    "PICTURE_SUFFIXES",
    "Picture",
    "check_picture_output",
    "read_picture",
    "to_bytes",
    "write_picture",
]
