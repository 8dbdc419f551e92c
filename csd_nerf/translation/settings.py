"""What decides a translator. A field's docstring is its help on the command line."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from csd_nerf.editors.settings import EditSettings
from csd_nerf.errors import check, check_at_least, option

if TYPE_CHECKING:
    from csd_nerf.distillation import DescentConfig
    from csd_nerf.distillation.presets import LatentEditConfig
    from csd_nerf.priors import Prior

DECAY = 0.7
"""Of the learning rate from stair to stair. In the end a training follows gradients that are little but noise
of another draw in each step, unless the rate goes down to little."""


@dataclass
class TranslatorSettings(EditSettings):
    """How a translator is trained. Values left out are those of the method, or what suits the prior."""

    steps: int = 1000
    """Steps of the training; each is one of the prompts, on pictures drawn at random."""
    learning_rate: float = 2e-3
    """Of Adam in the first step; it falls in ten stairs by three tenths each."""
    particles: int = 8
    """Crops of different pictures in a step."""
    size: Optional[int] = None  # noqa: UP045
    """Side in pixels of the square crops that it learns from. Default the size that the prior was trained at:
    512 of Stable Diffusion's kin, 96 of tiny-instruct."""
    warm_up: float = 0.3
    """Share of the steps in which the text guidance rises from 1 to what it is then to be."""
    identity_weight: float = 0.0
    """How strongly a picture's latents are pulled back to those before."""

    def check(self, prompts: tuple[str, ...]) -> None:
        super().check(prompts)
        check(
            len(prompts) == len(set(prompts)) > 0,
            "--prompt",
            expected="one prompt or more, each once",
            got=prompts or "none",
            hint='give them as --prompt "make it night" --prompt "make it winter"',
        )
        check_at_least("size", self.size, 1)
        check(0 <= self.warm_up <= 1, option("warm_up"), expected="a share, 0 to 1", got=self.warm_up)
        check_at_least("identity_weight", self.identity_weight, 0)

    def crop_size(self, prior: "Prior") -> int:
        """Side of the crops in pixels.

        Raises:
            InputError: it does not suit the prior.
        """
        size, factor = self.size or prior.native_size, prior.vae_factor
        nearest = max(round(size / factor), 1) * factor
        check(
            size % factor == 0,
            option("size"),
            expected=f"a multiple of {factor}, such as {nearest}",
            got=size,
        )
        return size

    def guidance(self, step: int) -> float:
        """Text guidance of a step (0-based): it rises from 1 in a straight line.

        Example:
            >>> settings = TranslatorSettings(steps=10, warm_up=0.5, text_guidance=3)
            >>> [settings.guidance(step) for step in (0, 2, 5, 9)]
            [1.0, 1.8, 3.0, 3.0]
        """
        whole = self.objective_config().text_guidance
        rising = self.warm_up * self.steps
        return whole if step >= rising else 1 + (whole - 1) * step / rising

    def descent(self) -> "DescentConfig":
        descent = super().descent()
        descent.decay = DECAY
        return descent

    def step_length(self) -> float:
        """By which latents are moved for a decoded step: the first of an edit of single pictures."""
        return self._usual().descent.learning_rate

    def _usual(self) -> "LatentEditConfig":
        from csd_nerf.distillation.presets import latent_edit

        return latent_edit(self.method, self.prior, translator=True)
