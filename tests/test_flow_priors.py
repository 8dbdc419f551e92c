"""FLUX.1 Kontext and FLUX.2 klein as priors, against diffusers' own pipelines: small ones, untrained."""

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
)

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
from csd_nerf.errors import InputError
from csd_nerf.priors import ControlConfig, Prior, check_control, check_prior, check_vae, load_prior
from csd_nerf.priors.elsewhere import Elsewhere
from csd_nerf.priors.folder import guided_by, is_image_conditioned, vae_factor

PROMPT = "make it night"
T = 600

MODELS: dict[str, tuple[Any, dict[str, bool]]] = {
    "kontext": (save_flux_kontext, {}),
    "kontext without guidance": (save_flux_kontext, {"guidance_embeds": False}),
    "klein": (save_flux2_klein, {}),
    "klein distilled": (save_flux2_klein, {"is_distilled": True}),
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


def test_one_step_equals_the_pipelines(
    model: SimpleNamespace, picture: Image.Image, views: torch.Tensor, generator
) -> None:
    """From s = 0.6 to 0 in one: the clean latents that the prediction stands for."""
    import diffusers

    prior: Any = model.prior
    start = torch.randn(1, 16, 8, 12, generator=generator)
    source, condition = prior.encode_source(views[:1])
    texts = prior.embed([PROMPT, ""])
    (noise,) = guided_noise(prior, T, texts[1:], condition, Guidance(4.0), (start, texts[:1]))
    ours = prior._unscaled(ddim_step(prior.schedule, noise, start, T, 0))

    pipeline = diffusers.DiffusionPipeline.from_pretrained(model.folder, use_safetensors=True)
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipeline.set_progress_bar_config(disable=True)
    options = {"image": picture, "prompt": PROMPT, "height": 64, "width": 96, "sigmas": [T / 1000]}
    options |= {"num_inference_steps": 1, "output_type": "latent"}
    if model.name.startswith("klein"):
        theirs = pipeline(latents=start, guidance_scale=4.0, **options).images
    else:
        packed = pipeline._pack_latents(torch.nn.functional.pixel_shuffle(start, 2), 1, 4, 16, 24)
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
    noisy = torch.randn(3, 16, 8, 12, generator=generator)
    text = model.prior.embed([PROMPT, "winter", ""])
    condition = model.prior.condition(torch.cat([views, views[:1].flip(2)]))
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
    with pytest.raises(InputError, match="structure loss cut"):
        config.structure.loss = "cut"
        Objective(config, model.prior)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_dvrf_compares_velocities(model: SimpleNamespace, views: torch.Tensor, generator, eta: float) -> None:
    """Its definition, with the transformer's own velocities v = (e - z) / (1 - s)."""
    prior = model.prior
    source, condition = prior.encode_source(views)
    latents = source + 0.3 * torch.randn(source.shape, generator=generator)
    noise = torch.randn(source.shape, generator=generator)
    texts = prior.embed([PROMPT, ""])
    guidance, s = Guidance(4.0), T / 1000

    def velocity(noisy: torch.Tensor, text: Any) -> torch.Tensor:
        (answer,) = guided_noise(prior, T, texts[1:], condition, guidance, (noisy, text))
        return (answer - noisy) / (1 - s)

    noisy_source = (1 - s) * source + s * noise
    noisy = (1 - s) * latents + s * noise + eta * s * (latents - source)
    change = velocity(noisy, texts[:1]) - velocity(noisy_source, None) + (1 - eta) * (latents - source)
    asked = Views(latents, source, condition, noise, T, texts[:1], texts[1:], texts[1:], eta)
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
    texts = prior.embed([PROMPT, ""])
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
            (guided_noise(prior, t, texts[1:], condition, guidance, (rows, text))[0] - rows) / (1 - s)
            for rows, text in ((noisy, texts[:1]), (noisy_source, None))
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
    shared = flow_edit(model.prior, source, source, condition, shared_noise=True, **options)
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
    mu = compute_empirical_mu(4096, 50) if klein else calculate_shift(4096)
    places = np.linspace(1, 1 / 50, 50)
    scheduler.set_timesteps(sigmas=places, mu=mu)
    ours = [shifted(place, model.prior.time_shift) for place in places]
    torch.testing.assert_close(scheduler.sigmas[:-1], torch.tensor(ours, dtype=torch.float32))


def test_in_half_precision_it_says_about_the_same(
    model: SimpleNamespace, views: torch.Tensor, generator
) -> None:
    half = load_prior(str(model.folder), device="cpu", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    noisy = torch.randn(2, 16, 8, 12, generator=generator)
    said, exact = (
        prior.predict_noise(noisy, T, prior.embed([PROMPT, ""]), prior.condition(views))
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
    assert type(prior) is type(model.prior) and len(prior.embed([PROMPT])) == 1
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
    first = prior.embed(["a new prompt", ""])
    again = prior.embed(["a new prompt"])
    gc.collect()
    assert loaded and all(encoder() is None for encoder in loaded)
    assert len(loaded) == (1 if model.name.startswith("klein") else 2)
    assert len(first) == 2 and len(again) == 1


def test_what_the_folder_says_is_what_the_prior_says(model: SimpleNamespace) -> None:
    assert guided_by(model.folder) == model.prior.guided_by
    assert model.prior.guided_by == (
        "text" if model.name in ("kontext without guidance", "klein") else "itself"
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
    (folder / "tokenizer/vocab.json").unlink(missing_ok=True)
    check_that_a_missing_part_is_named(folder, part)


def test_parts_of_other_models_are_refused(model: SimpleNamespace, tmp_path: Path) -> None:
    def changed(file: str, **changes: Any) -> str:
        folder = shutil.copytree(model.folder, tmp_path / file.replace("/", "-"))
        edit_json(folder / file, **changes)
        return str(folder)

    with pytest.raises(InputError, match="of a kind that cannot be used(.|\n)*FluxFillPipeline"):
        check_prior(changed("model_index.json", _class_name="FluxFillPipeline"))
    with pytest.raises(InputError, match="part of another kind(.|\n)*FlowMatchEulerDiscreteScheduler"):
        check_prior(changed("scheduler/scheduler_config.json", _class_name="DDIMScheduler"))
    with pytest.raises(InputError, match="not of one model(.|\n)*16 input channels(.|\n)*64 input channels"):
        check_prior(changed("transformer/config.json", in_channels=64))
    with pytest.raises(InputError, match="cannot be loaded(.|\n)*weights are missing"):
        load_prior(changed("transformer/../transformer/config.json", num_layers=2), device="cpu")
    deeper = {"num_hidden_layers": 40, "layer_types": ["full_attention"] * 40}
    broken = load_prior(changed("text_encoder/config.json", **deeper), device="cpu")
    with pytest.raises(InputError, match="text encoder in .* cannot be loaded(.|\n)*weights are missing"):
        broken.embed([PROMPT])


def test_what_cannot_be_combined(model: SimpleNamespace, control_net_folder: Path) -> None:
    with pytest.raises(InputError, match="shown the source picture already"):
        check_control(ControlConfig(str(control_net_folder), "depth"), model.folder)
    with pytest.raises(InputError, match="cannot be put into a prior of flow matching"):
        check_vae(str(bundled_path("tiny-instruct") / "vae"), model.folder)
