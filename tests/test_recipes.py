"""Recipes: what they set, what the command line keeps, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from csd_nerf.errors import InputError
from csd_nerf.nerf.methods import METHODS
from csd_nerf.priors import load_prior
from csd_nerf.settings_files import RECIPES, apply_recipe, options_given

EDITS = [name for name in METHODS if name.endswith("-edit") or name in ("csd-edit-dataset", "in2n-baseline")]


def applied(recipe: str, method: str = "csd-edit", given: Any = (), **changes: Any) -> Any:
    """The method's configuration with `changes` of its pipeline from the command line, and the recipe."""
    config = copy.deepcopy(METHODS[method])
    for name, value in changes.items():
        setattr(config.pipeline, name, value)
    apply_recipe(config, METHODS[method], method, recipe, given)
    return config


def written(folder: Path, text: str) -> str:
    file = folder / "mine.yaml"
    file.write_text(text)
    return str(file)


def test_the_recipe_tiny_has_every_edit() -> None:
    assert len(EDITS) >= 7 and RECIPES == ("tiny", "tiny-flow", "flow")
    for method in EDITS:
        config = applied("tiny", method)
        assert config.machine.device_type == "cpu" and config.pipeline.render_size == 96
        assert config.pipeline.prior in ("tiny-instruct", "tiny-sd")
        config.pipeline.source_prompt = "a bear"
        config.pipeline.check()
        assert METHODS[method].pipeline.render_size == 512


def test_the_recipe_flow_anneals_and_is_for_csd_edit() -> None:
    config = applied("flow")
    objective = config.pipeline.objective
    assert (objective.timesteps, objective.weighting) == ("annealed", "one-over-alpha")
    assert objective.max_timestep > METHODS["csd-edit"].pipeline.objective.max_timestep
    config.pipeline.check()
    with pytest.raises(InputError, match="the recipe flow is not for dds-edit"):
        applied("flow", "dds-edit")


def test_the_recipe_tiny_flow_is_tiny_with_the_other_bundled_editor() -> None:
    tiny, flow = applied("tiny"), applied("tiny-flow")
    objective = flow.pipeline.objective
    assert objective.timesteps == "annealed" and load_prior("tiny-flow", device="cpu").guided_by == "text"
    flow.pipeline.check()
    flow.recipe, flow.pipeline.prior = tiny.recipe, tiny.pipeline.prior
    for name in ("timesteps", "min_timestep", "max_timestep", "text_guidance"):
        setattr(objective, name, getattr(tiny.pipeline.objective, name))
    flow.pipeline.descent = tiny.pipeline.descent
    assert flow == tiny


def test_csd_edit_tiny_is_csd_edit_with_the_recipe() -> None:
    config, tiny = applied("tiny"), copy.deepcopy(METHODS["csd-edit-tiny"])
    tiny.method_name, tiny.pipeline.model = config.method_name, config.pipeline.model
    assert config == tiny


def test_the_command_line_wins() -> None:
    config = applied("tiny", particles=2, render_size=64)
    assert (config.pipeline.particles, config.pipeline.render_size) == (2, 64)
    assert config.pipeline.picture_size == 128
    # Also where what it says is the method's own value, which the recipe would change.
    given = options_given(["csd-edit", "--pipeline.picture-size", "512", "--machine.device-type=cuda"])
    config = applied("tiny", given=given)
    assert (config.pipeline.picture_size, config.machine.device_type) == (512, "cuda")


def test_a_recipe_of_one_s_own(tmp_path: Path) -> None:
    text = """
    prompt: make it night
    data: captures/bear
    pipeline:
      particles: 6
      model: {num_proposal_samples_per_ray: [24, 12]}
      objective: {bandwidth: 3}
    for:
      csd-edit: {pipeline: {particles: 8}}
      dds-edit:
    """
    config = applied(written(tmp_path, text))
    assert config.prompt == "make it night" and config.data == Path("captures/bear")
    assert config.pipeline.model.num_proposal_samples_per_ray == (24, 12)
    assert config.pipeline.objective.bandwidth == 3 and config.pipeline.particles == 8
    assert applied(written(tmp_path, text), "dds-edit").pipeline.particles == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pipeline: {particels: 2}", "particles"),
        ("pipeline: {objective: {strength: 2}}", "pipeline.objective.strength"),
        ("pipeline: {particles: many}", "pipeline.particles: int"),
        ("pipeline: {particles: 2.5}", "pipeline.particles: int"),
        ("pipeline: {objective: {transport: mean}}", "svgd"),
        ("pipeline: 3", "options below pipeline"),
        ("optimizers: {fields: 3}", "optimizers"),
        ("for: {dds-edit: {}}", "is not for csd-edit"),
        ("for: csd-edit", "is not for csd-edit"),
        ("- particles", "cannot be read"),
        ("pipeline: {", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_recipes_that_cannot_be_used(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        applied(written(tmp_path, text))


def test_unknown_recipes() -> None:
    with pytest.raises(InputError, match="tiny-flow or flow, or a YAML file"):
        applied("huge")
    command = copy.deepcopy(METHODS["csd-edit"])
    with pytest.raises(InputError, match="the recipe tiny is not for image"):
        apply_recipe(command, command, "image", "tiny")
