"""Which prompts a bundled prior was taught."""

from __future__ import annotations

from csd_nerf.bundled import BUNDLED_CLIP_EDITOR, BUNDLED_EDITORS
from csd_nerf.scenes.operators import KNOWN_INSTRUCTIONS


def words_unknown_to(prior: str, *prompts: str) -> str | None:
    """What to say of prompts that a bundled prior may not know; None where there are none.

    Args:
        prior: as in the settings.
        prompts: asked of it.
    """
    unknown = [prompt for prompt in prompts if prompt not in KNOWN_INSTRUCTIONS]
    if prior not in (*BUNDLED_EDITORS, BUNDLED_CLIP_EDITOR) or not unknown:
        return None
    known = "\n".join(f"  {instruction}" for instruction in KNOWN_INSTRUCTIONS)
    asked = ", ".join(map(repr, unknown))
    return f"The bundled prior may not know {asked}. It was taught these, and other words for them:\n{known}"
