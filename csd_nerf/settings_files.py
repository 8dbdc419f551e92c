"""YAML files with settings: `configs/`, which has the numbers of every method, and recipes of one's own.

Options have their names on the command line, with underscores, nested at the dots. Their types are checked as
those of the command line are.

A file of `configs/` may say `extends: NAME` in any mapping: the mapping begins as what `configs/NAME.yaml`
holds, and what is written beside it wins, option by option. `NAME.tiny` is only what is beneath `tiny:`
there. Of several, `extends: [ONE, OTHER]`, the later one wins.

A recipe has options for `--recipe`. The named one, `tiny`, is a section of the method's own file. In a file
of one's own, what is under `for` belongs to one method alone; with `for` it is for those methods only.

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
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from typeguard import TypeCheckError, check_type

from csd_nerf.errors import InputError


def _configs() -> Path:
    """The folder of the methods' files: within an installed package; in a checkout, from which an editable
    install runs too, beside it."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.with_name("configs")


CONFIGS = _configs()
"""Has a file for every method, named after it."""
RECIPES = ("tiny", "tiny-flow", "flow")
"""Recipes by name: sections of a method's file."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain data only; the one that is written in C, where PyYAML has it, as every `ns-*` command waits."""


# YAML 1.1 takes 1e-2, which has no point, for a word.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)

# ------------------------------------------------------------------------------------ files of methods


def method_names(folder: Path = CONFIGS) -> tuple[str, ...]:
    """Names of the methods that have a file."""
    return tuple(sorted(file.stem for file in folder.glob("*.yaml")))


def method_file(method: str, folder: Path = CONFIGS) -> Path:
    """Where a method's numbers are."""
    return folder / f"{method}.yaml"


def read_method(method: str, folder: Path = CONFIGS) -> dict[str, Any]:
    """What a method's file says, with what it extends; a new dictionary each time.

    Raises:
        InputError: it cannot be read, or extends what is not there.
    """
    file = method_file(method, folder)
    return _extended(_read(file), file, folder)


def _extended(settings: Any, file: Path, folder: Path) -> Any:
    """Settings with every `extends` in them followed."""
    if not isinstance(settings, dict):
        return settings
    own = {name: _extended(value, file, folder) for name, value in settings.items() if name != "extends"}
    names = settings.get("extends", [])
    bases = [_section(str(name), file, folder) for name in ([names] if isinstance(names, str) else names)]
    return reduce(_merged, [*bases, own])


def _section(reference: str, extending: Path, folder: Path) -> Any:
    """What `NAME` or `NAME.SECTION` stands for."""
    name, *sections = reference.split(".")
    settings: Any = read_method(name, folder) if method_file(name, folder).is_file() else None
    for section in sections:
        settings = settings.get(section) if isinstance(settings, dict) else None
    if not isinstance(settings, dict):
        raise InputError(
            f"{extending} extends what is not there",
            expected=f"the name of a file in {folder}, such as shared/two-cores, or of a section in one",
            got=reference,
            hint="check the spelling; sections follow after dots, as in csd-edit.tiny",
        )
    return settings


def _merged(below: Any, above: Any) -> Any:
    """Settings, and others that win, option by option."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    shared = {name: _merged(below[name], above[name]) for name in below.keys() & above.keys()}
    return below | above | shared


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(encoding="utf8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        content = " ".join(str(error).split())
    if not isinstance(content, dict):
        raise InputError(
            f"{file} cannot be read",
            expected="YAML with options by their names, such as `pipeline: {particles: 2}`",
            got=repr(content)[:200],
            hint=f"{_EXAMPLE} shows how settings are written",
        )
    return content


_EXAMPLE = method_file("csd-edit")

# ---------------------------------------------------------------------------------------------- recipes


def apply_recipe(
    config: Any, usual: Any, method: str, recipe: str, given: Collection[str] = frozenset()
) -> None:
    """Set what a recipe says in a configuration, in place, where the user gave nothing.

    Args:
        config: dataclass instance, as parsed from a command line.
        usual: the same configuration before parsing. A value that differs from it was given by the user,
            and stays.
        method: name of the configuration's method, which the recipe may have settings for.
        recipe: name of a section of the method's file, or path of a YAML file.
        given: options that the user gave, see `options_given`; they stay also where they equal the usual
            value.

    Raises:
        InputError: no such recipe; not YAML; not for this method; an option that the method does not have; a
            value that the option does not take.
    """
    if recipe in RECIPES:
        file = method_file(method)
        own = read_method(method) if method in method_names() else {}
        settings = own.get(recipe)
        if settings is None:
            raise InputError(
                f"the recipe {recipe} is not for {method}",
                expected="a YAML file",
                got=recipe,
                hint=f"leave out --recipe; `{recipe}:` in {_EXAMPLE} shows how options are written",
            )
    else:
        file = find_recipe(recipe)
        settings = _read(file)
        settings = _merged(settings, _special(settings, file, method))
        settings.pop("for", None)
    set_options(config, settings, file, usual=usual, given=given)


def _special(settings: dict[str, Any], file: Path, method: str) -> Any:
    """What a recipe has for one method alone."""
    special = settings.get("for")
    if special is None:
        return {}
    if not isinstance(special, dict) or method not in special:
        raise InputError(
            f"the recipe {file} is not for {method}",
            expected=f"a recipe for {method}, or one without `for`",
            got=f"one for {', '.join(special) if isinstance(special, dict) else special!r}",
            hint=f"use one of those methods, or copy {file} and add {method} to it",
        )
    return special[method] or {}


def find_recipe(recipe: str) -> Path:
    """The file of a recipe that is given by its path.

    Raises:
        InputError: there is none.
    """
    file = Path(recipe).expanduser()
    if not file.is_file():
        raise InputError(
            "there is no such recipe",
            expected=f"{' or '.join(RECIPES)}, or a YAML file",
            got=repr(recipe),
            hint=f"check the spelling; `{RECIPES[0]}:` in {_EXAMPLE} shows how options are written",
        )
    return file


def options_given(arguments: Sequence[str]) -> set[str]:
    """The options in a command line, as a recipe names them.

    Example:
        >>> sorted(options_given(["--pipeline.render-size", "64", "--vis=viewer", "--no-page"]))
        ['no_page', 'page', 'pipeline.render_size', 'vis']
    """
    words = (argument[2:].split("=")[0] for argument in arguments if argument.startswith("--"))
    names = {word.replace("-", "_") for word in words}
    return names | {re.sub(r"(^|\.)no_(?=[^.]+$)", r"\1", name) for name in names}


# ------------------------------------------------------------------------------- setting what they say


def set_options(
    config: Any,
    settings: Any,
    file: Path,
    *,
    usual: Any = None,
    given: Collection[str] = frozenset(),
    path: tuple[str, ...] = (),
) -> None:
    """Set options of a configuration, in place.

    Args:
        config: dataclass instance.
        settings: values by the options' names, nested as the configuration is.
        file: where they are from, for messages.
        usual: a configuration to compare with: what differs from it already stays. None: nothing stays.
        given: options that stay in any case, see `options_given`.
        path: names above, for messages and `given`.

    Raises:
        InputError: an option that is not there, or a value that it does not take.
    """
    names = [field.name for field in dataclasses.fields(config) if not field.name.startswith("_")]
    hints = typing.get_type_hints(type(config))
    if not isinstance(settings, dict):
        raise InputError(
            f"{file} has a value where there are more options",
            expected=f"options below {'.'.join(path)}: {', '.join(names[:4])} ...",
            got=repr(settings),
            hint="write them indented, one a line",
        )
    usual = config if usual is None else usual
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
            set_options(current, value, file, usual=getattr(usual, name), given=given, path=here)
            continue
        if isinstance(current, dict):
            raise InputError(
                f"{file} sets an option that cannot be set there",
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
