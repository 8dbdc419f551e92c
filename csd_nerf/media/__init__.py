"""Pictures and clips: read with what belongs to them, written whole or not at all."""

from csd_nerf.media.files import check_output, whole_file
from csd_nerf.media.pictures import (
    PICTURE_SUFFIXES,
    Picture,
    check_picture_output,
    read_picture,
    to_bytes,
    write_picture,
)

__all__ = [
    "PICTURE_SUFFIXES",
    "Picture",
    "check_output",
    "check_picture_output",
    "read_picture",
    "to_bytes",
    "whole_file",
    "write_picture",
]
