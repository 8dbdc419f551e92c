"""Memory that runs out anywhere in a run: one message, what was done is saved, and can be gone on with."""

from __future__ import annotations

import contextlib
import copy
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import make_config, make_edit_config, refusal, run
from torch.utils._python_dispatch import TorchDispatchMode

from csd_nerf.nerf.runs import find_run, read_checkpoint
from csd_nerf.nerf.scene_trainer import SceneTrainer

STEPS = 6
ROUND, FIT = 3, 4
"""A step that begins a round (it draws, asks the prior and fits), and one that fits alone."""

SMALL: dict[str, Any] = {
    "max_num_iterations": STEPS,
    "pipeline__particles": 2,
    "pipeline__fits_per_round": 3,
    "pipeline__descent__steps": 1,
    "pipeline__steps_per_picture": 0,
    "pipeline__turntable_frames": 2,
    "pipeline__datamanager__train_num_rays_per_batch": 64,
}


class Memory(TorchDispatchMode):
    """Counts torch's operations, each of which may ask for memory; refuses the one of a number."""

    def __init__(self, ends_at: int | None = None) -> None:
        super().__init__()
        self.asked = 0
        self._ends_at = ends_at

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.asked == self._ends_at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
        self.asked += 1
        return operation(*args, **(kwargs or {}))


@contextlib.contextmanager
def within(memory: Memory, method: str, step: int) -> Iterator[None]:
    """Let a trainer's method, of `step` as its last argument, have this memory."""
    usual = getattr(SceneTrainer, method)

    def limited(trainer: Any, *arguments: Any) -> Any:
        if arguments and arguments[-1] != step:
            return usual(trainer, *arguments)
        with memory:
            return usual(trainer, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SceneTrainer, method, limited)
        yield


Moments = dict[tuple[str, int], int]


@pytest.fixture(scope="module")
def whole(scene_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Moments]:
    """An edit with enough memory and all its checkpoints, and how often each of its parts asks for some."""
    parts = [("train_iteration", ROUND), ("train_iteration", FIT), ("save_checkpoint", STEPS - 1)]
    memories = {part: Memory() for part in [*parts, ("_after_train", STEPS - 1)]}
    with contextlib.ExitStack() as stack:
        for part, memory in memories.items():
            stack.enter_context(within(memory, *part))
        config = make_edit_config(
            *("csd-edit-tiny", tmp_path_factory.mktemp("whole"), scene_run),
            **{**SMALL, "steps_per_save": 1, "save_only_latest_checkpoint": False},
        )
        folder = run(config).base_dir
    return folder, {part: memory.asked for part, memory in memories.items()}


def refused_at(operation: int, part: tuple[str, int], config: Any, capsys: Any) -> tuple[int, Path]:
    """The step and the file that is saved where memory runs out at an operation of this part."""
    with within(Memory(operation), *part):
        printed = refusal(config, capsys)
    assert printed.count("memory ran out") == 1 and "--pipeline.unet-batch-size" in printed
    checkpoint = find_run(config.get_base_dir()).checkpoint
    return int(checkpoint.stem.removeprefix("step-")), checkpoint


def assert_same(file: Path, other: Path) -> None:
    saved, expected = read_checkpoint(file)["pipeline"], read_checkpoint(other)["pipeline"]
    assert saved.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(saved[name], value) if isinstance(value, torch.Tensor) else True, name


@pytest.mark.parametrize(
    ("step", "share"),
    [(ROUND, 0.03), (ROUND, 0.5), (FIT, 0.3)],
    ids=["while it draws", "while the prior is asked", "while it fits"],
)
def test_in_a_step(
    step: int, share: float, whole: tuple[Path, Moments], edit_config: Any, capsys: Any
) -> None:
    folder, moments = whole
    config = edit_config(**SMALL)
    part = "train_iteration", step
    saved, file = refused_at(int(share * moments[part]), part, config, capsys)
    assert saved == step - 1
    assert_same(file, folder / "nerfstudio_models" / file.name)
    if share == 0.5:
        again = {**SMALL, "prompt": None, "load_dir": config.get_base_dir()}
        resumed = find_run(run(edit_config(**again)).base_dir).checkpoint
        assert_same(resumed, find_run(folder).checkpoint)


@pytest.mark.parametrize("method", ["save_checkpoint", "_after_train"])
def test_at_the_end(method: str, whole: tuple[Path, Moments], edit_config: Any, capsys: Any) -> None:
    """While the last checkpoint is saved, or the pictures after it are drawn."""
    folder, moments = whole
    part = method, STEPS - 1
    saved, file = refused_at(moments[part] // 4, part, edit_config(**SMALL, steps_per_save=3), capsys)
    assert saved == (3 if method == "save_checkpoint" else STEPS - 1)
    assert_same(file, folder / "nerfstudio_models" / file.name)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_in_a_training(dataset: Path, tmp_path: Path, capsys: Any) -> None:
    config = make_config(
        *("csd-nerfacto-tiny", tmp_path, dataset),
        **{"max_num_iterations": 5, "pipeline__datamanager__train_num_rays_per_batch": 64},
    )
    with within(Memory(100), "train_iteration", 3):
        assert "memory ran out" in refusal(config, capsys)
    assert find_run(config.get_base_dir()).checkpoint.name == "step-000000002.ckpt"


def learning(trainer: Any) -> list[Any]:
    """What has a state of its own beside the weights."""
    optimizers = trainer.optimizers
    return [*optimizers.optimizers.values(), *optimizers.schedulers.values(), trainer.grad_scaler]


@pytest.mark.long
@pytest.mark.parametrize("step", [ROUND, FIT])
def test_at_every_operation_of_a_step(
    step: int, whole: tuple[Path, Moments], edit_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights stay as they were, and the step after all those failures ends as it does without them.

    Only where an optimiser is in the midst of its work, among the last operations, weights have moved.
    """
    folder, moments = whole
    usual, refused, moved = SceneTrainer.train_iteration, list[int](), list[int]()

    def failing(trainer: Any, *arguments: Any) -> Any:
        if arguments != (step,):
            return usual(trainer, *arguments)
        weights = copy.deepcopy(trainer.pipeline.state_dict())
        tensors = [name for name, value in weights.items() if isinstance(value, torch.Tensor)]
        states = [copy.deepcopy(part.state_dict()) for part in learning(trainer)]
        for operation in itertools.count():
            try:
                with Memory(operation):
                    return usual(trainer, step)
            except torch.OutOfMemoryError:
                refused.append(operation)
            now = trainer.pipeline.state_dict()
            if any(not torch.equal(now[name], weights[name]) for name in tensors):
                moved.append(operation)
                trainer.pipeline.load_state_dict(weights)
            for part, state in zip(learning(trainer), states, strict=True):
                part.load_state_dict(copy.deepcopy(state))

    monkeypatch.setattr(SceneTrainer, "train_iteration", failing)
    trainer = run(edit_config(**SMALL))
    assert_same(find_run(trainer.base_dir).checkpoint, find_run(folder).checkpoint)
    print(f"{len(refused)} of {moments['train_iteration', step]} operations, weights moved at {moved}")
    # What is computed once, as texts' conditions and photos' latents, was kept from an attempt before.
    assert len(refused) > 0.8 * moments["train_iteration", step]
    assert all(operation >= len(refused) - 40 for operation in moved)


@pytest.mark.long
@pytest.mark.parametrize("step", [ROUND, FIT])
def test_all_over_a_step(step: int, whole: tuple[Path, Moments], edit_config: Any, capsys: Any) -> None:
    """Every twentieth operation, and the last 40 one by one.

    Only where an optimiser is in the midst of its work, part of the step is in what is saved.
    """
    folder, moments = whole
    part = "train_iteration", step
    last, end = moments[part] - 40, moments[part]
    others = []
    for operation in [*range(0, last, 20), *range(last, end)]:
        config = edit_config(**SMALL, timestamp=f"edit-{operation}")
        saved, file = refused_at(operation, part, config, capsys)
        assert saved in ((step - 1,) if operation < last else (step - 1, step))
        weights, expected = (
            read_checkpoint(each)["pipeline"] for each in (file, folder / "nerfstudio_models" / file.name)
        )
        tensors = [name for name, value in expected.items() if isinstance(value, torch.Tensor)]
        assert all(weights[name].isfinite().all() for name in tensors)
        if not all(torch.equal(weights[name], expected[name]) for name in tensors):
            others.append(operation)
        shutil.rmtree(config.get_base_dir())
    assert all(operation >= last for operation in others) and len(others) < 10
