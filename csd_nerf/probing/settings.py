"""What decides a probe. A field's docstring is its help on the command line."""

from dataclasses import dataclass
from typing import Optional

from csd_nerf.editors.settings import EditSettings
from csd_nerf.errors import check, check_at_least


@dataclass
class ProbeSettings(EditSettings):
    """How a set of pictures is edited to see what an instruction does to them."""

    particles: int = 16
    """How many pictures, spread over the folder. All of them share their scores; the more, the surer."""
    size: Optional[int] = None  # noqa: UP045
    """Side in pixels of the pictures, of which the middle square is taken. Default the size that the prior
    was trained at: 512 of Stable Diffusion's kin, 96 of tiny-instruct."""
    against: str = ""
    """Another instruction, which should do the same or less: what only the first one does is then probed,
    with the same noise. Without it: the pictures as they are."""

    def check(self, prompts: tuple[str, ...]) -> None:
        from csd_nerf.probing.drift import LEAST_PICTURES

        super().check(prompts)
        check_at_least("size", self.size, 1)
        check_at_least("particles", self.particles, LEAST_PICTURES, "of fewer pictures nothing can be said")
        check(
            self.against not in prompts,
            "--against",
            expected="another instruction than the prompt",
            got=self.against,
        )
