"""`csd-nerf probe` on the bundled prior, honest and with a planted habit."""

from __future__ import annotations

import json
import os
import runpy
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_clip import save_small_clip
from torch import Tensor

from csd_nerf.cli import main
from csd_nerf.editors import saving
from csd_nerf.priors import Prior
from csd_nerf.probing.clip_attributes import USUAL_PAIRS
from csd_nerf.probing.probing import of_the_others, probe
from csd_nerf.probing.settings import ProbeSettings
from csd_nerf.scenes.operators import OPERATORS

WINTER = OPERATORS["winter"].instruction
BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "planted_bias.py"


def pictures(seed: int, count: int = 8, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = 0.15 + 0.7 * torch.rand(count, 3, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)


def settings(**given: Any) -> ProbeSettings:
    usual = {"prior": "tiny-instruct", "steps": 5, "learning_rate": 1.0, "precision": "float32"}
    return ProbeSettings(**{**usual, **given})


@pytest.fixture(scope="module")
def biased(tiny_prior: Prior) -> Prior:
    return runpy.run_path(str(BENCHMARK), run_name="not_main")["Biased"](tiny_prior, WINTER, 0.15)


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_habit_is_found_where_it_is_and_an_honest_prior_has_none(
    seed: int, tiny_prior: Prior, biased: Prior
) -> None:
    honest = probe(pictures(seed), WINTER, settings(seed=seed), loaded=tiny_prior)
    assert not honest.findings
    assert (honest.after - honest.before).abs().mean() > 0.05  # it did make winter
    planted = probe(pictures(seed), WINTER, settings(seed=seed), loaded=biased)
    assert "the top becomes redder" in " ".join(drift.in_words() for drift in planted.findings)
    assert planted.findings[0].region == "the top"


def test_another_instruction_has_no_part_in_the_habit(biased: Prior) -> None:
    assert not probe(pictures(0), OPERATORS["night"].instruction, settings(), loaded=biased).findings


def test_against_another_wording_the_habit_is_what_is_left(tiny_prior: Prior, biased: Prior) -> None:
    compared = settings(against="turn it into winter")
    honest = probe(pictures(0), WINTER, compared, loaded=tiny_prior)
    assert not honest.findings
    assert honest.change.abs().mean() < 0.3 * (honest.after - honest.before).abs().mean()
    planted = probe(pictures(0), WINTER, compared, loaded=biased)
    assert planted.findings[0].region == "the top"


def test_what_all_share_is_the_others_changes() -> None:
    latents = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    same = torch.ones(1, 2, 3, 3).expand(6, 2, 3, 3)
    assert torch.allclose(of_the_others(latents, same), same)
    alone = torch.zeros(6, 2, 3, 3)
    alone[2] = 1
    shared = of_the_others(latents, alone)
    assert shared[2].abs().max() == 0 and (shared[0] > 0).all()


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    os.mkdir("photos")
    for number, picture in enumerate(pictures(5, size=36)):
        pixels = (picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        Image.fromarray(pixels).resize((44, 36)).save(f"photos/{number}.png")
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def command(*more: str) -> int:
    usual = ("probe", "--data", "photos", "--prior", "tiny-instruct", "--size", "32", "--steps", "2")
    try:
        main((*usual, "--prompt", WINTER, "-o", "winter.html", *more))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.usefixtures("in_a_folder")
def test_it_leaves_a_page_and_its_figures_and_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert command("-o", "unbroken.html") == 0
    step = saving.FileObserver.step

    def interrupted(self: Any, steps: int, *rest: Any) -> None:
        step(self, steps, *rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saving.FileObserver, "step", interrupted)
        assert command() == 130
    assert command() == 0
    assert "from step 1" in capsys.readouterr().out
    figures = json.loads(Path("winter.json").read_text())
    assert figures == json.loads(Path("unbroken.json").read_text())
    assert figures["pictures"] == 8 and len(figures["by_place"]) == 15
    assert 0 < figures["shared"] < 1
    assert figures["clip"] is None and figures["attributes"] == []
    page = Path("winter.html").read_text()
    assert "Nobody was asked: no <code>--clip</code> was given" in page
    assert "What it drags along" in page and "the top: brightness" in page
    assert "csd-nerf probe --data photos" in page


@pytest.mark.usefixtures("in_a_folder")
def test_masks_are_a_region() -> None:
    os.mkdir("masks")
    for number in range(8):
        Image.fromarray(np.uint8([[255, 0]] * 2)).resize((44, 36)).save(f"masks/{number}.png")
    assert command("--masks", "masks") == 0
    by_place = json.loads(Path("winter.json").read_text())["by_place"]
    assert "what the masks show" in {drift["region"] for drift in by_place}


@pytest.mark.usefixtures("in_a_folder")
def test_the_page_says_what_clip_saw(capsys: Any) -> None:
    save_small_clip(Path("clip"))
    assert command("--clip", "clip", "--attribute", "a cat | a dog") == 0
    attributes = json.loads(Path("winter.json").read_text())["attributes"]
    assert {"text", "opposite", "mean", "deviation", "each", "p"} <= attributes[0].keys()
    assert len(attributes) == len(USUAL_PAIRS) + 1 and len(attributes[0]["each"]) == 8
    page = Path("winter.html").read_text()
    assert all(f"{drift['mean']:+.4f}, deviation {drift['deviation']:.4f}" in page for drift in attributes)
    assert "a cat \u2212 a dog" in page and "By clip, 32 px" in page
    assert "CLIP sees" in capsys.readouterr().out


@pytest.mark.usefixtures("in_a_folder")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--clip", "few"), "few is no CLIP that can be had"),
        (("--attribute", "a cat | a dog"), "--attribute cannot be used"),
        (("--attribute", "a cat"), "--attribute cannot be used"),
        (("--data", "nowhere"), "there is no folder nowhere"),
        (("--prompt", ""), "the prompt is empty"),
        (("--particles", "5"), "--particles is too small"),
        (("--against", WINTER), "--against cannot be used"),
        (("--size", "30"), "a multiple of 4, such as 32"),
        (("-o", "winter.txt"), "names no format that can be written"),
        (("--data", "few"), "few holds too few pictures"),
        (("--masks", "few"), "has no mask for 1.png"),
    ],
)
def test_what_cannot_be_probed_is_refused_in_one_message(
    options: tuple[str, ...], said: str, capsys: Any
) -> None:
    os.mkdir("few")
    Image.new("RGB", (40, 40)).save("few/0.png")
    assert command(*options) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("Error:") == 1
