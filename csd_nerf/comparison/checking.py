"""From the options of `csd-nerf compare` to settings that can be carried out; the rest is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csd_nerf.comparison.budget import (
    EDITING,
    PER_VIEW,
    method_config,
    needs_descriptions,
    spend,
)
from csd_nerf.comparison.compare_settings import CompareSettings, Instruction, Measures
from csd_nerf.comparison.given import check_given, check_scene, known_descriptions
from csd_nerf.comparison.options import CompareOptions
from csd_nerf.demo.demo_command import LEAST_FRAMES
from csd_nerf.errors import InputError, check, check_at_least, option
from csd_nerf.nerf.captures import check_capture, check_dataset
from csd_nerf.nerf.evaluate_command import LEAST_SIZE
from csd_nerf.nerf.runs import find_run
from csd_nerf.priors.folder import flow_pipeline, is_image_conditioned
from csd_nerf.priors.loading import check_prior
from csd_nerf.scenes.operators import CAPTIONS
from csd_nerf.settings_files import RECIPES, find_recipe

USUAL_EVALUATIONS = (1600, 4800)
"""Budgets where none are given."""


def checked(options: CompareOptions) -> tuple[CompareSettings, dict[Path, tuple[Instruction, str]]]:
    """What the options ask for, and the edits that were made elsewhere.

    Raises:
        InputError: for the first thing that cannot be done.
    """
    _check_numbers(options)
    _check_methods(options)
    source = check_scene(options.load_dir) if options.load_dir is not None else None
    given, source = check_given(options.runs, source)
    instructions = _instructions(options)
    methods = options.methods if instructions else ()
    recipe = _recipe(options.recipe)
    source_description = options.source_description
    if not source_description and all(entry.prompt in known_descriptions() for entry in instructions):
        source_description = CAPTIONS["identity"]
    evaluations = options.evaluations if options.evaluations or options.minutes else USUAL_EVALUATIONS
    for method in methods:
        _check_method(method, recipe, evaluations, instructions, source_description)
    data = None if options.data is None else options.data.expanduser().resolve()
    _check_data(data, source)
    measures = Measures(
        data=None if data is None else str(data),
        source=None if source is None else str(source),
        train_steps=options.train_steps,
        recipe=recipe,
        evaluations=evaluations,
        views=options.views,
        size=options.size or method_config("csd-edit", recipe).pipeline.picture_size,
        source_description=source_description,
        clip=options.clip,
        per_view_steps=options.per_view_steps,
        turntable_frames=options.turntable_frames,
        minutes=options.minutes,
    )
    settings = CompareSettings(measures, instructions, methods, options.seeds, tuple(given), options.download)
    return settings, given


def _check_numbers(options: CompareOptions) -> None:
    for name, least in (("views", 1), ("per_view_steps", 1), ("train_steps", 1), ("turntable_frames", 0)):
        check_at_least(name, getattr(options, name), least)
    check_at_least("size", options.size, LEAST_SIZE)
    for seed in options.seeds:
        check_at_least("seeds", seed, 0)
    for name in ("prompts", "methods", "seeds"):
        _different(name, getattr(options, name))
    _check_budgets(options)
    check(
        bool(options.seeds),
        "no seed was given",
        expected="at least one",
        got="none",
        hint="leave out --seeds for 0 1 2",
    )


def _check_budgets(options: CompareOptions) -> None:
    check(
        not (options.evaluations and options.minutes),
        "there are budgets of two kinds",
        expected="--evaluations or --minutes",
        got="both",
        hint="leave out one of them",
    )
    for name, budgets, example in (
        ("evaluations", options.evaluations, "1600 4800"),
        ("minutes", options.minutes, "2 5"),
    ):
        rising = all(earlier < later for earlier, later in zip(budgets, budgets[1:], strict=False))
        check(
            not budgets or (rising and budgets[0] > 0 and budgets[-1] < math.inf),
            option(name),
            expected="budgets above 0, rising",
            got=" ".join(map(str, budgets)),
            hint=f"write the smallest first: --{name} {example}",
        )


def _different(name: str, values: Sequence[Any]) -> None:
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise InputError(
            f"--{name} has the same twice",
            expected="different ones",
            got=repr(twice[0]),
            hint="leave out one of them",
        )


def _check_methods(options: CompareOptions) -> None:
    unknown = [method for method in options.methods if method not in (*EDITING, PER_VIEW)]
    if unknown:
        hint = "check the spelling"
        if unknown[0] == "csd-edit-tiny":
            hint = "use csd-edit with --recipe tiny, which is the same"
        raise InputError(
            f"there is no method {unknown[0]} to compare",
            expected=", ".join((*EDITING, PER_VIEW)),
            got=repr(unknown[0]),
            hint=hint,
        )
    check(
        bool(options.prompts or options.runs),
        "no prompts were given",
        expected="what to change, in words, each in quotes",
        got="neither --prompts nor --runs",
        hint='add --prompts "make it night" "make it winter"',
    )
    for prompt in options.prompts:
        check(
            bool(prompt.strip()), "a prompt is empty", expected="what to change, in words", got=repr(prompt)
        )


def _instructions(options: CompareOptions) -> tuple[Instruction, ...]:
    described = options.descriptions
    check(
        not described or len(described) == len(options.prompts),
        "--descriptions do not fit --prompts",
        expected=f"one for each of the {len(options.prompts)} prompts, in their order",
        got=len(described),
        hint='give each in quotes, or "" for one that has none',
    )
    known = known_descriptions()
    return tuple(
        Instruction(prompt, (described[place] if described else "") or known.get(prompt, ""))
        for place, prompt in enumerate(options.prompts)
    )


def _recipe(recipe: str | None) -> str | None:
    """Its name, or the whole path of a file: commands run in another folder."""
    if recipe is None or recipe in RECIPES:
        return recipe
    return str(find_recipe(recipe).resolve())


def _check_method(
    method: str,
    recipe: str | None,
    evaluations: Sequence[int],
    instructions: Sequence[Instruction],
    source_description: str,
) -> None:
    config = method_config("in2n-baseline" if method == PER_VIEW else method, recipe)
    folder = check_prior(config.pipeline.prior)
    if folder is not None:
        config.pipeline.check_prior(image_conditioned=is_image_conditioned(folder))
    if method == PER_VIEW:
        check(
            folder is None or flow_pipeline(folder) is None,
            f"{PER_VIEW} cannot ask a model of flow matching",
            expected="an InstructPix2Pix",
            got=config.pipeline.prior,
            hint=f"leave out {PER_VIEW}, or name another prior in the recipe",
        )
        return
    for budget in evaluations:
        spend(method, config, budget)
    if needs_descriptions(config):
        missing = [entry.prompt for entry in instructions if not entry.description]
        if missing or not source_description:
            raise InputError(
                f"{method} asks a model that is told what a picture shows, not what to change",
                expected="--descriptions for all prompts, and --source-description",
                got=f"no description of {missing[0]!r}" if missing else "no --source-description",
                hint='add them: --descriptions "a bear at night" --source-description "a bear"',
            )


def _check_data(data: Path | None, source: Path | None) -> None:
    """See that there is a dataset: for the scene that is to be trained, or as the trained one reads it."""
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    if source is not None:
        config: Any = find_run(source).config
        manager = None if config is None else config.pipeline.datamanager
        dataset = data or (manager and (config.data or manager.data or manager.dataparser.data))
        dataparser = manager.dataparser if manager else NerfstudioDataParserConfig()
        check_dataset(dataset, dataparser, 1 if data is None else LEAST_FRAMES)
    elif data is not None:
        check_capture(data, LEAST_FRAMES)
