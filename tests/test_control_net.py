"""A ControlNet beside a text-to-image prior: against diffusers' pipeline, in its limits, and bad input."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from one_step import step_of_pipeline, step_of_prior
from prior_folders import edit_json
from torch import Tensor

from csd_nerf.bundled import bundled_path
from csd_nerf.distillation import RESIDUALS, Guidance, StructureConfig, Views, structure_gradient
from csd_nerf.errors import InputError
from csd_nerf.priors import ControlConfig, Prior, check_control, load_prior
from csd_nerf.priors.control_net import ControlNet
from csd_nerf.priors.control_pictures import canny_picture, depth_picture

PROMPT = "a drawing of a bear"


def load(prior: Path, net: Path, picture="depth", scale: float = 1.0) -> ControlNet:
    loaded = load_prior(
        str(prior),
        device="cpu",
        dtype=torch.float32,
        vae_dtype=torch.float32,
        control=ControlConfig(str(net), picture, scale),
    )
    assert isinstance(loaded, ControlNet)
    return loaded


@pytest.fixture(scope="module")
def prior(text_to_image_folder: Path, control_net_folder: Path) -> ControlNet:
    return load(text_to_image_folder, control_net_folder)


@pytest.fixture
def depth(generator: torch.Generator) -> Tensor:
    coarse = 1 + 4 * torch.rand(3, 1, 4, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, (32, 48), mode="bilinear")


@pytest.fixture
def net(control_net_folder: Path, tmp_path: Path) -> Path:
    """A copy of the ControlNet to break."""
    return shutil.copytree(control_net_folder, tmp_path / "net")


def predict(prior: Prior, noisy: Tensor, condition: Tensor | None, t: int = 400) -> Tensor:
    return prior.predict_noise(noisy, t, prior.embed([PROMPT]).expand(len(noisy), -1, -1), condition)


# --------------------------------------------------------------------------------------- what it computes


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_one_step_equals_the_pipelines(
    text_to_image_folder: Path, control_net_folder: Path, depth: Tensor, generator, scale: float
) -> None:
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        text_to_image_folder,
        controlnet=ControlNetModel.from_pretrained(control_net_folder),
        use_safetensors=True,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
    )
    start = torch.randn(1, pipeline.vae.config.latent_channels, 8, 12, generator=generator)
    picture = depth_picture(depth[:1]).expand(-1, 3, -1, -1)
    theirs = step_of_pipeline(pipeline, PROMPT, start, image=picture, controlnet_conditioning_scale=scale)

    prior = load(text_to_image_folder, control_net_folder, scale=scale)
    ours, noise = step_of_prior(prior, pipeline, PROMPT, start, prior.condition(depth[:1]))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    _, plain = step_of_prior(prior, pipeline, PROMPT, start, None)
    assert (plain - noise).abs().max() > 0.1  # without the picture it would have been another step


def test_zero_convolutions_change_nothing(
    text_to_image_folder: Path, text_to_image_prior: Prior, tmp_path: Path, depth: Tensor, generator
) -> None:
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(text_to_image_folder, subfolder="unet")
    ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 16)).save_pretrained(tmp_path)
    prior = load(text_to_image_folder, tmp_path)
    noisy = torch.randn(3, prior.latent_channels, 8, 12, generator=generator)
    condition = prior.condition(depth)
    expected = predict(text_to_image_prior, noisy, None)
    torch.testing.assert_close(predict(prior, noisy, condition), expected, rtol=0, atol=1e-6)
    text = prior.embed([PROMPT]).expand(3, -1, -1)
    features = prior.self_attention_features(noisy, 400, text, condition)
    for ours, theirs in zip(
        features, text_to_image_prior.self_attention_features(noisy, 400, text, condition[:, :0]), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_without_picture_or_scale_it_is_the_plain_model(
    prior: ControlNet, text_to_image_prior: Prior, depth: Tensor, generator, monkeypatch
) -> None:
    """None, rows of zeros among others, and scale 0: all are the text-to-image model."""
    noisy = torch.randn(3, prior.latent_channels, 8, 12, generator=generator)
    condition = prior.condition(depth)
    plain, controlled = predict(text_to_image_prior, noisy, None), predict(prior, noisy, condition)
    assert (plain - controlled).abs().amax((1, 2, 3)).min() > 0.01
    torch.testing.assert_close(predict(prior, noisy, None), plain, rtol=0, atol=1e-5)
    condition[1] = 0
    mixed = predict(prior, noisy, condition)
    torch.testing.assert_close(mixed[1], plain[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[[0, 2]], controlled[[0, 2]], rtol=0, atol=1e-5)
    monkeypatch.setattr(prior, "control_scale", 0.0)
    torch.testing.assert_close(predict(prior, noisy, condition), plain, rtol=0, atol=1e-5)


def test_micro_batches_keep_rows_and_pictures_together(
    prior: ControlNet, depth: Tensor, generator, monkeypatch
) -> None:
    noisy = torch.randn(7, prior.latent_channels, 8, 12, generator=generator)
    condition = prior.condition(depth)[[0, 1, 2, 2, 1, 0, 1]]
    before = prior.unet_evaluations
    expected = predict(prior, noisy, condition)
    assert prior.unet_evaluations - before == 7
    for size in (1, 3):
        monkeypatch.setattr(prior, "unet_batch_size", size)
        torch.testing.assert_close(predict(prior, noisy, condition), expected, rtol=1e-4, atol=1e-4)


def test_velocity_is_turned_into_noise(
    prior: ControlNet, text_to_image_folder: Path, control_net_folder: Path, tmp_path: Path, depth, generator
) -> None:
    folder = shutil.copytree(text_to_image_folder, tmp_path / "prior")
    edit_json(folder / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    noisy, t = torch.randn(3, prior.latent_channels, 8, 12, generator=generator), 300
    condition = prior.condition(depth)
    velocity = predict(prior, noisy, condition, t)  # the same network, whose answer is taken for noise
    alpha, sigma = prior.schedule.alphas[t], prior.schedule.sigmas[t]
    noise = predict(load(folder, control_net_folder), noisy, condition, t)
    torch.testing.assert_close(noise, alpha * velocity + sigma * noisy, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_near_float32(
    prior: ControlNet, text_to_image_folder: Path, control_net_folder: Path, depth: Tensor, generator
) -> None:
    noisy = torch.randn(3, prior.latent_channels, 8, 12, generator=generator)
    control = ControlConfig(str(control_net_folder), "depth")
    half = load_prior(str(text_to_image_folder), device="cpu", dtype=torch.bfloat16, control=control)
    assert isinstance(half, ControlNet) and half.control_net.dtype == torch.bfloat16
    answer = predict(half, noisy, half.condition(depth))
    expected = predict(prior, noisy, prior.condition(depth))
    torch.testing.assert_close(answer, expected, rtol=0, atol=0.05 * expected.abs().max().item())


@pytest.mark.parametrize("residual", ["sds", "dds", "pds"])
def test_residuals_show_every_branch_its_view(
    prior: ControlNet, depth: Tensor, generator, residual: str
) -> None:
    """Each view by itself gets what it gets among others; the source branch is shown the same picture."""
    source = 0.5 * torch.randn(3, prior.latent_channels, 8, 12, generator=generator)
    texts = prior.embed([PROMPT, "a photo of a bear", ""]).split(1)
    latents = source + 0.3 * torch.randn(source.shape, generator=generator)
    noise = torch.randn(source.shape, generator=generator)
    condition = prior.condition(depth)

    def ask(rows: slice, moved: Tensor = latents, prompt: Tensor = texts[0]) -> Tensor:
        views = Views(
            moved[rows], source[rows], condition[rows], noise[rows], 600, prompt, texts[1], texts[2]
        )
        return RESIDUALS[residual](prior, views, Guidance(7.5))

    together = ask(slice(None))
    alone = torch.cat([ask(slice(i, i + 1)) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)
    if residual != "sds":
        assert ask(slice(None), source, texts[1]).abs().max() < 1e-4


def test_the_structure_loss_is_differentiated_through_the_control_net(
    prior: ControlNet, depth: Tensor, generator
) -> None:
    text = prior.embed([PROMPT]).expand(3, -1, -1)
    condition = prior.condition(depth)
    noisy = torch.randn(3, prior.latent_channels, 8, 12, generator=generator)
    direction = torch.randn(noisy.shape, generator=generator)

    def measure(latents: Tensor) -> Tensor:
        maps = prior.self_attention_features(latents, 300, text, condition)
        assert len(maps) == prior.self_attention_layers > 0
        return torch.stack([features.square().mean() for features in maps]).sum()

    variable = noisy.clone().requires_grad_()
    measure(variable).backward()
    with torch.no_grad():
        ahead, behind = (measure(noisy + sign * 1e-2 * direction) for sign in (1, -1))
    slope = (variable.grad * direction).sum()
    torch.testing.assert_close(slope, (ahead - behind) / 2e-2, rtol=0.02, atol=1e-4)

    texts = prior.embed([PROMPT, "a photo of a bear", ""]).split(1)
    views = Views(noisy, noisy, condition, torch.zeros_like(noisy), 300, *texts)
    losses, gradient = structure_gradient(prior, views, StructureConfig(loss="cut", patch_sizes=(1,)))
    assert losses.isfinite().all() and gradient.shape == noisy.shape


# ------------------------------------------------------------------------------------------ pictures


def test_depth_pictures_are_inverse_depth_and_near_is_bright() -> None:
    depth = torch.linspace(1, 4, 100)[None, None, None].repeat(2, 1, 100, 1)
    depth[1] *= 37  # units do not matter
    picture = depth_picture(depth)
    torch.testing.assert_close(picture[0], picture[1])
    row = picture[0, 0, 0]
    assert row[0] == 1 and row[-1] == 0 and (row.diff() <= 0).all()
    inside = slice(2, 98)
    nearness = 1 / depth[0, 0, 0]
    low, high = np.quantile(nearness.numpy(), [0.01, 0.99])
    torch.testing.assert_close(row[inside], ((nearness - low) / (high - low))[inside], rtol=1e-3, atol=1e-3)


def test_depth_pictures_withstand_stray_density_emptiness_and_walls() -> None:
    depth = torch.linspace(1, 4, 100)[None, None, None].repeat(1, 1, 100, 1)
    expected = depth_picture(depth)
    stray = depth.clone()
    stray[..., 50, 50] = 1e-4
    difference = (depth_picture(stray) - expected).abs()
    difference[..., 50, 50] = 0
    assert difference.max() < 0.05
    sky = torch.where(depth > 3, torch.inf, depth)
    assert depth_picture(sky)[depth > 3].eq(0).all() and depth_picture(sky).isfinite().all()
    assert depth_picture(torch.full((1, 1, 8, 8), 2.0)).eq(0).all()


def test_canny_pictures_are_opencvs(generator) -> None:
    images = torch.rand(2, 3, 32, 48, generator=generator).round()
    edges = canny_picture(images)
    assert edges.shape == (2, 1, 32, 48) and set(edges.unique().tolist()) == {0.0, 1.0}
    pixels = (images[1].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    np.testing.assert_array_equal(edges[1, 0].numpy() * 255, cv2.Canny(pixels, 100, 200))


def test_the_condition_holds_the_picture(prior, text_to_image_folder, control_net_folder, depth) -> None:
    assert prior.shown == "depth"
    condition = prior.condition(depth)
    assert condition.shape == (3, 16, 8, 12)
    torch.testing.assert_close(torch.nn.functional.pixel_shuffle(condition, 4), depth_picture(depth))
    canny = load(text_to_image_folder, control_net_folder, "canny")
    images = depth_picture(depth).expand(-1, 3, -1, -1).round()
    assert canny.shown == "picture"
    edges = torch.nn.functional.pixel_shuffle(canny.condition(images), 4)
    torch.testing.assert_close(edges, canny_picture(images))


# ------------------------------------------------------------------------------------------ bad input


def test_pictures_where_depth_is_needed(prior: ControlNet) -> None:
    with pytest.raises(InputError, match="depth of 1 channels(.|\n)*3 channels(.|\n)*comes from a scene"):
        prior.condition(torch.rand(1, 3, 32, 48))
    with pytest.raises(InputError, match="divisible by 4"):
        prior.condition(torch.rand(1, 1, 33, 48))


def test_a_prior_that_is_shown_the_picture_already(control_net_folder: Path) -> None:
    control = ControlConfig(str(control_net_folder), "depth")
    with pytest.raises(InputError, match="shown the source picture already(.|\n)*InstructPix2Pix"):
        check_control(control, bundled_path("tiny-instruct"))
    with pytest.raises(InputError, match="shown the source picture already"):
        load_prior("tiny-instruct", device="cpu", control=control)


@pytest.mark.parametrize(
    ("control", "message"),
    [
        (ControlConfig(picture="canny"), "needs a ControlNet(.|\n)*sd-controlnet-canny"),
        (ControlConfig(net="a/b"), "what the ControlNet a/b is shown(.|\n)*depth or canny"),
        (ControlConfig("a/b", "depth", -1.0), "not negative(.|\n)*-1"),
        (ControlConfig("a/b", "depth", float("nan")), "not negative"),
        (ControlConfig("/no/such/folder", "depth"), "no such ControlNet(.|\n)*lllyasviel"),
    ],
)
def test_contradictions(control: ControlConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_control(control, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_attention_dim": 768}, "another prior(.|\n)*dim 96(.|\n)*dim 768"),
        ({"block_out_channels": [32, 64, 96]}, r"another prior(.|\n)*\[16, 32, 48\](.|\n)*\[32, 64, 96\]"),
        ({"conditioning_embedding_out_channels": [16, 32, 96, 256]}, "per latent 4(.|\n)*per latent 8"),
        ({"conditioning_channels": 1}, "pictures of 3 channels(.|\n)*1 channels"),
        ({"_class_name": "UNet2DConditionModel"}, "no ControlNet(.|\n)*UNet2DConditionModel"),
    ],
)
def test_control_nets_of_other_sizes(net: Path, text_to_image_folder: Path, changes, message: str) -> None:
    edit_json(net / "config.json", **changes)
    with pytest.raises(InputError, match=message):
        check_control(ControlConfig(str(net), "depth"), text_to_image_folder)


def test_missing_and_damaged_parts(net: Path, text_to_image_folder: Path) -> None:
    control = ControlConfig(str(net), "depth")
    weights = net / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read(.|\n)*1000 bytes"):
        check_control(control, text_to_image_folder)
    weights.unlink()
    with pytest.raises(InputError, match="missing parts"):
        check_control(control, text_to_image_folder)
    (net / "config.json").unlink()
    with pytest.raises(InputError, match="no config.json"):
        check_control(control, text_to_image_folder)


def test_a_hub_control_net_that_cannot_be_fetched(text_to_image_folder: Path, monkeypatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    control = ControlConfig("nobody/no-such-net", "depth")
    assert check_control(control, text_to_image_folder) is None
    with pytest.raises(InputError, match="nobody/no-such-net(.|\n)*lllyasviel"):
        load_prior(str(text_to_image_folder), device="cpu", control=control)
