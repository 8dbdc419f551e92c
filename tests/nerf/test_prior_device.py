"""A prior on a device of its own: what crosses where, and the round that is edited during the fits.

There is one device to test on. So the crossings are seen by way of a device that holds no numbers, and the
CPU is said to be another one than itself for the rest.
"""

from __future__ import annotations

import inspect
import threading
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from nerf_runs import refusal, run, run_until_killed

from csd_nerf.distillation.objective import NonFiniteResidual, Objective
from csd_nerf.nerf import edit_ahead, prompted
from csd_nerf.nerf.edit_ahead import EditAhead
from csd_nerf.nerf.edit_loop import Fit
from csd_nerf.nerf.edit_pipeline import EditPipeline
from csd_nerf.nerf.targets import Targets
from csd_nerf.priors import Prior
from csd_nerf.priors.elsewhere import Elsewhere

Make = Any
META = torch.device("meta")
CPU = torch.device("cpu")


def asked(prior: Prior) -> dict[str, list[Any]]:
    """Arguments for every method of the contract."""
    noisy, pictures = torch.randn(2, prior.latent_channels, 8, 8), torch.rand(2, 3, 32, 32)
    text = prior.embed(["make it night", ""])
    return {
        "encode": [pictures],
        "decode": [noisy],
        "embed": [["make it night"]],
        "condition": [pictures],
        "encode_source": [pictures, pictures.clone()],
        "predict_noise": [noisy, 300, text, noisy],
        "self_attention_features": [noisy, 300, text, noisy],
    }


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [part for parts in value for part in tensors(parts)] if isinstance(value, (list, tuple)) else []


# ------------------------------------------------------------------------------------------ the contract


def test_all_that_goes_in_is_moved_there_and_all_that_comes_out_is_moved_back(
    tiny_prior: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = asked(tiny_prior)
    methods = {name for name, _ in inspect.getmembers(Prior, inspect.isfunction) if name[0] != "_"}
    # `told` and `read_ahead` ask `embed`; to settle an answer, or to count frames, needs no network.
    assert methods - {"told", "read_ahead", "settled", "frames_at_once"} == questions.keys()
    apart = Elsewhere(tiny_prior, META)
    for name, arguments in questions.items():
        answers = tensors(getattr(apart, name)(*arguments))
        assert answers and all(answer.device == META for answer in answers), name

    given: list[torch.Tensor] = []
    for name in questions:
        answer = getattr(tiny_prior, name)(*questions[name])
        monkeypatch.setattr(
            tiny_prior, name, lambda *arguments, answer=answer: given.extend(tensors(arguments)) or answer
        )
    monkeypatch.setattr(tiny_prior, "device", META)
    apart = Elsewhere(tiny_prior, CPU)
    for name, arguments in questions.items():
        given.clear()
        getattr(apart, name)(*arguments)
        expected = [argument.shape for argument in tensors(arguments)]
        assert [argument.shape for argument in given] == expected, name
        assert all(argument.device == META for argument in given), name


def test_it_answers_as_the_prior_does_with_gradients(tiny_prior: Prior) -> None:
    apart = Elsewhere(tiny_prior, CPU)
    for name, arguments in asked(tiny_prior).items():
        ours, theirs = (tensors(getattr(prior, name)(*arguments)) for prior in (apart, tiny_prior))
        assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True)), name
    gradients = []
    for prior in (apart, tiny_prior):
        pictures = torch.full((1, 3, 32, 32), 0.4, requires_grad=True)
        prior.encode(pictures).square().sum().backward()
        gradients.append(pictures.grad)
    assert torch.equal(*gradients)
    public = [name for name in vars(tiny_prior) if name in Prior.__annotations__ and name != "device"]
    assert len(public) > 8
    for name in public:
        assert getattr(apart, name) is getattr(tiny_prior, name) or name == "unet_evaluations"
    assert apart.unet_evaluations == tiny_prior.unet_evaluations > 0


# ------------------------------------------------------------------------------------------ the option


@pytest.fixture
def small(edit_config: Make) -> Make:
    """Configurations of small edits of three rounds in twelve steps."""

    def make(method: str = "csd-edit", **changes: Any) -> Any:
        settings = {
            "recipe": "tiny",
            "max_num_iterations": 12,
            "steps_per_save": 6,
            "pipeline__steps_per_picture": 0,
            "pipeline__turntable_frames": 0,
            "pipeline__datamanager__train_num_rays_per_batch": 256,
            "pipeline__fits_per_round": 4,
            "pipeline__particles": 3,
            "pipeline__prior_device": "cpu",
        }
        if method == "csd-edit":
            settings["pipeline__descent__steps"] = 2
        else:
            settings["pipeline__sampling__steps"] = 3
        return edit_config(method, **{**settings, **changes})

    return make


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU be another device than itself."""
    monkeypatch.setattr(prompted, "same_device", lambda one, other: False)


def test_the_scene_s_own_device_is_no_other(small: Make) -> None:
    edit = run(small(max_num_iterations=1, pipeline__prior_device="cpu:0")).pipeline._edit
    assert edit.ahead is None and not isinstance(edit.prior, Elsewhere)


@pytest.mark.parametrize(("device", "said"), [("gpu", "does not know"), ("cuda:17", "cuda|CUDA")])
def test_devices_that_are_not_there(small: Make, capsys: Any, device: str, said: str) -> None:
    import re

    assert re.search(said, refusal(small(pipeline__prior_device=device), capsys))


def test_the_published_gradient_comes_through(small: Make, monkeypatch: Any) -> None:
    """The same, whichever device the prior is on; there are no rounds to be ahead with."""
    scenes = []
    for there in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(prompted, "same_device", lambda one, other, there=there: not there)
            changes = {"pipeline__route": "gradient", "timestamp": f"apart-{there}"}
            pipeline = run(small(max_num_iterations=2, **changes)).pipeline
        assert isinstance(pipeline._edit.prior, Elsewhere) == there and pipeline._edit.ahead is None
        scenes.append(pipeline.model.state_dict())
    assert all(torch.equal(value, scenes[1][name]) for name, value in scenes[0].items())


# ------------------------------------------------------------------------------------------ ahead


class InTurn:
    """In the place of the thread: what is submitted is done at once."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def submit(self, function: Any, *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(function(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done


@pytest.mark.parametrize("method", ["csd-edit", "in2n-baseline"])
def test_the_thread_changes_nothing(method: str, small: Make, apart: None, monkeypatch: Any) -> None:
    """Against the same order of work without one."""
    threaded = run(small(method)).pipeline
    with monkeypatch.context() as patch:
        patch.setattr(edit_ahead, "ThreadPoolExecutor", InTurn)
        in_turn = run(small(method)).pipeline
    assert threaded._edit.targets.views == in_turn._edit.targets.views
    assert torch.equal(threaded._edit.targets.pictures, in_turn._edit.targets.pictures)
    for name, value in threaded.model.state_dict().items():
        assert torch.equal(value, in_turn.model.state_dict()[name]), name
    assert threaded.unet_evaluations == in_turn.unet_evaluations > 0


def test_views_are_drawn_a_round_before_their_targets_are_fitted(
    small: Make, apart: None, monkeypatch: Any
) -> None:
    events: list[Any] = []
    draw, put, losses = EditPipeline._round_views, Targets.put, Fit.losses

    def drawn(self: Any, edit: Any, number: int, rounds: int) -> Any:
        events.append(("draw", number))
        return draw(self, edit, number, rounds)

    def taken(self: Any, *arguments: Any) -> None:
        events.append("put")
        put(self, *arguments)

    def fitted(self: Any, *arguments: Any) -> Any:
        events.append("fit")
        return losses(self, *arguments)

    monkeypatch.setattr(EditPipeline, "_round_views", drawn)
    monkeypatch.setattr(Targets, "put", taken)
    monkeypatch.setattr(Fit, "losses", fitted)
    run(small())
    first = [("draw", 0), ("draw", 1), "put", *["fit"] * 4]
    assert events == [*first, ("draw", 2), "put", *["fit"] * 4, "put", *["fit"] * 4]


def test_the_scene_is_fitted_during_an_edit(small: Make, apart: None, monkeypatch: Any) -> None:
    """The edit of a round ahead does not end before a fit has."""
    fit_ended, waited, main = threading.Event(), [], threading.get_ident()
    gradient, losses = Objective.gradient, Fit.losses

    def waiting(self: Any, *arguments: Any, **options: Any) -> Any:
        if threading.get_ident() != main:
            waited.append(fit_ended.wait(timeout=60))
        return gradient(self, *arguments, **options)

    def ending(self: Any, *arguments: Any) -> Any:
        result = losses(self, *arguments)
        fit_ended.set()
        return result

    monkeypatch.setattr(Objective, "gradient", waiting)
    monkeypatch.setattr(Fit, "losses", ending)
    run(small())
    assert waited == [True] * 4  # two steps of descent, of two rounds


@pytest.mark.parametrize("method", ["csd-edit", "in2n-baseline"])
def test_a_killed_edit_resumes_to_the_same_scene_and_pictures(method: str, small: Make, apart: None) -> None:
    """With a round under way: its targets are in the checkpoint, and it is not begun again."""
    whole = run(small(method)).pipeline
    folder = run_until_killed(small(method, timestamp="killed"), step=10)
    resumed = run(small(method, load_dir=folder, prompt=None, timestamp="resumed"))
    assert resumed._start_step == 7
    pipeline = resumed.pipeline
    assert pipeline._edit.targets.views == whole._edit.targets.views
    assert torch.equal(pipeline._edit.targets.pictures, whole._edit.targets.pictures)
    torch.testing.assert_close(pipeline.eval_pictures(), whole.eval_pictures(), atol=1e-4, rtol=0)
    assert pipeline.unet_evaluations == whole.unet_evaluations


def test_a_residual_that_is_not_finite_is_asked_for_again(small: Make, apart: None, monkeypatch: Any) -> None:
    """Of a round ahead, when its turn has come, and then at once."""
    gradient_of, main, broken = Objective.gradient, threading.get_ident(), []

    def broken_once(self: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != main and not broken:
            broken.append(1)
            raise NonFiniteResidual("not finite")
        return gradient_of(self, *args, **kwargs)

    monkeypatch.setattr(Objective, "gradient", broken_once)
    trainer = run(small())
    assert broken and trainer.pipeline._edit.round == 2
    state = next(iter(trainer.optimizers.optimizers["fields"].state.values()))
    assert int(state["step"]) == 11


def test_reset_forgets_what_is_under_way(small: Make, apart: None) -> None:
    trainer = run(small())
    pipeline = trainer.pipeline
    edit = pipeline._edit
    pipeline._begin_round(edit, 1)
    assert edit.ahead.state()["number"] == 2
    pipeline.reset_to_source()
    assert edit.ahead.state() is None and edit.ahead.take(2) is None


def test_bytes_of_a_checkpoint_are_the_targets(generator: torch.Generator) -> None:
    from csd_nerf.nerf.targets import as_bytes

    ahead = EditAhead(lambda views: views, CPU)
    kept = torch.randint(256, (2, 2, 8, 8, 3), generator=generator, dtype=torch.uint8)
    ahead.load_state({"number": 3, "views": kept[0], "targets": kept[1]})
    edited = ahead.take(3)
    assert edited is not None
    assert all(torch.equal(as_bytes(ours), bytes) for ours, bytes in zip(edited, kept, strict=True))
