"""The settings of edits by score distillation, whatever takes the gradient in."""

from dataclasses import dataclass, field

from csd_nerf.distillation.objective import ObjectiveConfig
from csd_nerf.distillation.residuals import check_fit
from csd_nerf.nerf.base_pipeline import BaseEditPipelineConfig


@dataclass
class DistilledEditConfig(BaseEditPipelineConfig):
    """What to change, and how noise predictions become a gradient."""

    source_prompt: str = ""
    """What the scene shows now, for a text-to-image prior; the residuals `dds` and `pds` need it."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """How noise predictions become a gradient."""

    @property
    def guidance(self) -> ObjectiveConfig:
        return self.objective

    @property
    def guidance_option(self) -> str:
        return "--pipeline.objective"

    @property
    def texts(self) -> list[str]:
        return [self.prompt, self.source_prompt, ""]

    def check(self) -> None:
        super().check()
        self.objective.check(particles=self.views_at_once, source_prompt=self.source_prompt)

    def check_prior(self, *, image_conditioned: bool) -> None:
        check_fit(self.objective.residual, image_conditioned=image_conditioned)
