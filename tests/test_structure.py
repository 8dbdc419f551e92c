"""The structure loss against the formula in loops, through the U-Net, and in the objective."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from memory import peak_bytes
from torch import Tensor

from csd_nerf.distillation import (
    PRESETS,
    Objective,
    ObjectiveConfig,
    StructureConfig,
    Views,
    patch_nce,
    preset,
    structure_gradient,
)
from csd_nerf.errors import InputError
from csd_nerf.priors import Prior, load_prior
from csd_nerf.priors.stable_diffusion import StableDiffusion

PROMPTS = ("make it night", "make it winter")
CUT = StructureConfig(loss="cut")


@pytest.fixture(scope="module", params=["tiny_prior", "text_to_image_prior"])
def prior(request: pytest.FixtureRequest) -> Prior:
    """Either kind of prior."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def exact_prior(text_to_image_folder: Path) -> Prior:
    """The text-to-image model in float64."""
    return load_prior(str(text_to_image_folder), device="cpu", dtype=torch.float64, vae_dtype=torch.float32)


def moved_views(prior: Prior, count: int = 2, size: tuple[int, int] = (16, 24)) -> Views:
    """Views, wider than high, that have moved away from their source."""
    generator = torch.Generator().manual_seed(1)
    source, change, noise = torch.randn(3, count, prior.latent_channels, *size, generator=generator)
    target_text, source_text, empty_text = prior.embed([*PROMPTS, ""]).split(1)
    return Views(
        latents=source + 0.5 * change,
        source=source,
        condition=2 * source if prior.image_conditioned else source[:, :0],
        noise=noise,
        t=300,
        target_text=target_text,
        source_text=source_text,
        empty_text=empty_text,
    )


def draw_maps(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


# ------------------------------------------------------------------------------------------ the loss


def reference(target: list[Tensor], source: list[Tensor], config: StructureConfig, seed: int) -> list[float]:
    """The definition in loops: for each view, map and patch size, the log-odds of the right patch."""
    draw = torch.Generator().manual_seed(seed)
    losses = [0.0] * len(target[0])
    for edited, original in zip(target, source, strict=True):
        for size in config.patch_sizes:
            rows, columns = edited.shape[2] // size, edited.shape[3] // size
            places = [(row, column) for row in range(rows) for column in range(columns)]
            chosen = [places[i] for i in torch.randperm(len(places), generator=draw)[: config.num_patches]]
            for n in range(len(losses)):

                def patch(features: Tensor, place: tuple[int, int], n: int = n, size: int = size) -> Tensor:
                    top, left = size * place[0], size * place[1]
                    mean = features[n, :, top : top + size, left : left + size].mean((1, 2))
                    return mean / mean.square().sum().sqrt()

                asked, answers = (edited, original) if config.direction == "cut" else (original, edited)
                for place in chosen:
                    odds = [
                        math.exp(float(patch(asked, place) @ patch(answers, other)) / config.temperature)
                        for other in chosen
                    ]
                    right = odds[chosen.index(place)]
                    losses[n] -= math.log(right / sum(odds)) / len(chosen)
    return losses


@pytest.mark.parametrize("direction", ["cut", "released"])
@pytest.mark.parametrize(("patch_sizes", "num_patches"), [((1,), 256), ((1, 2), 256), ((2, 3), 3)])
def test_patch_nce_matches_the_loops(direction, patch_sizes, num_patches) -> None:
    shapes = ((2, 5, 4, 6), (2, 3, 7, 9))
    config = StructureConfig(
        patch_sizes=patch_sizes, num_patches=num_patches, temperature=0.3, direction=direction
    )
    target, source = draw_maps(0, *shapes), draw_maps(1, *shapes)
    losses = patch_nce(target, source, config, seed=5)
    torch.testing.assert_close(losses.tolist(), reference(target, source, config, seed=5))


@pytest.mark.parametrize("direction", ["cut", "released"])
def test_the_source_itself_is_the_best_of_all_permutations(direction) -> None:
    (source,) = draw_maps(0, (1, 6, 2, 3))
    config = StructureConfig(patch_sizes=(1,), direction=direction)
    at_source = patch_nce([source], [source], config).item()
    places = torch.cartesian_prod(*[torch.arange(6)] * 6)
    permutations = places[(places.sort(1).values == torch.arange(6)).all(1)]
    assert len(permutations) == 720
    shuffled = source.flatten(2)[0, :, permutations].movedim(1, 0).unflatten(2, (2, 3))  # (720, 6, 2, 3)
    losses = patch_nce([shuffled], [source.expand(720, -1, -1, -1)], config)
    assert losses.min().item() == pytest.approx(at_source)
    assert losses.sort().values[1] > at_source + 0.1


def test_the_released_direction_swaps_the_roles() -> None:
    shapes = ((2, 5, 4, 6), (2, 3, 8, 12))
    target, source = draw_maps(0, *shapes), draw_maps(1, *shapes)
    released = StructureConfig(direction="released")
    torch.testing.assert_close(patch_nce(target, source, released), patch_nce(source, target, CUT))
    assert not torch.allclose(patch_nce(target, source, released), patch_nce(target, source, CUT))


def test_gradient_goes_to_the_target_alone() -> None:
    (target,), (source,) = draw_maps(0, (1, 3, 2, 4)), draw_maps(1, (1, 3, 2, 4))
    target.requires_grad_()
    source.requires_grad_()
    assert torch.autograd.gradcheck(lambda edited: patch_nce([edited], [source.detach()], CUT), (target,))
    patch_nce([target], [source], CUT).sum().backward()
    assert target.grad is not None and source.grad is None


def test_half_precision_maps_are_compared_in_float32() -> None:
    target, source = ([features.half() for features in draw_maps(seed, (1, 64, 8, 8))] for seed in (0, 1))
    losses = patch_nce(target, source, CUT)
    assert losses.dtype == torch.float32
    exact = patch_nce([target[0].double()], [source[0].double()], CUT)
    torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=0)


# ---------------------------------------------------------------------------------------- the features


def maps_of(prior: Prior, views: Views) -> list[Tensor]:
    noisy = prior.schedule.add_noise(views.latents, views.noise, views.t)
    texts = views.target_text.expand(len(noisy), -1, -1)
    return prior.self_attention_features(noisy, views.t, texts, views.condition)


@torch.no_grad()
def test_features_are_the_layers_outputs_folded_to_their_true_size(prior: Prior) -> None:
    views = moved_views(prior, size=(10, 12))  # 10, 5 and 3 rows at the three levels, 12, 6 and 3 columns
    tokens = []
    layers = [module for name, module in prior.unet.up_blocks.named_modules() if name.endswith("attn1")]
    hooks = [layer.register_forward_hook(lambda *call: tokens.append(call[2])) for layer in layers]
    maps = maps_of(prior, views)
    for hook in hooks:
        hook.remove()
    assert [tuple(features.shape[2:]) for features in maps] == [(3, 3)] * 2 + [(5, 6)] * 2
    assert len(maps) == prior.self_attention_layers == len(tokens)
    for features, flat in zip(maps, tokens, strict=True):
        width = features.shape[3]
        for row, column in ((0, 1), (2, 0), (2, 2)):
            assert torch.equal(features[:, :, row, column], flat[:, row * width + column])


@torch.no_grad()
def test_fused_attention_gives_the_features_of_explicit_attention(prior: Prior) -> None:
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    views = moved_views(prior)
    before = dict(prior.unet.attn_processors)
    fused = maps_of(prior, views)
    assert all(type(processor) is AttnProcessor2_0 for processor in before.values())
    assert prior.unet.attn_processors == before  # recording replaces none
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in prior.unet.modules())
    prior.unet.set_attn_processor(AttnProcessor())
    explicit = maps_of(prior, views)
    prior.unet.set_attn_processor(before)
    for ours, theirs in zip(fused, explicit, strict=True):
        assert theirs.std() > 1e-3
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_features_are_of_the_branch_with_picture_and_prompt(tiny_prior: Prior) -> None:
    views = moved_views(tiny_prior)
    other_text, other_picture = (
        replace(views, target_text=views.empty_text),
        replace(views, condition=torch.zeros_like(views.condition)),
    )
    with torch.no_grad():
        maps = maps_of(tiny_prior, views)[-1]
        for other in (other_text, other_picture):
            assert (maps_of(tiny_prior, other)[-1] - maps).abs().max() > 1e-3


# ---------------------------------------------------------------------------------------- the gradient


@pytest.mark.parametrize("config", [CUT, StructureConfig(loss="cut", layers=(3,), direction="released")])
def test_gradient_through_the_u_net_is_the_finite_difference(
    exact_prior: Prior, config: StructureConfig
) -> None:
    views = moved_views(exact_prior)
    views = replace(
        views, latents=views.latents.double(), source=views.source.double(), noise=views.noise.double()
    )
    seed = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(2)))
    source = maps_of(exact_prior, replace(views, latents=views.source, target_text=views.source_text))

    @torch.no_grad()
    def loss(latents: Tensor) -> Tensor:
        target = maps_of(exact_prior, replace(views, latents=latents))
        layers = config.layers or range(len(target))
        return patch_nce([target[i] for i in layers], [source[i] for i in layers], config, seed=seed)

    losses, gradient = structure_gradient(
        exact_prior, views, config, generator=torch.Generator().manual_seed(2)
    )
    torch.testing.assert_close(losses, loss(views.latents))
    derivative = gradient / (config.weight * 16 * 24 / 2000)
    step = 1e-4
    for view, channel, row, column in ((0, 0, 0, 0), (0, 3, 15, 23), (1, 1, 3, 6), (1, 2, 12, 9)):
        nudge = torch.zeros_like(views.latents)
        nudge[view, channel, row, column] = step
        slope = (loss(views.latents + nudge) - loss(views.latents - nudge)) / (2 * step)
        assert slope[view].abs() > 1e-6 and slope[1 - view] == 0
        torch.testing.assert_close(derivative[view, channel, row, column], slope[view], rtol=1e-4, atol=1e-8)


def test_half_precision_keeps_the_gradient(text_to_image_folder: Path) -> None:
    """Of features so large that the gradient at each of them is too small for float16."""
    gradients = []
    for dtype in (torch.float16, torch.float32):
        prior = load_prior(str(text_to_image_folder), device="cpu", dtype=dtype)
        for name, layer in prior.unet.up_blocks.named_modules():
            if name.endswith("attn1"):
                layer.to_out[0].weight.mul_(3000)
        views = moved_views(prior, 1, (32, 32))
        generator = torch.Generator().manual_seed(0)
        gradients.append(structure_gradient(prior, views, CUT, generator=generator)[1].flatten())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.9999
    assert gradients[0].norm() / gradients[1].norm() == pytest.approx(1, abs=1e-3)


def test_micro_batches_change_nothing(prior: Prior, monkeypatch) -> None:
    views = moved_views(prior, count=3)
    config = StructureConfig(loss="cut", num_patches=10)
    results = []
    for size in (1, 2, 100):
        monkeypatch.setattr(prior, "unet_batch_size", size)
        before = prior.unet_evaluations
        results.append(structure_gradient(prior, views, config, generator=torch.Generator().manual_seed(0)))
        assert prior.unet_evaluations - before == 2 * 3
    for losses, gradient in results[1:]:
        torch.testing.assert_close(losses, results[0][0])
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-3, atol=1e-5)


def test_memory_does_not_grow_with_the_views(text_to_image_prior: Prior, monkeypatch) -> None:
    monkeypatch.setattr(text_to_image_prior, "unet_batch_size", 1)

    def peak(count: int) -> int:
        views = moved_views(text_to_image_prior, count, (16, 16))
        return peak_bytes(lambda: structure_gradient(text_to_image_prior, views, CUT))

    one, four = peak(1), peak(4)
    latents = 4 * (4 * 16 * 16)
    assert one > 30 * latents
    assert four - one < 3 * 6 * latents  # gradients and copies of latents; no activations


def test_activations_are_computed_again_instead_of_kept(text_to_image_prior: Prior) -> None:
    views = moved_views(text_to_image_prior)

    def gradient() -> Tensor:
        return structure_gradient(
            text_to_image_prior, views, CUT, generator=torch.Generator().manual_seed(0)
        )[1]

    again, peak_again = gradient(), peak_bytes(gradient)
    text_to_image_prior.unet.disable_gradient_checkpointing()
    kept, peak_kept = gradient(), peak_bytes(gradient)
    text_to_image_prior.unet.enable_gradient_checkpointing()
    torch.testing.assert_close(again, kept)
    assert peak_again < 0.6 * peak_kept


def test_an_instruction_model_reads_the_source_without_instruction(tiny_prior: Prior) -> None:
    views = moved_views(tiny_prior)
    still = replace(views, latents=views.source, target_text=views.empty_text)
    maps = maps_of(tiny_prior, still)
    losses, _ = structure_gradient(tiny_prior, still, CUT, generator=torch.Generator().manual_seed(0))
    seed = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(losses, patch_nce(maps, maps, CUT, seed=seed).detach())


# --------------------------------------------------------------------------------------- the objective


def run(config: ObjectiveConfig, prior: Prior, views: Views):
    return Objective(config, prior).gradient(
        views.latents,
        views.source,
        views.condition,
        prompt=PROMPTS[0],
        source_prompt=PROMPTS[1],
        generator=torch.Generator().manual_seed(0),
    )


def test_cds_without_weight_is_dds(text_to_image_prior: Prior) -> None:
    views = moved_views(text_to_image_prior)
    weightless = replace(preset("cds"), structure=StructureConfig(loss="cut", weight=0.0))
    dds = run(preset("dds"), text_to_image_prior, views)
    assert torch.equal(run(weightless, text_to_image_prior, views).gradient, dds.gradient)


@pytest.mark.parametrize(
    ("config", "kind", "residual_evaluations"),
    [
        (preset("cds"), "text_to_image_prior", 4),
        (ObjectiveConfig(structure=StructureConfig(loss="cut")), "tiny_prior", 5),
        (replace(preset("csd"), structure=StructureConfig(loss="cut")), "tiny_prior", 3),
    ],
)
def test_the_structure_gradient_is_added(
    request: pytest.FixtureRequest, config: ObjectiveConfig, kind: str, residual_evaluations: int
) -> None:
    prior = request.getfixturevalue(kind)
    views = moved_views(prior)
    both = run(config, prior, views)
    without = run(replace(config, structure=StructureConfig()), prior, views)
    assert both.timestep == without.timestep and not both.gradient.requires_grad

    generator = torch.Generator().manual_seed(0)
    first, last = (round(bound * 999) for bound in (config.min_timestep, config.max_timestep))
    t = int(torch.randint(first, last + 1, (), generator=generator))
    noise = torch.randn(views.latents.shape, generator=generator)
    losses, pull = structure_gradient(prior, replace(views, t=t, noise=noise), CUT, generator=generator)
    assert pull.abs().max() > 1e-4
    torch.testing.assert_close(both.gradient, without.gradient + pull)
    assert both.statistics["structure_loss"] == pytest.approx(losses.mean().item())
    assert "structure_loss" not in without.statistics
    assert without.statistics["unet_evaluations"] == 2 * residual_evaluations
    assert both.statistics["unet_evaluations"] == 2 * (residual_evaluations + 2)


def test_descending_the_structure_loss_lowers_it(text_to_image_prior: Prior) -> None:
    views = moved_views(text_to_image_prior)
    before, gradient = structure_gradient(text_to_image_prior, views, CUT)
    moved = replace(views, latents=views.latents - 0.05 * gradient / gradient.abs().max())
    after, _ = structure_gradient(text_to_image_prior, moved, CUT)
    assert (after < before).all()


# ----------------------------------------------------------------------------------------- the presets


def test_csd_with_one_view_is_sds(prior: Prior) -> None:
    views = moved_views(prior, count=1)
    assert torch.equal(run(preset("csd"), prior, views).gradient, run(preset("sds"), prior, views).gradient)
    two = moved_views(prior)
    assert not torch.equal(run(preset("csd"), prior, two).gradient, run(preset("sds"), prior, two).gradient)


@pytest.mark.parametrize(
    ("name", "residual", "transport", "structure", "first", "last", "text_guidance"),
    [
        ("sds", "sds", "independent", "none", 20, 979, 100),
        ("csd", "sds", "svgd", "none", 20, 979, 100),
        ("dds", "dds", "independent", "none", 50, 948, 7.5),
        ("csd-edit", "csd-edit", "svgd", "none", 200, 500, 7.5),
        ("cds", "dds", "independent", "cut", 50, 948, 7.5),
        ("pds", "pds", "independent", "none", 21, 979, 100),
    ],
)
def test_presets_are_as_published(
    name: str, residual, transport, structure, first: int, last: int, text_guidance: float
) -> None:
    config = preset(name)
    assert (config.residual, config.transport, config.structure.loss) == (residual, transport, structure)
    assert (round(config.min_timestep * 999), round(config.max_timestep * 999)) == (first, last)
    assert config.text_guidance == text_guidance and config.weighting == "published"


def test_presets_are_copies() -> None:
    preset("cds").structure.weight = 0.0
    assert preset("cds").structure.weight == 3.0
    assert set(PRESETS) == {"sds", "csd", "dds", "csd-edit", "cds", "pds"}


def test_a_preset_that_does_not_exist() -> None:
    with pytest.raises(InputError, match="csd-edit, cds, pds(.|\n)*'vsd'"):
        preset("vsd")


# ------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", -1.0), ("weight", math.nan), ("layers", (-1,)), ("patch_sizes", ()),
        ("patch_sizes", (0, 1)), ("num_patches", 1), ("temperature", 0.0), ("temperature", math.inf),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(name: str, value: object) -> None:
    config = ObjectiveConfig(structure=replace(CUT, **{name: value}))
    with pytest.raises(InputError, match=f"this {name}(.|\n)*structure.{name.replace('_', '-')}"):
        config.check(particles=4, source_prompt="")


def test_layers_that_the_prior_does_not_have(tiny_prior: Prior) -> None:
    Objective(ObjectiveConfig(structure=StructureConfig(loss="cut", layers=(0, 3))), tiny_prior)
    with pytest.raises(InputError, match="from 0 to 3(.|\n)*layers 1 4"):
        Objective(ObjectiveConfig(structure=StructureConfig(loss="cut", layers=(1, 4))), tiny_prior)


def test_a_prior_without_self_attention(text_to_image_prior: StableDiffusion) -> None:
    from diffusers import UNet2DConditionModel

    config = text_to_image_prior.unet.config
    convolutional = UNet2DConditionModel.from_config(
        {**config, "up_block_types": ["UpBlock2D"] * 3, "down_block_types": ["DownBlock2D"] * 3}
    )
    prior = StableDiffusion(
        unet=convolutional,
        vae=text_to_image_prior.vae,
        load_text=text_to_image_prior._load_text,
        schedule=text_to_image_prior.schedule,
        unet_batch_size=1,
        vae_batch_size=1,
    )
    assert prior.self_attention_layers == 0
    Objective(preset("dds"), prior)
    with pytest.raises(InputError, match="looks at self-attention, and the prior has none"):
        Objective(preset("cds"), prior)


def test_views_too_small_for_two_patches(text_to_image_prior: Prior) -> None:
    views = moved_views(text_to_image_prior, size=(4, 8))  # 1 x 2 in the coarsest layer
    with pytest.raises(InputError, match="two patches of 2 x 2(.|\n)*a map of 1 x 2"):
        structure_gradient(text_to_image_prior, views, CUT)
    losses, _ = structure_gradient(text_to_image_prior, views, replace(CUT, patch_sizes=(1,)))
    assert losses.isfinite().all()
