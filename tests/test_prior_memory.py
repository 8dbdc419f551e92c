"""Too little memory for a prior: said before anything of it is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from prior_folders import save_flux2_klein, save_flux_kontext

from csd_nerf.bundled import bundled_path
from csd_nerf.errors import InputError
from csd_nerf.priors import load_prior
from csd_nerf.priors.memory import Load, free_memory, loaded_bytes

TERABYTE = 10**12


def copy_of_bundled(folder: Path) -> Path:
    return shutil.copytree(bundled_path("tiny-instruct"), folder)


def grow(file: Path, size: int) -> None:
    """Weights of so many bytes, all of them zeros that take no room on the disk."""
    header = {"huge": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + size)


@pytest.mark.parametrize("save", [save_flux_kontext, save_flux2_klein, copy_of_bundled])
@pytest.mark.parametrize("part", ["network", "text_encoder"])
def test_weights_that_do_not_fit_are_refused_before_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save, part: str
) -> None:
    folder = save(tmp_path / "prior")
    loaded: list[object] = []
    monkeypatch.setattr("csd_nerf.priors.loading.load_weights", lambda *options: loaded.append(options))
    monkeypatch.setattr("csd_nerf.priors.flow_loading.load_weights", lambda *options: loaded.append(options))
    network = "unet" if save is copy_of_bundled else "transformer"
    name = network if part == "network" else part
    (file,) = (folder / name).glob("*.safetensors")
    grow(file, 4 * TERABYTE)
    assert file.stat().st_blocks * 512 < TERABYTE // 10**3
    with pytest.raises(InputError, match=rf"does not fit into the memory of cpu(.|\n)*000\.0 GB {name}"):
        load_prior(str(folder), device="cpu", dtype=torch.bfloat16)
    assert not loaded


def test_what_would_fit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the sizes in 32 and in 16 bits."""
    folder = save_flux2_klein(tmp_path / "prior")
    whole, half = (
        sum(loaded_bytes(Load(part, folder / part, dtype)) for part in ("transformer", "vae", "text_encoder"))
        for dtype in (torch.float32, torch.bfloat16)
    )
    monkeypatch.setattr("csd_nerf.priors.memory.free_memory", lambda device: (whole + half) // 2)
    with pytest.raises(InputError, match=r"--pipeline.prior-precision bfloat16, which takes"):
        load_prior(str(folder), device="cpu", dtype=torch.float32)
    load_prior(str(folder), device="cpu", dtype=torch.bfloat16)


def test_bytes_are_those_of_the_loaded_model(tmp_path: Path) -> None:
    folder = save_flux2_klein(tmp_path / "prior")
    for dtype in (torch.float32, torch.bfloat16):
        transformer = load_prior(str(folder), device="cpu", dtype=dtype).transformer  # type: ignore[attr-defined]
        counted = loaded_bytes(Load("transformer", folder / "transformer", dtype))
        assert counted == sum(weight.nbytes for weight in transformer.state_dict().values())


def test_a_cpu_has_memory() -> None:
    assert 0 < free_memory(torch.device("cpu")) < 100 * TERABYTE
