"""The config.yml of a run is data, whoever wrote it."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from nerfstudio.configs.method_configs import all_methods

from csd_nerf.cli import main
from csd_nerf.comparison.given import check_scene
from csd_nerf.errors import InputError
from csd_nerf.evaluation.weights import weights_absent
from csd_nerf.files import check_folder_writable
from csd_nerf.nerf.config_loader import read_config
from csd_nerf.nerf.methods import METHODS
from csd_nerf.nerf.runs import find_run
from csd_nerf.priors.folder import download_command

MACHINE = "!!python/object:nerfstudio.configs.base_config.MachineConfig"


@pytest.fixture
def config(scene_run: Path, tmp_path: Path) -> Path:
    """The config.yml of a run that a test may change."""
    shutil.copytree(scene_run, tmp_path / "run")
    return tmp_path / "run" / "config.yml"


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_survives_its_config_file(name: str, config: Path) -> None:
    """What nerfstudio writes as config.yml reads back as the same settings."""
    config.write_text(yaml.dump(METHODS[name]))
    assert find_run(config).config == METHODS[name]


@pytest.mark.parametrize("name", ["nerfacto", "depth-nerfacto", "instant-ngp", "splatfacto"])
def test_a_method_of_nerfstudio_survives_its_config_file(name: str, config: Path) -> None:
    config.write_text(yaml.dump(all_methods[name]))
    assert find_run(config).config == all_methods[name]


def test_values_of_standard_types_survive(tmp_path: Path) -> None:
    values = [
        Path("a b/c"),
        Path("/"),
        (1, "2", None),
        {3},
        1j,
        np.float64(0.1),
        np.int32(-7),
        np.bool_(True),
    ]
    (tmp_path / "config.yml").write_text(yaml.dump(values))
    read = read_config(tmp_path / "config.yml")
    assert read == values and [type(value) for value in read] == [type(value) for value in values]


def test_a_path_of_another_system_is_one_of_this(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("!!python/object/apply:pathlib.WindowsPath [data, bear]")
    assert read_config(tmp_path / "config.yml") == Path("data/bear")


@pytest.mark.parametrize(
    ("named", "now"),
    [
        ("csd_nerf.nerf.pipeline.EditPipeline", "csd_nerf.nerf.edit_pipeline.EditPipeline"),
        ("csd_nerf.nerf.trainer.SceneTrainer", "csd_nerf.nerf.scene_trainer.SceneTrainer"),
    ],
)
def test_a_run_of_an_earlier_version_is_opened(named: str, now: str, config: Path) -> None:
    """Its classes were in other modules then."""
    method = METHODS["csd-edit-tiny" if "Edit" in now else "csd-nerfacto-tiny"]
    written = yaml.dump(method)
    assert now in written
    config.write_text(written.replace(now, named))
    assert find_run(config).config == method


EXECUTE = {
    "a call": "!!python/object/apply:os.system ['touch {file}']",
    "a call of what a module of ours imports": "!!python/object/apply:csd_nerf.demo.child.Path ['{file}']",
    "a function of nerfstudio": "!!python/object/apply:nerfstudio.utils.scripts.run_command ['touch {file}']",
    "a new object": "!!python/object/new:subprocess.Popen [['touch', '{file}']]",
    "a constructor": "!!python/object/apply:subprocess.Popen [['touch', '{file}']]",
    "a builtin": '!!python/object/apply:eval [\'open("{file}", "w")\']',
    "a name": "!!python/name:os.system ''",
    "a function's name": "!!python/name:nerfstudio.utils.scripts.run_command ''",
    "a module": "!!python/module:antigravity ''",
    "a class without settings": "!!python/object:nerfstudio.utils.writer.Writer {{}}",
    "an item": "!!python/object/apply:_operator.getitem [[1], 0]",
    "an unknown package": "!!python/object:no.such.Class {{}}",
}


@pytest.mark.parametrize("text", EXECUTE.values(), ids=EXECUTE)
def test_a_config_that_names_code_is_refused_and_not_executed(
    text: str, config: Path, tmp_path: Path
) -> None:
    """Also deep inside an otherwise whole file."""
    trace = tmp_path / "executed"
    settings = config.read_text()
    assert "seed: 0" in settings or "seed: 42" in settings
    lines = [
        f"{line.partition('seed:')[0]}seed: {text.format(file=trace)}" if "seed:" in line else line
        for line in settings.splitlines()
    ]
    config.write_text("\n".join(lines))
    with pytest.raises(
        InputError, match=r"config\.yml names (.|\n)* is refused(.|\n)*in line \d+"
    ) as refused:
        find_run(config)
    assert "CSD_NERF_TRUSTED_PACKAGES=" in refused.value.hint
    assert not trace.exists()


def test_a_command_refuses_it_with_one_message(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "executed"
    config.write_text(EXECUTE["a call"].format(file=trace))
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(config.parent)])
    assert ended.value.code == 2
    said = "".join(capsys.readouterr())
    assert "os.system" in said and "Traceback" not in said
    assert not trace.exists()


DAMAGED = {
    "a method in a setting's place": f"{MACHINE} {{__init__: 1}}",
    "settings as a list": f"{MACHINE} [1]",
    "no number": "!!int x",
    "no date": "2024-13-45",
    "no member": "!!python/object/apply:nerfstudio.utils.writer.EventName [none]",
    "a changed member": "!!python/object/apply:nerfstudio.utils.writer.EventName {args: [1], state: {a: 1}}",
    "a numpy object": "!!python/object/apply:numpy.dtype {args: [O, false, true], state: [3, '|']}",
    "an unknown tag": "!other x",
    "an unhashable key": "{[1]: 2}",
    "nesting without end": "[" * 3000,
    "a class that is not there": "!!python/object:csd_nerf.nerf.trainer.Gone {}",
    "bytes": "\0",
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_config_is_refused(text: str, config: Path) -> None:
    config.write_text(text)
    with pytest.raises(InputError, match=r"config\.yml cannot be read"):
        find_run(config)


def test_settings_of_another_shape_are_refused(config: Path) -> None:
    whole = copy.deepcopy(METHODS["csd-edit-tiny"])
    for part, wrong in (("pipeline", 5), ("machine", None)):
        changed: Any = copy.deepcopy(whole)
        setattr(changed, part, wrong)
        config.write_text(yaml.dump(changed))
        with pytest.raises(InputError, match=f"not a training configuration(.|\n)*{part}: "):
            find_run(config)
    whole.pipeline.datamanager = whole.pipeline
    config.write_text(yaml.dump(whole))
    with pytest.raises(InputError, match="recursive node"):
        find_run(config)
    theirs = copy.deepcopy(all_methods["nerfacto"])
    theirs.pipeline.datamanager = theirs.pipeline  # type: ignore[assignment]
    config.write_text(yaml.dump(theirs))
    with pytest.raises(InputError, match="hold themselves"):
        find_run(config)


PLUGIN = """
from dataclasses import dataclass
from os import system

@dataclass
class Options:
    size: int = 1

def halved(number):
    return number / 2
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that this one does not know, and a file that names what is in it."""
    (tmp_path / "some_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "config.yml"
    file.write_text(
        "- !!python/object:some_plugin.Options {size: 3}\n- !!python/object/apply:some_plugin.halved [3]"
    )
    return file


def test_a_package_is_allowed_by_those_who_trust_it(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=r"some_plugin\.Options(.|\n)*CSD_NERF_TRUSTED_PACKAGES=some_plugin "
    ):
        read_config(plugin)
    monkeypatch.setenv("CSD_NERF_TRUSTED_PACKAGES", "other, some_plugin")
    options, number = read_config(plugin)
    assert options.size == 3 and type(options).__name__ == "Options" and number == 1.5


def test_a_trusted_package_brings_no_other_with_it(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSD_NERF_TRUSTED_PACKAGES", "some_plugin")
    plugin.write_text(f"!!python/object/apply:some_plugin.system ['touch {plugin.parent / 'executed'}']")
    with pytest.raises(InputError, match=r"some_plugin\.system(.|\n)*some_plugin "):
        read_config(plugin)
    assert not (plugin.parent / "executed").exists()


def test_a_command_that_is_advised_quotes_what_a_file_says(config: Path) -> None:
    edit = copy.deepcopy(METHODS["csd-edit-tiny"])
    edit.pipeline.source_checkpoint = Path("scene; touch executed")
    config.write_text(yaml.dump(edit))
    with pytest.raises(InputError) as refused:
        check_scene(config.parent)
    assert "--load-dir 'scene; touch executed'," in refused.value.hint


def test_other_commands_that_are_advised_are_quoted(tmp_path: Path) -> None:
    assert "download '$(x)' --local-dir 'my prior' " in download_command("$(x)", "my prior")
    assert "`hf download '$(x)'`" in str(weights_absent("$(x)", OSError("absent")))
    with pytest.raises(InputError, match=r"mkdir -p '.*a b'`"):
        check_folder_writable(tmp_path / "a b")
