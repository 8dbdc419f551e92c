"""The files of `configs/`: that they are the methods, and that what is wrong in them is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from csd_nerf.bundled import BUNDLED_PRIORS
from csd_nerf.distillation.presets import PRESETS, latent_edit, preset
from csd_nerf.errors import InputError
from csd_nerf.nerf import methods
from csd_nerf.settings_files import CONFIGS, method_file, method_names, read_method, set_options

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A copy of the folder, to be changed."""
    return Path(shutil.copytree(CONFIGS, tmp_path / "configs"))


def change(folder: Path, name: str, old: str, new: str) -> None:
    """Replace the only place where a file says something."""
    file = folder / f"{name}.yaml"
    text = file.read_text()
    assert text.count(old) == 1, f"{old!r} is not in {file.name} once"
    file.write_text(text.replace(old, new))


def test_every_entry_point_is_a_method_with_a_file_and_the_other_way_round() -> None:
    lines = (REPOSITORY / "pyproject.toml").read_text()
    entries = dict(re.findall(r'^([\w-]+) = "csd_nerf\.nerf\.methods:(\w+)"$', lines, re.MULTILINE))
    assert tuple(sorted(entries)) == method_names() == tuple(methods.METHODS)
    for name, attribute in entries.items():
        assert getattr(methods, attribute).config.method_name == name


def test_a_method_is_changed_in_one_line(configs: Path) -> None:
    change(configs, "csd-edit", "max_num_iterations: 2000", "max_num_iterations: 1234")
    changed = methods.read_methods(configs)
    assert changed["csd-edit"].config.max_num_iterations == 1234
    for name, config in methods.METHODS.items():
        assert (changed[name].config == config) == (name != "csd-edit"), name


def test_the_published_objective_is_the_pipeline_s_but_for_what_is_said_there(configs: Path) -> None:
    change(configs, "csd-edit", "image_guidance: 1.5", "image_guidance: 1.25")
    change(configs, "csd-edit", "  objective: {kernel: imq}", "  objective: {max_timestep: 0.9}")
    objective = methods.read_methods(configs)["csd-edit"].config.pipeline.objective  # type: ignore[attr-defined]
    published = preset("csd-edit")
    published.image_guidance, published.max_timestep = 1.25, 0.9
    assert objective == published
    dataset = methods.read_methods(configs)["csd-edit-dataset"].config.pipeline.objective  # type: ignore[attr-defined]
    assert (dataset.image_guidance, dataset.max_timestep) == (1.25, 0.5)  # extends the published one


def test_numbers_of_the_editors_are_in_the_files_too() -> None:
    for name in PRESETS:
        for prior in (*BUNDLED_PRIORS, "timbrooks/instruct-pix2pix"):
            config = latent_edit(name, prior)
            config.descent.check()
            config.objective.check(particles=16, source_prompt="a photo")
    assert latent_edit("csd-edit", "some/model").objective == preset("csd-edit")
    assert latent_edit("csd-edit", "tiny-instruct").objective.text_guidance == 3.5
    assert latent_edit("cds", "tiny-sd").descent.steps == 40
    assert latent_edit("pds", "tiny-sd").descent.steps == 200
    assert latent_edit("csd-edit", "tiny-instruct", translator=True).objective.transport == "independent"
    assert latent_edit("csd-edit", "tiny-instruct", translator=True).objective.text_guidance == 3.5
    editors = [read_method(name).get("editors", {}) for name in method_names()]
    assert {prior for values in editors for prior in values.get("priors", ())} == set(BUNDLED_PRIORS)


FIELDS = "  fields: {lr: 1.2e-2, lr_final: 3e-3, hash_grid: 0.15}"


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("csd-edit", "steps_per_save: 200", "steps_per_saving: 200", "steps_per_saving"),
        ("csd-edit", "steps_per_save: 200", "steps_per_save: often", "steps_per_save: int"),
        ("shared/edit", "  particles: 4", "  particels: 4", "pipeline.particels"),
        ("shared/edit", "  particles: 4", "  particles: 4.5", "pipeline.particles: int"),
        ("csd-edit", "learning_rate: 0.2  #", "rate: 0.2  #", "pipeline.descent.rate"),
        ("csd-edit", "bandwidth: median", "bandwidth: mean", "pipeline.objective.bandwidth"),
        ("shared/edit", FIELDS, "  fields: {rate: 1e-2}", "optimizers.fields.rate"),
        ("shared/edit", FIELDS, "  fields: 1e-2", "optimizers.fields"),
        ("shared/edit", FIELDS, "  fields: {lr: fast}", "optimizers.fields.lr: float"),
        ("shared/edit", FIELDS, "  fields: {hash_grid: much}", "optimizers.fields.hash_grid: float"),
        ("csd-edit", "\ntiny:", "\ntiney:", "tiney"),
        ("csd-edit", "extends: shared/edit", "extends: shared/edits", "shared/edits"),
        ("csd-edit-tiny", "csd-edit.tiny]", "csd-edit.small]", "csd-edit.small"),
        ("csd-edit-tiny", "shared/small-field", "dds-edit", "pipeline.model"),
        ("shared/edit", "kind: edit", "kind: edits", "'edits'"),
        ("in2n-baseline", "description:", "descriptions:", "description None"),
        ("csd-generate", "optimizers:", "optimisers:", "optimizers None"),
        ("csd-edit", "  bandwidth: median", "  structure: 3", "options below pipeline.objective.structure"),
        ("sds-edit", "tiny:", "tiny: {", "cannot be read"),
    ],
)
def test_what_is_wrong_in_a_file_is_refused_by_its_name(
    name: str, old: str, new: str, said: str, configs: Path
) -> None:
    change(configs, name, old, new)
    refused = "edit" if name == "shared/edit" else name
    with pytest.raises(InputError, match=rf"{refused}\.yaml(.|\n)*{re.escape(said)}"):
        methods.read_methods(configs)


def test_extending(tmp_path: Path) -> None:
    texts = {
        "base": "a: {b: 1, c: [1, 2]}\nd: 4\nsmall: {d: 0}",
        "other": "a: {b: 2}\nd: {e: 5}",
        "one": "extends: base\na: {c: [3]}",
        "both": "extends: [base, other]\na: {b: 3}",
        "within": "x: {extends: one.a, b: 9}\ny: {extends: base.small}",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    assert read_method("one", tmp_path) == {"a": {"b": 1, "c": [3]}, "d": 4, "small": {"d": 0}}
    assert read_method("both", tmp_path) == {"a": {"b": 3, "c": [1, 2]}, "d": {"e": 5}, "small": {"d": 0}}
    assert read_method("within", tmp_path) == {"x": {"b": 9, "c": [3]}, "y": {"d": 0}}


def test_numbers_with_an_exponent_and_no_point_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "numbers.yaml").write_text("a: [1e-2, -2E3, 1.5e+2, 1e-2x, e-2]")
    assert read_method("numbers", tmp_path) == {"a": [0.01, -2000.0, 150.0, "1e-2x", "e-2"]}


def test_configurations_share_nothing() -> None:
    """Settings are changed in place, by the viewer for one."""
    config, other = (methods.read_methods()["csd-edit-tiny"].config for _ in range(2))
    model: Any = config.pipeline.model
    model.proposal_net_args_list[0]["num_levels"] = 1
    config.pipeline.objective.text_guidance = 0.0  # type: ignore[attr-defined]
    assert other == methods.METHODS["csd-edit-tiny"] != config


def test_the_files_are_in_the_wheel(tmp_path: Path) -> None:
    """A wheel of the package without most of its modules, which reads the files from where it is unpacked."""
    pytest.importorskip("setuptools", minversion="70.1", reason="older ones need `wheel` beside them")
    source, installed = tmp_path / "source", tmp_path / "installed"
    shutil.copytree(CONFIGS, source / "configs")
    (source / "csd_nerf").mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("__init__.py", "errors.py", "settings_files.py"):
        shutil.copy(REPOSITORY / "csd_nerf" / name, source / "csd_nerf")
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    shutil.rmtree(source)
    (wheel,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(wheel, installed, "zip")
    read = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "from csd_nerf.settings_files import CONFIGS, method_names, read_method\n"
        "print(CONFIGS, *method_names(), read_method('csd-edit')['tiny']['machine'])"
    )
    command = [sys.executable, "-c", read]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    folder = installed / "csd_nerf" / "configs"
    assert said.split() == [str(folder), *method_names(), "{'device_type':", "'cpu'}"]


def test_values_given_stay() -> None:
    config, usual = methods.read_methods()["csd-edit"].config, methods.METHODS["csd-edit"]
    config.max_num_iterations = 7
    settings = {"max_num_iterations": 1, "steps_per_save": 2, "pipeline": {"particles": 3, "render_size": 4}}
    set_options(config, settings, method_file("csd-edit"), usual=usual, given={"pipeline.particles"})
    pipeline: Any = config.pipeline
    assert (config.max_num_iterations, config.steps_per_save) == (7, 2)
    assert (pipeline.particles, pipeline.render_size) == (4, 4)
