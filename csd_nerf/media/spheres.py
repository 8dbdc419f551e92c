"""What viewers know a spherical photo by: Google's photo sphere properties (GPano) in the XMP of its file."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import quoteattr

XMP_IN_PNG = "XML:com.adobe.xmp"
"""Keyword of the text that is XMP, in a PNG."""

_WIDTH = "CroppedAreaImageWidthPixels"
_NAMES = {
    "ProjectionType", "UsePanoramaViewer", "StitchingSoftware",
    "PoseHeadingDegrees", "PosePitchDegrees", "PoseRollDegrees",
    "InitialViewHeadingDegrees", "InitialViewPitchDegrees", "InitialViewRollDegrees",
    "InitialHorizontalFOVDegrees", "InitialCameraDolly",
    _WIDTH, "CroppedAreaImageHeightPixels", "FullPanoWidthPixels", "FullPanoHeightPixels",
    "CroppedAreaLeftPixels", "CroppedAreaTopPixels",
}  # fmt: skip
_PROPERTY = re.compile(r"""(?<!/)GPano:(\w+)(?:\s*=\s*["']([^"'<>]{0,200})["']|>([^<]{0,200})<)""")
_JPEG_MARK = b"http://ns.adobe.com/xap/1.0/\0"


def read_sphere(image: Any) -> dict[str, str] | None:
    """The properties of a picture that Pillow has read; None where it is no sphere.

    Args:
        image: of Pillow, loaded.
    """
    xmp = image.info.get("xmp") or image.info.get(XMP_IN_PNG) or b""
    if image.format == "TIFF":
        xmp = image.tag_v2.get(0x02BC, xmp)
    text = xmp if isinstance(xmp, str) else bytes(xmp).decode("utf8", "replace")
    found = {name: one or other for name, one, other in _PROPERTY.findall(text) if name in _NAMES}
    if "ProjectionType" not in found:
        return None
    found.setdefault(_WIDTH, str(image.width))
    return found


def packet(sphere: Mapping[str, str], width: int) -> bytes:
    """XMP that says so of a picture of another size.

    Args:
        sphere: of `read_sphere`.
        width: of the picture, in pixels; what is in pixels is scaled to it.
    """
    try:
        scale = width / float(sphere[_WIDTH])
        values = {
            name: str(round(float(value) * scale)) if name.endswith("Pixels") else value
            for name, value in sphere.items()
        }
    except (ValueError, ZeroDivisionError, OverflowError):
        values = {name: value for name, value in sphere.items() if not name.endswith("Pixels")}
    said = " ".join(f"GPano:{name}={quoteattr(value)}" for name, value in values.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" {said}/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def jpeg_segment(xmp: bytes) -> bytes:
    """The part of a JPEG that holds XMP."""
    return b"\xff\xe1" + struct.pack(">H", len(_JPEG_MARK) + len(xmp) + 2) + _JPEG_MARK + xmp
