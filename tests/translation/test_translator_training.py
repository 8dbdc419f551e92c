"""Translators: what they learn from an objective, at any size, interrupted or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from csd_nerf.distillation import DescentConfig, Objective, ObjectiveConfig, edit_latents
from csd_nerf.editors.observer import Observer
from csd_nerf.errors import InputError
from csd_nerf.evaluation.pixels import psnr
from csd_nerf.priors import Prior, load_prior
from csd_nerf.scenes.operators import OPERATORS
from csd_nerf.translation import model_file
from csd_nerf.translation.crops import Crops
from csd_nerf.translation.learner import Learner
from csd_nerf.translation.model_file import TrainedTranslator, load_translator, save_translator
from csd_nerf.translation.network import REACH, Translator
from csd_nerf.translation.settings import TranslatorSettings
from csd_nerf.translation.training import distillation_loss, train_translator

NIGHT, WINTER = OPERATORS["night"], OPERATORS["winter"]


def photos(count: int = 3, height: int = 48, width: int = 64) -> list[Tensor]:
    """Smooth pictures of many colours."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 5, 7, generator=generator)
    return list(torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1))


def settings(**given: Any) -> TranslatorSettings:
    return TranslatorSettings(
        **{"prior": "tiny-instruct", "size": 32, "steps": 4, "particles": 2, "precision": "float32"} | given
    )


def any_translator(targets: int = 1) -> TrainedTranslator:
    """One that changes something."""
    torch.manual_seed(0)
    network = Translator(targets)
    for layer in network.change:
        nn.init.normal_(layer.weight)
    return TrainedTranslator(network.eval(), tuple("abc"[:targets]), {})


class Held(nn.Module):
    """In the place of a network: pictures that it gives whatever it is given."""

    def __init__(self, pictures: Tensor) -> None:
        super().__init__()
        self.pictures = nn.Parameter(pictures)

    def forward(self, before: Tensor, target: int) -> Tensor:
        return self.pictures


class Kept(Observer):
    """Keeps the state in memory, and stops after some steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.saved: tuple[int, Tensor] | None = None
        self.identity: dict[str, Any] = {}

    def resume(self, identity: dict[str, Any], latents: Tensor) -> int:
        self.identity = identity
        if self.saved is None:
            return 0
        latents.copy_(self.saved[1])
        return self.saved[0]

    def step(self, steps: int, latents: Tensor, draw: Callable[[], Any]) -> None:
        if steps == self.stop_after:
            self.saved = (steps, latents.clone())
            self.stop_after = None
            raise KeyboardInterrupt


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (64, 48), (131, 30)])
def test_an_untrained_network_changes_nothing_at_any_size(size: tuple[int, int]) -> None:
    picture = torch.rand(3, *size)
    assert torch.equal(TrainedTranslator(Translator(2), ("a", "b"), {}).translate(picture, 1), picture)


def test_strips_of_a_large_picture_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    translator, picture = any_translator(), torch.rand(3, 203, 30)
    whole = translator.translate(picture, 0)
    assert (whole - picture).abs().mean() > 0.05
    monkeypatch.setattr(model_file, "ROWS", 64)
    assert torch.allclose(translator.translate(picture, 0), whole, atol=1e-5)
    # What is farther away than the network reaches has no say; what is near has.
    other = picture.clone()
    other[:, 100 + REACH :] = 0
    changed = (translator.translate(other, 0) - whole).abs().amax((0, 2))
    assert changed[:100].max() < 1e-5 < changed[100:].max()


def test_the_gradient_is_the_step_of_an_edit_of_these_pictures(tiny_prior: Prior) -> None:
    """As `edit_latents` takes it: of the same pictures, with the same noise, at the same timestep."""
    before, after = (torch.stack(photos(4, 32, 32))[part].clone() for part in (slice(2), slice(2, 4)))
    objective = Objective(ObjectiveConfig(text_guidance=3.0), tiny_prior)
    held = Held(after)
    distillation_loss(
        held,  # type: ignore[arg-type]
        before,
        0,
        objective,
        prompt=NIGHT.instruction,
        source_prompt="",
        step_length=0.5,
        identity_weight=0.0,
        generator=torch.Generator().manual_seed(3),
    ).backward()
    start = tiny_prior.encode(after)
    end = edit_latents(
        objective,
        start,
        *tiny_prior.encode_source(before),
        prompt=NIGHT.instruction,
        descent=DescentConfig(steps=1, learning_rate=0.5),
        generator=torch.Generator().manual_seed(3),
    )
    change = tiny_prior.decode(end) - tiny_prior.decode(start)
    assert change.abs().max() > 0.01
    assert held.pictures.grad is not None
    inside = ((after + change) > 0) & ((after + change) < 1)
    assert inside.float().mean() > 0.8
    assert torch.allclose(held.pictures.grad[inside], -change[inside] / 2, atol=1e-6)


def test_what_left_the_range_of_colours_is_led_back(tiny_prior: Prior) -> None:
    before = torch.stack(photos(1, 32, 32))
    held = Held(before * 4 - 1.5)
    distillation_loss(
        held,  # type: ignore[arg-type]
        before,
        0,
        Objective(ObjectiveConfig(), tiny_prior),
        prompt=NIGHT.instruction,
        source_prompt="",
        step_length=0.1,
        identity_weight=0.0,
    ).backward()
    assert held.pictures.grad is not None
    assert (held.pictures.grad[held.pictures > 1] > 0).all()
    assert (held.pictures.grad[held.pictures < 0] < 0).all()


def test_the_identity_term_pulls_back_to_the_source(tiny_prior: Prior) -> None:
    before = torch.stack(photos(2, 32, 32))
    held = Held(NIGHT.apply(before))
    objective = Objective(ObjectiveConfig(), tiny_prior)

    def gradient(weight: float) -> Tensor:
        loss = distillation_loss(
            held,  # type: ignore[arg-type]
            before,
            0,
            objective,
            prompt=NIGHT.instruction,
            source_prompt="",
            step_length=0.1,
            identity_weight=weight,
            generator=torch.Generator().manual_seed(0),
        )
        return torch.autograd.grad(loss, held.pictures)[0]

    pull = gradient(0.0) - gradient(1.0)
    assert ((before - held.pictures) * pull).sum() > 0


def test_the_learner_is_adam_with_an_average() -> None:
    torch.manual_seed(0)
    mine, reference = nn.Linear(3, 2), nn.Linear(3, 2)
    reference.load_state_dict(mine.state_dict())
    learner = Learner(mine)
    adam = torch.optim.Adam(reference.parameters(), lr=0.1, betas=(0.9, 0.99))
    average = mine.weight.detach().clone()
    for step in range(5):
        inputs = torch.randn(4, 3)
        learner.descend(mine(inputs).square().sum(), step, 0.1)
        adam.zero_grad()
        reference(inputs).square().sum().backward()
        adam.step()
        average.lerp_(reference.weight.detach(), 9 / (step + 10))
    assert torch.allclose(mine.weight, reference.weight, atol=1e-5)
    learner.show_average()
    assert torch.allclose(mine.weight, average, atol=1e-5)
    learner.show_weights()
    assert torch.allclose(mine.weight, reference.weight, atol=1e-5)


def test_an_interrupted_training_goes_on_exactly(tiny_prior: Prior) -> None:
    def train(observer: Observer) -> Tensor:
        torch.rand(7)  # what was drawn before has no say
        translator, _ = train_translator(
            photos(), ["make it night", "make it autumn"], settings(), loaded=tiny_prior, observer=observer
        )
        return torch.cat([value.flatten() for value in translator.network.state_dict().values()])

    unbroken = train(Observer())
    for steps in (1, 2, 4):  # the last is after the training, before its file is written
        kept = Kept(stop_after=steps)
        with pytest.raises(KeyboardInterrupt):
            train(kept)
        assert torch.equal(train(kept), unbroken)
    assert {"prompts", "pictures", "size", "steps", "text_guidance"} <= kept.identity.keys()


def test_two_targets_are_learnt(tiny_prior: Prior) -> None:
    pictures = photos(6, 32, 32)
    unseen = torch.stack(photos(8, 32, 32)[6:])
    prompts = [NIGHT.instruction, WINTER.instruction]
    translator, _ = train_translator(
        pictures,
        prompts,
        settings(steps=16, particles=4, text_guidance=1.5),
        loaded=tiny_prior,
    )
    for number, operator in enumerate((NIGHT, WINTER)):
        truth = operator.apply(unseen)
        after = torch.stack([translator.translate(picture, number) for picture in unseen])
        gain = (psnr(after, truth) - psnr(unseen, truth)).mean()
        assert gain > 3, f"{operator.name} gains {gain:.1f} dB"


@pytest.mark.parametrize("method", ["dds", "cds", "sds"])
def test_the_objectives_of_text_to_image_models(method: Any) -> None:
    prior = load_prior("tiny-sd", device="cpu", dtype=torch.float32)
    source_prompt = "" if method == "sds" else "a photo"
    given = settings(method=method, prior="tiny-sd", source_prompt=source_prompt, steps=1, size=64)
    translator, crops = train_translator(photos(), ["a photo at night"], given, loaded=prior)
    before = crops.shown(1)[0]
    assert not torch.equal(translator.translate(before, 0), before)
    assert translator.made_by == {"method": method, "prior": "tiny-sd", "size": "64"}


def test_crops_are_whole_pictures_or_parts_of_them() -> None:
    crops = Crops([torch.full((3, 20, 90), 0.25), torch.full((3, 200, 100), 0.75)], 32)
    drawn = crops.draw(40, torch.Generator().manual_seed(0))
    assert drawn.shape == (40, 3, 32, 32)
    values = drawn.flatten(1).mean(1)
    assert 5 < (values < 0.5).sum() < 35
    assert torch.equal(drawn, crops.draw(40, torch.Generator().manual_seed(0)))
    assert crops.digest != Crops([torch.full((3, 20, 90), 0.25)], 32).digest


def test_a_file_gives_the_same_translator(tmp_path: Any) -> None:
    translator = any_translator(2)
    save_translator(translator, tmp_path / "it.safetensors")
    again = load_translator(tmp_path / "it.safetensors")
    picture = torch.rand(3, 30, 20)
    assert torch.equal(again.translate(picture, 1), translator.translate(picture, 1))
    assert again.prompts == ("a", "b")
    assert again.target("b") == 1
    with pytest.raises(InputError, match="has several targets"):
        again.target(None)
    with pytest.raises(InputError, match="no such target"):
        again.target("c")
