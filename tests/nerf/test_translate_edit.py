"""A trained translator as the editor of a scene: `--pipeline.edit translate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import refusal, run, run_until_killed
from torch import Tensor

from csd_nerf.comparison.budget import price_of
from csd_nerf.errors import InputError
from csd_nerf.translation.model_file import TrainedTranslator, save_translator
from csd_nerf.translation.network import LIVELINESS, Translator

Make = Any
DARKER_BY = 0.25


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that knows two prompts: the first does nothing, the second makes pictures darker."""
    torch.manual_seed(0)
    network = Translator(2)
    torch.nn.init.constant_(network.change[1].bias, -DARKER_BY / LIVELINESS)
    path = tmp_path_factory.mktemp("translator") / "it.safetensors"
    save_translator(TrainedTranslator(network, ("leave it", "make it darker"), {}), path)
    return path


@pytest.fixture
def edited_by(edit_config: Make, translator: Path) -> Any:
    """Configurations of edits by the translator."""

    def make(method: str = "csd-edit-tiny", **changes: Any) -> Any:
        usual: dict[str, Any] = {
            "prompt": "make it darker",
            "pipeline__edit": "translate",
            "pipeline__translator": translator,
            "pipeline__particles": 2,
            "pipeline__fits_per_round": 3,
            "pipeline__turntable_frames": 0,
        }
        return edit_config(method, **{**usual, **changes})

    return make


def weights(trainer: Any) -> Tensor:
    return torch.cat([value.flatten().float() for value in trainer.pipeline.model.state_dict().values()])


def test_the_scene_is_fitted_to_what_the_translator_makes_of_the_photos(
    edited_by: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loads_none(*_: Any, **__: Any) -> Any:
        raise AssertionError("a diffusion model is loaded")

    monkeypatch.setattr("csd_nerf.priors.load_prior", loads_none)
    trainer = run(edited_by(max_num_iterations=30))
    pipeline, edit = trainer.pipeline, trainer.pipeline._edit
    photos = pipeline.datamanager.train_photos(edit.targets.views, edit.height, edit.width)
    targets = edit.targets.state()["pictures"].permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(targets, (photos - DARKER_BY).clamp(0, 1), rtol=0, atol=2 / 255)
    assert (pipeline.eval_pictures() - edit.before).mean() < -0.05
    assert pipeline.unet_evaluations == 0
    assert json.loads((trainer.base_dir / "cost.json").read_text())["unet_evaluations"] == 0


def test_of_an_edited_scene_it_translates_what_that_shows(edited_by: Make) -> None:
    first = run(edited_by(max_num_iterations=12))
    again = run(edited_by(load_dir=first.base_dir, prompt="leave it", timestamp="again"))
    edit = again.pipeline._edit
    view = edit.targets.views[0]
    shown = again.pipeline._source_view(view).image
    target = edit.targets.state()["pictures"][0].permute(2, 0, 1) / 255
    torch.testing.assert_close(target, shown.clamp(0, 1), rtol=0, atol=2 / 255)


def test_a_killed_edit_goes_on_as_an_unbroken_one(edited_by: Make) -> None:
    settings = {"max_num_iterations": 7, "steps_per_save": 1, "machine__seed": 3}
    unbroken = run(edited_by(**settings, timestamp="unbroken"))
    killed = run_until_killed(edited_by(**settings, timestamp="killed"), step=4)
    resumed = run(edited_by(**settings, load_dir=killed, timestamp="resumed"))
    assert torch.equal(weights(resumed), weights(unbroken))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "make it winter"}, "'leave it' or 'make it darker'"),
        ({"pipeline__translator": None}, "there is no translator to make the edit"),
        ({"pipeline__translator": Path("nowhere.safetensors")}, "there is no translator nowhere.safetensors"),
        ({"pipeline__edit": "descend"}, "--pipeline.translator cannot be used"),
        ({"pipeline__route": "gradient"}, "--pipeline.translator cannot be used"),
        ({"pipeline__prior_device": "cpu"}, "--pipeline.prior-device cannot be used"),
        ({"pipeline__region__source": "auto"}, "--pipeline.region.source cannot be used"),
        ({"pipeline__motion": "tiny-motion"}, "--pipeline.motion cannot be used"),
        ({"pipeline__control__net": "tiny-depth"}, "--pipeline.control.net cannot be used"),
    ],
)
def test_what_it_cannot_do_is_said_at_the_start(
    edited_by: Make, changes: dict[str, Any], said: str, capsys: Any
) -> None:
    assert said in refusal(edited_by(**changes), capsys)


def test_a_prompt_from_the_viewer_must_be_one_of_its_own(edited_by: Make) -> None:
    trainer = run(edited_by(max_num_iterations=1))
    with pytest.raises(InputError, match="no such target"):
        trainer.change_prompt("make it winter")
    trainer.change_prompt("leave it")
    assert trainer.pipeline.prompt.value == "leave it"


def test_it_has_no_price_in_evaluations(edited_by: Make) -> None:
    with pytest.raises(InputError, match="has no price"):
        price_of(edited_by())
