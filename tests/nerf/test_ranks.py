"""One edit by several processes, with gloo: what each is given, and that they do what one process does."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import make_edit_config, refusal, run, run_until_killed
from nerfstudio.cameras.cameras import Cameras
from prior_folders import save_flux_kontext
from processes import in_processes
from torch.multiprocessing import ProcessExitedException

from csd_nerf import ranks
from csd_nerf.distillation.objective import Objective
from csd_nerf.nerf import cpu_fields, prompted
from csd_nerf.nerf.edits import EDITS
from csd_nerf.nerf.prompted_trainer import PromptedTrainer
from csd_nerf.nerf.runs import find_run, read_checkpoint
from csd_nerf.priors import load_prior
from csd_nerf.priors.shared import Shared

OF_ALL = {
    "max_num_iterations": 3,
    "pipeline__prior_precision": "float32",
    "pipeline__vae_precision": "float32",  # bfloat16 rounds otherwise in batches of another size
    "pipeline__kept_views": 0,
    "pipeline__steps_per_picture": 0,
    "pipeline__datamanager__train_num_rays_per_batch": 250,
}
FEW = {"pipeline__particles": 5, "pipeline__fits_per_round": 2}  # shares that differ, for two and for four
DESCENT = {**FEW, "pipeline__descent__steps": 2}
DESCRIBED = {**DESCENT, "pipeline__prior": "tiny-sd", "pipeline__source_prompt": "a photo"}
SAMPLED = {"pipeline__prior": "tiny-instruct", "pipeline__sampling__steps": 2}
ABOVE_ROUNDING = 1e-8
"""Of Adam. By nerfstudio's 1e-15 a gradient that is nothing but rounding makes as large a step as any."""
PICTURES_APART = 5e-4
METHODS: dict[str, dict[str, Any]] = {
    "csd-edit-tiny": DESCENT,
    "csd-edit-tiny, gradient": {**DESCENT, "pipeline__route": "gradient", "pipeline__gradient_share": 0.3},
    "csd-edit-tiny, prior elsewhere": {**DESCENT, "pipeline__prior_device": "cpu"},
    "csd-edit-tiny, flow-edit": {**FEW, "pipeline__edit": "flow-edit", "pipeline__sampling__steps": 2},
    "dds-edit": DESCRIBED,
    "cds-edit": {**DESCRIBED, "pipeline__objective__structure__patch_sizes": (1,)},  # its maps are small
    "pds-edit": DESCRIBED,
    "sds-edit": DESCRIBED,
    "csd-edit-dataset": {**DESCENT, "pipeline__prior": "tiny-instruct"},
    "in2n-baseline": {
        **FEW,
        **SAMPLED,
        "pipeline__lpips_weight": 0.0,  # no AlexNet here
        "pipeline__datamanager__patch_size": 5,
    },
    "refit-baseline": SAMPLED,
}
"""What each is told beyond its defaults, by its name and a word on it."""


def edit_of(name: str, output: Path, scene_run: Path, **changes: Any) -> Any:
    """The configuration of a method's edit."""
    method = name.split(",")[0]
    settings = {**OF_ALL, **METHODS[name], "machine__device_type": "cpu", "mixed_precision": False, **changes}
    config = make_edit_config(method, output / name, scene_run, **settings)
    for group in config.optimizers.values():
        group["optimizer"].eps = ABOVE_ROUNDING
    return config


def edits(names: Sequence[str], output: Path, scene_run: Path, flow_prior: Path) -> None:
    """Edits, in one of several processes: what it knows at their ends, and of a step in double precision."""
    for name in names:
        changes = {"pipeline__prior": str(flow_prior)} if "flow" in name else {}
        with pytest.MonkeyPatch.context() as patch:
            if "elsewhere" in name:  # and is edited ahead, in a thread, while the fits talk as well
                patch.setattr(prompted, "same_device", lambda one, other: False)
            pipeline = run(edit_of(name, output, scene_run, **changes)).pipeline
        assert (pipeline._edit.ahead is not None) == ("elsewhere" in name)
        known = {
            "pictures": pipeline.eval_pictures(),
            "weights": {name: value.clone() for name, value in pipeline.model.state_dict().items()},
            "unet_evaluations": pipeline.unet_evaluations,
            **step_in_double(pipeline),
        }
        torch.save(known, output / f"{name} {ranks.number()} of {ranks.count()}.pt")


def step_in_double(pipeline: Any) -> dict[str, Any]:
    """The gradient and the losses of the edit's first step, nothing in it being of single precision."""
    model, config, edit = pipeline.model, pipeline.config, pipeline._edit
    forward, single = model.forward, torch.Tensor.float
    model.load_state_dict(edit.source_weights)
    model.double().train()
    for part in model.modules():
        part.__dict__.pop("pytorch_fwd", None)  # our encoding by the hash grid, which like the kernels is not
    prior = load_prior(config.prior, device="cpu", dtype=torch.float64, vae_dtype=torch.float64)
    edit.prior = Shared(prior) if ranks.count() > 1 else prior
    if config.route == "gradient":
        edit.objective = Objective(config.objective, edit.prior)
    else:
        edit.edit = EDITS[config.edit](config, edit.prior)
    edit.targets.restore()
    edit.source_latents, edit.round, edit.ahead = {}, None, None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "forward", lambda rays: forward(rays._apply_fn_to_fields(in_double)))
        patch.setattr(cpu_fields, "_suits", lambda *_: False)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(Cameras, "generate_rays", rays_in_single(Cameras.generate_rays, single))
        model.zero_grad()
        _, losses, _ = pipeline.get_train_loss_dict(0)
        torch.stack(list(losses.values())).sum().backward()
        ranks.sum_gradients(model.parameters())
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {
        "gradients": gradients,
        "losses": {name: loss.detach() for name, loss in losses.items() if name != "distillation"},
        "targets": edit.targets.pictures,
    }


def rays_in_single(generate_rays: Any, single: Any) -> Any:
    """nerfstudio makes rays of single precision alone."""

    def generate(*arguments: Any, **options: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "float", single)
            return generate_rays(*arguments, **options)

    return generate


def in_double(value: torch.Tensor) -> torch.Tensor:
    """A field of a bundle of rays, of which some are whole numbers."""
    return value.double() if value.is_floating_point() else value


@dataclass(frozen=True)
class Known:
    """What processes knew in the end, in a folder for each number of them."""

    names: Sequence[str]
    folders: Mapping[int, Path]

    def of(self, name: str, count: int) -> list[Any]:
        """Of a method's edit by so many: what each knew."""
        return [torch.load(self.folders[count] / f"{name} {rank} of {count}.pt") for rank in range(count)]

    def compared(self) -> Iterator[tuple[str, Any, list[Any]]]:
        """A method and a number of processes, what one alone knew, and what each of several did."""
        for name in self.names:
            (one,) = self.of(name, 1)
            for count in self.folders:
                if count > 1:
                    yield f"{name}, {count} processes", one, self.of(name, count)


@pytest.fixture(
    scope="module",
    params=[
        (("csd-edit-tiny", "csd-edit-tiny, gradient", "csd-edit-tiny, prior elsewhere"), (1, 2)),
        pytest.param((tuple(METHODS), (1, 2, 4)), marks=pytest.mark.long),
    ],
    ids=["some methods", "all methods"],
)
def known(request: Any, scene_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Known:
    """Edits by one process and by several."""
    names, counts = request.param
    flow_prior = save_flux_kontext(tmp_path_factory.mktemp("priors") / "flow")
    folders = {count: tmp_path_factory.mktemp(f"{count}-processes") for count in counts}
    for count, folder in folders.items():
        in_processes(count, edits, names, folder, scene_run, flow_prior)
    return Known(names, folders)


def test_several_processes_give_what_one_gives(known: Known) -> None:
    for what, one, (first, *others) in known.compared():
        assert (one["pictures"] - first["pictures"]).abs().max() < PICTURES_APART, what
        assert one["unet_evaluations"] == first["unet_evaluations"] > 0, what
        for other in others:
            assert other["unet_evaluations"] == first["unet_evaluations"], what
            for part, value in other["weights"].items():
                assert torch.equal(first["weights"][part], value), (what, part)


def test_in_double_precision_the_gradient_is_that_of_one_process(known: Known) -> None:
    for what, one, several in known.compared():
        for rank in several:
            assert torch.equal(one["targets"], rank["targets"]), what
            assert one["gradients"].keys() == rank["gradients"].keys()
            for part, gradient in one["gradients"].items():
                apart = (rank["gradients"][part] - gradient).abs().max()
                assert gradient.dtype == torch.float64 and apart <= 1e-12 * gradient.abs().max(), (what, part)
            torch.testing.assert_close(rank["losses"], one["losses"], rtol=1e-6, atol=1e-9)


def test_one_process_writes(known: Known) -> None:
    (folder,) = (known.folders[2] / "csd-edit-tiny").glob("*/*/edit")
    assert len(list(folder.glob("nerfstudio_models/*.ckpt"))) == 1 and (folder / "turntable.mp4").exists()
    saved = read_checkpoint(find_run(folder).checkpoint)["pipeline"]
    weights = known.of("csd-edit-tiny", 2)[0]["weights"]
    assert all(torch.equal(weights[name], saved[f"_model.{name}"]) for name in weights)


def edit_until(step: int | None, output: Path, load_dir: Path) -> Any:
    """An edit of four steps that is killed at one of them, or not; or the rest of it. Its pictures."""
    config = edit_of("csd-edit-tiny", output, load_dir, max_num_iterations=4, steps_per_save=1)
    if step is not None:
        run_until_killed(config, step)
        return None
    return run(config).pipeline.eval_pictures()


def two_of_each(output: Path, scene_run: Path, begun_by_one: Path) -> None:
    """What two processes begin, and what they go on with."""
    edit_until(3, output / "begun", scene_run)
    pictures = edit_until(None, output, begun_by_one)
    if ranks.leads():
        torch.save(pictures, output / "pictures.pt")


def test_another_number_of_processes_goes_on(scene_run: Path, tmp_path: Path) -> None:
    def the_run_in(folder: Path) -> Path:
        (found,) = folder.glob("*/*/*/edit")
        return found

    def alone(step: int | None, output: Path, load_dir: Path) -> Any:
        pictures = []
        in_processes(1, lambda: pictures.append(edit_until(step, output, load_dir)))
        return pictures[0]

    whole = alone(None, tmp_path / "whole", scene_run)
    alone(3, tmp_path / "by-one", scene_run)
    in_processes(2, two_of_each, tmp_path / "by-two", scene_run, the_run_in(tmp_path / "by-one"))
    assert (torch.load(tmp_path / "by-two" / "pictures.pt") - whole).abs().max() < PICTURES_APART
    begun_by_two = the_run_in(tmp_path / "by-two" / "begun")
    assert [file.name for file in begun_by_two.glob("nerfstudio_models/*")] == ["step-000000002.ckpt"]
    assert (alone(None, tmp_path / "on", begun_by_two) - whole).abs().max() < PICTURES_APART


def edit_while_one_dies(dying: int, folder: Path, scene_run: Path) -> None:
    """An edit of which a process ends without a word at its third step."""
    train_iteration = PromptedTrainer._try_step

    def step(trainer: PromptedTrainer, number: int) -> Any:
        if number == 2 and ranks.number() == dying:
            os._exit(7)
        return train_iteration(trainer, number)

    PromptedTrainer._try_step = step
    try:
        run(edit_of("csd-edit-tiny", folder, scene_run, max_num_iterations=9))
    except SystemExit as end:
        (folder / f"{ranks.number()}.txt").write_text(str(end))
        raise


@pytest.mark.parametrize("dying", [0, pytest.param(1, marks=pytest.mark.long)])
def test_when_a_process_dies_the_others_end_with_a_checkpoint_and_a_word(
    dying: int, scene_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ProcessExitedException) as end:
        in_processes(3, edit_while_one_dies, dying, tmp_path, scene_run)
    assert end.value.exit_code in (1, 7)
    words = {int(file.stem): file.read_text() for file in tmp_path.glob("*.txt")}
    assert words.keys() == {0, 1, 2} - {dying}
    (folder,) = tmp_path.glob("*/*/*/edit")
    for rank, said in words.items():
        assert said.startswith(f"Process {rank}: ")  # another has ended, or it was told to end itself
        assert f"continue with --load-dir {folder}" in said
    assert [file.name for file in folder.glob("nerfstudio_models/*")] == ["step-000000001.ckpt"]
    assert not list(folder.glob(".nerfstudio_models*"))
    assert read_checkpoint(find_run(folder).checkpoint)["step"] == 1


def shares(output: Path) -> None:
    """What `ranks` does with rows, in one of several processes."""
    ranks.join("cpu")
    numbers = torch.arange(5.0)
    seen = []

    def doubled(rows: torch.Tensor, nothing: None) -> torch.Tensor:
        seen.append(len(rows))
        return 2 * rows

    assert torch.equal(ranks.by_share(doubled, numbers, None), 2 * numbers)
    assert torch.equal(ranks.by_share(doubled, numbers[:1], None), 2 * numbers[:1])
    pair = ranks.by_share(lambda rows: (rows[:, None] + 1, rows.new_empty(len(rows), 0)), numbers)
    assert torch.equal(pair[0], numbers[:, None] + 1) and pair[1].shape == (5, 0)
    assert ranks.as_first(ranks.number()) == 0
    assert ranks.any_says(ranks.number() == 1) and not ranks.any_says(False)
    (output / f"{ranks.number()}").write_text(f"{seen}")


def test_rows_are_shared_and_gathered(tmp_path: Path) -> None:
    in_processes(2, shares, tmp_path)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["[2, 1]", "[3, 1]"]


def test_processes_are_launched_once_it_is_known_that_they_can_work(
    scene_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def config(**changes: Any) -> Any:
        return make_edit_config("csd-edit-tiny", tmp_path, scene_run, machine__num_devices=2, **changes)

    launched: list[list[str]] = []
    monkeypatch.setattr(
        ranks.subprocess,
        "run",
        lambda command, check: launched.append(command) or ranks.subprocess.CompletedProcess(command, 7),
    )
    rays = {"pipeline__datamanager__train_num_rays_per_batch": 1}
    assert "a fit has no rays for every process" in refusal(config(**rays), capsys)
    assert "do not know where to meet" in refusal(config(machine__num_machines=2), capsys)
    assert "there is none" in refusal(config(pipeline__prior_device="cuda:1"), capsys)
    few = {"pipeline__route": "gradient", "pipeline__particles": 1}
    assert "there are no views for every process" in refusal(config(**few), capsys)
    assert not launched
    monkeypatch.setattr("sys.argv", ["ns-train", "csd-edit-tiny", "--prompt", "make it night"])
    with pytest.raises(SystemExit) as stop:
        config().set_timestamp()
    assert stop.value.code == 7
    assert "--nproc-per-node=2" in launched[0] and launched[0][-4:] == ranks.sys.argv
    there = {"machine__num_machines": 3, "machine__machine_rank": 1, "machine__dist_url": "tcp://head:29500"}
    with pytest.raises(SystemExit):
        config(**there).set_timestamp()
    assert {"--nnodes=3", "--node-rank=1", "--master-addr=head", "--master-port=29500"} <= set(launched[1])
