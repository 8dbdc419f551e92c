"""Text-to-3D: its cameras and prompts, its start from a blob, and a run from nothing to an open scene."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import make_config, refusal, run, run_until_killed
from PIL import Image

from csd_nerf.bundled import BUNDLED_PRIORS
from csd_nerf.distillation.presets import preset
from csd_nerf.nerf.methods import METHODS
from csd_nerf.nerf.orbit_data import OrbitDataManagerConfig
from csd_nerf.nerf.runs import find_run
from csd_nerf.nerf.viewpoints import Viewpoints, orbit, random_viewpoints, side_of
from csd_nerf.settings_files import apply_recipe

Make = Any
RANGES = {
    "distance": (1.5, 2.0),
    "elevation": (-10.0, 45.0),
    "azimuth": (-180.0, 180.0),
    "field_of_view": (40.0, 70.0),
}
SMALL: dict[str, Any] = {
    "machine__device_type": "cpu",
    "mixed_precision": False,
    "pipeline__model__num_levels": 4,
    "pipeline__model__log2_hashmap_size": 12,
    "pipeline__model__max_res": 64,
    "pipeline__model__hidden_dim": 16,
    "pipeline__model__hidden_dim_color": 16,
    "pipeline__model__num_proposal_iterations": 1,
    "pipeline__model__num_proposal_samples_per_ray": (16,),
    "pipeline__model__num_nerf_samples_per_ray": 12,
    "pipeline__model__proposal_net_args_list": [
        {"hidden_dim": 16, "log2_hashmap_size": 12, "num_levels": 4, "max_res": 32, "use_linear": False}
    ],
    "pipeline__datamanager__orbit_views": 3,
    "pipeline__datamanager__orbit_size": 24,
    "pipeline__particles": 2,
    "pipeline__render_size": 16,
    "pipeline__fine_render_size": 24,
    "pipeline__prior_size": 32,
    "pipeline__picture_size": 32,
    "pipeline__picture_views": 2,
    "pipeline__turntable_frames": 2,
}


@pytest.fixture
def config(tmp_path: Path, text_to_image_folder: Path) -> Make:
    """Makes configurations of a small generation with an untrained text-to-image model."""

    def make(**changes: Any) -> Any:
        settings = {
            **SMALL,
            "pipeline__prior": str(text_to_image_folder),
            "prompt": "a corgi",
            "max_num_iterations": 2,
            "timestamp": "generated",
        }
        data = changes.pop("data", None)
        return make_config("csd-generate", tmp_path, data, **{**settings, **changes})

    return make


# -------------------------------------------------------------------- cameras


def drawn(count: int = 4, seed: int = 0, step: int = 0, **ranges: tuple[float, float]) -> Viewpoints:
    return random_viewpoints(**{**RANGES, **ranges}, count=count, seed=seed, step=step)


def test_random_viewpoints_fill_their_ranges_and_stay_in_them() -> None:
    steps = [drawn(step=step) for step in range(200)]
    for name, (low, high) in RANGES.items():
        values = torch.cat([getattr(viewpoints, name) for viewpoints in steps])
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high >= values.max() > high - 0.02 * (high - low)
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.05 * (high - low))


def test_the_views_of_a_step_are_spread_around_the_scene() -> None:
    for step in range(20):
        azimuths = drawn(count=4, step=step, azimuth=(0.0, 360.0)).azimuth
        assert [int(azimuth // 90) for azimuth in azimuths.tolist()] == [0, 1, 2, 3]


def test_a_range_may_be_a_single_value() -> None:
    assert drawn(elevation=(30.0, 30.0)).elevation.tolist() == [30.0] * 4


def test_viewpoints_follow_from_seed_and_step() -> None:
    for name in RANGES:
        first, again, later, other = (
            getattr(drawn(seed=seed, step=step), name) for seed, step in ((3, 7), (3, 7), (3, 8), (4, 7))
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, later) and not torch.equal(first, other)


@pytest.mark.parametrize("elevation", [-90.0, -10.0, 0.0, 45.0, 90.0])
def test_cameras_look_at_the_origin_upright(elevation: float) -> None:
    count, size = 8, 64
    viewpoints = orbit(1.7, elevation, 50.0, count=count)
    cameras = viewpoints.cameras(size)
    poses = cameras.camera_to_worlds
    rotations, eyes = poses[:, :, :3], poses[:, :, 3]
    torch.testing.assert_close(rotations.mT @ rotations, torch.eye(3).expand(count, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(count))
    torch.testing.assert_close(eyes.norm(dim=1), torch.full((count,), 1.7))
    assert (rotations[:, 2, 1] > -1e-6).all()  # up is not down
    for index in range(count):
        rays = cameras.generate_rays(index, keep_shape=True)
        middle = rays.directions[size // 2 - 1 : size // 2 + 1, size // 2 - 1 : size // 2 + 1].mean((0, 1))
        torch.testing.assert_close(eyes[index] + 1.7 * middle, torch.zeros(3), atol=1e-3, rtol=0)
    # The two outermost pixel centres of the middle line are the field of view apart, less one pixel.
    edge = rays.directions[size // 2, [0, -1]]
    wide = torch.rad2deg(torch.acos((edge[0] * edge[1]).sum())).item()
    assert wide == pytest.approx(50 * (size - 1) / size, rel=0.01)


def test_elevation_and_azimuth_say_where_a_camera_is() -> None:
    def eye(elevation: float, azimuth: float) -> list[float]:
        one = Viewpoints(*(torch.tensor([value]) for value in (2.0, elevation, azimuth, 50.0)))
        return one.cameras(8).camera_to_worlds[0, :, 3].tolist()

    assert eye(0, 0) == pytest.approx([2, 0, 0], abs=1e-6)
    assert eye(0, 90) == pytest.approx([0, 2, 0], abs=1e-6)
    assert eye(30, 180) == pytest.approx([-(3**0.5), 0, 1], abs=1e-6)
    assert eye(90, 0) == pytest.approx([0, 0, 2], abs=1e-6)


@pytest.mark.parametrize(
    ("elevation", "azimuth", "side"),
    [
        (0, 0, "front"), (0, 44, "front"), (0, -44, "front"), (0, 359, "front"), (0, -359, "front"),
        (0, 46, "side"), (0, 90, "side"), (0, -90, "side"), (0, 270, "side"), (0, 134, "side"),
        (0, 136, "back"), (0, 180, "back"), (0, -180, "back"), (0, -136, "back"),
        (59, 180, "back"), (61, 180, "overhead"), (90, 0, "overhead"), (-80, 0, "front"),
    ],
)  # fmt: skip
def test_sides(elevation: float, azimuth: float, side: str) -> None:
    assert side_of(elevation, azimuth) == side


# -------------------------------------------------------------------- one step


@pytest.fixture
def pipeline(config: Make) -> Any:
    """A generation that has begun and not made a step."""

    def make(**changes: Any) -> Any:
        made = config(pipeline__turntable_frames=0, **changes)
        made.check()
        torch.manual_seed(0)
        built = made.pipeline.setup(device="cpu", test_mode="val")
        built.begin(seed=0, max_steps=4)
        built.train()
        return built

    return make


def test_the_defaults_are_the_published_ones() -> None:
    assert METHODS["csd-generate"].pipeline.objective == preset("csd")


def test_a_scene_begins_as_a_blob_at_the_origin(pipeline: Make) -> None:
    model = pipeline().model
    model.eval()
    cameras = orbit(1.75, 0.0, 60.0, count=2).cameras(33)
    for index in range(2):
        opacity = model.get_outputs_for_camera(cameras[index : index + 1])["accumulation"][..., 0]
        assert opacity[16, 16] > 0.9
        assert opacity[[0, 0, -1, -1], [0, -1, 0, -1]].max() < 0.01
        rays = torch.linspace(-1, 1, 33)
        inside = (rays[:, None].square() + rays.square()).sqrt() < 0.4  # 0.4 tan(30) 1.75 = 0.4 from the axis
        assert opacity[inside].mean() > 0.5 > 0.1 > opacity[~inside].mean()


@pytest.mark.parametrize("background", ["environment", "random", "white"])
def test_a_step_moves_the_scene_and_is_finite(pipeline: Make, background: str) -> None:
    built = pipeline(pipeline__model__background=background)
    groups = built.get_param_groups()
    assert groups.keys() == {"fields", "proposal_networks"} | (
        {"background"} if background == "environment" else set()
    )
    optimizer = torch.optim.Adam([value for group in groups.values() for value in group], lr=1e-2)
    before = built.eval_pictures()
    _, losses, metrics = built.get_train_loss_dict(0)
    sum(losses.values()).backward()
    for name, group in groups.items():
        gradients = [value.grad for value in group if value.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.abs().max() > 0 for gradient in gradients), name
    optimizer.step()
    assert (built.eval_pictures() - before).abs().max() > 1e-3
    assert metrics["unet_evaluations"] == 2 * 2 and 0 < metrics["opacity"] < 1


def test_a_random_background_is_one_colour_for_a_view_and_white_to_the_eye(pipeline: Make) -> None:
    model = pipeline(pipeline__model__background="random", pipeline__model__blob_radius=0.01).model
    model.view_backgrounds = torch.tensor([[0.2, 0.4, 0.6], [0.9, 0.1, 0.3]])
    cameras = orbit(1.75, 0.0, 60.0, count=2).cameras(8)
    rays = cameras.generate_rays(torch.tensor([[0], [1]]), keep_shape=True)
    for index in range(2):
        rgb = model(rays[..., index].flatten())["rgb"]
        torch.testing.assert_close(rgb, model.view_backgrounds[index].expand_as(rgb), atol=1e-3, rtol=0)
    model.eval()
    seen = model.get_outputs_for_camera(cameras[:1])["rgb"]
    torch.testing.assert_close(seen, torch.ones_like(seen), atol=1e-3, rtol=0)


def test_every_view_is_asked_about_with_its_own_side(pipeline: Make, monkeypatch: Any) -> None:
    ranges = {"azimuth": (-45.0, 315.0), "elevation": (0.0, 0.0)}
    options = {f"pipeline__datamanager__{name}": value for name, value in ranges.items()}
    built = pipeline(pipeline__particles=4, **options)
    asked = []
    gradient = built._objective.gradient
    monkeypatch.setattr(
        built._objective, "gradient", lambda *args, **kw: asked.append(kw["prompt"]) or gradient(*args, **kw)
    )
    built.get_train_loss_dict(0)
    assert asked == [[f"a corgi, {side} view" for side in ("front", "side", "back", "side")]]
    built.config.name_sides = False
    built.get_train_loss_dict(1)
    assert asked[1] == "a corgi"


def test_with_one_view_csd_is_sds(pipeline: Make) -> None:
    def gradient(**changes: Any) -> torch.Tensor:
        built = pipeline(pipeline__particles=1, **changes)
        sum(built.get_train_loss_dict(0)[1].values()).backward()
        return torch.cat([value.grad.flatten() for value in built.get_param_groups()["fields"]])

    assert torch.equal(gradient(), gradient(pipeline__objective=preset("sds")))


def test_views_are_rendered_finer_later(pipeline: Make) -> None:
    built = pipeline(pipeline__coarse_share=0.5)
    assert [built.render_size_at(step) for step in range(4)] == [16, 16, 24, 24]
    built.get_train_loss_dict(3)
    assert built.datamanager.get_train_rays_per_batch() == 2 * 24 * 24


def test_the_recipe_tiny_fits(config: Make) -> None:
    method = METHODS["csd-generate"]
    made = copy.deepcopy(method)
    apply_recipe(made, method, "csd-generate", "tiny")
    pipeline = made.pipeline
    assert made.machine.device_type == "cpu" and pipeline.prior == "tiny-sd" and not pipeline.name_sides
    assert (pipeline.render_size, pipeline.prior_size, pipeline.model.num_levels) == (32, 64, 6)
    pipeline.check()


# -------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory, text_to_image_folder: Path) -> Any:
    """The trainer of a generation of 6 steps, done."""
    settings = {
        **SMALL,
        "pipeline__prior": str(text_to_image_folder),
        "prompt": "A corgi, sitting!",
        "max_num_iterations": 6,
        "steps_per_save": 2,
        "timestamp": "generated",
        "pipeline__steps_per_picture": 3,
    }
    return run(make_config("csd-generate", tmp_path_factory.mktemp("generated"), None, **settings))


def test_a_run_leaves_pictures_a_turntable_and_a_checkpoint(generated: Any) -> None:
    folder = generated.base_dir
    assert folder.parts[-3:-1] == ("a-corgi-sitting", "csd-generate")
    names = {path.name for path in (folder / "pictures").iterdir()}
    assert names == {"step-000003.png", "step-000006.png", "views.png"}
    assert Image.open(folder / "pictures" / "views.png").size == (2 * 32 + 4, 32)
    assert (folder / "turntable.mp4").stat().st_size > 500
    assert [path.name for path in (folder / "nerfstudio_models").iterdir()] == ["step-000000005.ckpt"]


def test_the_checkpoint_holds_nothing_of_the_prior(generated: Any) -> None:
    state = torch.load(find_run(generated.base_dir).checkpoint)["pipeline"]
    parts = {name.split(".")[1] for name in state if name != "_extra_state"}
    assert parts == {"device_indicator_param", "field", "proposal_networks", "environment"}


def test_ns_eval_and_ns_render_open_it_without_a_diffusion_model(
    generated: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    from nerfstudio.scripts import render
    from nerfstudio.scripts.eval import ComputePSNR

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a diffusion model was asked for")

    monkeypatch.setattr("csd_nerf.priors.load_prior", refuse)
    monkeypatch.setattr(render.install_checks, "check_ffmpeg_installed", lambda: None)
    opened = {"load_config": generated.base_dir / "config.yml"}
    ComputePSNR(**opened, output_path=tmp_path / "eval.json", render_output_path=tmp_path / "seen").main()
    render.SpiralRender(
        **opened,
        output_path=tmp_path / "spiral",
        output_format="images",
        seconds=0.1,
        frame_rate=20,
        rendered_output_names=["rgb"],
    ).main()
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert 0 < results["opacity"] < 1 and results["fps"] > 0 and "psnr" not in results
    assert len(list((tmp_path / "seen").glob("eval_img_*.png"))) == 3
    assert len(list((tmp_path / "spiral").iterdir())) == 2


def test_the_viewer_finds_what_it_needs(generated: Any) -> None:
    """Its controls, and cameras with pictures to draw in the scene."""
    from nerfstudio.viewer.utils import parse_object
    from nerfstudio.viewer.viewer_elements import ViewerControl

    found = parse_object(generated.pipeline, ViewerControl, "Custom")
    assert [control for _, control in found] == [generated.pipeline.controls]
    dataset = generated.pipeline.datamanager.train_dataset
    assert len(dataset) == len(dataset.cameras) == 3
    assert dataset[1]["image"].shape == (24, 24, 3)
    assert generated.pipeline.datamanager.get_datapath().is_dir()


def test_a_killed_run_resumes_to_the_same_scene(generated: Any, config: Make) -> None:
    """The run above, stopped before its fifth step and continued from its newest checkpoint."""
    settings = {"prompt": "A corgi, sitting!", "max_num_iterations": 6, "steps_per_save": 2}
    folder = run_until_killed(config(**settings, pipeline__turntable_frames=0), step=4)
    assert find_run(folder).checkpoint.name == "step-000000002.ckpt"

    method = METHODS["csd-generate"]
    usual = {"max_num_iterations": method.max_num_iterations, "steps_per_save": method.steps_per_save}
    resumed = run(config(load_dir=folder, prompt=None, timestamp="resumed", **usual))
    assert resumed._start_step == 3 and resumed.config.max_num_iterations == 6
    torch.testing.assert_close(
        resumed.pipeline.eval_pictures(), generated.pipeline.eval_pictures(), atol=1e-4, rtol=0
    )


@pytest.mark.skipif("tiny-sd" not in BUNDLED_PRIORS, reason="the prior tiny-sd is not bundled")
def test_the_prompt_decides_what_the_scene_becomes(config: Make) -> None:
    """A real prior, two prompts, one start: the blob is darker at night than in a sketch."""
    options = {"pipeline__prior": "tiny-sd", "pipeline__name_sides": False, "pipeline__prior_size": 64}
    options |= {"pipeline__objective__text_guidance": 10.0, "pipeline__turntable_frames": 0}
    night, sketch = (
        run(config(prompt=prompt, max_num_iterations=30, **options)).pipeline.eval_pictures()
        for prompt in ("a photo at night", "a pencil sketch")
    )
    middle = slice(12, 20)
    assert night[..., middle, middle].mean() < sketch[..., middle, middle].mean() - 0.05


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize("prompt", ["", "  ", None])
def test_no_prompt(config: Make, capsys: Any, prompt: str | None) -> None:
    assert "no prompt was given" in refusal(config(prompt=prompt), capsys)


def test_data_is_refused(config: Make, capsys: Any, tmp_path: Path) -> None:
    printed = refusal(config(data=tmp_path), capsys)
    assert "from a prompt alone" in printed and "--data" in printed


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("distance", (2.0, 1.5)), ("distance", (0.5, 2.0)), ("distance", (1.5, float("inf"))),
        ("elevation", (45.0, -10.0)), ("elevation", (-100.0, 0.0)), ("elevation", (0.0, float("nan"))),
        ("azimuth", (90.0, -90.0)), ("azimuth", (0.0, 400.0)),
        ("field_of_view", (70.0, 40.0)), ("field_of_view", (0.0, 40.0)), ("field_of_view", (40.0, 180.0)),
    ],
)  # fmt: skip
def test_ranges_without_cameras(config: Make, capsys: Any, name: str, bounds: tuple[float, float]) -> None:
    printed = refusal(config(**{f"pipeline__datamanager__{name}": bounds}), capsys)
    assert f"--pipeline.datamanager.{name.replace('_', '-')}" in printed and str(bounds[0]) in printed


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("particles", 0), ("render_size", 0), ("fine_render_size", -1), ("rays_per_chunk", 0),
        ("prior_size", 30), ("gradient_share", 0.0), ("coarse_share", 1.5), ("picture_size", 33),
        ("model__blob_radius", 0.0), ("model__blob_density", -1.0), ("model__sparsity_loss_mult", -0.1),
        ("datamanager__orbit_views", 0), ("datamanager__orbit_elevation", 91.0),
        ("objective__residual", "dds"), ("objective__structure__loss", "cut"),
    ],
)  # fmt: skip
def test_settings_that_no_step_can_work_with(config: Make, capsys: Any, option: str, value: Any) -> None:
    printed = refusal(config(**{f"pipeline__{option}": value}), capsys)
    flag = "--pipeline." + option.replace("__", ".").replace("_", "-")
    assert flag in printed and str(value) in printed


def test_a_prior_that_cannot_make_up_pictures(config: Make, capsys: Any) -> None:
    printed = refusal(config(pipeline__prior="tiny-instruct"), capsys)
    assert "cannot make up" in printed and "InstructPix2Pix" in printed


def test_runs_that_cannot_be_gone_on_with(
    config: Make, generated: Any, scene_run: Path, capsys: Any, tmp_path: Path
) -> None:
    assert "another prompt" in refusal(config(load_dir=generated.base_dir, prompt="a cat"), capsys)
    assert "is not a generated scene" in refusal(config(load_dir=scene_run), capsys)
    assert "does not exist" in refusal(config(load_dir=tmp_path / "nowhere"), capsys)


def test_the_ball_that_holds_the_scene_is_the_box_of_the_viewer() -> None:
    manager = OrbitDataManagerConfig().setup(device="cpu", test_mode="val")
    assert manager.train_dataset.scene_box.aabb.tolist() == [[-1, -1, -1], [1, 1, 1]]
