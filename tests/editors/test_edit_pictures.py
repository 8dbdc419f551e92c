"""`edit_image` and `edit_panorama` with the bundled prior: sizes, kinds of pictures, resuming, the sphere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image

from csd_nerf.editors import PictureSettings, edit_image, edit_panorama
from csd_nerf.editors.edit_pictures import reflected
from csd_nerf.editors.observer import Observer, Work
from csd_nerf.errors import InputError
from csd_nerf.priors import Prior
from csd_nerf.scenes.operators import OPERATORS


def picture(height: int, width: int) -> torch.Tensor:
    """Soft waves, whose left and right edges meet."""
    y, x = torch.linspace(0, 1, height)[:, None], torch.arange(width) / width
    waves = [torch.sin(2 * torch.pi * (k * x + k * y)) * 0.3 + 0.5 for k in (1, 2, 3)]
    return torch.stack([wave.expand(height, width) for wave in waves])


def settings(**changes: Any) -> PictureSettings:
    return PictureSettings(**{"prior": "tiny-instruct", "steps": 1, **changes})


def text_to_image(folder: Any, **changes: Any) -> PictureSettings:
    """Half the work of the bundled prior: for what depends on sizes alone."""
    return PictureSettings(prior=str(folder), method="sds", steps=1, **changes)


class Interrupted(Observer):
    """Keeps every step's latents, and stops after some."""

    def __init__(self, after: int | None = None, begin_with: tuple[int, torch.Tensor] | None = None) -> None:
        self.after = after
        self.begin_with = begin_with
        self.kept: list[tuple[int, torch.Tensor]] = []
        self.identity: dict[str, Any] = {}

    def resume(self, identity: dict[str, Any], latents: torch.Tensor) -> int:
        self.identity = identity
        if self.begin_with is None:
            return 0
        latents.copy_(self.begin_with[1])
        return self.begin_with[0]

    def step(self, steps: int, latents: torch.Tensor, draw: Any) -> None:
        self.kept.append((steps, latents.clone()))
        if steps == self.after:
            raise KeyboardInterrupt


def test_an_edit_follows_the_instruction(tiny_prior: Prior) -> None:
    """Several windows of a picture become the night that the prior was taught."""
    image = picture(96, 160)
    edited = edit_image(image, "make it night", settings(steps=6), loaded=tiny_prior)
    night = OPERATORS["night"].apply(image)

    def psnr(other: torch.Tensor) -> float:
        return -10 * (other - night).square().mean().log10().item()

    assert psnr(edited) > psnr(image) + 6


@pytest.mark.parametrize(("height", "width"), [(333, 517), (96, 96), (97, 100), (30, 50), (1, 7), (96, 20)])
def test_any_size_comes_back_at_its_size(
    height: int, width: int, text_to_image_folder: Any, text_to_image_prior: Prior
) -> None:
    image = picture(height, width)
    options = text_to_image(text_to_image_folder)
    edited = edit_image(image, "a photo", options, loaded=text_to_image_prior)
    assert edited.shape == image.shape and edited.isfinite().all()
    assert edited.min() >= 0 and edited.max() <= 1


def test_a_long_strip_comes_back_at_its_size(text_to_image_folder: Any, text_to_image_prior: Prior) -> None:
    options = text_to_image(text_to_image_folder, window_size=300)
    edited = edit_panorama(picture(300, 4000), "a photo", options, loaded=text_to_image_prior)
    assert edited.shape == (3, 300, 4000)


@pytest.mark.parametrize(
    ("mode", "result"),
    [("L", "RGB"), ("RGB", "RGB"), ("RGBA", "RGBA"), ("LA", "RGBA"), ("P", "RGB"), ("1", "RGB")],
)
def test_pil_images_of_any_mode(
    mode: str, result: str, text_to_image_folder: Any, text_to_image_prior: Prior
) -> None:
    values = (picture(40, 60).permute(1, 2, 0) * 255).byte().numpy()
    image = Image.fromarray(values)
    if "A" in mode:
        image.putalpha(Image.linear_gradient("L").resize((60, 40)))
    image = image.convert(mode)
    options = text_to_image(text_to_image_folder)
    edited = edit_image(image, "a photo", options, loaded=text_to_image_prior)
    assert edited.mode == result and edited.size == (60, 40)
    if "A" in mode:
        assert edited.getchannel("A").tobytes() == image.getchannel("A").tobytes()


def test_a_picture_is_turned_as_its_exif_says(text_to_image_folder: Any, text_to_image_prior: Prior) -> None:
    image = Image.new("RGB", (60, 40))
    image.getexif()[0x0112] = 6
    options = text_to_image(text_to_image_folder)
    assert edit_image(image, "a photo", options, loaded=text_to_image_prior).size == (40, 60)


def test_a_resumed_edit_ends_as_an_unbroken_one(tiny_prior: Prior) -> None:
    image = picture(96, 160)
    options = settings(steps=3, seed=5)
    whole = edit_image(image, "make it winter", options, loaded=tiny_prior)
    first = Interrupted(after=1)
    with pytest.raises(KeyboardInterrupt):
        edit_image(image, "make it winter", options, loaded=tiny_prior, observer=first)
    second = Interrupted(begin_with=first.kept[0])
    rest = edit_image(image, "make it winter", options, loaded=tiny_prior, observer=second)
    assert [steps for steps, _ in second.kept] == [2, 3]
    assert first.identity == second.identity
    assert torch.equal(rest, whole)


def test_what_decides_the_outcome_is_in_the_identity(
    text_to_image_folder: Any, text_to_image_prior: Prior
) -> None:
    def identity(image: torch.Tensor, prompts: list[str], **options: Any) -> dict[str, Any]:
        picture_options = {
            name: options.pop(name) for name in ("wrap", "shares", "feather") if name in options
        }
        observer = Interrupted()
        edit_panorama(
            image,
            prompts,
            text_to_image(text_to_image_folder, **options),
            loaded=text_to_image_prior,
            observer=observer,
            **picture_options,
        )
        return observer.identity

    image = picture(96, 100)
    base = identity(image, ["a", "b"])
    assert identity(image, ["a", "b"], unet_batch_size=7) == base
    for other in (
        identity(image.flip(2), ["a", "b"]),
        identity(image, ["a", "c"]),
        identity(image, ["a", "b"], seed=1),
        identity(image, ["a", "b"], text_guidance=3.0),
        identity(image, ["a", "b"], shares=[0.4, 0.6]),
        identity(image, ["a", "b"], feather=0),
        identity(image, ["a", "b"], wrap=True),
        identity(image, ["a", "b"], window_size=64),
    ):
        assert other != base


def test_the_edges_of_a_sphere_stay_continuous(tiny_prior: Prior) -> None:
    """The seam differs no more than other columns between two latents do; without `wrap` it would."""
    image = picture(96, 192).roll(50, 2)

    def steps(wrap: bool) -> torch.Tensor:
        options = settings(steps=4)
        edited = edit_panorama(image, "make it night", options, wrap=wrap, loaded=tiny_prior)
        return (edited.roll(-1, 2) - edited).abs().mean((0, 1))

    seam = steps(wrap=True)
    assert seam[-1] <= seam[3:-1:4].max()
    assert steps(wrap=False)[-1] > seam[-1]


def test_the_autoencoder_sees_more_than_a_window(tiny_prior: Prior) -> None:
    """What fits in 256 pixels is encoded and decoded whole, however small the windows."""

    class Plan(Observer):
        def plan(self, works: Sequence[Work]) -> None:
            self.totals = {work.key: work.total for work in works}

    plan = Plan()
    edit_panorama(picture(96, 200), "make it night", settings(), loaded=tiny_prior, observer=plan)
    assert plan.totals == {"encode": 1, "edit": 1, "decode": 1}


def test_regions_follow_their_own_prompts(tiny_prior: Prior) -> None:
    image = picture(96, 288)
    keep_right = ["make it night", "keep it as it is"]
    edited = edit_panorama(image, keep_right, settings(steps=6), loaded=tiny_prior, feather=16)
    left, right = (edited - image).abs().mean((0, 1)).chunk(2)
    assert left[:128].mean() > 4 * right[16:].mean()


def test_a_mask_does_as_a_band(text_to_image_folder: Any, text_to_image_prior: Prior) -> None:
    image = picture(96, 200)
    left = torch.zeros(96, 200)
    left[:, :80] = 1
    options = text_to_image(text_to_image_folder)
    transparent = Image.new("LA", (200, 96), (255, 0))
    transparent.paste((255, 255), (0, 0, 80, 96))
    by_bands, by_masks, by_alpha = (
        edit_panorama(image, ["a", "b"], options, loaded=text_to_image_prior, **regions)
        for regions in (
            {"shares": [0.4, 0.6]},
            {"masks": [left, 1 - left]},
            {"masks": [transparent, 1 - left]},
        )
    )
    torch.testing.assert_close(by_bands, by_masks)
    torch.testing.assert_close(by_bands, by_alpha)


def test_reflection_repeats_no_edge() -> None:
    assert reflected(torch.tensor([[[1.0, 2.0, 3.0]]]), 2, 6)[0].tolist() == [[1, 2, 3, 2, 1, 2]] * 2


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"prompt": " "}, ["prompt is empty"]),
        ({"prompt": []}, ["differ in number"]),
        ({"prompt": ["a", "b"], "shares": [1.0]}, ["2 prompts and 1 bands"]),
        ({"prompt": ["a", "b"], "shares": [0.5, 0.2]}, ["uncovered"]),
        ({"prompt": ["a"], "masks": [torch.ones(96, 90)]}, ["mask 1", "90 x 96"]),
        ({"prompt": ["a"], "masks": [torch.zeros(96, 101)]}, ["uncovered", "100.0 %"]),
        ({"prompt": ["a"], "masks": [torch.ones(96, 101)], "shares": [1.0]}, ["given twice"]),
        ({"picture": torch.rand(3, 96, 60)}, ["smaller than a window", "60 x 96", "csd-nerf image"]),
        ({"picture": torch.rand(96, 101, 3)}, ["not a picture", "(96, 101, 3)"]),
        ({"wrap": True}, ["cannot wrap", "divisible by 4", "width of 100"]),
        ({"settings": settings(window_size=50)}, ["--window-size", "multiple of 4"]),
        ({"settings": settings(steps=0)}, ["--steps", "at least 1"]),
        ({"settings": settings(particles=0)}, ["--particles"]),
        ({"settings": settings(learning_rate=-1.0)}, ["--learning-rate"]),
        ({"settings": settings(min_timestep=0.9)}, ["timesteps"]),
        ({"settings": settings(method="dds")}, ["needs a description of the source"]),
        ({"settings": settings(method="dds", source_prompt="a")}, ["cannot ask a model that takes"]),
        ({"settings": settings(prior="no-such-prior")}, ["no such prior"]),
    ],
)
def test_what_cannot_be_edited_is_refused(
    arguments: dict[str, Any], parts: list[str], tiny_prior: Prior
) -> None:
    usual = {"picture": torch.rand(3, 96, 101), "prompt": "make it night", "settings": settings()}
    with pytest.raises(InputError) as error:
        edit_panorama(**{**usual, **arguments}, loaded=tiny_prior)
    for part in parts:
        assert part in str(error.value)


def test_csd_edit_is_refused_to_a_text_to_image_model(text_to_image_folder: Any) -> None:
    with pytest.raises(InputError, match="cannot ask a text-to-image model"):
        edit_image(torch.rand(3, 96, 96), "night", PictureSettings(prior=str(text_to_image_folder)))
