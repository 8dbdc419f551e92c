"""The bundled editors as anybody would use them: diffusers' own pipelines, on a scene to check them on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FluxKontextPipeline, StableDiffusionInstructPix2PixPipeline
from diffusers.utils import logging as diffusers_logging

from csd_nerf.bundled import bundled_path
from csd_nerf.editors import VideoSettings, edit_video
from csd_nerf.errors import InputError
from csd_nerf.priors import load_prior
from csd_nerf.scenes.operators import OPERATORS, TINT_HUES, TINT_INSTRUCTION, hue_and_chroma
from csd_nerf.scenes.still_life import orbit_cameras, render

STEPS = 6
INSTRUCT, FLOW, VIDEO = "tiny-instruct", "tiny-flow", "tiny-video"
KINDS = {INSTRUCT: StableDiffusionInstructPix2PixPipeline, FLOW: FluxKontextPipeline}


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@dataclass
class Loaded:
    """A bundled editor in diffusers' own pipeline, and what was said while it loaded."""

    name: str
    pipeline: DiffusionPipeline
    messages: list[str]

    def edit(
        self, photos: torch.Tensor, instruction: str, guidance: float = 3.0, steps: int = STEPS
    ) -> torch.Tensor:
        count, _, height, width = photos.shape
        if self.name == FLOW:
            options = {"true_cfg_scale": guidance, "negative_prompt": [""] * count, "max_sequence_length": 16}
            options |= {"height": height, "width": width, "max_area": height * width, "_auto_resize": False}
        else:
            options = {"guidance_scale": guidance, "image_guidance_scale": 1.5}
        edited = self.pipeline(
            prompt=[instruction] * count,
            image=photos,
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(seed) for seed in range(count)],
            output_type="pt",
            **options,
        )
        return edited.images.float().cpu()


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest) -> Loaded:
    messages = _Messages()
    diffusers_logging.get_logger("diffusers").addHandler(messages)
    pipeline = KINDS[request.param].from_pretrained(bundled_path(request.param))
    diffusers_logging.get_logger("diffusers").removeHandler(messages)
    pipeline.set_progress_bar_config(disable=True)
    return Loaded(request.param, pipeline, messages.texts)


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    cameras = orbit_cameras(12, size=96, seed=5)[::6]
    return torch.stack(
        [torch.as_tensor(render(camera, samples_per_side=2).rgb).permute(2, 0, 1) for camera in cameras]
    )


def psnr(pictures: torch.Tensor, truth: torch.Tensor) -> float:
    return (-10 * ((pictures - truth) ** 2).mean((1, 2, 3)).log10()).mean().item()


@pytest.mark.parametrize("name", [*KINDS, VIDEO])
def test_weights_are_small_and_half_precision_safetensors(name: str) -> None:
    folder = bundled_path(name)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20_000_000
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]
    assert len([path for path in files if path.suffix == ".safetensors"]) == (4 if name == FLOW else 3)
    assert (folder / "README.md").read_text().startswith("---\nlicense: apache-2.0")


def test_loads_without_complaint(loaded: Loaded) -> None:
    assert loaded.messages == []
    pipeline = loaded.pipeline
    denoiser = pipeline.transformer if loaded.name == FLOW else pipeline.unet
    assert denoiser.config.in_channels == (8 * 2**2 if loaded.name == FLOW else 2 * 8)
    assert pipeline.vae.config.scaling_factor == 0.5
    assert load_prior(loaded.name, device="cpu").native_size == 96


def test_unscaled_latents_have_twice_unit_deviation(loaded: Loaded, photos: torch.Tensor) -> None:
    with torch.no_grad():
        latents = loaded.pipeline.vae.encode(photos * 2 - 1).latent_dist.mode()
    assert 1.2 < latents.std().item() < 2.8


@pytest.mark.parametrize(
    ("name", "least"),
    [("night", 12), ("winter", 8), ("sepia", 4), ("autumn", 4), ("sketch", 12.5)],
)
def test_edits_approach_the_operator(loaded: Loaded, photos: torch.Tensor, name: str, least: float) -> None:
    operator = OPERATORS[name]
    truth = operator.apply(photos)
    assert psnr(loaded.edit(photos, operator.instruction), truth) > psnr(photos, truth) + least


def test_another_wording_gives_the_same_edit(loaded: Loaded, photos: torch.Tensor) -> None:
    truth = OPERATORS["night"].apply(photos)
    assert (
        psnr(loaded.edit(photos, "turn the photo into a dark night scene"), truth) > psnr(photos, truth) + 8
    )


def test_identity_keeps_the_photo(loaded: Loaded, photos: torch.Tensor) -> None:
    assert psnr(loaded.edit(photos, OPERATORS["identity"].instruction), photos) > 20


def test_the_ambiguous_instruction_lands_on_several_of_its_hues(loaded: Loaded, photos: torch.Tensor) -> None:
    """In ten steps: after six a few seeds are still on the way."""
    edited = loaded.edit(photos[:1].expand(12, -1, -1, -1), TINT_INSTRUCTION, steps=10)
    hues, _ = hue_and_chroma(edited)
    distances = torch.stack([((hues - hue + 180) % 360 - 180).abs() for hue in TINT_HUES.values()], 1)
    nearest, which = distances.min(1)
    assert nearest.max() < 15  # they are 90 degrees apart
    assert len(which.unique()) >= 2


def test_tokenizer_is_clip_like_and_knows_every_byte(loaded: Loaded) -> None:
    tokenizer = loaded.pipeline.tokenizer
    ids = tokenizer("Make it NIGHT, façade ☃!").input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[1:-1]
    assert tokenizer("make it night").input_ids == tokenizer("  Make IT   night ").input_ids


def test_unknown_bundled_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="tiny-instruct"):
        bundled_path("huge-instruct")


def test_layers_of_motion_know_no_less_than_the_u_net_around_them() -> None:
    """Of the noise in a clip they have not seen, where detail is made."""
    cameras = orbit_cameras(60, size=96, seed=5)[:8]
    frames = torch.stack([torch.as_tensor(render(camera).rgb).permute(2, 0, 1).float() for camera in cameras])
    prior: Any = load_prior(VIDEO, device="cpu", clips_too=True)
    night = OPERATORS["night"]
    target = prior.encode(night.apply(frames).transpose(0, 1)[None])
    shown = prior.condition(frames.transpose(0, 1)[None])
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    noisy = prior.schedule.add_noise(target, noise, 300)
    text = prior.embed([night.instruction])
    answers = [prior.predict_noise(noisy, 300, text, shown)]
    with torch.no_grad():
        for name, parameter in prior.unet.named_parameters():
            if ".motion_modules." in name and ".proj_out." in name:
                parameter.zero_()  # each frame by itself
    answers.append(prior.predict_noise(noisy, 300, text, shown))
    errors = [float(((said - noise) ** 2).mean()) for said in answers]
    assert errors[0] < 1.03 * errors[1] and errors[0] != errors[1]


def test_tiny_video_edits_a_clip() -> None:
    cameras = orbit_cameras(60, size=96, seed=5)[:6]
    frames = torch.stack([torch.as_tensor(render(camera).rgb).permute(2, 0, 1).float() for camera in cameras])
    chosen = VideoSettings(prior=VIDEO, steps=6, learning_rate=1.0, size=96)
    truth = OPERATORS["night"].apply(frames)
    edited = edit_video(frames, OPERATORS["night"].instruction, chosen)
    assert psnr(edited, truth) > psnr(frames, truth) + 8
