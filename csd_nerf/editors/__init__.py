"""Editing pictures, panoramas and clips by text: the priors and objectives of scenes, on 2-D canvases.

Windows of a picture or frames of a clip are the particles of Collaborative Score Distillation. nerfstudio is
not needed, and what is heavy is imported on first use.

Example:
    >>> from csd_nerf.editors import PictureSettings, edit_image
    >>> night = edit_image(photo, "make it night", PictureSettings(prior="tiny-instruct"))  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from csd_nerf.editors.settings import EditSettings, PictureSettings, VideoSettings

if TYPE_CHECKING:
    from csd_nerf.editors.edit_pictures import edit_image, edit_panorama
    from csd_nerf.editors.edit_videos import edit_video

__all__ = ["EditSettings", "PictureSettings", "VideoSettings", "edit_image", "edit_panorama", "edit_video"]


def __getattr__(name: str) -> Any:
    # `csd-nerf --help` imports this package for its options, and must not wait for torch.
    if name in __all__:
        from csd_nerf.editors import edit_pictures, edit_videos

        return getattr(edit_videos if name == "edit_video" else edit_pictures, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
