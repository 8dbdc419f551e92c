"""What is asked of a run between its steps: undo, more steps, another prompt, a box, a look at the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import run

from csd_nerf.errors import InputError
from csd_nerf.nerf.chain import chain_of
from csd_nerf.nerf.config_loader import read_config
from csd_nerf.nerf.region_box import RegionBox
from csd_nerf.nerf.requests import Requests

Make = Any


def test_requests_are_done_in_order_and_a_refused_one_ends_nothing() -> None:
    done: list[str] = []
    refused: list[InputError] = []

    def refuse() -> None:
        raise InputError("no", expected="a", got="b", hint="c")

    requests = Requests()
    requests.ask(lambda: done.append("first"), refused.append)
    requests.ask(refuse, refused.append)
    requests.ask(lambda: done.append("last"), refused.append)
    assert not done
    requests.serve()
    assert done == ["first", "last"] and [error.problem for error in refused] == ["no"]
    requests.serve()
    assert done == ["first", "last"]


@pytest.fixture
def waiting(edit_config: Make) -> Any:
    """The trainer of an edit of 4 steps that waits, as it does where there is a viewer."""
    trainer = run(edit_config(pipeline__turntable_frames=0))
    trainer._is_waiting = True
    return trainer


def test_an_edit_is_undone_and_redone_to_the_bit(waiting: Any) -> None:
    pipeline = waiting.pipeline
    edited = pipeline.eval_pictures()
    momentum = [state["exp_avg"] for state in waiting.optimizers.optimizers["fields"].state.values()]
    waiting.undo()
    assert pipeline.is_undone
    assert torch.equal(pipeline.eval_pictures(), pipeline._edit.before)
    with pytest.raises(InputError, match="undone"):
        waiting.more_steps(3)
    waiting.redo()
    assert torch.equal(pipeline.eval_pictures(), edited)
    back = [state["exp_avg"] for state in waiting.optimizers.optimizers["fields"].state.values()]
    assert len(momentum) == len(back) > 0
    assert all(torch.equal(one, other) for one, other in zip(momentum, back, strict=True))


def test_more_steps_and_another_prompt_are_in_the_configuration(waiting: Any) -> None:
    with pytest.raises(InputError, match="blank"):
        waiting.change_prompt(" ")
    waiting.change_prompt("turn it into a pencil sketch")
    waiting.more_steps(3)
    waiting._serve()
    saved = saved_in(waiting.base_dir)
    assert saved.pipeline.prompt == "turn it into a pencil sketch" and saved.max_num_iterations == 7
    with pytest.raises(InputError, match="steps are being made"):
        waiting.undo()
    waiting._start_step = waiting.steps_done
    waiting._train_to_the_end()
    assert waiting.steps_done == 7
    assert waiting.pipeline.rounds_done(7) == (1, 1)


def test_an_undone_edit_starts_again_in_a_box_and_a_folder_of_its_own(waiting: Any) -> None:
    first = waiting.base_dir
    kept = {path.name for path in (first / "nerfstudio_models").iterdir()}
    box = RegionBox((0.0, 0.0, 0.0), (50.0, 50.0, 50.0))
    with pytest.raises(InputError, match="begun everywhere"):
        waiting.keep_to_box(box)
    waiting.undo()
    with pytest.raises(InputError, match="no volume"):
        waiting.keep_to_box(RegionBox((0.0, 0.0, 0.0), (0.0, 1.0, 1.0)))
    waiting.keep_to_box(box)
    with pytest.raises(InputError, match="was everywhere"):
        waiting.redo()
    assert not (first / "pictures" / "region.png").exists()
    waiting.go_on()
    waiting._start_step = waiting.steps_done
    waiting._serve()
    assert waiting.steps_done == 0 and waiting.pipeline.box == box
    waiting._train_to_the_end()
    second = waiting.base_dir
    assert second == first.with_name(f"{first.name}+2")
    assert {path.name for path in (first / "nerfstudio_models").iterdir()} == kept
    assert (second / "pictures" / "after.png").exists()
    saved = saved_in(second)
    assert saved.pipeline.region.source == "box" and saved.pipeline.region.box_size == (50.0, 50.0, 50.0)


def test_what_is_set_while_an_edit_is_undone_is_of_the_next_one(waiting: Any) -> None:
    first = waiting.base_dir
    waiting.undo()
    waiting.change_prompt("make it winter")
    waiting._serve()
    assert saved_in(first).pipeline.prompt == "make it night"
    waiting.go_on()
    waiting._serve()
    assert saved_in(first).pipeline.prompt == "make it night"
    assert waiting.base_dir != first and saved_in(waiting.base_dir).pipeline.prompt == "make it winter"


def test_a_second_edit_on_top_is_the_one_that_its_command_makes(waiting: Any, edit_config: Make) -> None:
    pipeline, first = waiting.pipeline, waiting.base_dir
    pipeline.show_before(lambda: True)
    camera = pipeline._edit.cameras[0:1]
    pipeline.model.eval().get_outputs_for_camera(camera)  # builds the scene before
    pipeline.model.train()
    waiting.show_at(0.5)
    with pytest.raises(InputError, match="cannot be edited further"):
        waiting.edit_on_top()
    waiting.show_at(1.0)
    night = pipeline.eval_pictures()
    waiting.edit_on_top()
    with pytest.raises(InputError, match="there is no edit"):
        waiting.edit_on_top()
    waiting.change_prompt("turn it into a pencil sketch")
    assert torch.equal(pipeline._edit.before, night)
    (tried,) = waiting.try_edits(1)  # of the night
    waiting.go_on()
    waiting._start_step = waiting.steps_done
    waiting._serve()
    waiting._train_to_the_end()
    second = waiting.base_dir
    outputs = pipeline.model.eval().get_outputs_for_camera(camera)
    assert not torch.equal(outputs["rgb_before"], outputs["rgb"])
    pipeline.model.train()

    links = chain_of(second)
    assert [link.prompt for link in links] == ["", "make it night", "turn it into a pencil sketch"]
    assert [link.folder for link in links[1:]] == [first, second] and saved_in(first).pipeline.strength == 1
    by_command = run(
        edit_config(
            load_dir=first,
            prompt="turn it into a pencil sketch",
            pipeline__turntable_frames=0,
            timestamp="by-command",
        )
    ).pipeline
    assert torch.equal(by_command.eval_pictures(), pipeline.eval_pictures())
    assert tried.candidate.source == str(by_command.config.source_checkpoint)

    waiting._is_waiting = True
    waiting.show_at(0.0)  # of the second edit
    assert torch.equal(pipeline.eval_pictures(), night)
    waiting.show_at(1.0)
    waiting.undo()
    assert torch.equal(pipeline.eval_pictures(), night)


def test_nothing_is_tried_or_changed_while_steps_are_made(waiting: Any) -> None:
    waiting._is_waiting = False
    for asked in (
        lambda: next(waiting.try_edits(1)),
        lambda: waiting.take(1),
        waiting.undo,
        waiting.edit_on_top,
        lambda: waiting.show_at(0.5),
    ):
        with pytest.raises(InputError, match="steps are being made"):
            asked()


def saved_in(folder: Path) -> Any:
    return read_config(folder / "config.yml")


def test_a_candidate_that_is_taken_becomes_the_edit_as_it_does_by_its_option(
    waiting: Any, edit_config: Make
) -> None:
    with pytest.raises(InputError, match="edited already"):
        next(waiting.try_edits(2))
    waiting.undo()
    tried = list(waiting.try_edits(2))
    assert [each.candidate.seed for each in tried] == [0, 1]
    assert not torch.equal(tried[0].pictures, tried[1].pictures)
    with pytest.raises(InputError, match="no candidate"):
        waiting.take(3)
    waiting.change_prompt("make it winter")
    waiting.take(2)
    assert waiting.pipeline.prompt.value == "make it night"  # the prompt that was tried
    waiting.go_on()
    waiting._start_step = waiting.steps_done
    waiting._serve()
    saved = saved_in(waiting.base_dir)
    assert saved.machine.seed == 1 and saved.pipeline.candidate == waiting.tries / "2"
    waiting._train_to_the_end()
    option = edit_config(
        prompt=None, pipeline__candidate=waiting.tries / "2", pipeline__turntable_frames=0, timestamp="option"
    )
    chosen = run(option).pipeline
    assert torch.equal(chosen.eval_pictures(), waiting.pipeline.eval_pictures())


def test_an_unknown_prompt_is_said_at_once(edit_config: Make, capsys: Any) -> None:
    run(edit_config(prompt="polar bear", max_num_iterations=1, pipeline__turntable_frames=0))
    printed = capsys.readouterr().out
    assert "may not know 'polar bear'" in printed and "make it winter" in printed
    run(edit_config(max_num_iterations=1, pipeline__turntable_frames=0, timestamp="known"))
    assert "may not know" not in capsys.readouterr().out


def test_the_scene_before_is_drawn_when_it_is_looked_at(waiting: Any) -> None:
    pipeline, looked_at = waiting.pipeline, False
    camera = pipeline._edit.cameras[0:1]
    before, after = pipeline._edit.before, pipeline.eval_pictures()
    assert "rgb_before" not in pipeline.model.eval().get_outputs_for_camera(camera)
    pipeline.show_before(lambda: looked_at)
    random_numbers = torch.get_rng_state()
    outputs = pipeline.model.get_outputs_for_camera(camera)
    assert outputs["rgb_before"] is outputs["rgb"]
    looked_at = True
    shown = pipeline.model.get_outputs_for_camera(camera)
    assert not torch.equal(shown["rgb_before"], shown["rgb"])
    assert torch.equal(torch.get_rng_state(), random_numbers)
    cameras = pipeline.datamanager.eval_cameras(32, 32, 1)[0]
    outputs = pipeline.model.get_outputs_for_camera(cameras[0:1])
    assert torch.equal(outputs["rgb_before"].permute(2, 0, 1).cpu(), before[0])
    assert torch.equal(outputs["rgb"].permute(2, 0, 1).cpu(), after[0])
    assert "rgb_before" not in "".join(pipeline.state_dict())
