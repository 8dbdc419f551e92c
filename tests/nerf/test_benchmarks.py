"""The benchmarks, which are run by hand: that they start, and that what they measure with works."""

from __future__ import annotations

import dataclasses
import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prior_folders import save_flux2_klein, save_flux_kontext

from csd_nerf.evaluation.reprojection import PosedPictures
from csd_nerf.nerf.methods import METHODS
from csd_nerf.priors.memory import Load, loaded_bytes

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize("file", sorted(BENCHMARKS.glob("*.py")), ids=lambda file: file.stem)
def test_every_benchmark_can_be_started(file: Path) -> None:
    """Its imports are there and its options are built; they are run by hand, for they take long."""
    assert "main" in runpy.run_path(str(file), run_name="not_main")


@pytest.mark.parametrize(
    ("route", "parts"),
    [
        ("loop", {"draw", "encode", "unet", "transport", "decode", "round", "fit", "backward", "optimizer"}),
        ("gradient", {"draw", "encode", "unet", "transport", "backward", "optimizer"}),
    ],
)
def test_a_step_is_timed_by_its_parts(route: str, parts: set[str]) -> None:
    step = runpy.run_path(str(BENCHMARKS / "edit_step.py"), run_name="not_main")
    setting = step["Setting"](
        route=route, particles=2, gradient_share=1.0, render_size=32, full_size=False, device="cpu", steps=1
    )
    row = step["run_row"](setting)
    times = row["milliseconds"]
    assert times.keys() == parts | {"step"} and all(time > 0 for time in times.values())
    assert row["peak_mib"] > 1
    # A step of the loop is a fit and its share of a round; of the gradient's route, all of it.
    fits = METHODS["csd-edit-tiny"].pipeline.fits_per_round
    once = [part for part in ("draw", "encode", "unet", "transport", "decode") if part in parts]
    asked = sum(times[part] for part in once)
    assert asked < (times["round"] if route == "loop" else times["step"])
    if route == "loop":
        assert times["step"] == pytest.approx(
            times["round"] / fits + times["fit"] + times["backward"] + times["optimizer"]
        )


def test_a_change_that_views_disagree_about_has_an_error() -> None:
    curves = runpy.run_path(str(BENCHMARKS / "edit_curves.py"), run_name="not_main")
    camera = torch.eye(3, 4).expand(2, -1, -1)
    lens = torch.tensor([[8.0, 0, 4], [0, 8, 4], [0, 0, 1]]).expand(2, -1, -1)
    agreed = PosedPictures(torch.full((2, 3, 8, 8), 0.3), torch.ones(2, 8, 8), camera, lens)
    opposed = dataclasses.replace(agreed, images=agreed.images * torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
    assert curves["change_error"](agreed) == pytest.approx(0, abs=1e-6)
    assert curves["change_error"](opposed) == pytest.approx(0.6)


@pytest.fixture
def gpu() -> Any:
    return SimpleNamespace(**runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="not_main"))


def test_a_gpu_is_measured_by_the_parts_of_a_round(gpu: Any, tmp_path: Path, capsys: Any) -> None:
    """On the CPU, with small models."""
    out = tmp_path / "figures/gpu.json"
    gpu.main(gpu.Options(device="cpu", small=True, views=(2, 3), rounds=1, out=out))
    report = json.loads(out.read_text())
    # Where the autoencoder is run in half precision, once in float32 as well.
    assert [row["views"] for row in report["rows"]][:2] == [2, 3] and report["text_ms"] > 0
    tiny = METHODS["csd-edit-tiny"]
    for row in report["rows"]:
        times = row["milliseconds"]
        assert times.keys() == row["memory_mib"].keys() == set(gpu.PARTS)
        assert all(time > 0 for time in times.values())
        assert times["draw"] + times["encode"] + times["unet"] + times["decode"] < times["round"]
        assert row["memory_mib"]["fit"] >= report["memory_before_mib"] > 0
        rounds, pictures = 10, 4 * 3 + tiny.pipeline.turntable_frames
        each = {
            "round": rounds,
            "fit": tiny.max_num_iterations,
            "photo": rounds * row["views"],
            "draw": pictures / row["views"],
        }
        expected = sum(count * times[part] for part, count in each.items()) / 1000
        assert row["edit_seconds"] == pytest.approx(expected)
    printed = capsys.readouterr().out
    assert "extrapolated" in printed and "float32" in printed


def test_memory_or_time_that_runs_out_is_recorded(gpu: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from csd_nerf.priors.instruct_pix2pix import InstructPix2Pix

    decode = InstructPix2Pix.decode

    def too_large(self: Any, latents: torch.Tensor) -> torch.Tensor:
        if len(latents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(self, latents)

    monkeypatch.setattr(InstructPix2Pix, "decode", too_large)
    out = tmp_path / "gpu.json"
    options = gpu.Options(device="cpu", small=True, views=(1, 2, 4), rounds=1, out=out)
    gpu.main(options)
    one, two, four = json.loads(out.read_text())["rows"][:3]
    assert one["edit_seconds"] > 0 and not one["out_of_memory"]
    assert two["out_of_memory"] == "decode" and two["edit_seconds"] is None
    assert two["memory_mib"]["encode"] > 0 and "decode" not in two["memory_mib"]
    assert four["left_out"] == "memory" and not four["milliseconds"]

    options.minutes = 0
    gpu.main(options)
    assert {row["left_out"] for row in json.loads(out.read_text())["rows"]} == {"time"}


def test_a_folder_of_full_size_is_that_of_the_hub_in_old_and_new_forms(tmp_path: Path) -> None:
    """With a small model: what is measured is one and the same."""
    full = SimpleNamespace(**runpy.run_path(str(BENCHMARKS / "full_size.py"), run_name="not_main"))
    folder = tmp_path / "model"
    full.write_folder(folder, small=True)
    first = full.measure(folder, "cpu", 64)
    assert first["round_seconds"] > 0
    for form, change in full.FORMS.items():
        change(folder)
        answers = full.measure(folder, "cpu", 0)["answers"]
        if form in full.HALVED:
            assert float(answers) == pytest.approx(float(first["answers"]), rel=1e-3)
        else:
            assert float(answers) == pytest.approx(float(first["answers"]), rel=1e-5)
    assert not (folder / "unet/diffusion_pytorch_model.safetensors").exists()


def test_options_of_captured_edits_are_those_of_the_methods() -> None:
    captured: Any = runpy.run_path(str(BENCHMARKS / "captured_edits.py"), run_name="not_main")
    for method in captured["Method"].__args__:
        options = captured["Options"](out=Path("out"), method=method, text_guidance=3.0, route="loop")
        arguments = captured["edit_arguments"](options)
        flag = f"{METHODS[method].pipeline.guidance_option}.text-guidance"
        assert arguments[arguments.index(flag) + 1] == "3.0" and "--pipeline.route" in arguments
        assert (arguments[:2] == ["--recipe", "tiny"]) == (method != "csd-edit-tiny")


def test_the_quality_of_a_flow_is_measured_as_that_of_any_editor(tmp_path: Path) -> None:
    quality = runpy.run_path(str(BENCHMARKS / "prior_quality.py"), run_name="not_main")
    prior = quality["Prior"](save_flux_kontext(tmp_path / "prior", guidance_embeds=False))
    photos = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    edited = prior.edit(photos, "make it night")
    assert edited.shape == photos.shape and (edited - photos).abs().mean() > 0.01
    alone = prior.edit(photos[1:], "make it night", first_seed=1)
    torch.testing.assert_close(alone, edited[1:], rtol=0, atol=1e-3)
    assert (prior.edit(photos, "make it night", first_seed=2) - edited).abs().mean() > 0.01
    assert prior.reconstruct(photos).shape == photos.shape


def test_a_prior_is_held_against_another(tmp_path: Path) -> None:
    quality = runpy.run_path(str(BENCHMARKS / "prior_quality.py"), run_name="not_main")
    edits = ("night", "winter", "sketch", "autumn", "sepia", "painting")
    file = tmp_path / "other.json"
    file.write_text(json.dumps({"gains": {edit: {"96": 20.0, "128": 10.0} for edit in edits}}))
    bars = quality["wanted_gains"](file, [96, 128])
    assert bars["night"] == {96: 19.0, 128: 9.0} and bars["sketch"] == {96: 9.0, 128: 9.0}
    assert quality["wanted_gains"](None, [96])["night"] == {96: 18.0}


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_memory_is_counted_alike_with_and_without_weights(tmp_path: Path, quantization: Any) -> None:
    """Of a configuration by the benchmark, and of files by what refuses them before they are loaded."""
    from diffusers import Flux2Transformer2DModel

    memory = runpy.run_path(str(BENCHMARKS / "prior_memory.py"), run_name="not_main")
    folder = save_flux2_klein(tmp_path / "prior") / "transformer"
    config = Flux2Transformer2DModel.load_config(folder)
    built = memory["on_meta"](lambda: Flux2Transformer2DModel.from_config(config))
    assert all(weight.is_meta for weight in built.parameters())
    counted = memory["bytes_of"](built, torch.bfloat16, quantization)
    assert loaded_bytes(Load("transformer", folder, torch.bfloat16, quantization)) == round(counted)


def test_what_processes_would_take_is_worked_out_from_the_parts_of_one(tmp_path: Path, capsys: Any) -> None:
    placement = SimpleNamespace(**runpy.run_path(str(BENCHMARKS / "placement.py"), run_name="not_main"))
    parts = {"draw": 100.0, "encode": 100.0, "unet": 600.0, "decode": 200.0, "round": 1010.0, "fit": 20.0}
    report = {
        "rows": [{"views": 4, "fields": "tcnn", "vae": "float32", "edit_seconds": 1, "milliseconds": parts}]
    }
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(report))
    options = placement.Options(file, processes=(2, 8), bandwidth=100.0, fits=100, fit_megabytes=50.0)
    times = placement.placements(parts, 4, options)
    assert times["one GPU"] == 3010 and times["prior-device, 2 GPUs"] == 2100
    talk = (4 * 11 + 100 * 50) / 100
    assert times["2 processes"] == pytest.approx(1000 / 2 + 10 + 2000 / 2 + talk)
    assert times["8 processes"] == pytest.approx(1000 + 10 + 2000 / 8 + talk), "fewer views than processes"
    apart = times["2 with prior-device, 4 GPUs"]
    assert apart == pytest.approx(2000 / 2 + talk + 100 / 2), "fits take longer than rounds"
    assert times["Ray, 8 edits, each"] == pytest.approx(3010 / 8)
    placement.main(options)
    assert "2 processes" in capsys.readouterr().out
