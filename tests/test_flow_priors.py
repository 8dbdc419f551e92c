"""Editors of flow matching as priors, against diffusers' own pipelines: small ones, untrained."""

from __future__ import annotations

import gc
import shutil
import signal
import weakref
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from prior_folders import (
    check_that_a_missing_part_is_named,
    edit_json,
    save_flux2_klein,
    save_flux_kontext,
    save_longcat_image_edit,
    save_qwen_image_edit,
)
from safetensors.torch import load_file, save_file

from csd_nerf.bundled import bundled_path
from csd_nerf.cli import main
from csd_nerf.comparison.budget import Price, method_config, price_of
from csd_nerf.distillation import (
    RESIDUALS,
    Guidance,
    Objective,
    ObjectiveConfig,
    Views,
    csd_edit,
    ddim_step,
    dvrf,
    evaluations,
    flow_edit,
    sample_edit,
    svgd,
    weight,
)
from csd_nerf.distillation.residuals import guided_noise
from csd_nerf.distillation.schedule import shifted
from csd_nerf.distillation.structure import StructureConfig, structure_gradient
from csd_nerf.errors import InputError
from csd_nerf.priors import ControlConfig, Prior, check_control, check_prior, check_vae, load_prior
from csd_nerf.priors.elsewhere import Elsewhere
from csd_nerf.priors.folder import guided_by, is_image_conditioned, vae_factor

PROMPT = "make it night"
T = 600

MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "kontext": (save_flux_kontext, {}),
    "kontext without guidance": (save_flux_kontext, {"guidance_embeds": False}),
    "klein": (save_flux2_klein, {}),
    "klein distilled": (save_flux2_klein, {"is_distilled": True}),
    "klein that keeps": (save_flux2_klein, {"is_distilled": True, "pipeline": "Flux2KleinKVPipeline"}),
    "qwen": (save_qwen_image_edit, {}),
    "longcat": (save_longcat_image_edit, {}),
}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    save, options = MODELS[request.param]
    folder = save(tmp_path_factory.mktemp("priors") / "flow", **options)
    return SimpleNamespace(
        name=request.param,
        folder=folder,
        prior=load_prior(str(folder), device="cpu", dtype=torch.float32, vae_dtype=torch.float32),
    )


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Wider than high: a transposed place would show."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 255, (4, 6, 3), dtype=np.uint8))
    return coarse.resize((96, 64), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def views(picture: Image.Image) -> torch.Tensor:
    pixels = torch.tensor(np.array(picture)).permute(2, 0, 1)[None] / 255
    return torch.cat([pixels, pixels.flip(3)])


@pytest.fixture
def small_pictures(model: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pipelines that bring every picture to a size of their own take 96 x 64."""
    if model.name == "qwen":
        edit = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus"
        monkeypatch.setattr(f"{edit}.VAE_IMAGE_SIZE", 96 * 64)
        monkeypatch.setattr(f"{edit}.CONDITION_IMAGE_SIZE", 96 * 64)
    if model.name == "longcat":
        edit = "diffusers.pipelines.longcat_image.pipeline_longcat_image_edit"
        monkeypatch.setattr(f"{edit}.calculate_dimensions", lambda area, ratio: (96, 64))


def test_one_step_equals_the_pipelines(
    model: SimpleNamespace, picture: Image.Image, views: torch.Tensor, generator, small_pictures: None
) -> None:
    """From s = 0.6 to 0 in one: the clean latents that the prediction stands for."""
    import diffusers

    prior: Any = model.prior
    prior._embeddings.clear()
    start = torch.randn(1, model.prior.latent_channels, 8, 12, generator=generator)
    source, condition = prior.encode_source(views[:1])
    text, empty = (prior.told([words], condition) for words in (PROMPT, ""))
    (noise,) = guided_noise(prior, T, empty, condition, Guidance(4.0), (start, text))
    ours = prior._unscaled(ddim_step(prior.schedule, noise, start, T, 0))

    pipeline = diffusers.DiffusionPipeline.from_pretrained(model.folder, use_safetensors=True)
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipeline.set_progress_bar_config(disable=True)
    options = {"image": picture, "prompt": PROMPT, "height": 64, "width": 96, "sigmas": [T / 1000]}
    options |= {"num_inference_steps": 1, "output_type": "latent"}
    if model.name == "klein that keeps":
        theirs = pipeline(latents=start, **options).images
    elif model.name.startswith("klein"):
        theirs = pipeline(latents=start, guidance_scale=4.0, **options).images
    elif model.name in ("qwen", "longcat"):
        packed = pipeline._pack_latents(
            torch.nn.functional.pixel_shuffle(start, 2), 1, start.shape[1] // 4, 16, 24
        )
        options |= {"latents": packed, "negative_prompt": ""}
        options["true_cfg_scale" if model.name == "qwen" else "guidance_scale"] = 4.0
        if model.name == "longcat":
            del options["height"], options["width"]
        theirs = pipeline._unpack_latents(pipeline(**options).images, 64, 96, pipeline.vae_scale_factor)
        if model.name == "qwen":
            theirs = theirs[:, :, 0] * prior._deviation + prior._mean
        else:
            theirs = theirs / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
    else:
        packed = pipeline._pack_latents(
            torch.nn.functional.pixel_shuffle(start, 2), 1, start.shape[1] // 4, 16, 24
        )
        options |= {"_auto_resize": False, "max_area": 64 * 96, "guidance_scale": 2.5}
        if prior.guided_by == "text":
            options |= {"negative_prompt": "", "true_cfg_scale": 4.0}
        packed = pipeline(latents=packed, **options).images
        theirs = pipeline._unpack_latents(packed, 64, 96, pipeline.vae_scale_factor)
        theirs = theirs / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
    assert (theirs - prior._unscaled(start)).abs().mean() > 0.1  # it was a step
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_pictures_and_latents(model: SimpleNamespace, views: torch.Tensor) -> None:
    """Scaled as the pipelines do, and differentiable both ways."""
    prior: Any = model.prior
    latents, condition = prior.encode_source(views)
    torch.testing.assert_close(latents, prior.encode(views))
    torch.testing.assert_close(condition, prior.condition(views))
    assert latents.shape == (2, prior.latent_channels, 64 // prior.vae_factor, 96 // prior.vae_factor)
    back = prior.decode(latents)
    assert back.shape == views.shape and back.min() >= 0 and back.max() <= 1
    if model.name == "qwen":
        plain = prior.vae.encode(2 * views[:, :, None] - 1).latent_dist.mode()[:, :, 0]
    else:
        plain = prior.vae.encode(2 * views - 1).latent_dist.mode()
    torch.testing.assert_close(prior._unscaled(latents), plain, rtol=1e-4, atol=1e-4)
    if model.name.startswith("kontext"):  # whose autoencoder is a trained one
        assert (back - views).abs().mean() < 0.1
    with torch.enable_grad():
        pictures = views.clone().requires_grad_()
        assert torch.autograd.grad(prior.encode(pictures).square().sum(), pictures)[0].abs().max() > 0
    with pytest.raises(InputError, match="divisible by 8(.|\n)*nearest size is 64 x 88"):
        prior.encode(views[..., :90])


def test_rows_are_independent_of_their_batch(model: SimpleNamespace, views: torch.Tensor, generator) -> None:
    noisy = torch.randn(3, model.prior.latent_channels, 8, 12, generator=generator)
    condition = model.prior.condition(torch.cat([views, views[:1].flip(2)]))
    text = model.prior.told([PROMPT, "winter", ""], condition)
    whole = model.prior.predict_noise(noisy, T, text, condition)
    model.prior.unet_batch_size = 2
    torch.testing.assert_close(
        model.prior.predict_noise(noisy, T, text, condition), whole, rtol=1e-4, atol=1e-4
    )
    model.prior.unet_batch_size = 20
    for other_text, other_condition in ((text[[1, 2, 0]], condition), (text, condition[[1, 2, 0]])):
        other = model.prior.predict_noise(noisy, T, other_text, other_condition)
        assert (other - whole).abs().amax((1, 2, 3)).min() > 1e-4  # both are heard
    without = model.prior.predict_noise(noisy, T, text, None)
    assert (without - whole).abs().amax((1, 2, 3)).min() > 1e-4


@pytest.mark.parametrize("residual", list(RESIDUALS))
def test_objectives_need_not_know(
    model: SimpleNamespace, views: torch.Tensor, generator, residual: Any
) -> None:
    """What fits gives a step of the evaluations stated; what does not is refused."""
    config = ObjectiveConfig(residual=residual)
    if residual in ("dds", "pds", "ssd"):
        with pytest.raises(InputError, match=f"the residual {residual}"):
            Objective(config, model.prior)
        return
    objective = Objective(config, model.prior)
    source, condition = model.prior.encode_source(views)
    latents = source + 0.1 * torch.randn(source.shape, generator=generator)
    step = objective.gradient(latents, source, condition, prompt=PROMPT, generator=generator)
    assert step.gradient.isfinite().all() and step.gradient.abs().max() > 0
    counted = 2 * evaluations(residual, model.prior.guided_by)
    assert step.statistics["unet_evaluations"] == counted
    stated = {"text": {"csd-edit": 3, "sds": 2}, "itself": {"csd-edit": 2, "sds": 1}}
    if residual in ("csd-edit", "sds"):
        assert counted == 2 * stated[model.prior.guided_by][residual]


@pytest.mark.parametrize("unet_batch_size", [20, 1])
def test_the_structure_loss_looks_at_the_attention_of_pictures(
    model: SimpleNamespace, views: torch.Tensor, generator, unet_batch_size: int
) -> None:
    """Its gradient is that of the loss, which is least at the source; it costs a pass each for both."""
    prior = model.prior
    source, condition = prior.encode_source(views)
    latents = source + 0.5 * torch.randn(source.shape, generator=generator)
    noise = torch.randn(source.shape, generator=generator)
    empty = prior.told([""], condition)
    config = StructureConfig("cut", num_patches=64)
    prior.unet_batch_size = unet_batch_size

    def measured(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked = Views(latents, source, condition, noise, T, empty, empty, empty)
        return structure_gradient(prior, asked, config, generator=torch.Generator().manual_seed(1))

    before = prior.unet_evaluations
    loss, gradient = measured(latents)
    assert prior.unet_evaluations - before == 2 * 2
    prior.unet_batch_size = 20
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    least, _ = measured(source)
    assert (least < loss).all()
    direction = gradient / gradient.norm()
    step, unit = 0.02, config.weight * 8 * 12 / 2000
    ahead, behind = (measured(latents + sign * step * direction)[0].sum() for sign in (1, -1))
    slope = unit * (ahead - behind) / (2 * step)
    torch.testing.assert_close(slope, gradient.norm(), rtol=0.05, atol=0)


def test_maps_of_attention_are_those_of_the_noisy_picture(
    model: SimpleNamespace, views: torch.Tensor, generator
) -> None:
    """Of its size, and where it is changed they change most."""
    prior = model.prior
    _, condition = prior.encode_source(views[:1])
    noisy = torch.randn(1, model.prior.latent_channels, 8, 12, generator=generator)
    text = prior.told([PROMPT], condition)
    before = prior.self_attention_features(noisy, T, text, condition)
    assert len(before) == prior.self_attention_layers > 0
    assert all(layer.shape == (1, 32, 8, 12) for layer in before)
    changed = noisy.clone()
    changed[..., 2, 7] += 30
    after = prior.self_attention_features(changed, T, text, condition)
    assert all((one - other).abs().max() > 1e-5 for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_dvrf_compares_velocities(model: SimpleNamespace, views: torch.Tensor, generator, eta: float) -> None:
    """Its definition, with the transformer's own velocities v = (e - z) / (1 - s)."""
    prior = model.prior
    source, condition = prior.encode_source(views)
    latents = source + 0.3 * torch.randn(source.shape, generator=generator)
    noise = torch.randn(source.shape, generator=generator)
    text, empty = (prior.told([words], condition) for words in (PROMPT, ""))
    guidance, s = Guidance(4.0), T / 1000

    def velocity(noisy: torch.Tensor, asked: Any) -> torch.Tensor:
        (answer,) = guided_noise(prior, T, empty, condition, guidance, (noisy, asked))
        return (answer - noisy) / (1 - s)

    noisy_source = (1 - s) * source + s * noise
    noisy = (1 - s) * latents + s * noise + eta * s * (latents - source)
    change = velocity(noisy, text) - velocity(noisy_source, None) + (1 - eta) * (latents - source)
    asked = Views(latents, source, condition, noise, T, text, empty, empty, eta)
    assert change.square().mean() > 1e-3
    torch.testing.assert_close(dvrf(prior, asked, guidance), change, rtol=0, atol=1e-4)
    if eta == 0:  # csd-edit over 1 - s
        ours = weight(prior.schedule, T, "one-over-alpha") * csd_edit(prior, asked, guidance)
        torch.testing.assert_close(ours, change, rtol=0, atol=1e-4)
    if eta == 1:  # FlowEdit, which moves the noisy source by the edit so far
        torch.testing.assert_close(noisy, latents + noisy_source - source)


def test_eta_rises_over_the_edit(model: SimpleNamespace, views: torch.Tensor) -> None:
    source, condition = model.prior.encode_source(views)

    def gradient(eta: Any, **place: int) -> torch.Tensor:
        objective = Objective(ObjectiveConfig("dvrf", eta, transport="independent"), model.prior)
        seeded = torch.Generator().manual_seed(0)
        options: Any = {"prompt": PROMPT, "timestep": T, "generator": seeded}
        return objective.gradient(source + 0.5, source, condition, **options, **place).gradient

    torch.testing.assert_close(gradient("rising", step=0, max_steps=5), gradient(0.0))
    torch.testing.assert_close(gradient("rising", step=1, max_steps=5), gradient(0.25))
    torch.testing.assert_close(gradient("rising", step=4, max_steps=5), gradient(1.0))
    assert (gradient(0.0) - gradient(1.0)).abs().max() > 0.1


@pytest.mark.parametrize("sharing", ["independent", "svgd"])
def test_flow_edit_is_the_published_pass(model: SimpleNamespace, views: torch.Tensor, sharing: str) -> None:
    """Against FlowEdit's algorithm, written out, from pictures that are half way already."""
    prior = model.prior
    source, condition = prior.encode_source(views)
    latents = source + 0.3 * torch.randn(source.shape, generator=torch.Generator().manual_seed(3))
    guidance = Guidance(3.0)
    text, empty = (prior.told([words], condition) for words in (PROMPT, ""))
    transport = {"independent": lambda directions, particles: directions, "svgd": svgd}[sharing]
    before = prior.unet_evaluations
    got = flow_edit(
        prior,
        latents,
        source,
        condition,
        prompt=PROMPT,
        guidance=guidance,
        start=800,
        steps=4,
        transport=transport,
        generator=torch.Generator().manual_seed(0),
    )
    assert prior.unet_evaluations - before == 2 * 4 * evaluations("csd-edit", prior.guided_by)

    generator = torch.Generator().manual_seed(0)
    wanted = source + 0.2 * (latents - source)
    for t, following in ((800, 600), (600, 400), (400, 200), (200, 0)):
        s = t / 1000
        noisy_source = (1 - s) * source + s * torch.randn(source.shape, generator=generator)
        noisy = wanted + noisy_source - source
        velocities = [
            (guided_noise(prior, t, empty, condition, guidance, (rows, asked))[0] - rows) / (1 - s)
            for rows, asked in ((noisy, text), (noisy_source, None))
        ]
        wanted = wanted + (following - t) / 1000 * transport(velocities[0] - velocities[1], noisy)
    assert (wanted - source).abs().mean() > 0.05
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)


def test_a_pass_of_flow_edit_that_asks_for_nothing(
    model: SimpleNamespace, tiny_prior: Prior, views: torch.Tensor
) -> None:
    """The source stays where it is, no noise leaves everything, and another kind of prior is refused."""
    source, condition = model.prior.encode_source(views)
    options: Any = {"guidance": Guidance(3.0), "steps": 3}
    still = flow_edit(model.prior, source, source, condition, prompt="", start=900, **options)
    torch.testing.assert_close(still, source, rtol=0, atol=1e-4)
    far = source + 1
    assert torch.equal(flow_edit(model.prior, far, source, condition, prompt=PROMPT, start=0, **options), far)
    with pytest.raises(InputError, match="FlowEdit cannot ask this prior"):
        flow_edit(tiny_prior, source, source, condition, prompt=PROMPT, start=900, **options)


def test_views_of_a_flow_edit_may_share_their_noise(model: SimpleNamespace, views: torch.Tensor) -> None:
    source, condition = model.prior.encode_source(views[:1].expand(2, -1, -1, -1))
    options: Any = {"prompt": PROMPT, "guidance": Guidance(3.0), "start": 900, "steps": 2}
    shared = flow_edit(model.prior, source, source, condition, noise_sharing="shared", **options)
    torch.testing.assert_close(shared[0], shared[1], rtol=0, atol=1e-4)
    own = flow_edit(model.prior, source, source, condition, **options)
    assert (own[0] - own[1]).abs().max() > 1e-3


def test_csd_edit_is_zero_at_the_source_without_an_instruction(
    model: SimpleNamespace, views: torch.Tensor, generator
) -> None:
    objective = Objective(ObjectiveConfig(transport="independent"), model.prior)
    source, condition = model.prior.encode_source(views)
    still = objective.gradient(source, source, condition, prompt="", generator=generator)
    torch.testing.assert_close(still.gradient, torch.zeros_like(source), rtol=0, atol=1e-5)


def test_sampling_asks_as_often_as_guidance_needs(
    model: SimpleNamespace, views: torch.Tensor, generator
) -> None:
    source, condition = model.prior.encode_source(views)
    before = model.prior.unet_evaluations
    options: Any = {"prompt": PROMPT, "guidance": Guidance(), "start": 800, "generator": generator}
    sampled = sample_edit(model.prior, source, condition, steps=3, **options)
    assert sampled.isfinite().all() and not torch.equal(sampled, source)
    assert model.prior.unet_evaluations - before == 2 * 3 * evaluations("sds", model.prior.guided_by)


def test_timesteps_are_visited_as_by_the_pipelines_scheduler(model: SimpleNamespace) -> None:
    """At the model's own size of 64 x 64 tokens, in 50 steps."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(model.folder, subfolder="scheduler")
    klein = model.name.startswith("klein")
    longest = scheduler.config.max_image_seq_len
    mu = compute_empirical_mu(4096, 50) if klein else calculate_shift(4096, max_seq_len=longest)
    places = np.linspace(1, 1 / 50, 50)
    scheduler.set_timesteps(sigmas=places, mu=mu)
    ours = [shifted(place, model.prior.time_shift) for place in places]
    torch.testing.assert_close(scheduler.sigmas[:-1], torch.tensor(ours, dtype=torch.float32))


def test_in_half_precision_it_says_about_the_same(
    model: SimpleNamespace, views: torch.Tensor, generator
) -> None:
    half = load_prior(str(model.folder), device="cpu", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    noisy = torch.randn(2, model.prior.latent_channels, 8, 12, generator=generator)
    said, exact = (
        prior.predict_noise(noisy, T, prior.told([PROMPT, ""], shown), shown)
        for shown in [model.prior.condition(views)]
        for prior in (half, model.prior)
    )
    assert said.dtype == torch.float32
    assert 0 < (said - exact).abs().mean() < 0.02 * exact.abs().mean()


def test_from_the_hub_come_its_parts_and_nothing_else(
    model: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is a folder here: what is asked of it are patterns of names."""
    hub, cache = shutil.copytree(model.folder, tmp_path / "hub"), tmp_path / "cache"
    for unwanted in ("flux.safetensors", "transformer/pytorch_model.bin"):
        (hub / unwanted).write_bytes(b"")
    fetched: list[list[str]] = []

    def snapshot_download(hub_id: str, *, allow_patterns: list[str]) -> str:
        names = [str(file.relative_to(hub)) for file in sorted(hub.rglob("*")) if file.is_file()]
        fetched.append([name for name in names if any(fnmatch(name, wanted) for wanted in allow_patterns)])
        for name in fetched[-1]:
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(hub / name, cache / name)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    prior = load_prior("some/flow", device="cpu")
    shown = prior.condition(torch.rand(1, 3, 64, 64))
    assert type(prior) is type(model.prior) and len(prior.told([PROMPT], shown)) == 1
    configs, everything = fetched
    assert not any(name.endswith(".safetensors") for name in configs)  # checked before the rest comes
    assert not {"flux.safetensors", "transformer/pytorch_model.bin"} & set(everything)


def test_text_encoders_are_gone_after_use(model: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    prior, loaded = model.prior, []
    load_text = prior._load_text

    def recording() -> Any:
        models = load_text()
        loaded.extend(weakref.ref(encoder) for _, encoder in models)
        return models

    monkeypatch.setattr(prior, "_load_text", recording)
    shown = prior.condition(torch.rand(2, 3, 64, 96))
    first = prior.embed(["a new prompt", ""], shown)
    again = prior.embed(["a new prompt"], shown[:1])
    gc.collect()
    assert loaded and all(encoder() is None for encoder in loaded)
    assert len(loaded) == (2 if model.name.startswith("kontext") else 1)
    assert len(first) == 2 and len(again) == 1


def test_what_the_folder_says_is_what_the_prior_says(model: SimpleNamespace) -> None:
    assert guided_by(model.folder) == model.prior.guided_by
    assert model.prior.guided_by == (
        "text" if model.name in ("kontext without guidance", "klein", "qwen", "longcat") else "itself"
    )
    assert is_image_conditioned(model.folder) and model.prior.image_conditioned
    assert vae_factor(model.folder) == model.prior.vae_factor
    assert model.prior.schedule.is_flow


def test_the_price_of_a_round_asks_the_prior(model: SimpleNamespace) -> None:
    config = method_config("csd-edit", None)
    config.pipeline.prior = str(model.folder)
    pipeline = config.pipeline
    a_view = {"text": 3, "itself": 2}[model.prior.guided_by]
    expected = pipeline.particles * pipeline.descent.steps * a_view
    assert price_of(config) == Price(expected, pipeline.fits_per_round)
    pipeline.edit = "flow-edit"
    expected = pipeline.particles * pipeline.sampling.steps * a_view
    assert price_of(config) == Price(expected, pipeline.fits_per_round)


def test_it_can_be_asked_from_another_device(model: SimpleNamespace, views: torch.Tensor, generator) -> None:
    away: Prior = Elsewhere(model.prior, torch.device("cpu"))
    source, condition = away.encode_source(views)
    step, here = (
        Objective(ObjectiveConfig(), prior).gradient(
            source, source, condition, prompt=PROMPT, generator=torch.Generator().manual_seed(1)
        )
        for prior in (away, model.prior)
    )
    torch.testing.assert_close(step.gradient, here.gradient)


def test_a_picture_is_edited_from_the_command_line(
    model: SimpleNamespace, picture: Image.Image, tmp_path: Path
) -> None:
    photo, out = tmp_path / "photo.png", tmp_path / "out.png"
    picture.save(photo)
    handler = signal.getsignal(signal.SIGTERM)
    arguments = ["image", photo, "--prompt", PROMPT, "--prior", model.folder, "--output", out]
    main([*map(str, arguments), "--steps", "1", "--window-size", "64", "--device", "cpu"])
    signal.signal(signal.SIGTERM, handler)  # `main` is made for a process of its own
    assert (np.asarray(Image.open(out)) != np.asarray(picture)).any()


@pytest.mark.parametrize(
    "part",
    [
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "vae/config.json",
    ],
)
def test_missing_parts_are_named(model: SimpleNamespace, tmp_path: Path, part: str) -> None:
    folder = shutil.copytree(model.folder, tmp_path / "prior")
    reader = {"qwen": "processor", "longcat": "text_processor"}.get(model.name, "tokenizer")
    check_that_a_missing_part_is_named(folder, part.replace("tokenizer", reader, 1))


def test_weights_in_other_forms(model: SimpleNamespace, tmp_path: Path) -> None:
    """Those in half precision alone are taken, pickled ones alone are not."""
    half = shutil.copytree(model.folder, tmp_path / "half")
    for file in half.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    check_prior(str(half))
    loaded = load_prior(str(half), device="cpu", dtype=torch.float32)
    for name, loaded_weight in loaded.transformer.state_dict().items():  # type: ignore[attr-defined]
        torch.testing.assert_close(loaded_weight, model.prior.transformer.state_dict()[name])
    for file in half.glob("*/*.safetensors"):
        file.rename(file.with_suffix("").with_suffix(".bin"))
    with pytest.raises(InputError, match=r"missing parts(.|\n)*there are .bin weights"):
        check_prior(str(half))


def test_weights_that_are_not_in_the_files_are_not_made_up(model: SimpleNamespace, tmp_path: Path) -> None:
    folder = shutil.copytree(model.folder, tmp_path / "prior")

    def take_out(part: str, ending: str) -> None:
        (file,) = (folder / part).glob("*.safetensors")
        weights = load_file(file)
        weights.pop(next(name for name in weights if name.endswith(ending)))
        save_file(weights, file, metadata={"format": "pt"})

    take_out("text_encoder", "norm.weight" if "kontext" not in model.name else "final_layer_norm.weight")
    prior = load_prior(str(folder), device="cpu")
    shown = prior.condition(torch.rand(1, 3, 64, 64))
    with pytest.raises(InputError, match="text encoder in .* cannot be loaded(.|\n)*weights are missing"):
        prior.told([PROMPT], shown)
    for part in ("transformer", "vae"):
        take_out(part, ".weight")
        with pytest.raises(InputError, match="cannot be loaded(.|\n)*1 weights are missing"):
            load_prior(str(folder), device="cpu")
        shutil.copytree(model.folder / part, folder / part, dirs_exist_ok=True)


def test_what_needs_a_picture_and_has_none(model: SimpleNamespace) -> None:
    if not model.prior.text_sees_picture:
        model.prior.read_ahead([PROMPT])
        assert len(model.prior.embed([PROMPT])) == 1
        return
    with pytest.raises(InputError, match="text encoder looks at the picture, and is given none"):
        model.prior.embed([PROMPT])


def test_what_is_told_of_a_picture_depends_on_it(model: SimpleNamespace, views: torch.Tensor) -> None:
    condition = model.prior.condition(torch.cat([views, views[:1]]))
    told = model.prior.told([PROMPT], condition)
    if not model.prior.text_sees_picture:
        assert len(told) == 1
        return
    words, _ = told.parts
    assert (words[0] - words[1]).abs().max() > 1e-3 and torch.equal(words[0], words[2])
    empty, _ = model.prior.told([""], condition).parts
    length = min(empty.shape[1], words.shape[1])
    assert (empty[:, :length] - words[:, :length]).abs().max() > 1e-3


def test_a_gated_model_says_where_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import GatedRepoError

    def snapshot_download(hub_id: str, *, allow_patterns: list[str]) -> str:
        raise GatedRepoError(
            "Access to model is restricted.", response=SimpleNamespace(headers={}, request=None)
        )

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(
        InputError, match=r"agreed to its terms(.|\n)*huggingface.co/some/gated(.|\n)*hf auth"
    ):
        load_prior("some/gated", device="cpu")


def test_parts_of_other_models_are_refused(model: SimpleNamespace, tmp_path: Path) -> None:
    def changed(file: str, **changes: Any) -> str:
        folder = shutil.copytree(model.folder, tmp_path / file.replace("/", "-"))
        edit_json(folder / file, **changes)
        return str(folder)

    with pytest.raises(InputError, match="of a kind that cannot be used(.|\n)*FluxFillPipeline"):
        check_prior(changed("model_index.json", _class_name="FluxFillPipeline"))
    other = "Flux2KleinPipeline" if "klein" not in model.name else "FluxKontextPipeline"
    with pytest.raises(InputError, match="missing parts|part of another kind"):
        check_prior(changed("./model_index.json", _class_name=other))
    with pytest.raises(InputError, match="part of another kind(.|\n)*FlowMatchEulerDiscreteScheduler"):
        check_prior(changed("scheduler/scheduler_config.json", _class_name="DDIMScheduler"))
    with pytest.raises(InputError, match="not of one model(.|\n)*input channels(.|\n)*48 input channels"):
        check_prior(changed("transformer/config.json", in_channels=48))
    with pytest.raises(InputError, match="cannot be loaded(.|\n)*weights are missing"):
        load_prior(changed("transformer/../transformer/config.json", num_layers=3), device="cpu")


def test_what_cannot_be_combined(model: SimpleNamespace, control_net_folder: Path) -> None:
    with pytest.raises(InputError, match="shown the source picture already"):
        check_control(ControlConfig(str(control_net_folder), "depth"), model.folder)
    with pytest.raises(InputError, match="cannot be put into a prior of flow matching"):
        check_vae(str(bundled_path("tiny-instruct") / "vae"), model.folder)
