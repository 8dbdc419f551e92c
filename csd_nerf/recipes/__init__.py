"""Recipes: YAML files with settings for a machine, a scene or a task, taken by name or path.

A recipe holds options under their names on the command line, with underscores, nested at the dots. What is
under `for` belongs to one method alone; a recipe with `for` is for those methods only.

    machine: {device_type: cpu}
    pipeline: {render_size: 64}
    for:
      csd-edit: {pipeline: {prior: tiny-instruct}}
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml
from typeguard import TypeCheckError, check_type

from csd_nerf.errors import InputError

FOLDER = Path(__file__).parent
RECIPES = tuple(sorted(file.stem for file in FOLDER.glob("*.yaml")))
"""Names of the recipes that ship with the package."""


def apply_recipe(
    config: Any, usual: Any, method: str, recipe: str, given: Collection[str] = frozenset()
) -> None:
    """Set what a recipe says in a configuration, in place, where the user gave nothing.

    Args:
        config: dataclass instance, as parsed from a command line.
        usual: the same configuration before parsing. A value that differs from it was given by the user,
            and stays.
        method: name of the configuration's method, which the recipe may have settings for.
        recipe: name of a recipe that ships with the package, or path of a YAML file.
        given: options that the user gave, see `options_given`; they stay also where they equal the usual
            value.

    Raises:
        InputError: no such recipe; not YAML; not for this method; an option that the method does not have; a
            value that the option does not take.
    """
    file = find_recipe(recipe)
    settings = dict(_read(file))
    special = settings.pop("for", None)
    _set(config, usual, settings, given, file, ())
    if special is None:
        return
    if not isinstance(special, dict) or method not in special:
        raise InputError(
            f"the recipe {recipe} is not for {method}",
            expected=f"a recipe for {method}, or one without `for`",
            got=f"one for {', '.join(special) if isinstance(special, dict) else special!r}",
            hint=f"use one of those methods, or copy {file} and add {method} to it",
        )
    _set(config, usual, special[method] or {}, given, file, ())


def options_given(arguments: Sequence[str]) -> set[str]:
    """The options in a command line, as a recipe names them.

    Example:
        >>> sorted(options_given(["--pipeline.render-size", "64", "--vis=viewer", "--no-page"]))
        ['no_page', 'page', 'pipeline.render_size', 'vis']
    """
    words = (argument[2:].split("=")[0] for argument in arguments if argument.startswith("--"))
    names = {word.replace("-", "_") for word in words}
    return names | {re.sub(r"(^|\.)no_(?=[^.]+$)", r"\1", name) for name in names}


def find_recipe(recipe: str) -> Path:
    """The file of a recipe, by the name of one that ships with the package or by its path.

    Raises:
        InputError: there is none.

    Example:
        >>> find_recipe("tiny").name
        'tiny.yaml'
    """
    file = FOLDER / f"{recipe}.yaml" if recipe in RECIPES else Path(recipe).expanduser()
    if not file.is_file():
        raise InputError(
            "there is no such recipe",
            expected=f"{' or '.join(RECIPES)}, or a YAML file",
            got=repr(recipe),
            hint=f"check the spelling; {FOLDER / RECIPES[0]}.yaml shows how one is written",
        )
    return file


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        content = " ".join(str(error).split())
    if not isinstance(content, dict):
        raise InputError(
            f"the recipe {file} cannot be read",
            expected="YAML with options by their names, such as `pipeline: {particles: 2}`",
            got=repr(content)[:200],
            hint=f"{FOLDER / RECIPES[0]}.yaml shows how one is written",
        )
    return content


def _set(
    config: Any, usual: Any, settings: Any, given: Collection[str], file: Path, path: tuple[str, ...]
) -> None:
    names = [field.name for field in dataclasses.fields(config) if not field.name.startswith("_")]
    hints = typing.get_type_hints(type(config))
    if not isinstance(settings, dict):
        raise InputError(
            f"{file} has a value where there are more options",
            expected=f"options below {'.'.join(path)}: {', '.join(names[:4])} ...",
            got=repr(settings),
            hint="write them indented, one a line",
        )
    for name, value in settings.items():
        here = (*path, str(name))
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=3) or names[:3]
            raise InputError(
                f"{file} sets an option that is not there",
                expected=f"{', '.join(near)} or another option of this method",
                got=".".join(here),
                hint="`--help` of the command lists all options; write dashes as underscores",
            )
        current = getattr(config, name)
        if dataclasses.is_dataclass(current):
            _set(current, getattr(usual, name), value, given, file, here)
            continue
        if isinstance(current, dict):
            raise InputError(
                f"{file} sets an option that a recipe cannot set",
                expected="options with a single value",
                got=".".join(here),
                hint="give it on the command line",
            )
        converted = _converted(value, hints[name], file, here)
        if current == getattr(usual, name) and ".".join(here) not in given:
            setattr(config, name, converted)


def _converted(value: Any, wanted: Any, file: Path, path: tuple[str, ...]) -> Any:
    """A value from YAML in the type that an option has: YAML knows neither tuples nor paths."""
    candidates = [value]
    if isinstance(value, list):
        candidates.append(tuple(value))
    if isinstance(value, str):
        candidates.append(Path(value))
    for candidate in candidates:
        try:
            return check_type(candidate, wanted)
        except TypeCheckError:
            continue
    raise InputError(
        f"{file} has a value that an option does not take",
        expected=f"{'.'.join(path)}: {_readable(wanted)}",
        got=repr(value),
        hint="`--help` of the command says what each option takes",
    )


def _readable(wanted: Any) -> str:
    return wanted.__name__ if isinstance(wanted, type) else str(wanted).replace("typing.", "")
