"""Everything a user can get wrong: one message, exit status 2, before anything long begins."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import make_config, refusal, run_until_killed
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig

from csd_nerf.nerf.runs import find_run

Make = Any


@pytest.mark.parametrize("prompt", ["", "   ", None])
def test_no_prompt(edit_config: Make, capsys: Any, prompt: str | None) -> None:
    assert "no prompt was given" in refusal(edit_config(prompt=prompt), capsys)


def test_two_prompts(edit_config: Make, capsys: Any) -> None:
    printed = refusal(edit_config(prompt="make it night", pipeline__prompt="make it winter"), capsys)
    assert "different prompts" in printed


def test_the_prompt_counts_wherever_it_is_given(edit_config: Make) -> None:
    for name in ("prompt", "pipeline__prompt", "pipeline__model__prompt"):
        config = edit_config(**{"prompt": None, name: "make it night"})
        config.check()
        assert config.pipeline.prompt == "make it night"


def test_no_source_scene(edit_config: Make, capsys: Any, tmp_path: Path) -> None:
    assert "no source scene" in refusal(edit_config(load_dir=None), capsys)
    assert "does not exist" in refusal(edit_config(load_dir=tmp_path / "nowhere"), capsys)
    (tmp_path / "empty").mkdir()
    assert "no checkpoint" in refusal(edit_config(load_dir=tmp_path / "empty"), capsys)


def test_a_checkpoint_of_another_method(edit_config: Make, capsys: Any, tmp_path: Path) -> None:
    folder = tmp_path / "nerfstudio_models"
    folder.mkdir()
    torch.save(
        {"step": 1, "pipeline": {"_model.gauss.means": torch.zeros(3)}}, folder / "step-000000001.ckpt"
    )
    assert "is not a nerfacto scene" in refusal(edit_config(load_dir=folder, data=_data(edit_config)), capsys)


def _data(edit_config: Make) -> Path:
    config = edit_config()
    config.check()
    return config.data


def test_other_field_sizes(edit_config: Make, capsys: Any, scene_run: Path, tmp_path: Path) -> None:
    printed = refusal(edit_config(pipeline__model__hidden_dim=48), capsys)
    assert "fields of other sizes" in printed and "32" in printed and "48" in printed


def test_the_other_implementation(edit_config: Make, capsys: Any, scene_run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "tcnn"
    shutil.copytree(scene_run, copied)
    (checkpoint,) = (copied / "nerfstudio_models").iterdir()
    state = torch.load(checkpoint)
    state["pipeline"] = {
        name: value for name, value in state["pipeline"].items() if not name.startswith("_model.field.mlp")
    }
    state["pipeline"]["_model.field.mlp_base.params"] = torch.zeros(10)  # as tiny-cuda-nn keeps them
    torch.save(state, checkpoint)
    printed = refusal(edit_config(load_dir=copied), capsys)
    assert "tiny-cuda-nn" in printed and "torch" in printed


def test_another_capture(edit_config: Make, capsys: Any, tmp_path: Path) -> None:
    """A scene with pose corrections for 11 cameras does not go with a dataset of 8."""
    from csd_nerf.nerf.model import _check_same_shapes

    with pytest.raises(ValueError, match=r"8 training cameras[\s\S]*11 training cameras"):
        weights = {"field.a": torch.zeros(1), "proposal_networks.a": torch.zeros(1)}
        _check_same_shapes(
            {**weights, "camera_optimizer.pose_adjustment": torch.zeros(11, 6)},
            {**weights, "camera_optimizer.pose_adjustment": torch.zeros(8, 6)},
            "the scene",
        )


def test_priors_that_cannot_be_used(edit_config: Make, capsys: Any, tmp_path: Path) -> None:
    from csd_nerf.bundled import bundled_path

    incomplete = tmp_path / "incomplete"
    shutil.copytree(bundled_path("tiny-instruct"), incomplete)
    shutil.rmtree(incomplete / "vae")
    assert "vae" in refusal(edit_config(pipeline__prior=str(incomplete)), capsys)

    wordless = tmp_path / "wordless"
    shutil.copytree(bundled_path("tiny-instruct"), wordless)
    (wordless / "tokenizer" / "tokenizer.json").unlink()
    (wordless / "tokenizer" / "vocab.json").unlink()
    assert "tokenizer/vocab.json" in refusal(edit_config(pipeline__prior=str(wordless)), capsys)

    speechless = tmp_path / "speechless"
    shutil.copytree(bundled_path("tiny-instruct"), speechless)
    (speechless / "text_encoder" / "config.json").write_text('{"hidden_size": 32}')
    assert "tokenizer or text encoder" in refusal(edit_config(pipeline__prior=str(speechless)), capsys)

    text_to_image = tmp_path / "text-to-image"
    shutil.copytree(bundled_path("tiny-instruct"), text_to_image)
    unet = json.loads((text_to_image / "unet" / "config.json").read_text())
    unet["in_channels"] = unet["out_channels"]
    (text_to_image / "unet" / "config.json").write_text(json.dumps(unet))
    assert "text-to-image" in refusal(edit_config(pipeline__prior=str(text_to_image)), capsys)

    assert "no-such-prior" in refusal(edit_config(pipeline__prior="no-such-prior"), capsys)


def test_a_render_size_that_does_not_fit(edit_config: Make, capsys: Any) -> None:
    assert "multiple of 4" in refusal(edit_config(pipeline__render_size=30), capsys)


def test_data_named_by_a_dataparser_is_not_that_of_the_scene(edit_config: Make, capsys: Any) -> None:
    parser = ColmapDataParserConfig(data=Path("nowhere"))
    config = edit_config(pipeline__datamanager__dataparser=parser)
    config.check()
    assert config.data == config.pipeline.datamanager.data == Path("nowhere")
    config = edit_config()
    config.check()
    assert config.data is not None and config.data != Path("nowhere")


def test_no_steps(edit_config: Make, dataset: Path, tmp_path: Path, capsys: Any) -> None:
    for config in (edit_config(), make_config("csd-nerfacto-tiny", tmp_path, dataset)):
        config.max_num_iterations = 0
        assert "--max-num-iterations is too small" in refusal(config, capsys)


def test_more_particles_than_cameras(edit_config: Make, capsys: Any) -> None:
    printed = refusal(edit_config(pipeline__particles=99, pipeline__kept_views=0), capsys)
    assert "not enough cameras" in printed and "--pipeline.particles 4" in printed


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("particles", -1), ("fits_per_round", -1), ("kept_views", -2), ("lpips_weight", -1.0),
        ("datamanager__patch_size", 33), ("datamanager__patch_size", 0),
        ("datamanager__train_num_rays_per_batch", 0), ("descent__learning_rate", 0.0),
        ("gradient_share", 0.0), ("gradient_share", 2.0), ("rays_per_chunk", 0),
        ("unet_batch_size", 0), ("vae_batch_size", -1), ("picture_size", 129), ("picture_views", 0),
        ("steps_per_picture", -1), ("turntable_frames", -5),
    ],
)  # fmt: skip
def test_numbers_that_no_step_can_work_with(
    edit_config: Make, capsys: Any, option: str, value: float
) -> None:
    printed = refusal(edit_config(**{f"pipeline__{option}": value}), capsys)
    flag = option.replace("__", ".").replace("_", "-")
    assert f"--pipeline.{flag}" in printed and str(value) in printed


def test_lpips_needs_patches(edit_config: Make, capsys: Any) -> None:
    printed = refusal(edit_config(pipeline__lpips_weight=0.5), capsys)
    assert (
        "--pipeline.datamanager.patch-size is too small" in printed and "--pipeline.lpips-weight 0" in printed
    )


def test_options_that_an_edit_does_not_have(edit_config: Make, capsys: Any) -> None:
    assert "--machine.num-devices" in refusal(edit_config(machine__num_devices=0), capsys)
    assert "--steps-per-eval-batch" in refusal(edit_config(steps_per_eval_batch=5), capsys)


def test_objectives_that_contradict_themselves(edit_config: Make, capsys: Any) -> None:
    def refused(**objective: Any) -> str:
        changes = {f"pipeline__objective__{name}": value for name, value in objective.items()}
        return refusal(edit_config(pipeline__particles=2, **changes), capsys)

    assert "at least 3" in refused(bandwidth="paper")
    assert "positive number" in refused(bandwidth=-1.0)
    assert "range of timesteps" in refused(min_timestep=0.7, max_timestep=0.3)
    assert "--pipeline.source-prompt" in refused(residual="dds")
    for value in (-12.0, float("nan"), float("inf")):
        assert "the text guidance is out of range" in refused(text_guidance=value)
        assert "the image guidance is out of range" in refused(image_guidance=value)
    sampled = edit_config("in2n-baseline", pipeline__sampling__text_guidance=float("nan"), recipe="tiny")
    assert "the text guidance is out of range" in refusal(sampled, capsys)


@pytest.mark.parametrize("method", ["csd-nerfacto-tiny", "csd-edit-tiny"])
def test_checkpoints_that_cannot_be_read(
    method: str, scene_run: Path, dataset: Path, edit_config: Make, capsys: Any, tmp_path: Path
) -> None:
    whole = find_run(scene_run).checkpoint

    def refused(content: bytes) -> str:
        file = tmp_path / "step-000000005.ckpt"
        file.write_bytes(content)
        if method == "csd-edit-tiny":
            return refusal(edit_config(load_dir=file, data=dataset), capsys)
        return refusal(make_config(method, tmp_path, dataset, load_dir=file), capsys)

    assert "cannot be read" in refused(whole.read_bytes()[:1000])
    torch.save({"weights": 1}, tmp_path / "other.pt")
    assert "is not a checkpoint of nerfstudio" in refused((tmp_path / "other.pt").read_bytes())
    torch.save({"pipeline": Path("code"), "step": 1}, tmp_path / "other.pt")  # not data: unpickling runs code
    assert "cannot be read" in refused((tmp_path / "other.pt").read_bytes())


@pytest.mark.parametrize("method", ["csd-nerfacto-tiny", "csd-edit-tiny"])
def test_datasets_that_are_not_whole(
    method: str, dataset: Path, scene_run: Path, edit_config: Make, capsys: Any, tmp_path: Path
) -> None:
    def config(data: Path) -> Any:
        if method == "csd-edit-tiny":
            return edit_config(data=data)
        return make_config(method, tmp_path, data)

    assert "no dataset at" in refusal(config(tmp_path / "nowhere"), capsys)
    copied = tmp_path / "copied"
    shutil.copytree(dataset, copied)
    gone = sorted((copied / "images").iterdir())[:7]
    kept = [photo.read_bytes() for photo in gone]
    for photo in gone:
        photo.unlink()
    assert "7 of 12 images" in refusal(config(copied), capsys)
    for photo, content in zip(gone, kept, strict=True):
        photo.write_bytes(content)
    meta = json.loads((copied / "transforms.json").read_text())
    frames = meta["frames"][1:]
    without_lens = {name: value for name, value in meta.items() if name not in ("fl_x", "cy")}
    (copied / "transforms.json").write_text(json.dumps({**without_lens, "frames": frames}))
    assert "no cy, fl_x" in refusal(config(copied), capsys)
    masked = [{**frame, "mask_path": "mask.png"} for frame in frames]
    (copied / "transforms.json").write_text(json.dumps({**meta, "frames": masked}))
    assert "masks" in refusal(config(copied), capsys)
    (copied / "transforms.json").write_text(json.dumps({**meta, "frames": [{"file_path": "a.png"}]}))
    assert "without a camera" in refusal(config(copied), capsys)
    (copied / "transforms.json").write_text(json.dumps({**meta, "frames": []}))
    assert "lists no cameras" in refusal(config(copied), capsys)
    (copied / "transforms.json").write_text("{")
    assert "cannot be read" in refusal(config(copied), capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_asked_for_and_absent(dataset: Path, edit_config: Make, capsys: Any, tmp_path: Path) -> None:
    assert "no cuda device" in refusal(make_config("csd-nerfacto", tmp_path, dataset), capsys)
    assert "no cuda device" in refusal(edit_config("csd-edit"), capsys)


def test_machines_that_no_edit_can_run_on(edit_config: Make, capsys: Any, monkeypatch: Any) -> None:
    printed = refusal(edit_config(machine__num_machines=2), capsys)
    assert "do not know where to meet" in printed and "--machine.dist-url" in printed
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    printed = refusal(edit_config(machine__device_type="mps"), capsys)
    assert "--machine.device-type cannot be used" in printed and "double precision" in printed


def test_continuing_with_another_prompt_or_method(edit_config: Make, capsys: Any) -> None:
    killed = run_until_killed(edit_config(max_num_iterations=3, steps_per_save=1), 2)
    printed = refusal(edit_config(load_dir=killed, prompt="make it winter"), capsys)
    assert "another prompt" in printed and "make it night" in printed


def test_ns_train_itself_refuses_without_a_traceback(tmp_path: Path) -> None:
    command = ["ns-train", "csd-edit-tiny", "--prompt", "make it night", "--output-dir", str(tmp_path)]
    done = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no source scene was given" in done.stderr and "Traceback" not in done.stderr + done.stdout
    assert not any(tmp_path.iterdir())
