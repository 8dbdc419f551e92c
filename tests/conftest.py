"""Fixtures shared by the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from csd_nerf.priors import Prior, load_prior

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tiny_prior() -> Prior:
    """The bundled prior on the CPU, in float32."""
    return load_prior("tiny-instruct", device="cpu")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with captured scenes and photos, which is not part of the repository."""
    folder = Path(os.environ.get("CSD_NERF_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the shared data, and {folder} is not there (set CSD_NERF_SHARED)")
    return folder


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
