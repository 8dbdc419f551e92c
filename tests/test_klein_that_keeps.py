"""What a klein keeps of the picture it is shown: keys and values, where they depend on nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from prior_folders import save_flux2_klein, save_flux_kontext, save_longcat_image_edit, save_qwen_image_edit

from csd_nerf.distillation import Objective, ObjectiveConfig
from csd_nerf.priors import load_prior


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = save_flux2_klein(
        tmp_path_factory.mktemp("priors") / "kv", is_distilled=True, pipeline="Flux2KleinKVPipeline"
    )
    return load_prior(str(folder), device="cpu", dtype=torch.float32)


def asked(prior: Any, count: int, seed: int) -> tuple[torch.Tensor, Any, torch.Tensor]:
    """Noisy latents, texts and two pictures in turn."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(9))
    noisy = torch.randn(count, prior.latent_channels, 8, 12, generator=generator)
    rows = torch.arange(count) % 2
    condition = prior.condition(pictures)[rows]
    words = ["make it night" if row % 3 else "winter" for row in range(count)]
    return noisy, prior.embed(words, condition), condition


def test_answers_with_what_is_kept_are_those_without(prior: Any) -> None:
    """At another timestep, with other noise and other prompts than when it was computed."""
    prior._kept.clear()
    first = asked(prior, 4, seed=1)
    prior.predict_noise(first[0], 900, *first[1:])
    assert len(prior._kept) == 2
    noisy, text, condition = asked(prior, 5, seed=2)
    kept = prior.predict_noise(noisy, 300, text, condition)
    for row in range(5):
        prior._kept.clear()
        rows = slice(row, row + 1)
        alone = prior.predict_noise(noisy[rows], 300, text[rows], condition[rows])
        torch.testing.assert_close(kept[rows], alone, rtol=1e-5, atol=1e-5)


def test_pictures_are_told_apart_and_forgotten(prior: Any) -> None:
    prior._kept.clear()
    noisy, text, condition = asked(prior, 2, seed=3)
    right = prior.predict_noise(noisy, 500, text, condition)
    wrong = prior.predict_noise(noisy, 500, text, condition.flip(0))
    assert (right - wrong).abs().amax((1, 2, 3)).min() > 1e-4
    assert len(prior._kept) == 2
    prior.predict_noise(noisy[:1], 500, text[:1], condition[:1])
    assert len(prior._kept) == 1
    prior.predict_noise(noisy, 500, text, None)
    assert not prior._kept


def test_fewer_tokens_go_through_the_transformer(prior: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a picture only at its first sight: once in an edit of several steps."""
    prior._kept.clear()
    counts: list[tuple[int, int]] = []
    forward = prior.transformer.forward

    def counted(hidden_states: torch.Tensor, **options: Any) -> Any:
        counts.append((len(hidden_states), hidden_states.shape[1]))
        return forward(hidden_states=hidden_states, **options)

    monkeypatch.setattr(prior.transformer, "forward", counted)
    source, condition = prior.encode_source(torch.rand(2, 3, 64, 96))
    objective = Objective(ObjectiveConfig(), prior)
    for _ in range(2):
        objective.gradient(source + 0.1, source, condition, prompt="make it night")
    assert counts == [(2, 192), (2, 96), (4, 96)]


@pytest.mark.parametrize(
    "save", [save_flux_kontext, save_flux2_klein, save_qwen_image_edit, save_longcat_image_edit]
)
def test_the_keys_of_other_models_depend_on_what_is_asked(tmp_path, save) -> None:
    """So that nothing of the picture can be kept exactly: its tokens see the noisy ones. In the first block
    they have seen nothing yet; from then on they have."""
    other: Any = load_prior(str(save(tmp_path / "prior")), device="cpu", dtype=torch.float32)
    noisy, text, condition = asked(other, 2, seed=4)
    blocks = [
        *other.transformer.transformer_blocks,
        *getattr(other.transformer, "single_transformer_blocks", []),
    ]
    last = blocks[-1].attn
    key = getattr(last, "to_k", None) or last.to_qkv_mlp_proj
    keys: list[torch.Tensor] = []
    hook = key.register_forward_hook(lambda layer, inputs, output: keys.append(output[:, -96:]))
    for changed in (noisy, noisy + 1):
        other.predict_noise(changed, 300, text, condition)
    hook.remove()
    assert (keys[0] - keys[1]).abs().max() > 1e-3
