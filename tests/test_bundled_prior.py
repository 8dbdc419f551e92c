"""`tiny-instruct` as anybody would use it: diffusers' own pipeline, on a scene it can be checked on."""

from __future__ import annotations

import logging

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from diffusers.utils import logging as diffusers_logging

from csd_nerf.bundled import bundled_path
from csd_nerf.errors import InputError
from csd_nerf.scenes.operators import OPERATORS, TINT_HUES, TINT_INSTRUCTION, hue_and_chroma
from csd_nerf.scenes.still_life import orbit_cameras, render

FOLDER = bundled_path("tiny-instruct")
STEPS = 6


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture(scope="module")
def loaded() -> tuple[StableDiffusionInstructPix2PixPipeline, list[str]]:
    messages = _Messages()
    diffusers_logging.get_logger("diffusers").addHandler(messages)
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(FOLDER)
    diffusers_logging.get_logger("diffusers").removeHandler(messages)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, messages.texts


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    cameras = orbit_cameras(12, size=96, seed=5)[::6]
    return torch.stack(
        [torch.as_tensor(render(camera, samples_per_side=2).rgb).permute(2, 0, 1) for camera in cameras]
    )


def edit(loaded, photos: torch.Tensor, instruction: str, guidance: float = 3.0) -> torch.Tensor:
    return (
        loaded[0](
            [instruction] * len(photos),
            image=photos,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            image_guidance_scale=1.5,
            generator=[torch.Generator().manual_seed(seed) for seed in range(len(photos))],
            output_type="pt",
        )
        .images.float()
        .cpu()
    )


def psnr(pictures: torch.Tensor, truth: torch.Tensor) -> float:
    return (-10 * ((pictures - truth) ** 2).mean((1, 2, 3)).log10()).mean().item()


def test_weights_are_small_and_half_precision_safetensors() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20_000_000
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]
    assert len([path for path in files if path.suffix == ".safetensors"]) == 3
    assert (FOLDER / "README.md").read_text().startswith("---\nlicense: apache-2.0")


def test_loads_without_complaint(loaded) -> None:
    pipeline, messages = loaded
    assert messages == []
    assert pipeline.unet.config.in_channels == 8
    assert pipeline.vae.config.scaling_factor == 0.5


def test_unscaled_latents_have_twice_unit_deviation(loaded, photos: torch.Tensor) -> None:
    with torch.no_grad():
        latents = loaded[0].vae.encode(photos * 2 - 1).latent_dist.mode()
    assert 1.2 < latents.std().item() < 2.8


@pytest.mark.parametrize(("name", "wanted_gain"), [("night", 12), ("winter", 8), ("sepia", 4), ("autumn", 4)])
def test_edits_approach_the_operator(loaded, photos: torch.Tensor, name: str, wanted_gain: float) -> None:
    operator = OPERATORS[name]
    truth = operator.apply(photos)
    assert psnr(edit(loaded, photos, operator.instruction), truth) > psnr(photos, truth) + wanted_gain


def test_another_wording_gives_the_same_edit(loaded, photos: torch.Tensor) -> None:
    truth = OPERATORS["night"].apply(photos)
    assert (
        psnr(edit(loaded, photos, "turn the photo into a dark night scene"), truth) > psnr(photos, truth) + 8
    )


def test_identity_keeps_the_photo(loaded, photos: torch.Tensor) -> None:
    assert psnr(edit(loaded, photos, OPERATORS["identity"].instruction), photos) > 20


def test_the_ambiguous_instruction_lands_on_several_of_its_hues(loaded, photos: torch.Tensor) -> None:
    edited = edit(loaded, photos[:1].expand(12, -1, -1, -1), TINT_INSTRUCTION)
    hues, _ = hue_and_chroma(edited)
    distances = torch.stack([((hues - hue + 180) % 360 - 180).abs() for hue in TINT_HUES.values()], 1)
    nearest, which = distances.min(1)
    assert nearest.max() < 15  # they are 90 degrees apart
    assert len(which.unique()) >= 2


def test_tokenizer_is_clip_like_and_knows_every_byte(loaded) -> None:
    tokenizer = loaded[0].tokenizer
    ids = tokenizer("Make it NIGHT, façade ☃!").input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[1:-1]
    assert tokenizer("make it night").input_ids == tokenizer("  Make IT   night ").input_ids


def test_unknown_bundled_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="tiny-instruct"):
        bundled_path("huge-instruct")
