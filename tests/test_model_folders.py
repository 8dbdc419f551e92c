"""Folders of models as they are found: other files and configs, and what is said of those of no use."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from prior_folders import edit_json
from safetensors.torch import load_file, save_file

from csd_nerf.bundled import bundled_path
from csd_nerf.errors import InputError
from csd_nerf.priors import Prior, check_prior, load_prior

REPOSITORY = Path(__file__).resolve().parent.parent
UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"
WEIGHTS = (UNET, "vae/diffusion_pytorch_model.safetensors", TEXT_ENCODER)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled prior to change."""
    return shutil.copytree(bundled_path("tiny-instruct"), tmp_path / "prior")


def answers(prior: Prior) -> list[torch.Tensor]:
    """Something of every part."""
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, prior.latent_channels, 8, 8, generator=generator)
    text = prior.embed(["make it night"])
    pictures = torch.rand(1, 3, 32, 32, generator=generator)
    return [text, prior.encode(pictures), prior.predict_noise(noisy, 300, text, None)]


def save_sharded(folder: Path, part: str, variant: str | None) -> None:
    """Save a part again in shards, as diffusers and transformers do."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    model: Any = CLIPTextModel if part == "text_encoder" else UNet2DConditionModel
    loaded = model.from_pretrained(folder / part)
    for file in (folder / part).glob("*.safetensors"):
        file.unlink()
    loaded.save_pretrained(folder / part, variant=variant, max_shard_size="300KB", safe_serialization=True)


# ------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("files", [WEIGHTS, (UNET,), (TEXT_ENCODER,)], ids=["all", "unet", "text-encoder"])
def test_half_precision_alone_is_loaded(folder: Path, tiny_prior: Prior, files: tuple[str, ...]) -> None:
    for file in files:
        whole = folder / file
        whole.rename(whole.with_suffix(".fp16.safetensors"))
    check_prior(str(folder))
    for ours, expected in zip(
        answers(load_prior(str(folder), device="cpu", dtype=torch.float32, vae_dtype=torch.float32)),
        answers(tiny_prior),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_shards_are_loaded_and_counted(folder: Path, tiny_prior: Prior, part: str, variant: str) -> None:
    save_sharded(folder, part, variant)
    check_prior(str(folder))
    for ours, expected in zip(
        answers(load_prior(str(folder), device="cpu", dtype=torch.float32, vae_dtype=torch.float32)),
        answers(tiny_prior),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected)

    shard = sorted((folder / part).glob("*-of-*.safetensors"))[1]
    shard.rename(shard.with_suffix(".elsewhere"))
    with pytest.raises(InputError, match=f"missing parts(.|\n)*no {part}/{shard.name}"):
        check_prior(str(folder))
    (index,) = (folder / part).glob("*.index*json")
    index.unlink()
    with pytest.raises(InputError, match=rf"missing parts(.|\n)*no {part}/\w+\.safetensors\.index\.json"):
        check_prior(str(folder))


def test_weights_that_are_not_in_the_files_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / TEXT_ENCODER)
    missing = next(name for name in weights if "final_layer_norm" in name)
    save_file({name: value for name, value in weights.items() if name != missing}, folder / TEXT_ENCODER)
    prior = load_prior(str(folder), device="cpu")
    with pytest.raises(InputError, match="text encoder(.|\n)*1 weights are missing: .*final_layer_norm"):
        prior.embed(["make it night"])

    weights = load_file(folder / UNET)
    save_file({name: value for name, value in weights.items() if name != "conv_in.bias"}, folder / UNET)
    with pytest.raises(InputError, match="UNet2DConditionModel(.|\n)*1 weights are missing: conv_in.bias"):
        load_prior(str(folder), device="cpu")


# ------------------------------------------------------------------------------------------ configs


@pytest.mark.parametrize(("given", "side"), [(None, 64), ([32, 48], 32), (24, 24)])
def test_the_size_that_a_model_was_made_for(folder: Path, given: object, side: int) -> None:
    edit_json(folder / "unet/config.json", sample_size=given)
    prior = load_prior(str(folder), device="cpu")
    assert prior.native_size == side * prior.vae_factor


@pytest.mark.parametrize("given", ["64", [], 0])
def test_what_is_no_size(folder: Path, given: object) -> None:
    edit_json(folder / "unet/config.json", sample_size=given)
    with pytest.raises(InputError, match=re.escape(f"sample_size {given!r}")):
        check_prior(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_schedule": "exponential"}, "noise levels(.|\n)*scaled_linear(.|\n)*'exponential'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "beta_schedule": None}, "FlowMatchEuler"),
        ({"_class_name": "EDMEulerScheduler", "beta_schedule": None}, "no diffusion by steps(.|\n)*EDMEuler"),
        ({"use_flow_sigmas": True}, "DDIMScheduler with use_flow_sigmas"),
        ({"prediction_type": "flow_prediction"}, "'flow_prediction'"),
    ],
)
def test_schedulers_of_other_kinds_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    file = folder / "scheduler/scheduler_config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    with pytest.raises(InputError, match=message):
        check_prior(str(folder))


def test_noise_levels_that_are_listed_need_no_name(folder: Path) -> None:
    levels = [0.001, 0.01, 0.1]
    edit_json(
        folder / "scheduler/scheduler_config.json",
        beta_schedule="listed",
        trained_betas=levels,
        num_train_timesteps=3,
    )
    schedule = load_prior(str(folder), device="cpu").schedule
    torch.testing.assert_close(schedule.alphas**2, torch.cumprod(1 - torch.tensor(levels), 0))


@pytest.mark.parametrize(
    "changes", [{"shift_factor": 0.1}, {"latents_mean": [1.0] * 4, "latents_std": [2.0] * 4}]
)
def test_latents_that_are_moved_are_refused(folder: Path, changes: dict[str, Any]) -> None:
    edit_json(folder / "vae/config.json", **changes)
    with pytest.raises(InputError, match=f"not just scaled(.|\n)*{next(iter(changes))}"):
        check_prior(str(folder))


# ------------------------------------------------------------------------------------------ downloads


def test_the_download_that_is_advised_gets_what_is_needed_and_no_more(folder: Path, tmp_path: Path) -> None:
    """The command in the documentation, on a repository such as the one it names."""
    from csd_nerf.priors.folder import download_command

    text = (REPOSITORY / "docs/troubleshooting.md").read_text(encoding="utf8")
    command = re.search(r"hf download timbrooks/instruct-pix2pix[^`]*", text)
    assert command is not None
    assert (
        command[0].replace("\\\n", "").split()
        == download_command("timbrooks/instruct-pix2pix", "ip2p").split()
    )
    patterns = re.findall(r'--include "([^"]+)"', command[0])
    for name in ("unet/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model"):
        for ending in (".bin", ".fp16.safetensors", ".non_ema.safetensors"):
            (folder / (name + ending)).touch()
    (folder / "safety_checker").mkdir()
    for name in ("safety_checker/model.safetensors", "instruct-pix2pix-00-22000.ckpt", "model.safetensors"):
        (folder / name).touch()
    there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    fetched = list(filter_repo_objects(there, allow_patterns=patterns))
    for name in fetched:
        (tmp_path / "ip2p" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, tmp_path / "ip2p" / name)
    check_prior(str(tmp_path / "ip2p"))
    assert {name for name in fetched if not name.endswith((".json", ".txt"))} == set(WEIGHTS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "does not begin with a header"),
        ((2).to_bytes(8, "little") + b"[]", "no JSON object"),
        ((9).to_bytes(8, "little") + b'{"a": {}}', "data_offsets"),
        (b"", "does not begin with a header"),
    ],
)
def test_what_is_no_safetensors_file(folder: Path, content: bytes, said: str) -> None:
    (folder / UNET).write_bytes(content)
    with pytest.raises(InputError, match=rf"cannot be read(.|\n)*{said}(.|\n)*git lfs pull"):
        check_prior(str(folder))
