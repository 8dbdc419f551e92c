"""The inconsistent extreme: each view edited by itself, by diffusers' own InstructPix2Pix pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from csd_nerf.comparison.budget import method_config
from csd_nerf.nerf.edit_pipeline import EditPipeline
from csd_nerf.nerf.evaluate_run import Drawn
from csd_nerf.nerf.runs import read_checkpoint
from csd_nerf.priors.folder import variant_of
from csd_nerf.priors.loading import as_dtype, automatic_dtype, check_prior
from csd_nerf.seeds import step_seed

BASELINE = "in2n-baseline"
"""Prior and guidance are those of Instruct-NeRF2NeRF, which edits views one by one, too."""
EVALUATIONS_A_STEP = 3
"""Branches of InstructPix2Pix's guidance."""


class PerViewEditor:
    """Edits pictures one by one, each from noise of its own.

    Args:
        prompt: the instruction.
        recipe: as that of the methods compared with.
        seed: with the number of a picture, decides its noise.
        steps: of the sampler that the model comes with.
        device: where it runs, in the precision of the prior's U-Net; the autoencoder too, and always the
            prior's own, for the pipeline knows no other way.
    """

    def __init__(
        self, prompt: str, *, recipe: str | None, seed: int, steps: int, device: torch.device
    ) -> None:
        from diffusers import StableDiffusionInstructPix2PixPipeline

        settings = method_config(BASELINE, recipe).pipeline
        self.prior: str = settings.prior
        self._sampling, self._prompt, self._seed, self._steps = settings.sampling, prompt, seed, steps
        folder = check_prior(settings.prior)
        self._pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(
            folder or settings.prior,
            variant=variant_of(folder) if folder else None,
            torch_dtype=as_dtype(settings.prior_precision) or automatic_dtype(device),
            use_safetensors=True,
            safety_checker=None,
            requires_safety_checker=False,
        ).to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._edited = 0

    @property
    def unet_evaluations(self) -> int:
        """Rows that went through the U-Net so far."""
        return self._edited * self._steps * EVALUATIONS_A_STEP

    @property
    def pictures(self) -> int:
        """Edited so far."""
        return self._edited

    def edit(self, pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """The pictures (0..1) after the edit, of the same size, on the CPU."""
        return torch.stack([self._edit_one(number, picture) for number, picture in enumerate(pictures)])

    def edit_drawn(self, before: Drawn) -> Drawn:
        """Views of a scene, edited; they keep the depths of the scene, for they have none of their own."""
        photographed = None if before.photographed is None else self.edit(before.photographed)
        return Drawn(replace(before.views, images=self.edit(before.views.images)), photographed)

    def _edit_one(self, number: int, picture: Tensor) -> Tensor:
        edited = self._pipeline(
            self._prompt,
            image=picture[None],
            num_inference_steps=self._steps,
            guidance_scale=self._sampling.text_guidance,
            image_guidance_scale=self._sampling.image_guidance,
            generator=torch.Generator().manual_seed(step_seed(self._seed, number)),
            output_type="pt",
        ).images
        self._edited += 1
        # diffusers rounds the size to what the autoencoder takes.
        return F.interpolate(edited.float().cpu(), picture.shape[-2:], mode="bilinear", antialias=True)[
            0
        ].clamp(0, 1)


def open_scene(scene: Path, *, data: Path | None, prompt: str, recipe: str | None) -> EditPipeline:
    """A trained scene, in a pipeline that draws it; no diffusion model is loaded.

    Args:
        scene: its run folder, or a checkpoint.
        data: its dataset; None for that of the run.
        prompt: of the edit that the pipeline stands for.
        recipe: as for the methods compared with.

    Raises:
        InputError: as for an edit that begins: no such scene, no dataset, no prior.
    """
    config = method_config(BASELINE, recipe)
    config.load_dir, config.data, config.pipeline.prompt = scene, data, prompt
    config.machine.device_type = "cuda" if torch.cuda.is_available() else "cpu"
    config.check()
    pipeline: EditPipeline = config.pipeline.setup(
        device=torch.device(config.machine.device_type), test_mode="test"
    )
    pipeline.model.load_scene(
        read_checkpoint(config.load_checkpoint)["pipeline"], str(config.load_checkpoint)
    )
    pipeline.eval()
    return pipeline
