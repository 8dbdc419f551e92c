"""What depends on tiny-cuda-nn, with a stand-in for it: memory, and running out of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nerf_runs import make_config, make_edit_config, run
from nerfstudio.utils.eval_utils import eval_setup
from tinycudann_double import Arena

from csd_nerf.errors import InputError
from csd_nerf.nerf import model, rendering
from csd_nerf.nerf.edited_run import open_edited_run
from csd_nerf.nerf.methods import METHODS
from csd_nerf.nerf.rendering import render_views, train_proposals
from csd_nerf.nerf.runs import find_run, read_checkpoint
from csd_nerf.nerf.scene_trainer import SceneTrainer
from csd_nerf.nerf.source_scene import source_scene

Make = Any
SMALL: dict[str, Any] = {
    "pipeline__model__implementation": "tcnn",
    "pipeline__model__num_levels": 3,
    "pipeline__model__log2_hashmap_size": 8,
    "pipeline__model__hidden_dim": 16,
    "pipeline__model__hidden_dim_color": 16,
    "pipeline__datamanager__train_num_rays_per_batch": 128,
}


@pytest.fixture
def scene(tinycudann: Arena, dataset: Path, tmp_path: Path) -> Path:
    """The run folder of a scene of tiny-cuda-nn, trained for two steps."""
    config = make_config(
        "csd-nerfacto-tiny", tmp_path, dataset, max_num_iterations=2, timestamp="scene", **SMALL
    )
    return run(config).base_dir


@pytest.fixture
def edit_config(scene: Path, tmp_path: Path) -> Make:
    """Makes configurations of a small edit of that scene."""

    def make(method: str = "csd-edit-tiny", **changes: Any) -> Any:
        return make_edit_config(
            method, tmp_path, scene, **{**SMALL, "pipeline__steps_per_picture": 0, **changes}
        )

    return make


def cameras_of(pipeline: Any) -> Any:
    return pipeline.datamanager.train_dataset.cameras


@pytest.fixture
def pipeline(edit_config: Make) -> Any:
    """Of an edit on the route gradient, without jitter in its samples."""
    pipeline = run(edit_config(max_num_iterations=1, pipeline__turntable_frames=0)).pipeline.train()
    pipeline.model.proposal_sampler.eval()
    train_proposals(pipeline.model)
    return pipeline


def test_the_stand_in_is_what_the_fields_run_in(pipeline: Any) -> None:
    names = [name for name, _ in pipeline.model.field.named_parameters()]
    assert "mlp_base.model.params" in names and "mlp_head.tcnn_encoding.params" in names
    encoding = pipeline.model.field.direction_encoding.tcnn_encoding
    assert encoding(torch.rand(3, 3)).dtype is torch.float16


def test_what_is_held_between_the_passes_does_not_grow(pipeline: Any, tinycudann: Arena) -> None:
    def held(views: int, rays_per_chunk: int) -> tuple[int, int]:
        """After rendering, and the most of the backward pass."""
        tinycudann.most = 0
        rendered = render_views(
            pipeline.model, cameras_of(pipeline), list(range(views)), rays_per_chunk=rays_per_chunk
        )
        after = tinycudann.alive
        (rendered.images.sum() + rendered.interlevel + rendered.distortion).backward()
        return after, tinycudann.most

    assert held(views=1, rays_per_chunk=1024) == (0, 5)  # grid and network of proposal and field, directions
    assert held(views=3, rays_per_chunk=128) == (0, 5)
    assert tinycudann.alive == 0


class Holder(torch.autograd.Function):
    """The identity of a parameter, with an object on `ctx`."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        ctx.held = Held()
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0]


class Held:
    """Something that only autograd's graph keeps."""

    alive = 0

    def __init__(self) -> None:
        Held.alive += 1

    def __del__(self) -> None:
        Held.alive -= 1


def test_objects_of_the_graph_itself_are_let_go_of_between_the_passes() -> None:
    weight = torch.ones(3, requires_grad=True)

    def draw(model: Any, rays: Any, chunk: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (Holder.apply(model)[chunk],)

    chunks = torch.tensor([0, 1, 2, 2]).split(1)
    pieces = [rendering._checkpointed(draw, weight, None, chunk)[0] for chunk in chunks]  # type: ignore[arg-type]
    assert Held.alive == 0
    torch.cat(pieces).sum().backward()
    assert Held.alive == 0
    assert weight.grad is not None and weight.grad.tolist() == [1, 1, 2]


@pytest.mark.parametrize("half", [False, True])
def test_gradients_are_those_of_rendering_without_checkpoints(
    pipeline: Any, half: bool, monkeypatch: Any
) -> None:
    """To the bit, in full precision and under autocast."""

    def gradients() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        pipeline.model.zero_grad()
        weights = torch.randn(2, 3, 32, 32)
        with torch.autocast("cpu", torch.float16, enabled=half):
            views = render_views(
                pipeline.model, cameras_of(pipeline), [1, 4], rays_per_chunk=300, gradient_share=0.5
            )
            loss = (views.images * weights).sum() + views.interlevel + views.distortion
        loss.backward()
        named = pipeline.model.named_parameters()
        return {name: value.grad.clone() for name, value in named if value.grad is not None}

    checkpointed = gradients()
    monkeypatch.setattr(rendering, "_checkpointed", lambda function, *arguments: function(*arguments))
    plain = gradients()
    assert checkpointed.keys() == plain.keys() and any(value.any() for value in plain.values())
    for name, value in plain.items():
        assert torch.equal(checkpointed[name], value), name


@pytest.mark.parametrize("route", ["loop", "gradient"])
def test_a_step_holds_nothing_of_the_one_before(route: str, edit_config: Make, tinycudann: Arena) -> None:
    """nerfstudio keeps the losses of a step during the next."""
    trainer = run(edit_config(max_num_iterations=1, pipeline__route=route, pipeline__turntable_frames=0))
    trainer.pipeline.train()
    kept = []
    for step in (1, 2, 3):
        tinycudann.most = 0
        kept.append(trainer.train_iteration(step))
        assert tinycudann.alive == 0
        # Of the loop's steps these train no proposal networks.
        assert tinycudann.most == (3 if route == "loop" else 5)


def test_nor_does_a_step_of_a_scene(dataset: Path, tmp_path: Path, tinycudann: Arena) -> None:
    """Its metric keeps the last value it was asked for."""
    config = make_config(
        "csd-nerfacto-tiny", tmp_path, dataset, max_num_iterations=1, timestamp="scene", **SMALL
    )
    trainer = run(config)
    kept = trainer.train_iteration(1)
    assert tinycudann.alive == 0 and "psnr" in kept[2]


def test_derivatives_by_position_are_kept_where_poses_are_trained_alone(
    edit_config: Make, dataset: Path, tmp_path: Path, tinycudann: Arena
) -> None:
    scene = {
        **SMALL,
        "pipeline__model__camera_optimizer__mode": "SO3xR3",
        "optimizers": METHODS["csd-nerfacto"].optimizers,
    }
    before = tinycudann.dy_dx
    trained = run(
        make_config("csd-nerfacto-tiny", tmp_path, dataset, max_num_iterations=1, timestamp="poses", **scene)
    )
    assert tinycudann.dy_dx > before
    pose = trained.pipeline.model.camera_optimizer.pose_adjustment
    assert pose.grad is not None and pose.grad.any()
    before = tinycudann.dy_dx
    run(edit_config(max_num_iterations=1, load_dir=trained.base_dir))
    run(edit_config(max_num_iterations=1, load_dir=trained.base_dir, pipeline__route="gradient"))
    assert tinycudann.dy_dx == before


def test_pixels_without_gradient_cost_no_regularisers_and_go_together(
    pipeline: Any, monkeypatch: Any
) -> None:
    sizes: list[int] = []
    distortion = rendering.distortion_loss

    def counted(weights: Any, samples: Any) -> torch.Tensor:
        sizes.append(len(weights[0]))
        return distortion(weights, samples)

    monkeypatch.setattr(rendering, "distortion_loss", counted)
    drawn: list[int] = []
    pipeline.model.register_forward_pre_hook(lambda _, rays: drawn.append(len(rays[0])))
    render_views(pipeline.model, cameras_of(pipeline), [0], rays_per_chunk=64, gradient_share=0.25)
    assert sizes == [64] * 4
    assert drawn == [64] * 4 + [768]


@pytest.mark.parametrize(
    ("route", "turn_down"),
    [
        ("loop", "--pipeline.datamanager.train-num-rays-per-batch"),
        ("gradient", "--pipeline.rays-per-chunk, --pipeline.gradient-share"),
    ],
)
def test_running_out_of_its_memory_saves_the_edit_and_says_what_to_turn_down(
    route: str, turn_down: str, edit_config: Make, tinycudann: Arena, capsys: Any, monkeypatch: Any
) -> None:
    iteration = SceneTrainer.train_iteration

    def full_from_step_two(trainer: Any, step: int) -> Any:
        tinycudann.room = tinycudann.alive + 2 if step == 2 else None
        return iteration(trainer, step)

    monkeypatch.setattr(SceneTrainer, "train_iteration", full_from_step_two)
    config = edit_config(pipeline__route=route)
    with pytest.raises(SystemExit) as stop:
        run(config)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert "memory ran out" in printed.err and "CUDA_ERROR_OUT_OF_MEMORY" in printed.err
    assert turn_down in printed.err
    assert "--load-dir" in printed.out
    assert find_run(config.get_base_dir()).checkpoint.name == "step-000000001.ckpt"


# ---------------------------------------------------------------- two implementations, one scene


def says_it_is_of_tinycudann(run_folder: Path, copy: Path) -> Path:
    """A copy of a run in torch, with a config.yml that says otherwise, as an earlier version wrote it."""
    shutil.copytree(run_folder, copy)
    config = copy / "config.yml"
    saved = yaml.load(config.read_text(), Loader=yaml.Loader)
    saved.pipeline.model.implementation = "tcnn"
    config.write_text(yaml.dump(saved))
    return copy


def test_a_scene_of_tinycudann_is_not_opened_in_torch(scene: Path, monkeypatch: Any) -> None:
    """By ns-viewer, ns-render and ns-export, which go on with what they find no weights for."""
    monkeypatch.setattr(model, "tcnn_runs_on", lambda _: False)
    with pytest.raises(InputError, match="other implementation") as refused:
        eval_setup(scene / "config.yml")
    assert "install tiny-cuda-nn" in refused.value.hint


def test_a_scene_in_torch_is_opened_in_torch_where_there_is_tinycudann(
    scene_run: Path, tinycudann: Arena, tmp_path: Path, monkeypatch: Any
) -> None:
    _, pipeline, _, _ = eval_setup(scene_run / "config.yml")
    assert pipeline.model.config.implementation == "torch"
    copy = says_it_is_of_tinycudann(scene_run, tmp_path / "copy")
    config = yaml.load((copy / "config.yml").read_text(), Loader=yaml.Loader)
    pipeline = config.pipeline.setup(device="cpu", test_mode="test")
    with pytest.raises(InputError, match="other implementation") as refused:
        pipeline.load_pipeline(read_checkpoint(find_run(copy).checkpoint)["pipeline"], 59)
    assert "implementation: torch" in refused.value.hint


def test_an_edit_follows_the_weights_of_its_scene(
    scene_run: Path, dataset: Path, tinycudann: Arena, tmp_path: Path
) -> None:
    """Also one that is evaluated, and whatever the files of earlier versions say."""
    scene = says_it_is_of_tinycudann(scene_run, tmp_path / "scene")
    settings = {"load_dir": scene, "max_num_iterations": 1, "data": dataset}
    edit = run(make_edit_config("csd-edit-tiny", tmp_path / "edits", scene_run, **settings)).base_dir
    config: Any = find_run(edit).config
    assert config.pipeline.model.implementation == "torch"
    opened = open_edited_run(says_it_is_of_tinycudann(edit, tmp_path / "edit"))
    assert opened.pipeline.model.config.implementation == "torch"


def test_a_scene_of_tinycudann_is_edited_and_evaluated_in_it(edit_config: Make) -> None:
    edit = run(edit_config(max_num_iterations=1)).base_dir
    config: Any = find_run(edit).config
    assert config.pipeline.model.implementation == "tcnn"
    opened = open_edited_run(edit)
    assert opened.pipeline.model.config.implementation == "tcnn"
    with source_scene(opened.pipeline):
        assert opened.pipeline.eval_pictures().isfinite().all()


def test_config_yml_says_what_the_fields_ran_in(dataset: Path, tmp_path: Path) -> None:
    asked = {"pipeline__model__implementation": "tcnn", "max_num_iterations": 1, "timestamp": "scene"}
    scene = run(make_config("csd-nerfacto-tiny", tmp_path, dataset, **asked)).base_dir
    config: Any = find_run(scene).config
    assert config.pipeline.model.implementation == "torch"


@pytest.mark.parametrize("there", [False, True])
def test_its_absence_is_said_once_on_a_gpu(
    there: bool, dataset: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(model, "TCNN_EXISTS", there)
    config = make_config("csd-nerfacto", tmp_path, dataset)
    config.check()
    assert capsys.readouterr().out.count("tiny-cuda-nn is not installed") == (not there)
    assert config.pipeline.model.implementation == ("tcnn" if there else "torch")
