"""The prior's autoencoder: in which precision, how often it runs, and another one in its place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prior_folders import edit_json

from csd_nerf.bundled import bundled_path
from csd_nerf.editors.settings import PictureSettings
from csd_nerf.editors.tiles import encode_tiles
from csd_nerf.errors import InputError
from csd_nerf.priors import Prior, check_vae, load_prior, loading
from csd_nerf.priors.instruct_pix2pix import InstructPix2Pix

GPU = torch.device("cuda", 0)
ATTENTION_FREE = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3


@pytest.fixture
def images(generator: torch.Generator) -> torch.Tensor:
    coarse = torch.rand(3, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, (32, 48), mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small autoencoders with random weights, of either class, for the latents of the bundled prior."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    torch.manual_seed(1)
    autoencoders = {
        "AutoencoderKL": AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=ATTENTION_FREE[0],
            up_block_types=ATTENTION_FREE[1],
            latent_channels=8,
            norm_num_groups=4,
            scaling_factor=0.5,
        ),
        "AutoencoderTiny": AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
            latent_channels=8,
        ),
    }
    folder = tmp_path_factory.mktemp("autoencoders")
    for name, autoencoder in autoencoders.items():
        autoencoder.save_pretrained(folder / name)
    return {name: folder / name for name in autoencoders}


def encodings(prior: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that from now on gets the number of pictures of every pass through the encoder."""
    passes: list[int] = []
    encode = prior.vae.encode

    def counted(pictures: torch.Tensor) -> Any:
        passes.append(len(pictures))
        return encode(pictures)

    monkeypatch.setattr(prior.vae, "encode", counted)
    return passes


# ------------------------------------------------------------------------------------------ precision


@pytest.mark.parametrize(
    ("device", "has_bfloat16", "config", "expected"),
    [
        (GPU, True, {}, torch.bfloat16),  # as of Stable Diffusion 1, whose config is silent
        (GPU, True, {"force_upcast": False}, torch.bfloat16),
        (GPU, True, {"force_upcast": True}, torch.float32),  # as of XL
        (GPU, False, {}, torch.float32),
        (torch.device("cpu"), True, {}, torch.bfloat16),
        (torch.device("cpu"), False, {}, torch.float32),
    ],
)
def test_the_precision_by_itself(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, has_bfloat16: Any, config: Any, expected: Any
) -> None:
    monkeypatch.setattr(loading, "has_bfloat16", lambda device: has_bfloat16)
    assert loading.automatic_vae_dtype(device, config) == expected


@pytest.mark.parametrize(
    ("device", "has_bfloat16", "expected"),
    [
        (GPU, True, torch.float16),  # its finer mantissa
        (torch.device("cpu"), True, torch.bfloat16),
        (torch.device("cpu"), False, torch.float32),
    ],
)
def test_the_denoisers_precision_by_itself(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, has_bfloat16: bool, expected: Any
) -> None:
    monkeypatch.setattr(loading, "has_bfloat16", lambda device: has_bfloat16)
    assert loading.automatic_dtype(device) == expected


def test_bfloat16_is_near_float32_and_so_is_its_gradient(tiny_prior: Prior, images: torch.Tensor) -> None:
    half: Any = load_prior("tiny-instruct", device="cpu", dtype=torch.float32, vae_dtype=torch.bfloat16)
    assert half.vae.dtype == torch.bfloat16 and half.dtype == torch.float32
    results = []
    for prior in (half, tiny_prior):
        pictures = images.clone().requires_grad_()
        latents = prior.encode(pictures)
        latents.square().sum().backward()
        results.append((latents.detach(), prior.decode(latents.detach()), pictures.grad))
    (latents, decoded, gradient), (expected, expected_decoded, expected_gradient) = results
    assert latents.dtype == decoded.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(latents, expected, rtol=0, atol=0.05)
    torch.testing.assert_close(decoded, expected_decoded, rtol=0, atol=0.03)
    assert torch.cosine_similarity(gradient.flatten(), expected_gradient.flatten(), dim=0) > 0.99


def test_the_option_reaches_the_prior_of_a_scene_and_of_a_picture(folders: dict[str, Path]) -> None:
    from csd_nerf.nerf.edit_pipeline import EditPipelineConfig
    from csd_nerf.nerf.prompted import PromptedPipeline

    options: Any = {
        "vae_precision": "bfloat16",
        "vae": str(folders["AutoencoderTiny"]),
        "prior": "tiny-instruct",
    }
    pipeline: Any = SimpleNamespace(
        config=EditPipelineConfig(**options), device="cpu", _prior_options=lambda: {}
    )
    of_scene: Any = PromptedPipeline._load_prior(pipeline)
    of_picture: Any = PictureSettings(**options).load_prior()
    for prior in (of_scene, of_picture):
        assert prior.vae.dtype == torch.bfloat16 and type(prior.vae).__name__ == "AutoencoderTiny"


def test_all_its_convolutions_run_in_the_order_that_is_fast(images: torch.Tensor) -> None:
    """With the channels last; denoisers have them so on GPUs alone."""
    prior: Any = load_prior("tiny-instruct", device="cpu", dtype=torch.float32, vae_dtype=torch.float32)
    assert prior.unet.conv_in.weight.is_contiguous()
    seen = []
    for convolution in prior.vae.modules():
        if isinstance(convolution, torch.nn.Conv2d) and convolution.kernel_size != (1, 1):
            assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
            convolution.register_forward_pre_hook(
                lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
            )
    latents = prior.encode(images)
    pictures = prior.decode(latents)
    assert len(seen) > 20 and all(seen)
    assert latents.is_contiguous() and pictures.is_contiguous()
    prior.vae.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(latents, prior.encode(images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pictures, prior.decode(latents), rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------ passes


@pytest.mark.parametrize(("batch", "passes"), [(1, [1] * 6), (2, [2, 1, 1, 2]), (3, [3]), (8, [3])])
def test_it_runs_again_in_the_backward_pass_only_where_that_saves_memory(
    tiny_prior: InstructPix2Pix, images, monkeypatch, batch: int, passes: list[int]
) -> None:
    monkeypatch.setattr(tiny_prior, "vae_batch_size", batch)
    seen = encodings(tiny_prior, monkeypatch)
    tiny_prior.encode(images.requires_grad_()).sum().backward()
    assert sorted(seen) == sorted(passes)


def test_a_source_picture_goes_through_it_once(tiny_prior: InstructPix2Pix, images, monkeypatch) -> None:
    expected = tiny_prior.encode(images), tiny_prior.condition(images)
    seen = encodings(tiny_prior, monkeypatch)
    for ours, theirs in zip(tiny_prior.encode_source(images), expected, strict=True):
        assert torch.equal(ours, theirs) and not ours.requires_grad
    assert sum(seen) == 3

    seen.clear()
    encode_tiles(tiny_prior, images[0], tile=256)
    assert seen == [1]


# ------------------------------------------------------------------------------------------ another one


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
def test_another_autoencoder_for_the_prior(folders: dict[str, Path], images: torch.Tensor, kind: str) -> None:
    import diffusers

    other = getattr(diffusers, kind).from_pretrained(folders[kind])
    prior = load_prior("tiny-instruct", device="cpu", vae=str(folders[kind]), vae_dtype=torch.float32)
    with torch.no_grad():
        encoded = other.encode(images * 2 - 1)
        scaled = encoded.latents if kind == "AutoencoderTiny" else encoded.latent_dist.mode() * 0.5
        raw = scaled if kind == "AutoencoderTiny" else scaled / 0.5
        decoded = (other.decode(raw).sample / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(prior.encode(images), scaled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prior.decode(scaled), decoded, rtol=1e-4, atol=1e-5)
    # The U-Net was trained with latents of its own autoencoder beside the noisy ones, unscaled.
    torch.testing.assert_close(prior.condition(images), scaled / 0.5, rtol=1e-4, atol=1e-5)

    pictures = images.clone().requires_grad_()
    prior.encode(pictures).sum().backward()
    assert pictures.grad is not None and pictures.grad.abs().sum() > 0


def test_half_precision_files_alone_will_do(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["AutoencoderTiny"], tmp_path / "half")
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    assert check_vae(str(folder), bundled_path("tiny-instruct")) == folder
    load_prior("tiny-instruct", device="cpu", vae=str(folder))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("AutoencoderKL", {"latent_channels": 16}, "latent channels 8(.|\n)*latent channels 16"),
        ("AutoencoderTiny", {"latent_channels": 16}, "latent channels 8(.|\n)*latent channels 16"),
        ("AutoencoderKL", {"scaling_factor": 0.13025}, "scaling_factor 0.5(.|\n)*scaling_factor 0.13025"),
        ("AutoencoderTiny", {"scaling_factor": 0.5}, "scaling_factor 1.0(.|\n)*scaling_factor 0.5"),
        ("AutoencoderTiny", {"encoder_block_out_channels": [8, 8]}, "latent 4(.|\n)*latent 2"),
        ("AutoencoderKL", {"shift_factor": 0.1}, "not just scaled"),
        ("AutoencoderKL", {"_class_name": "VQModel"}, "AutoencoderKL or AutoencoderTiny(.|\n)*'VQModel'"),
    ],
)
def test_autoencoders_of_other_latents(
    folders: dict[str, Path], tmp_path: Path, kind: str, changes: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(folders[kind], tmp_path / "other")
    edit_json(folder / "config.json", **changes)
    with pytest.raises(InputError, match=message):
        check_vae(str(folder), bundled_path("tiny-instruct"))
    with pytest.raises(InputError, match=message):
        load_prior("tiny-instruct", device="cpu", vae=str(folder))


def test_what_is_no_autoencoder(folders: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    import huggingface_hub

    with pytest.raises(InputError, match="no such autoencoder(.|\n)*madebyollin/taesd"):
        check_vae("/no/such/folder", None)
    with pytest.raises(InputError, match="holds no autoencoder(.|\n)*folder vae in it"):
        check_vae(str(bundled_path("tiny-instruct")), None)
    folder = shutil.copytree(folders["AutoencoderTiny"], tmp_path / "bare")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="missing parts(.|\n)*no diffusion_pytorch_model.safetensors"):
        check_vae(str(folder), None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert check_vae("nobody/no-such-autoencoder", None) is None
    with pytest.raises(InputError, match="nobody/no-such-autoencoder(.|\n)*madebyollin/taesd"):
        load_prior("tiny-instruct", device="cpu", vae="nobody/no-such-autoencoder")


def test_a_prior_whose_own_is_small(folders: dict[str, Path], tmp_path: Path) -> None:
    """What its U-Net was trained with cannot be known then."""
    folder = shutil.copytree(bundled_path("tiny-instruct"), tmp_path / "prior")
    config = json.loads((folders["AutoencoderTiny"] / "config.json").read_text())
    (folder / "vae/config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="'AutoencoderTiny'(.|\n)*--pipeline.vae"):
        load_prior(str(folder), device="cpu")


def test_an_option_that_does_not_fit_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    from csd_nerf.nerf.edit_pipeline import EditPipelineConfig

    config = EditPipelineConfig(prompt="make it night", prior="tiny-instruct", vae=str(tmp_path))
    with pytest.raises(InputError, match="holds no autoencoder"):
        config.check()
    with pytest.raises(InputError, match="holds no autoencoder"):
        PictureSettings(prior="tiny-instruct", vae=str(tmp_path)).check(("make it night",))
