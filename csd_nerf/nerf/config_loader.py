"""Reading the config.yml of a run, which may be somebody else's: settings, never code.

nerfstudio writes the file as YAML whose tags name Python's types. Its own loader imports and calls whatever a
tag names; the one here knows what settings are made of, and refuses the rest before it is imported.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
from enum import Enum
from pathlib import Path, PureWindowsPath
from typing import Any, NoReturn

import numpy as np
import yaml

from csd_nerf.errors import InputError

TRUST = "CSD_NERF_TRUSTED_PACKAGES"
"""Environment variable: packages, with commas between, whose types and functions a config.yml may use too."""

_PYTHON = "tag:yaml.org,2002:python/"
_KNOWN = ("csd_nerf", "nerfstudio", "torch.optim")
_FUNCTIONS = ("nerfstudio.data.utils.nerfstudio_collate.nerfstudio_collate",)
"""All other names are of classes, which `_target` and the like hold."""
_NUMBER = re.compile(r"[biuf][1248]|c8|c16")
"""How numpy names the types of numbers, in bytes."""


def read_config(file: Path) -> Any:
    """What nerfstudio wrote as the config.yml of a run.

    Nothing that the file names is called, but for the members of enumerations; objects are dataclasses of
    nerfstudio and this package, whose fields are set. What packages in `CSD_NERF_TRUSTED_PACKAGES` define may
    be called, too.

    Raises:
        InputError: the file names anything else, or cannot be read.
    """
    try:
        with file.open(encoding="utf8") as stream:
            return yaml.load(stream, Loader=_ConfigLoader)
    except InputError:
        raise
    except Exception as error:  # PyYAML passes on whatever Python says of an odd number, date, key or name
        raise InputError(
            f"{file} cannot be read",
            expected="the config.yml that nerfstudio wrote when the run was trained",
            got=(str(error).splitlines() or [""])[0] or type(error).__name__,
            hint="restore the file, or install the plugin that the run was trained with",
        ) from error


def _trusted_packages() -> set[str]:
    return {name.strip() for name in os.environ.get(TRUST, "").split(",") if name.strip()}


def _is_within(module: str, packages: Any) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


class _ConfigLoader(yaml.FullLoader):
    """PyYAML's way of building objects, with a say in which."""

    def find_python_name(self, name: str, mark: Any, unsafe: bool = False) -> Any:
        """What a tag names. A module is imported only if its package is known or trusted, and what others
        define is refused also where such a module has it in its namespace."""
        module, _, attribute = name.rpartition(".")
        allowed = {*_KNOWN, *_trusted_packages()}
        if not _is_within(module, allowed):
            self.refuse(name, mark, module or "builtins")
        found = getattr(importlib.import_module(module), attribute)
        home = str(getattr(found, "__module__", None))
        if not _is_within(home, allowed):
            self.refuse(name, mark, home)
        return found

    def construct_python_name(self, suffix: str, node: Any) -> Any:
        found = super().construct_python_name(suffix, node)
        if not (isinstance(found, type) or suffix in _FUNCTIONS or _is_trusted(found)):
            self.refuse(suffix, node.start_mark, suffix)
        return found

    def make_python_instance(
        self,
        suffix: str,
        node: Any,
        args: Any = None,
        kwds: Any = None,
        newobj: bool = False,
        unsafe: bool = False,
    ) -> Any:
        found = self.find_python_name(suffix, node.start_mark)
        of_settings = newobj and not args and isinstance(found, type) and dataclasses.is_dataclass(found)
        of_members = (
            not newobj and isinstance(found, type) and issubclass(found, Enum) and len(args or ()) == 1
        )
        if not ((of_settings or of_members) and not kwds or _is_trusted(found)):
            self.refuse(suffix, node.start_mark, suffix)
        return super().make_python_instance(suffix, node, args, kwds, newobj, unsafe=True)

    def set_python_instance_state(self, instance: Any, state: Any, unsafe: bool = False) -> None:
        """A field may be set, and a setting that a later version has no more; a method may not."""
        kind = type(instance)
        if not _is_trusted(kind):
            fields = {
                field.name for field in dataclasses.fields(kind)
            }  # enumerations have none, and no state
            methods = [key for key in state if key not in fields and callable(getattr(kind, key, None))]
            if methods:
                raise yaml.YAMLError(f"{methods[0]} is no setting of {kind.__name__}")
        super().set_python_instance_state(instance, state)

    def construct_path(self, node: Any) -> Path:
        """A path of either system, as one of this."""
        parts = self.construct_sequence(node)
        return Path(PureWindowsPath(*parts).as_posix() if "WindowsPath" in node.tag else Path(*parts))

    def construct_part_of_generic(self, node: Any) -> Any:
        """A generic class with its parameter, as data managers have it of their dataset."""
        generic, parameter = self.construct_sequence(node, deep=True)
        if not isinstance(generic, type):
            self.refuse("_operator.getitem", node.start_mark, "_operator")
        return generic[parameter]  # type: ignore[index]

    def construct_number_type(self, node: Any) -> np.dtype:
        described = self.construct_mapping(node, deep=True)
        name, order = str(described["args"][0]), described["state"][1]
        if not _NUMBER.fullmatch(name):
            raise yaml.YAMLError(f"numpy's {name} is no type of numbers")
        return np.dtype(name).newbyteorder(order)

    def construct_number(self, node: Any) -> Any:
        kind, content = self.construct_sequence(node, deep=True)
        if not isinstance(kind, np.dtype):
            raise yaml.YAMLError("a number of numpy without its type")
        return np.frombuffer(content, kind, count=1)[0]

    def refuse_other(self, suffix: str, node: Any) -> NoReturn:
        self.refuse(f"python/{suffix}", node.start_mark, suffix.rpartition(":")[2])

    def refuse(self, name: str, mark: Any, module: str) -> NoReturn:
        """Say what is refused, and how a user who trusts it allows it.

        Args:
            name: in the file.
            mark: where.
            module: that defines it, or a name in it.
        """
        trusted = ",".join(sorted({*_trusted_packages(), module.partition(".")[0]}))
        raise InputError(
            f"{self.name} names {name}, which is refused: files of others are data, not code",
            expected="settings of nerfstudio and csd_nerf, paths, numbers and words",
            got=f"{name} in line {mark.line + 1}",
            hint="look at that line. Only if you trust the file, and the package with all that is in it: set "
            f"{TRUST}={trusted} and run the command again",
        )


def _is_trusted(found: Any) -> bool:
    return _is_within(str(getattr(found, "__module__", None)), _trusted_packages())


for _tag, _construct in {
    **{
        f"{module}.{name}": _ConfigLoader.construct_path
        for module in ("pathlib", "pathlib._local")  # Python 3.13 has them in the latter
        for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    },
    "_operator.getitem": _ConfigLoader.construct_part_of_generic,
    "numpy.dtype": _ConfigLoader.construct_number_type,
    "numpy.core.multiarray.scalar": _ConfigLoader.construct_number,
    "numpy._core.multiarray.scalar": _ConfigLoader.construct_number,
}.items():
    _ConfigLoader.add_constructor(f"{_PYTHON}object/apply:{_tag}", _construct)

for _tag, _construct in {
    "name:": _ConfigLoader.construct_python_name,
    "object:": _ConfigLoader.construct_python_object,
    "object/apply:": _ConfigLoader.construct_python_object_apply,
    "object/new:": _ConfigLoader.construct_python_object_new,
    "": _ConfigLoader.refuse_other,  # the first that fits counts: this one is for all that is left
}.items():
    _ConfigLoader.add_multi_constructor(f"{_PYTHON}{_tag}", _construct)
