"""What an editing session promises, measured on a scene that is trained already.

    python benchmarks/session.py --scene RUN --out results/session --what try --scenes RUN RUN2
    python benchmarks/session.py --scene RUN --out results/session --what strength --edit EDIT_RUN
    python benchmarks/session.py --scene RUN --out results/session --what ctrl-c
    python benchmarks/session.py --scene RUN --out results/session --what tab

- `try`: candidates (guidance x seed) of prompts with a known answer, by `csd-nerf try`'s views and, taken, by
  full edits; both are ranked by their PSNR to the answer, and the ranks compared (Spearman). What is measured
  is kept by prompt and scene: an interrupted command goes on.
- `strength`: the gain of an edit towards the known answer at every strength, and whether 0 and 1 are source
  and edit to the bit.
- `ctrl-c`: runs that are interrupted at random moments of their steps and gone on with, against one that was
  not.
- `tab`: region edits while a tab in a headless Chromium drags the camera, against one without a viewer. Needs
  Playwright.
"""

from __future__ import annotations

import copy
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nerfstudio.engine.trainer  # noqa: E402,F401 - `nerfstudio.utils.writer` cannot be imported before it
from nerfstudio.utils import writer  # noqa: E402

from csd_nerf.distillation.residuals import Guidance  # noqa: E402
from csd_nerf.evaluation.pixels import psnr  # noqa: E402
from csd_nerf.nerf.candidate import save_candidate  # noqa: E402
from csd_nerf.nerf.cost import read_cost  # noqa: E402
from csd_nerf.nerf.methods import METHODS  # noqa: E402
from csd_nerf.nerf.runs import find_run, read_checkpoint  # noqa: E402
from csd_nerf.nerf.source_scene import source_scene  # noqa: E402
from csd_nerf.nerf.trying import ViewsToTry  # noqa: E402
from csd_nerf.scenes.operators import KNOWN_INSTRUCTIONS, answers_to  # noqa: E402

ROW = 10
"""Steps from one row of nerfstudio's progress to the next."""
DIFFERENT_DB = 0.5
"""Candidates whose edits differ by less are held to be equally good."""
PROMPTS = tuple(prompt for prompt in KNOWN_INSTRUCTIONS if answers_to(prompt) and "keep it" not in prompt)


@dataclass
class Options:
    """What to measure, and of what."""

    scene: Path
    """Run folder of a trained scene."""
    out: Path
    """Folder for runs and figures."""
    what: Literal["try", "strength", "ctrl-c", "tab"]
    """See above."""
    scenes: tuple[Path, ...] = ()
    """Of `try`: more than one scene."""
    prompts: tuple[str, ...] = PROMPTS
    """Of `try`."""
    guidances: tuple[float, ...] = (3.0, 7.5)
    """Of `try`: text guidances."""
    seeds: int = 2
    """Of `try`: seeds at each of them."""
    edit: Path | None = None
    """Of `strength`: the run folder of an edit by a prompt with a known answer."""
    times: int = 10
    """How many runs are interrupted, or are dragged at."""
    steps: int = METHODS["csd-edit-tiny"].max_num_iterations
    """Of an edit."""


def main(options: Options) -> None:
    measures = {"try": tried_and_edited, "strength": by_strength, "ctrl-c": interrupted, "tab": dragged_at}
    figures = measures[options.what](options)
    (options.out / f"{options.what}.json").write_text(json.dumps(figures, indent=1))
    print(json.dumps(figures, indent=1))


# -------------------------------------------------------------------- try


def tried_and_edited(options: Options) -> dict[str, Any]:
    """Rank correlation of candidates by try and by full edit, for every prompt and scene."""
    pairs = []
    for number, scene in enumerate(options.scenes or (options.scene,)):
        trainer = None
        for prompt in options.prompts:
            folder = options.out / f"scene-{number}" / prompt.replace(" ", "-")
            file = folder / "pair.json"
            if not file.exists():  # else it was measured before an interruption
                trainer = trainer or _trainer(scene, options.out / f"scene-{number}", options.steps)
                pair = {"scene": str(scene), "prompt": prompt}
                pair["candidates"] = _candidates(options, trainer, prompt, folder)
                file.write_text(json.dumps(pair, indent=1))
            pairs.append(json.loads(file.read_text()))
            pairs[-1] |= _agreement_of(pairs[-1]["candidates"])
            print(pairs[-1], flush=True)
    told = [order for pair in pairs for order in pair["alike"]]
    correlations = [pair["rank_correlation"] for pair in pairs]
    return {
        "pairs": pairs,
        "mean_rank_correlation": sum(correlations) / len(pairs),
        "pairs_of_candidates_that_differ": len(told),
        "of_these_in_the_same_order": sum(told),
        "loss_by_taking_the_best_tried_db": sum(pair["loss_db"] for pair in pairs) / len(pairs),
    }


def _candidates(options: Options, trainer: Any, prompt: str, folder: Path) -> list[dict[str, float]]:
    """What each comes to: tried, and, as from the viewer, taken and edited to the end."""
    pipeline = trainer.pipeline
    candidates = []
    for guidance, seed in itertools.product(options.guidances, range(options.seeds)):
        trainer._is_waiting = True
        if trainer.steps_done:
            trainer.undo()
        views = ViewsToTry(pipeline, 3)
        tried = views.ask(prompt, Guidance(guidance, pipeline.image_guidance.value), seed)
        trainer.tries = folder / f"{guidance:g}-{seed}"
        save_candidate(trainer.tries / "1", tried.candidate, tried.pictures)
        trainer.take(1)
        trainer.go_on()
        trainer._start_step = trainer.steps_done
        trainer._until_interrupted()
        cameras, indices = pipeline.datamanager.eval_cameras(128, 128, 4)
        photos = pipeline.datamanager.eval_photos(indices, 128, 128).cpu()
        shown = pipeline.datamanager.train_photos(views.indices, *views.images.shape[-2:]).cpu()
        candidates.append(
            {
                "guidance": guidance,
                "seed": seed,
                "try_db": _to_answer(prompt, shown, tried.pictures),
                "edit_db": _to_answer(prompt, photos, pipeline.draw(cameras)),
            }
        )
        print(prompt, candidates[-1], flush=True)
    return candidates


def _agreement_of(candidates: list[dict[str, float]]) -> dict[str, Any]:
    """Of the two rankings: their correlation, whether they order those alike whose edits differ, and what is
    lost by taking the one that was best in the try."""
    tried, edited = ([candidate[name] for candidate in candidates] for name in ("try_db", "edit_db"))
    return {
        "rank_correlation": _spearman(tried, edited),
        "alike": [
            (tried[i] < tried[j]) == (edited[i] < edited[j])
            for i, j in itertools.combinations(range(len(tried)), 2)
            if abs(edited[i] - edited[j]) > DIFFERENT_DB
        ],
        "loss_db": max(edited) - edited[tried.index(max(tried))],
    }


def _trainer(scene: Path, folder: Path, steps: int) -> Any:
    """Of an edit, before its first step."""
    for buffer in (writer.EVENT_STORAGE, writer.EVENT_WRITERS):
        buffer.clear()
    writer.GLOBAL_BUFFER.clear()
    config: Any = copy.deepcopy(METHODS["csd-edit-tiny"])
    config.load_dir, config.prompt, config.output_dir = scene, PROMPTS[0], folder
    config.vis, config.timestamp, config.max_num_iterations = "tensorboard", "edit", steps
    config.viewer.quit_on_train_completion, config.logging.local_writer.enable = True, False
    config.pipeline.steps_per_picture = config.pipeline.turntable_frames = 0
    config.pipeline.picture_views, config.pipeline.picture_size = 1, 16  # not looked at
    config.set_timestamp()
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer._meter = trainer._start_meter()
    return trainer


def _to_answer(prompt: str, photos: Tensor, pictures: Tensor) -> float:
    """PSNR in dB to the nearest right answer."""
    return max(float(psnr(pictures, apply(photos)).mean()) for apply in answers_to(prompt).values())


def _spearman(one: list[float], other: list[float]) -> float:
    ranks = torch.tensor([one, other]).argsort(1).argsort(1).double()
    return float(torch.corrcoef(ranks)[0, 1])


# -------------------------------------------------------------------- strength


@torch.no_grad()
def by_strength(options: Options) -> dict[str, Any]:
    """PSNR towards the known answer at every tenth of the strength."""
    from nerfstudio.utils.eval_utils import eval_setup

    assert options.edit is not None, "pass --edit"
    _, pipeline, _, _ = eval_setup(options.edit / "config.yml")
    cameras, indices = pipeline.datamanager.eval_cameras(64, 64, 4)
    photos = pipeline.datamanager.eval_photos(indices, 64, 64).cpu()
    edit = pipeline.draw(cameras)
    with source_scene(pipeline):
        source = pipeline.draw(cameras)
    curve, drawn = {}, {}
    for tenth in range(11):
        pipeline.show_at(tenth / 10)
        drawn[tenth] = pipeline.draw(cameras)
        curve[tenth / 10] = _to_answer(pipeline.prompt.value, photos, drawn[tenth])
    values = list(curve.values())
    return {
        "psnr_db": curve,
        "monotone": all(one < other for one, other in zip(values, values[1:], strict=False)),
        "0_is_the_source": torch.equal(drawn[0], source),
        "1_is_the_edit": torch.equal(drawn[10], edit),
    }


# -------------------------------------------------------------------- ctrl-c, tab


def _command(options: Options, name: str, load: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "nerfstudio.scripts.train", "csd-edit-tiny", "--load-dir", str(load),
        "--output-dir", str(options.out), "--experiment-name", options.what, "--timestamp", name,
        "--max-num-iterations", str(options.steps), "--pipeline.turntable-frames", "0",
        "--pipeline.steps-per-picture", "0", *more,
    ]  # fmt: skip


def _folder(options: Options, name: str) -> Path:
    return options.out / options.what / "csd-edit-tiny" / name


def _finish(command: list[str], log: Path) -> int:
    with log.open("w") as file:
        return subprocess.run([*command, "--vis", "tensorboard"], stdout=file, stderr=file).returncode


def interrupted(options: Options) -> dict[str, Any]:
    """How many runs that Ctrl-C ended at a random moment came, gone on with, to the same scene."""
    night = ("--prompt", "make it night")
    assert _finish(_command(options, "whole", options.scene, *night), options.out / "whole.log") == 0
    cost = read_cost(_folder(options, "whole"))
    assert cost is not None
    at_the_end = find_run(_folder(options, "whole")).checkpoint
    expected = read_checkpoint(at_the_end)["pipeline"]
    results = []
    for number in range(options.times):
        name, log = f"interrupted-{number}", options.out / f"interrupted-{number}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [*_command(options, name, options.scene, *night), "--vis", "tensorboard"],
                stdout=file,
                stderr=file,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
            step = random.SystemRandom().randrange(0, options.steps - 2 * ROW, ROW)
            while f"\n{step} (" not in log.read_text() and process.poll() is None:
                time.sleep(0.05)
            time.sleep(random.SystemRandom().uniform(0, ROW * cost.seconds / cost.steps))
            process.send_signal(signal.SIGINT)
            status = process.wait()
        folder = _folder(options, name)
        steps = find_run(folder).checkpoint.name
        again = _finish(_command(options, f"resumed-{number}", folder), options.out / f"resumed-{number}.log")
        weights = read_checkpoint(find_run(_folder(options, f"resumed-{number}")).checkpoint)["pipeline"]
        equal = all(
            torch.equal(value, weights[key]) for key, value in expected.items() if isinstance(value, Tensor)
        )
        results.append({"status": status, "checkpoint": steps, "resumed": again, "equal": equal})
        print(results[-1], flush=True)
    return {
        "runs": results,
        "before_the_last_step": sum(result["checkpoint"] != at_the_end.name for result in results),
        "equal": sum(result["equal"] for result in results),
    }


def dragged_at(options: Options) -> dict[str, Any]:
    """How many region edits ran to their end beside a dragging tab, and gave the pictures of one without."""
    from playwright.sync_api import Error, sync_playwright

    box = [
        "--prompt", "make it night", "--pipeline.region.source", "box", "--pipeline.region.box-center",
        "0", "0", "-0.2", "--pipeline.region.box-size", "0.6", "0.9", "0.6",
    ]  # fmt: skip
    assert _finish(_command(options, "alone", options.scene, *box), options.out / "alone.log") == 0
    alone = (_folder(options, "alone") / "pictures" / "after.png").read_bytes()
    results = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--use-gl=swiftshader"]
        )
        for number in range(options.times):
            port = str(7100 + number)
            command = _command(options, f"dragged-{number}", options.scene, *box)
            command += ["--viewer.websocket-port", port, "--viewer.quit-on-train-completion", "True"]
            with (options.out / f"dragged-{number}.log").open("w") as file:
                process = subprocess.Popen(command, stdout=file, stderr=file)
                page = browser.new_page(viewport={"width": 900, "height": 700})
                drags = 0
                while process.poll() is None:
                    try:
                        if page.url == "about:blank":
                            page.goto(f"http://localhost:{port}", timeout=2000)
                        page.mouse.move(300, 300)
                        page.mouse.down()
                        page.mouse.move(300 + 40 * (drags % 5), 340, steps=4)
                        page.mouse.up()
                        drags += 1
                    except Error:
                        page.wait_for_timeout(300)
                    page.wait_for_timeout(400)
                page.close()
            picture = _folder(options, f"dragged-{number}") / "pictures" / "after.png"
            results.append(
                {
                    "status": process.returncode,
                    "drags": drags,
                    "same_picture": picture.exists() and picture.read_bytes() == alone,
                }
            )
            print(results[-1], flush=True)
        browser.close()
    return {"runs": results, "ran": sum(result["status"] == 0 for result in results)}


if __name__ == "__main__":
    options = tyro.cli(Options)
    options.out.mkdir(parents=True, exist_ok=True)
    main(options)
