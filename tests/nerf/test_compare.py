"""`csd-nerf compare` end to end at its smallest, resumed, with a failure; budgets, report and bad input."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from csd_nerf.bundled import bundled_path
from csd_nerf.cli import main
from csd_nerf.comparison import measuring, on_ray
from csd_nerf.comparison.budget import (
    EDITING,
    Bought,
    Price,
    method_config,
    needs_descriptions,
    price_of,
    spend,
)
from csd_nerf.comparison.checking import checked
from csd_nerf.comparison.compare_command import Compare
from csd_nerf.comparison.compare_settings import Budget, Instruction
from csd_nerf.comparison.jobs import EditRun, jobs_of
from csd_nerf.comparison.live import LiveTable
from csd_nerf.comparison.per_view import PerViewEditor
from csd_nerf.comparison.plots import COLOURS, plot
from csd_nerf.comparison.results import Line, Row, Spread, as_csv, as_json, lines_of, spread
from csd_nerf.demo.child import failure_lines
from csd_nerf.demo.stages import Stage
from csd_nerf.distillation.objective import Objective
from csd_nerf.distillation.presets import preset
from csd_nerf.errors import InputError
from csd_nerf.nerf.cost import NOTHING, write_cost
from csd_nerf.scenes.operators import TINT_INSTRUCTION

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = """
machine: {device_type: cpu}
mixed_precision: false
pipeline:
  prior: tiny-instruct
  render_size: 32
  picture_size: 32
  picture_views: 1
  datamanager: {photo_size: 32}
for:
  csd-edit:
    pipeline: {particles: 2, fits_per_round: 4, descent: {steps: 2}}
  in2n-baseline:
    pipeline:
      lpips_weight: 0.0
      datamanager: {patch_size: 1}
  csd-edit-dataset:
    pipeline:
      particles: 40  # more than there are cameras, which the method itself finds out
      descent: {steps: 1}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of edits that take a moment."""
    file = tmp_path_factory.mktemp("recipe") / "moment.yaml"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="module")
def options(scene_run: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Compare:
    """A comparison of a method that fails and two that work."""
    return Compare(
        output=tmp_path_factory.mktemp("compare") / "out",
        load_dir=scene_run,
        prompts=("make it night",),
        methods=("csd-edit-dataset", "csd-edit", "per-view"),
        seeds=(0,),
        evaluations=(200,),
        recipe=str(recipe),
        views=2,
        turntable_frames=2,
        per_view_steps=2,
    )


@pytest.fixture(scope="module")
def compared(options: Compare) -> Path:
    """What it leaves after it was interrupted, between an edit and its measurement, and begun again."""
    begin = LiveTable.begin

    def interrupt(table: LiveTable, job: int | None, stage: Stage, start: int) -> None:
        begin(table, job, stage, start)
        if stage.title == "measure":
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LiveTable, "begin", interrupt)
        dataclasses.replace(options, methods=("csd-edit",)).run()
    assert not (options.output / "report.html").exists()
    with pytest.raises(SystemExit) as stop, pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)  # whoever imports it fails, as without the extra
        options.run()
    assert stop.value.code == 1
    return options.output


def refusal(capsys: Any, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["compare", *arguments])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert all(part in printed for part in ("Error:", "expected:", "got:", "do this:"))
    return printed


def test_a_comparison_leaves_figures_and_one_page(compared: Path) -> None:
    results = json.loads((compared / "results.json").read_text())
    failed, *measured = results["rows"]
    used = {row["method"]: row["evaluation"]["cost"]["unet_evaluations"] for row in measured}
    assert list(used) == ["csd-edit", "per-view"] and used["csd-edit"] == 200
    summary = results["summary"]["make it night"]
    methods = summary["psnr_to_known_edit"]["methods"]
    assert set(methods) == set(used)
    assert summary["psnr_to_known_edit"]["best"] == max(methods, key=lambda name: methods[name]["mean"])
    table = list(csv.DictReader((compared / "results.csv").open()))
    assert [row["method"] for row in table] == ["csd-edit-dataset", *used]
    assert float(table[1]["psnr_to_known_edit"]) == pytest.approx(methods["csd-edit"]["mean"])

    page = (compared / "report.html").read_text(encoding="utf8")
    assert not re.search(r"""(src|href)=["'](?!data:)""", page) and "@import" not in page
    assert len(page) < 2_000_000 and "$" not in re.sub(r"<script>.*</script>", "", page, flags=re.DOTALL)
    assert page.count("data:video/mp4;base64,") == 3 and page.count('class="compare"') == 2
    assert page.count("<svg") == 2 and "hf download openai/clip-vit-large-patch14" in page
    assert "ns-train csd-edit-dataset" in page and "csd-nerf compare" in page
    for name in ("shift", "zoom"):
        assert f"registration_{name}" in summary and f"registration {name} " in page
        assert float(table[1][f"registration_{name}"]) >= 0


def test_a_method_that_fails_is_reported_and_the_others_go_on(compared: Path) -> None:
    rows = json.loads((compared / "results.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["failed", "measured", "measured"]
    assert "there are not enough cameras" in rows[0]["reason"]
    assert str(compared / "logs" / "make-it-night.csd-edit-dataset.seed-0.200.edit.log") in rows[0]["reason"]
    page = (compared / "report.html").read_text(encoding="utf8")
    assert "<b>Failed:</b> make it night, csd-edit-dataset" in page and "there are not enough cameras" in page


def test_what_is_done_is_not_run_again(compared: Path, options: Compare, capsys: Any) -> None:
    runs = {
        key: record["runs"] for key, record in json.loads((compared / "progress.json").read_text()).items()
    }
    # Interrupted before it could measure: the edit was not run again.
    assert runs["make-it-night.csd-edit.seed-0.200.edit"] == 1
    assert runs["make-it-night.csd-edit.seed-0.200.measure"] == 2
    # Folders of earlier versions do not say that their budgets are not in minutes.
    saved = json.loads((compared / "settings.json").read_text())
    assert saved.pop("minutes") == []
    (compared / "settings.json").write_text(json.dumps(saved))
    dataclasses.replace(options, methods=("csd-edit", "per-view")).run()
    printed = capsys.readouterr().out
    assert ": measure, " not in printed and ": edit, " not in printed and "2 of 2 measured" in printed
    with pytest.raises(InputError, match=r"other settings[\s\S]*--minutes"):
        dataclasses.replace(options, evaluations=(), minutes=(2.0,)).run()
    with pytest.raises(InputError, match="holds a comparison with other settings"):
        dataclasses.replace(options, views=3).run()


def test_views_edited_one_by_one_are_measured(compared: Path) -> None:
    folder = compared / "pictures/make-it-night/per-view/seed-0"
    report = json.loads((folder / "evaluation.json").read_text())
    pictures = report["cost"]["steps"]
    # The evaluation view and its two neighbours, and once more as the lens sees it; 2 steps of 3 branches.
    assert pictures >= 3 and report["cost"]["unet_evaluations"] == pictures * 2 * 3
    assert report["method"] == "per-view" and report["prior"] == "tiny-instruct"
    figures = (report["figures"][name]["after"] for name in ("change", "reprojection_change_error_short"))
    assert min(figures) > 0 and report["known_edit"] == "night"
    assert (folder / "turntable.mp4").exists() and (compared / "pictures/source/turntable.mp4").exists()


def test_every_view_and_seed_has_noise_of_its_own(recipe: Path) -> None:
    picture = torch.rand(1, 3, 32, 32).expand(2, -1, -1, -1)
    cpu = torch.device("cpu")
    edits = [
        PerViewEditor("make it night", recipe=str(recipe), seed=seed, steps=1, device=cpu).edit(picture)
        for seed in (0, 1, 0)
    ]
    assert torch.equal(edits[0], edits[2])
    different = torch.cat(edits[:2])
    assert (different[:, None] - different[None]).abs().amax((2, 3, 4))[
        ~torch.eye(4, dtype=torch.bool)
    ].min() > 0.01


@pytest.mark.parametrize("parts", [("unet",), ("unet", "vae", "text_encoder")])
def test_views_are_edited_one_by_one_by_half_precision_files_and_in_the_prior_s_precision(
    parts: tuple[str, ...], tmp_path: Path
) -> None:
    folder = shutil.copytree(bundled_path("tiny-instruct"), tmp_path / "prior")
    for part in parts:
        (weights,) = (folder / part).glob("*.safetensors")
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    settings = f"prior: {folder}\n  prior_precision: bfloat16"
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("prior: tiny-instruct", settings))
    editor = PerViewEditor(
        "make it night",
        recipe=str(tmp_path / "recipe.yaml"),
        seed=0,
        steps=1,
        device=torch.device("cpu"),
    )
    assert editor.edit(torch.rand(1, 3, 32, 32)).isfinite().all()
    assert editor._pipeline.unet.dtype == torch.bfloat16


def test_a_measurement_that_runs_out_of_memory_says_what_to_turn_down(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def run_out(options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    monkeypatch.setattr(measuring, "carry_out", run_out)
    names = ("output", "source-output", "instruction", "views", "size", "clip")
    monkeypatch.setattr("sys.argv", ["measuring", *(word for name in names for word in (f"--{name}", "1"))])
    with pytest.raises(SystemExit) as stop:
        measuring.main()
    assert stop.value.code == 2
    printed = failure_lines(capsys.readouterr().err.splitlines())
    assert printed[0] == "Error: memory ran out" and "20 GiB" in printed[2] and "--size" in printed[3]


def test_edits_made_elsewhere_are_compared_unless_of_another_scene(
    compared: Path, options: Compare, scene_run: Path, tmp_path: Path, capsys: Any
) -> None:
    run = compared / "runs/make-it-night/csd-edit/seed-0"
    output = str(tmp_path / "out")
    other = tmp_path / "other"
    shutil.copytree(scene_run, other)
    printed = refusal(capsys, "--output", output, "--load-dir", str(other), "--runs", str(run))
    assert "edits of different scenes cannot be compared" in printed
    printed = refusal(capsys, "--output", output, "--runs", str(scene_run))
    assert "is not an edit" in printed
    empty = tmp_path / "unfinished"
    shutil.copytree(run, empty, ignore=shutil.ignore_patterns("*.ckpt"))
    assert "there is no checkpoint" in refusal(capsys, "--output", output, "--runs", str(empty))
    printed = refusal(capsys, "--output", output, "--load-dir", str(run), "--prompts", "make it night")
    assert "is an edit already" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_on_ray_the_figures_are_the_same_though_a_worker_dies(
    compared: Path, options: Compare, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="needs csd-nerf[cluster]")
    begin, begun = LiveTable.begin, []

    def kill_the_first(table: LiveTable, job: int | None, stage: Stage, start: int) -> None:
        begin(table, job, stage, start)
        begun.append(stage.key)
        if len(begun) == 1:
            processes = psutil.Process().children(recursive=True)
            (worker, *_) = [process for process in processes if process.name().startswith("ray::_work")]
            worker.kill()

    monkeypatch.setattr(LiveTable, "begin", kill_the_first)
    methods = ("csd-edit", "per-view")
    dataclasses.replace(
        options, output=tmp_path / "out", methods=methods, ray=(), memory_per_edit=0.5, gpus_per_edit=0
    ).run()
    assert "2 of 2 measured" in capsys.readouterr().out
    assert len(begun) == len(set(begun)) + 1, "a worker was killed, and its job begun again"
    rows, alone = (json.loads((path / "results.json").read_text()) for path in (tmp_path / "out", compared))
    assert "--ray" not in rows["command"] and len(rows["rows"]) == 2
    for row in rows["rows"]:
        (same,) = [other for other in alone["rows"] if other["method"] == row["method"]]
        for name, figure in row["evaluation"]["figures"].items():
            alike = pytest.approx(same["evaluation"]["figures"][name]["after"], rel=1e-3, abs=1e-5)
            assert figure["after"] == alike, name
    records = json.loads((tmp_path / "out" / "progress.json").read_text())
    assert records.keys() >= set(begun) and all(record["seconds"] > 0 for record in records.values())


def test_ray_is_needed_where_it_is_asked_for_alone(
    options: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = dataclasses.replace(options, output=tmp_path / "out", ray=())
    for wrong, part in (
        ({"gpus_per_edit": 1.5}, "--gpus-per-edit cannot be used"),
        ({"memory_per_edit": 0.0}, "--memory-per-edit cannot be used"),
        ({"cpus_per_edit": 0}, "cpus-per-edit"),
        ({"ray": ("here:1", "there:1")}, "--ray has several addresses"),
    ):
        monkeypatch.setattr(on_ray, "find_spec", lambda name: name)
        with pytest.raises(InputError, match=part):
            dataclasses.replace(asked, **wrong).run()
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="Ray is not installed"):
        asked.run()
    assert not asked.output.exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "no prompts were given"),
        (("--prompts", "a", "a"), "--prompts has the same twice"),
        (("--prompts", "a", "--methods", "magic"), "there is no method magic to compare"),
        (("--prompts", "a", "--methods", "csd-edit-tiny"), "use csd-edit with --recipe tiny"),
        (("--prompts", "a", "--evaluations", "10", "5"), "--evaluations cannot be used"),
        (("--prompts", "a", "--minutes", "0", "5"), "--minutes cannot be used"),
        (("--prompts", "a", "--minutes", "2", "--evaluations", "5"), "there are budgets of two kinds"),
        (
            ("--prompts", "a", "--recipe", "tiny", "--evaluations", "7"),
            "the budget is too small for csd-edit",
        ),
        (("--prompts", "a", "--recipe", "small"), "there is no such recipe"),
        (("--prompts", "a", "--recipe", "tiny", "--data", "nowhere"), "there is no dataset at"),
        (("--prompts", "a", "--load-dir", "nowhere"), "there is no run at nowhere"),
        (("--prompts", "a", "b", "--descriptions", "c"), "--descriptions do not fit"),
        (("--prompts", "a", "--seeds", "-1"), "--seeds is too small"),
    ],
)
def test_options_that_cannot_be_used(
    arguments: tuple[str, ...], part: str, tmp_path: Path, capsys: Any
) -> None:
    assert part in refusal(capsys, "--output", str(tmp_path / "out"), *arguments)
    assert not (tmp_path / "out").exists()


def test_equal_budgets_buy_whole_pieces_of_work() -> None:
    """A round of the loop; a view, of a method that asks once; a step, of the published gradient."""
    names = ("csd-edit", "csd-edit-dataset", "in2n-baseline", "refit-baseline")
    configs = {name: method_config(name, "tiny") for name in names}
    configs["gradient"] = method_config("csd-edit", "tiny")
    configs["gradient"].pipeline.route = "gradient"
    assert {name: price_of(config) for name, config in configs.items()} == {
        "csd-edit": Price(4 * 2 * 5, 24),
        "csd-edit-dataset": Price(16 * 20 * 5, 50),
        "in2n-baseline": Price(20 * 3, 10),
        "refit-baseline": Price(20 * 3, None),
        "gradient": Price(4 * 5, 1),
    }
    assert {name: spend(name, config, 4850) for name, config in configs.items()} == {
        "csd-edit": Bought(121 * 24),
        "csd-edit-dataset": Bought(3 * 50),
        "in2n-baseline": Bought(80 * 10),
        "refit-baseline": Bought(320, views=80),
        "gradient": Bought(242),
    }
    rows = {"sds-edit": 2, "dds-edit": 4, "cds-edit": 6}
    for name, evaluations in rows.items():
        config = method_config(name, None)
        pipeline = config.pipeline
        assert price_of(config) == Price(pipeline.particles * pipeline.descent.steps * evaluations, 100)


def test_rounds_of_every_view_have_no_price() -> None:
    config = method_config("csd-edit", "tiny")
    config.pipeline.particles = 0
    with pytest.raises(InputError, match="a round of csd-edit has no price"):
        spend("csd-edit", config, 4800)


def test_a_method_that_asks_once_begins_anew_with_more_views(options: Compare, tmp_path: Path) -> None:
    asked = dataclasses.replace(
        options, output=tmp_path, methods=("refit-baseline",), recipe="tiny", evaluations=(120, 300)
    )
    (job,) = jobs_of(tmp_path, *checked(asked))
    first, measured, second, _ = job.stages
    runs = [f"runs/make-it-night/refit-baseline/seed-0-{budget}" for budget in (120, 300)]
    for stage, run, views in ((first, runs[0], "2"), (second, runs[1], "5")):
        command = stage.command()
        assert command[command.index("--pipeline.particles") + 1] == views
        assert command[command.index("--max-num-iterations") + 1] == "320"
        assert isinstance(stage, EditRun) and stage.run_folder == run
    assert runs[0] in measured.command()
    (tmp_path / runs[0] / "nerfstudio_models").mkdir(parents=True)
    torch.save({"step": 319}, tmp_path / runs[0] / "nerfstudio_models" / "step-000000319.ckpt")
    assert first.finished() and not second.finished()
    assert second.next_command() == (second.command(), 0)


def test_who_is_told_what_the_scene_shows() -> None:
    told = {name: needs_descriptions(method_config(name, None)) for name in EDITING}
    assert {name for name, descriptions in told.items() if descriptions} == {
        "sds-edit", "dds-edit", "cds-edit", "pds-edit",
    }  # fmt: skip
    for method in ("csd-edit-dataset", "in2n-baseline"):
        config = method_config(method, None)
        config.pipeline.objective.residual = "dds"
        assert needs_descriptions(config) == (method == "csd-edit-dataset")  # the other follows no objective


def test_minutes_bound_an_edit_instead_of_steps(options: Compare, tmp_path: Path) -> None:
    timed = dataclasses.replace(
        options, output=tmp_path, methods=("csd-edit",), evaluations=(), minutes=(0.5, 2.0)
    )
    settings, given = checked(timed)
    (job,) = jobs_of(tmp_path, settings, given)
    first, measured, second, _ = job.stages
    assert "--max-minutes 0.5 " in shlex.join(first.command()) and first.amount == "0.5 minutes"
    assert (
        "--max-minutes 2 " in shlex.join(second.command())
        and "pictures/make-it-night/csd-edit/seed-0/0.5-minutes" in measured.command()
    )
    run = tmp_path / "runs/make-it-night/csd-edit/seed-0"
    (run / "nerfstudio_models").mkdir(parents=True)
    torch.save({"step": 40}, run / "nerfstudio_models" / "step-000000040.ckpt")
    assert not first.finished()  # nobody knows how long it took
    for seconds, done in ((29.9, (False, False)), (30.2, (True, False)), (121.0, (True, True))):
        write_cost(run, dataclasses.replace(NOTHING, steps=41, seconds=seconds))
        assert (first.finished(), second.finished()) == done
    assert second.next_command()[1] == 41  # goes on where the first budget ended


@pytest.mark.parametrize("method", ["sds-edit", "dds-edit", "cds-edit", "pds-edit", "csd-edit"])
def test_the_price_of_a_round_is_what_the_prior_counts(
    method: str, tiny_prior: Any, text_to_image_prior: Any, text_to_image_folder: Path
) -> None:
    shown = method == "csd-edit"
    prior = tiny_prior if shown else text_to_image_prior
    config = method_config(method, "tiny" if shown else None)
    config.pipeline.prior = "tiny-instruct" if shown else str(text_to_image_folder)
    config.pipeline.particles = 2
    latents = torch.randn(2, prior.latent_channels, 16, 16)
    before = prior.unet_evaluations
    Objective(preset(method.removesuffix("-edit") if not shown else method), prior).gradient(
        latents,
        latents,
        prior.condition(torch.rand(2, 3, 64, 64)),
        prompt="a photo at night",
        source_prompt="a photo",
        step=0,
        max_steps=1,
    )
    counted = prior.unet_evaluations - before
    descent = config.pipeline.descent
    assert price_of(config) == Price(descent.steps * counted, config.pipeline.fits_per_round)
    config.pipeline.route = "gradient"
    assert price_of(config) == Price(counted, 1)


def row(method: str, seed: int, **figures: float | tuple[float, float]) -> Row:
    """Measured figures: after the edit, or before and after it."""
    kinds = {}
    for name, value in figures.items():
        before, after = value if isinstance(value, tuple) else (None, value)
        kinds[name] = {"after": after, "better": "higher", "unit": "", "before": before}
    evaluation = {"figures": kinds, "cost": None, "views": {}}
    return Row("p", method, seed, Budget(10, "evaluations"), "measured", "", "", evaluation)


def test_means_spreads_and_which_is_best() -> None:
    assert spread([1.0, None, 3.0]) == Spread(2.0, pytest.approx(2**0.5), 2)
    assert spread([None]) is None and spread([4.0]) == Spread(4.0, None, 1)
    rows = [row("a", 0, m=1.0), row("a", 1, m=1.2), row("b", 0, m=1.1), row("b", 1, m=1.3)]
    rows += [row("c", 0, m=9.0), row("c", 1, m=9.1)]
    (line,) = lines_of(rows)
    assert line.best == "c" and not line.as_good("a") and not line.as_good("c")
    (close,) = lines_of(rows[:4])
    assert close.best == "b" and close.as_good("a")
    assert Line("m", "lower", "", None, close.methods).best == "a"
    assert Line("m", "neither", "", None, close.methods).best is None
    failed = Row("p, q", "d", 0, Budget(2.5, "minutes"), "failed", 'said "no"', "", None)
    read = list(csv.DictReader(as_csv([*rows, failed]).splitlines()))
    assert read[-1]["prompt"] == "p, q" and read[-1]["m"] == "" and read[-1]["reason"] == 'said "no"'
    assert (read[0]["budget"], read[0]["budget_unit"]) == ("10", "evaluations")
    assert (read[-1]["budget"], read[-1]["budget_unit"]) == ("2.5", "minutes")


def test_a_plot_shows_every_point_inside_its_axes() -> None:
    drawn = plot({"a": [[(0, 5)], [(10, 7), (12, 7)]]}, x="cost", y="gain", colours={"a": COLOURS[0]})
    centres = [tuple(map(float, found)) for found in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    assert len(centres) == 3 and all(36 <= x <= 506 and 12 <= y <= 254 for x, y in centres)
    assert centres[0][1] > centres[1][1] and "<polyline" in drawn
    assert plot({"a": []}, x="", y="", colours={}) == ""


@pytest.mark.parametrize(
    ("low", "high", "label"),
    [
        (1.2e-4, 4.5e-4, "0.0003"),
        (5, 27, "25"),
        (4e5, 2.4e6, "2,000,000"),
        (1e-9, 3e-9, "2e-09"),
        (0, 0, "0.0000"),
    ],
)
def test_labels_of_a_plot_have_room(low: float, high: float, label: str) -> None:
    drawn = plot({"a": [[(low, low), (high, high)]]}, x="x", y="y", colours={"a": COLOURS[0]})
    assert f' text-anchor="end">{label}</text>' in drawn
    assert re.search(r' text-anchor="middle">(0|0\.0+|-0\.0010)</text>', drawn)  # x begins at nothing
    letter = 7  # as wide as a digit of 12 pixels is
    upright = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="end">([^<]+)<', drawn)
    across = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle">([\d.,e-]+)<', drawn)
    assert len(upright) > 3 and len({text for _, text in upright}) == len(upright)
    for x, text in upright:
        assert float(x) - letter * len(text) >= 14 + 8  # where the turned name of the axis ends
    for (x, text), (next_x, next_text) in zip(across, across[1:], strict=False):
        assert float(next_x) - float(x) > letter * (len(text) + len(next_text)) / 2
    assert float(across[-1][0]) + letter * len(across[-1][1]) / 2 <= 520


def test_instructions_have_folders_of_their_own() -> None:
    names = [
        Instruction(prompt).folder for prompt in ("make it night", "Make it night!", "夜", "make-it-night")
    ]
    assert (
        names[0] == "make-it-night"
        and len(set(names)) == 4
        and all(re.fullmatch(r"[\w-]+", n) for n in names)
    )


def test_the_table_of_known_edits_replaces_the_one_before() -> None:
    known_edits = runpy.run_path(str(REPOSITORY / "benchmarks" / "known_edits.py"))
    near = [row("csd-edit", seed, psnr_to_known_edit=(10 + seed, 23 + 2 * seed)) for seed in (0, 2)]
    measured = [*near, row("per-view", 0, psnr_to_known_edit=(8, 22), hue_deviation=61.25)]
    tinted = [dataclasses.replace(one, prompt=TINT_INSTRUCTION) for one in measured]
    summary = as_json([*measured, *tinted])["summary"]
    lines = known_edits["table"]({"commit": "abc", "scenes": {"bear": {"summary": summary}}})
    # The right answer that an edit is nearest to, and with it how near the scene was before, is another with
    # another seed: the gain is of each edit by itself.
    assert "| bear | p | csd-edit | +14.0 ± 1.4 |  |  |  |  |  |  |" in lines
    assert "| bear | p | per-view | +14.0 |  |  |  |  |  |  |" in lines
    assert f"| bear | {TINT_INSTRUCTION} | per-view | +14.0 |  |  |  |  |  | 61.2 |" in lines
    assert "has 4 right answers (" in lines
    text = f"# Results\n{known_edits['BEGIN']}\nold\n{known_edits['END']}\nmore\n"
    assert known_edits["with_table"](text, "new") == text.replace("old", "new")
    assert known_edits["BEGIN"] in (REPOSITORY / "docs" / "results.md").read_text()
    with pytest.raises(InputError, match="no place for the table"):
        known_edits["with_table"]("# Results", "new")
