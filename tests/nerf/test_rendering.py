from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nerfstudio.model_components.losses import distortion_loss, interlevel_loss

from csd_nerf.nerf.rendering import render_views, train_proposals


@pytest.fixture
def pipeline(scene_run: Path) -> Any:
    """A trained scene whose rays are sampled without jitter, so that two renderings are comparable."""
    from nerfstudio.utils.eval_utils import eval_setup

    _, pipeline, _, _ = eval_setup(scene_run / "config.yml", test_mode="test")
    pipeline.train()
    sampler = pipeline.model.proposal_sampler
    sampler.initial_sampler.train_stratified = sampler.pdf_sampler.train_stratified = False
    train_proposals(pipeline.model)
    return pipeline


def gradient(pipeline: Any, loss: torch.Tensor) -> torch.Tensor:
    pipeline.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in pipeline.model.field.parameters() if p.grad is not None])


def test_checkpointed_chunks_equal_one_plain_rendering(pipeline: Any) -> None:
    cameras = pipeline.datamanager.train_dataset.cameras
    weights = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    views = render_views(pipeline.model, cameras, [1, 4], rays_per_chunk=300)
    loss = (views.images * weights).sum() + views.interlevel + views.distortion
    chunked = gradient(pipeline, loss)

    plain_loss = torch.zeros(())
    for index, weight in zip([1, 4], weights, strict=True):
        rays = cameras.generate_rays(camera_indices=index, keep_shape=True).flatten()
        outputs = pipeline.model(rays)
        image = outputs["rgb"].view(32, 32, 3).permute(2, 0, 1)
        torch.testing.assert_close(views.images[[1, 4].index(index)], image, atol=1e-5, rtol=1e-4)
        levels = outputs["weights_list"], outputs["ray_samples_list"]
        plain_loss = plain_loss + (image * weight).sum()
        plain_loss = plain_loss + (interlevel_loss(*levels) + distortion_loss(*levels)) / 2
    torch.testing.assert_close(chunked, gradient(pipeline, plain_loss), atol=2e-4, rtol=1e-3)


def test_a_share_of_the_pixels_sends_an_unbiased_gradient(pipeline: Any) -> None:
    """Two complementary halves: the mean of their enlarged gradients is the whole gradient, exactly."""
    cameras = pipeline.datamanager.train_dataset.cameras
    weights = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def gradient_of(share: float, order: torch.Tensor) -> torch.Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randperm", lambda *_, **__: order)
            views = render_views(pipeline.model, cameras, [0], rays_per_chunk=1024, gradient_share=share)
        return gradient(pipeline, (views.images * weights).sum())

    order = torch.randperm(32 * 32)
    halves = [gradient_of(0.5, half) for half in (order, order.flip(0))]
    torch.testing.assert_close(sum(halves) / 2, gradient_of(1.0, order), atol=2e-4, rtol=1e-3)
    assert not torch.allclose(halves[0], halves[1], rtol=1e-2)


def test_memory_between_the_passes_is_the_views_alone(pipeline: Any) -> None:
    """What the graph holds grows by the same few values per pixel with every view, not by its samples."""
    cameras = pipeline.datamanager.train_dataset.cameras

    def held_bytes(count: int) -> int:
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            views = render_views(pipeline.model, cameras, list(range(count)), rays_per_chunk=512)
        assert views.images.requires_grad
        return sum(seen.values())

    bytes_per_pixel = (held_bytes(8) - held_bytes(2)) / (6 * 32 * 32)
    assert bytes_per_pixel < 100
