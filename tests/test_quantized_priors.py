"""Priors with weights of fewer bits: small ones of flow matching, on a CPU. Needs bitsandbytes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from prior_folders import save_flux2_klein, save_flux_kontext, save_longcat_image_edit, save_qwen_image_edit

from csd_nerf.distillation import Objective, ObjectiveConfig
from csd_nerf.errors import InputError
from csd_nerf.priors import load_prior
from csd_nerf.priors.memory import Load, loaded_bytes

SAVE = {
    "kontext": save_flux_kontext,
    "klein": save_flux2_klein,
    "qwen": save_qwen_image_edit,
    "longcat": save_longcat_image_edit,
}


@pytest.fixture(scope="module", params=list(SAVE))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SAVE[request.param](tmp_path_factory.mktemp("priors") / "flow")


def test_without_the_library_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"brought to nf4(.|\n)*csd-nerf\[quantized\]"):
        load_prior(str(folder), device="cpu", quantization="nf4")


@pytest.mark.parametrize(("quantization", "error"), [("int8", 0.05), ("nf4", 0.5)])
def test_it_says_about_the_same_with_fewer_bytes(folder: Path, quantization: Any, error: float) -> None:
    pytest.importorskip("bitsandbytes")
    whole: Any = load_prior(str(folder), device="cpu", dtype=torch.float32)
    small: Any = load_prior(str(folder), device="cpu", dtype=torch.float32, quantization=quantization)
    pictures = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    source, condition = whole.encode_source(pictures)
    answers = [
        prior.predict_noise(source, 600, whole.told(["winter"] * 2, condition), condition)
        for prior in (small, whole)
    ]
    difference = (answers[0] - answers[1]).norm() / answers[1].norm()
    assert 0 < difference < error

    sizes = [sum(weight.nbytes for weight in prior.transformer.parameters()) for prior in (small, whole)]
    counted = loaded_bytes(Load("transformer", folder / "transformer", torch.float32, quantization))
    assert (
        counted == pytest.approx(sizes[0], rel=0.1)
        and sizes[0] < (0.5 if quantization == "int8" else 0.4) * sizes[1]
    )


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_an_objective_asks_it_and_its_text_encoders(folder: Path, quantization: Any) -> None:
    pytest.importorskip("bitsandbytes")
    prior = load_prior(str(folder), device="cpu", dtype=torch.float32, quantization=quantization)
    config = ObjectiveConfig()
    config.structure.loss = "cut"  # goes through the weights with a gradient
    source, condition = prior.encode_source(torch.rand(2, 3, 64, 96))
    step = Objective(config, prior).gradient(source + 0.1, source, condition, prompt="winter")
    assert step.gradient.isfinite().all() and step.gradient.abs().max() > 0


def test_memory_that_holds_fewer_bits_alone_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [part for part in ("transformer", "text_encoder", "text_encoder_2") if (folder / part).is_dir()]
    half, eight = (
        sum(loaded_bytes(Load(part, folder / part, torch.bfloat16, bits)) for part in parts)
        for bits in ("none", "int8")
    )
    vae = loaded_bytes(Load("vae", folder / "vae", torch.float32))
    monkeypatch.setattr("csd_nerf.priors.memory.free_memory", lambda device: vae + (half + eight) // 2)
    with pytest.raises(InputError, match="choose --pipeline.prior-quantization int8, which takes"):
        load_prior(str(folder), device="cpu", dtype=torch.bfloat16, vae_dtype=torch.float32)
    if "bitsandbytes" in sys.modules:
        load_prior(str(folder), device="cpu", dtype=torch.bfloat16, quantization="int8")
