"""The pipeline of a scene: what nerfstudio's own commands open, with a message for what cannot be used."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Type  # noqa: UP035 - nerfstudio's own `_target` annotation, which tyro resolves

from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig

from csd_nerf.errors import check
from csd_nerf.nerf.captures import check_dataset

_WHERE_TO_PUT_IT = "put the dataset back there, or write where it is now as `data` into the run's config.yml"


@dataclass
class ScenePipelineConfig(VanillaPipelineConfig):
    """nerfstudio's."""

    _target: Type = field(default_factory=lambda: ScenePipeline)  # noqa: UP006


class ScenePipeline(VanillaPipeline):
    """nerfstudio's, which `ns-eval`, `ns-render` and `ns-export` build by themselves to look at a run.

    A training has checked its input before it builds one; who looks at a run does not.

    Raises:
        InputError: see `check_dataset`, of a run that is looked at.
    """

    def __init__(
        self,
        config: VanillaPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        **options: Any,
    ) -> None:
        manager: Any = config.datamanager
        if test_mode != "val" and hasattr(manager, "dataparser"):
            check_dataset(manager.data or manager.dataparser.data, manager.dataparser, hint=_WHERE_TO_PUT_IT)
        super().__init__(config, device, test_mode, **options)

    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, Any]:
        """nerfstudio's metrics of the evaluation photos.

        Raises:
            InputError: when there are none.
        """
        check(
            bool(self.datamanager.eval_dataset),
            "there are no evaluation photos to measure this scene on",
            expected="photos that the training did not see",
            got="a dataset all of whose photos it was trained on",
            hint="train it with a --train-split-fraction below 1; edits are measured without such photos by "
            "`csd-nerf evaluate`",
        )
        return super().get_average_eval_image_metrics(step, output_path, get_std)
