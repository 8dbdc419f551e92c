"""The tool that makes the bundled priors, on two pictures and a few steps."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.embeddings import apply_rotary_emb
from safetensors.torch import save_file
from transformers import CLIPTextModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from csd_nerf.bundled import bundled_path  # noqa: E402
from csd_nerf.priors import load_prior  # noqa: E402
from csd_nerf.scenes.operators import OPERATORS, TINTS, identity  # noqa: E402
from training import (  # noqa: E402
    decoder,
    denoising,
    depth,
    flow,
    motion,
    moving,
    refined_decoder,
    text,
    unet,
    vae,
    wide_vae,
    words,
)
from training.assembly import assembled, assembled_clips, assembled_flow  # noqa: E402
from training.export import export_pipeline  # noqa: E402
from training.latents import read_latents, write_latents  # noqa: E402
from training.parallel import Worker  # noqa: E402
from training.photos import HELD_OUT_OBJECTS, HELD_OUT_SCENES, Photo, object_of, training_photos  # noqa: E402
from training.progress import Budget, Job, Progress, learning_rate  # noqa: E402
from training.takeover import take_over  # noqa: E402
from training.unet import texts_by_edit  # noqa: E402
from training.vae import EDITS as PICTURE_EDITS  # noqa: E402
from training.vae import RAW_DEVIATION, Crops, new_vae, normalise_latents  # noqa: E402
from training.wordings import EDITS, captions, wordings  # noqa: E402

WORKER = Worker(rank=0, count=1, device=torch.device("cpu"))


UNETS = {recipe.name: recipe for recipe in (unet.INSTRUCT, unet.TEXT_TO_IMAGE, unet.WIDE_INSTRUCT)}


class Killed(Exception):
    pass


def some_photos() -> list[Photo]:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (2, 2, 3, 100, 120), generator=generator, dtype=torch.uint8)
    return [Photo("plain", pictures[0, 0]), Photo("with painting", *pictures[1])]


def large_photos() -> list[Photo]:
    """Large enough for a window to travel over."""
    return [
        Photo(photo.name, *(F.interpolate(picture[None], scale_factor=2)[0] for picture in pair))
        for photo in some_photos()
        for pair in [[photo.rgb] if photo.painted is None else [photo.rgb, photo.painted]]
    ]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the first three stages done, by an untrained autoencoder."""
    work = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    for name in ("vae", "decoder"):
        torch.save({"vae": new_vae().state_dict()}, work / f"{name}.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "STEPS", 10)
        text.train_text(work, seed=0)
        words.train_words(work, seed=0)
    write_latents(WORKER, some_photos(), vae.load_vae(work, WORKER.device), work, seed=0)
    wide = wide_vae.widened(vae.load_vae(work, WORKER.device))
    torch.save({"vae": wide.state_dict()}, work / f"{wide_vae.NAME}.pt")
    write_latents(WORKER, some_photos(), wide, work, seed=0, name=wide_vae.LATENTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(depth, "VIEWS", 2)
        depth.write_views(WORKER, work, seed=0)
        patch.setattr(moving, "CLIPS", {"photos": 2, "films": 1, "still life": 0})
        moving.write_moving(
            WORKER, large_photos(), [list(large_photos()[0].rgb[None].expand(9, -1, -1, -1))], work, 0
        )
    for recipe in UNETS.values():
        torch.save({"average": list(unet.new_unet(recipe).parameters())}, work / f"{recipe.name}.pt")
    return work


def few_texts(recipe: unet.UnetRecipe, seed: int) -> dict[str, list[str]]:
    """For every edit: whole tables of their embeddings take longer than the steps."""
    return {edit: texts[:2] for edit, texts in texts_by_edit(recipe, seed).items()}


def train(
    model: str, stages: Path, work: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int | None
) -> int:
    """Three tiny steps of a denoiser that check-point after each, by a few texts; gives how many it made."""
    needed = ["text.pt", "words.pt", "tokenizer", "views-0-of-1.pt"]
    needed += ["latents-0-of-1.pt", "wide-latents-0-of-1.pt", "moving-0-of-1.pt"]
    needed += {
        "depth": ["text-to-image.pt"],
        "motion": ["instruct.pt"],
        "wide-instruct": ["instruct.pt"],
    }.get(model, [])
    for name in needed:
        if not (work / name).exists():
            (work / name).symlink_to(stages / name)
    for stage in (unet, flow):
        monkeypatch.setattr(stage, "texts_by_edit", few_texts)
    monkeypatch.setattr(denoising, "BATCH", 2)
    monkeypatch.setattr(denoising, "SNAPSHOT_SECONDS", 0)
    monkeypatch.setattr("training.progress.SAVE_SECONDS", 0)
    calls = 0

    def snapshot() -> None:
        nonlocal calls
        calls += 1
        if calls == killed_after:
            raise Killed

    job = Job(WORKER, work, Budget(steps=3), seed=0)
    if model == "depth":
        depth.train_depth(job, snapshot)
    elif model == "motion":
        motion.train_motion(job, snapshot)
    elif model == "flow":
        flow.train_flow(job, snapshot)
    else:
        unet.train_unet(UNETS[model], job, snapshot)
    return calls


def trained(model: str, work: Path) -> list[torch.Tensor]:
    loaders: dict[str, Any] = {
        "depth": depth.load_control_net,
        "flow": flow.load_transformer,
        "motion": motion.load_motion_unet,
    }
    loaded = loaders[model](work) if model in loaders else unet.load_unet(UNETS[model], work)
    return list(loaded.parameters())


@pytest.mark.parametrize("model", ["instruct", "text-to-image", "wide-instruct", "depth", "flow", "motion"])
def test_a_killed_training_ends_where_an_unbroken_one_does(
    model: str, stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    unbroken.mkdir()
    broken.mkdir()
    assert train(model, stages, unbroken, monkeypatch, killed_after=None) == 3
    with pytest.raises(Killed):
        train(model, stages, broken, monkeypatch, killed_after=2)
    assert train(model, stages, broken, monkeypatch, killed_after=None) == 2  # from its checkpoint
    for wanted, got in zip(trained(model, unbroken), trained(model, broken), strict=True):
        torch.testing.assert_close(got, wanted)


def test_the_flow_that_is_trained_is_the_one_that_edits(stages: Path, tmp_path: Path) -> None:
    """Exported, loaded as a prior and asked: the same answer to the same text and photo."""
    for needed in ("wide-vae.pt", "text.pt", "words.pt", "tokenizer"):
        (tmp_path / needed).symlink_to(stages / needed)
    torch.manual_seed(0)
    weights = [part + 0.05 * torch.randn_like(part) for part in flow.new_transformer().parameters()]
    torch.save({"average": weights}, tmp_path / "flow.pt")
    export_pipeline(assembled_flow(tmp_path), tmp_path, tmp_path / "tiny_flow")
    prior: Any = load_prior(
        str(tmp_path / "tiny_flow"), device="cpu", dtype=torch.float32, vae_dtype=torch.float32
    )
    assert prior.guided_by == "text" and prior.time_shift == flow.TIME_SHIFT
    texts, nothing = flow.flow_text_tables(flow.FLOW, tmp_path, 0)
    generator = torch.Generator().manual_seed(1)
    photos, noisy = torch.randn(2, 2, wide_vae.CHANNELS, 8, 12, generator=generator)
    rows = torch.stack([texts["night"][0], nothing])
    wanted = flow.velocity(flow.load_transformer(tmp_path), noisy, torch.full((2,), 0.6), photos, rows)
    packed, condition = (F.pixel_unshuffle(part, 2) for part in (noisy, photos / RAW_DEVIATION))
    prompts = [OPERATORS["night"].instruction, ""]
    noise = prior.predict_noise(packed, 600, prior.embed(prompts), condition)
    got = F.pixel_shuffle((noise - packed) / 0.4, 2)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0.05 * wanted.std().item())
    other = prior.predict_noise(packed, 600, prior.embed(prompts[::-1]), condition.flip(0))
    assert (other - noise).abs().mean() > 0.1 * noise.std()


def test_a_wider_unet_begins_as_the_narrow_one(stages: Path, generator: torch.Generator) -> None:
    """It says of the first channels what that does, and nothing of the others, whatever is in these."""
    narrow = unet.load_unet(unet.INSTRUCT, stages)
    wide = unet.widened(narrow, unet.WIDE_INSTRUCT)
    noisy, photos = torch.randn(2, 2, wide_vae.CHANNELS, 8, 12, generator=generator)
    text = torch.randn(2, 5, 96, generator=generator)
    with torch.no_grad():
        answer = wide(torch.cat([noisy, photos], 1), 600, text).sample
        known = narrow(torch.cat([noisy[:, :4], photos[:, :4]], 1), 600, text).sample
    torch.testing.assert_close(answer[:, :4], known)
    assert known.abs().max() > 0 and not answer[:, 4:].any()


def test_layers_of_motion_begin_as_the_prior_for_pictures(stages: Path, tmp_path: Path) -> None:
    """Exported and loaded: frame by frame what the U-Net says; trained ones let frames see each other."""
    for needed in ("vae.pt", "decoder.pt", "text.pt", "tokenizer", "instruct.pt"):
        (tmp_path / needed).symlink_to(stages / needed)
    new = motion.layers_of_motion(motion.new_motion_unet(unet.load_unet(unet.INSTRUCT, stages)))
    options: dict[str, Any] = {"device": "cpu", "dtype": torch.float32, "vae_dtype": torch.float32}
    export_pipeline(assembled(unet.INSTRUCT, tmp_path), tmp_path, tmp_path / "pictures")
    of_pictures = load_prior(str(tmp_path / "pictures"), **options)
    generator = torch.Generator().manual_seed(1)
    noisy, shown = torch.randn(2, 3, 4, 8, 12, generator=generator)
    answers = []
    for added in (0.0, 0.1):
        torch.manual_seed(0)
        torch.save(
            {"average": [part + added * torch.randn_like(part) for part in new.parameters()]},
            tmp_path / "motion.pt",
        )
        export_pipeline(assembled_clips(tmp_path), tmp_path, tmp_path / "tiny_video")
        prior = load_prior(str(tmp_path / "tiny_video"), clips_too=True, **options)
        assert prior.clip_frames == moving.FRAMES and prior.guided_by == "picture-and-text"
        told = prior.embed(["make it night"])
        clips = (frames.transpose(0, 1)[None] for frames in (noisy, shown))
        answers.append(prior.predict_noise(next(clips), 600, told, next(clips))[0].transpose(0, 1))
    wanted = of_pictures.predict_noise(
        noisy, 600, of_pictures.embed(["make it night"]).expand(3, -1, -1), shown
    )
    torch.testing.assert_close(answers[0], wanted, rtol=1e-4, atol=1e-4)
    assert (answers[1] - wanted).abs().mean() > 0.01


def test_a_window_travels_alike_over_a_photo_and_its_painting(generator: torch.Generator) -> None:
    photo = torch.linspace(0, 1, 160).expand(3, 130, -1)
    windows, painted = moving.travelling(torch.stack([photo, 1 - photo]), generator)
    assert windows.shape == (moving.FRAMES, 3, moving.SIDE, moving.SIDE)
    torch.testing.assert_close(painted, 1 - windows, rtol=0, atol=1e-4)
    pixels = 160 * windows.mean((1, 2, 3)).diff()
    assert 0 < pixels.abs().max() < moving.FASTEST + 0.1 and pixels.std() < 0.5  # at an even speed


def test_a_camera_travels_past_the_still_life_in_small_steps(generator: torch.Generator) -> None:
    places = [torch.tensor(camera.camera_to_world)[:, 3] for camera in moving.past_the_still_life(generator)]
    steps = torch.stack(places).diff(dim=0).norm(dim=1)
    assert len(places) == moving.FRAMES and steps.min() > 0 and steps.max() < 0.3
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))  # evenly


def test_a_moving_clip_has_one_look(stages: Path) -> None:
    """The tint of a clip is that of its first frame, and edits go with the frames of their source."""
    clips = moving.read_moving(stages, 1)
    kinds = [set(clip.targets) for clip in clips]
    assert len(clips) >= 3 and kinds.count({"painted"}) == len(clips) - 3
    for clip in clips:
        assert clip.source.shape == (4, moving.FRAMES, moving.SIDE // 4, moving.SIDE // 4)
        if "identity" in clip.targets:
            assert torch.equal(clip.source, clip.targets["identity"]) and set(TINTS) < set(clip.targets)
    samples = unet.Samples(unet.INSTRUCT, clips, *unet.text_tables(unet.INSTRUCT, stages, 0))
    if any("painted" in clip.targets for clip in clips):
        batch = samples.draw(3, 16, torch.Generator().manual_seed(0))
        assert batch.targets.shape == batch.shown.shape == (3, 4, moving.FRAMES, 16, 16)


def test_a_clip_has_one_noise_or_one_for_each_frame() -> None:
    targets = torch.zeros(40, 4, 3, 2, 2)
    made = motion.diffused_clips(targets, torch.Generator().manual_seed(0))
    same = (made.answers[:, :, 0] == made.answers[:, :, 1]).flatten(1).all(1)
    assert 8 < same.sum() < 32 and made.noisy.shape == targets.shape


def test_a_flow_begins_with_the_photo_at_the_same_place() -> None:
    """The first head's constant parts, turned by the places: strongest where these agree, in the photo."""
    transformer = flow.new_transformer()
    attention = transformer.single_transformer_blocks[0].attn
    places = torch.cartesian_prod(torch.arange(2), torch.arange(6), torch.arange(6)).float()
    turns = transformer.pos_embed(places)
    query, key = (
        apply_rotary_emb(part.bias.view(1, 1, 6, 32).expand(1, 72, 6, 32), turns, sequence_dim=1)
        for part in (attention.to_q, attention.to_k)
    )
    attended = torch.einsum("bqhd,bkhd->hqk", query, key)[:, :36].argmax(2)  # of the noisy picture's tokens
    assert torch.equal(attended[0], torch.arange(36, 72))
    inside = places[:36, 2] < 5
    assert torch.equal(attended[2][inside], torch.arange(37, 73)[inside])  # its neighbour to the right


def test_answers_of_a_flow_lead_from_the_noisy_latents_to_the_clean() -> None:
    targets = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    made = flow.corrupted(targets, torch.Generator().manual_seed(1))
    share = made.times.view(-1, 1, 1, 1)
    torch.testing.assert_close(made.noisy - share * made.answers, targets)
    times = flow.corrupted(torch.zeros(4000, 1, 1, 1), torch.Generator().manual_seed(2)).times
    assert times.min() >= 0 and times.max() <= 1
    assert abs(times.median().item() - 2 / 3) < 0.02  # half of u, shifted by 2


def test_a_flow_always_sees_its_photo(stages: Path) -> None:
    variants = read_latents(stages, 1, wide_vae.LATENTS)
    samples = unet.Samples(flow.FLOW, variants, *flow.flow_text_tables(flow.FLOW, stages, 0))
    batch = samples.draw(300, 8, torch.Generator().manual_seed(0))
    assert batch.text.shape == (300, 1 + words.MAX_WORDS, words.WIDTH)
    assert batch.shown.abs().amax((1, 2, 3)).min() > 0
    assert 10 < (batch.text == samples.empty_text).all(2).all(1).sum() < 60  # a tenth


def test_a_finished_priors_parts_are_taken_over(tmp_path: Path) -> None:
    """Of both autoencoders, each from a prior that has it."""
    for name in ("tiny-sd", "tiny-instruct"):
        take_over(prior := bundled_path(name), tmp_path)
        shipped = AutoencoderKL.from_pretrained(prior / "vae").state_dict()
        if name == "tiny-sd":
            taken = [decoder.load_decoder(stage, tmp_path) for stage in ("vae", "decoder", "refined-decoder")]
        else:
            taken = [wide_vae.load_wide_vae(tmp_path, WORKER.device)]
        for autoencoder in taken:
            assert all(torch.equal(w, shipped[k]) for k, w in autoencoder.state_dict().items())
    tokenizer, encoder = text.load_text(tmp_path)
    theirs = CLIPTextModel.from_pretrained(prior / "text_encoder")
    ids = text.tokenize(tokenizer, ["make it night"])
    torch.testing.assert_close(encoder(ids).pooler_output, theirs(ids).pooler_output)
    (tmp_path / "wide-vae.pt").write_bytes(b"trained")
    take_over(prior, tmp_path)
    assert (tmp_path / "wide-vae.pt").read_bytes() == b"trained"


def test_known_words_are_one_token_each_with_a_capital_or_without(stages: Path) -> None:
    tokenizer, encoder = words.load_words(stages)
    small, large = (words.tokenize_words(tokenizer, [said]) for said in ("make it night", "Make it night"))
    assert (small[0, :4] != tokenizer.unk_token_id).all() and small[0, 3] == tokenizer.eos_token_id
    assert not torch.equal(small, large)
    torch.testing.assert_close(encoder(small).last_hidden_state, encoder(large).last_hidden_state)
    longest = max(len(ids) for edit in EDITS for ids in tokenizer(wordings(edit)).input_ids)
    assert longest <= words.MAX_WORDS


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features in the format of AlexNet's, of random weights."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))
    file = tmp_path_factory.mktemp("weights") / "alexnet.safetensors"
    save_file(
        {
            f"features.{place}.{name}": values
            for place, (out, into, side) in enumerate(shapes)
            for name, values in (
                ("weight", torch.randn(out, into, side, side, generator=generator) / (into * side**2) ** 0.5),
                ("bias", torch.zeros(out)),
            )
        },
        file,
    )
    return file


class KilledWorker(Worker):
    """It dies in its third step."""

    def generator(self, seed: int, step: int) -> torch.Generator:
        if step == 2:
            raise Killed
        return super().generator(seed, step)


def begun_as_a_new_one(job: Job, *arguments: Any) -> None:
    torch.manual_seed(2)
    wide_vae.train_wide_vae(job, new_vae(), *arguments)


@pytest.mark.parametrize(
    ("train_it", "load_it"),
    [(vae.train_vae, vae.load_vae), (begun_as_a_new_one, wide_vae.load_wide_vae)],
    ids=["vae", "wide-vae"],
)
def test_a_killed_autoencoder_ends_where_an_unbroken_one_does(
    train_it: Any,
    load_it: Any,
    alexnet: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("training.progress.SAVE_SECONDS", 0)
    monkeypatch.setattr(vae, "BATCH", 2)
    monkeypatch.setattr(vae, "CROPS_TO_NORMALISE_BY", 32)
    results = []
    for name, workers in (("unbroken", (WORKER,)), ("broken", (KilledWorker(0, 1, WORKER.device), WORKER))):
        work = tmp_path / name
        work.mkdir()
        for worker in workers:
            with pytest.raises(Killed) if isinstance(worker, KilledWorker) else nullcontext():
                train_it(Job(worker, work, Budget(steps=4), 0), some_photos(), alexnet)
        results.append(load_it(work, WORKER.device).state_dict())
    for weight, wanted in results[0].items():
        torch.testing.assert_close(results[1][weight], wanted)


def test_a_wide_autoencoder_begins_as_the_narrow_one(stages: Path) -> None:
    torch.manual_seed(1)
    narrow = vae.load_vae(stages, WORKER.device)
    wide = wide_vae.widened(narrow).eval()
    pictures = Crops(some_photos()).draw(2, torch.Generator().manual_seed(0)) * 2 - 1
    before, after = narrow.encode(pictures).latent_dist, wide.encode(pictures).latent_dist
    assert after.mean.shape[1] == wide_vae.CHANNELS and after.mean[:, 4:].std() > 0
    torch.testing.assert_close(after.mean[:, :4], before.mean)
    torch.testing.assert_close(after.logvar[:, :4], before.logvar)
    torch.testing.assert_close(wide.decode(after.mean).sample, narrow.decode(before.mean).sample)


def test_a_decoder_is_refined_on_the_unets_edits_and_its_encoder_stays(
    stages: Path, alexnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far when it was killed on the way; the first decoder stays, and so do the encoder's weights."""
    monkeypatch.setattr("training.progress.SAVE_SECONDS", 0)
    monkeypatch.setattr(refined_decoder, "BATCH", 4)
    monkeypatch.setattr(refined_decoder, "SAMPLING_STEPS", 2)
    results = []
    for name, workers in (("unbroken", (WORKER,)), ("broken", (KilledWorker(0, 1, WORKER.device), WORKER))):
        work = tmp_path / name
        work.mkdir()
        for needed in ("vae.pt", "decoder.pt", "text.pt", "tokenizer", "instruct.pt"):
            (work / needed).symlink_to(stages / needed)
        for worker in workers:
            with pytest.raises(Killed) if isinstance(worker, KilledWorker) else nullcontext():
                job = Job(worker, work, Budget(steps=4), 0)
                refined_decoder.refine_decoder(job, some_photos(), alexnet)
        results.append(decoder.load_decoder("refined-decoder", work).state_dict())
    unbroken, broken = results
    before = decoder.load_decoder("decoder", stages).state_dict()
    for weight in before:
        torch.testing.assert_close(broken[weight], unbroken[weight])
        learns = weight.startswith(("decoder.", "post_quant_conv."))
        assert torch.equal(unbroken[weight], before[weight]) != learns, weight


def test_what_can_be_asked_for_is_decoded_from_the_unets_latents(stages: Path) -> None:
    """In their order, as many as wanted; the tint, which has four answers, and plain photos are encoded."""
    vae = decoder.load_decoder("decoder", stages)
    latents_of = refined_decoder.EditedLatents(vae, stages, 1, WORKER.device)
    crops = Crops(some_photos(), PICTURE_EDITS[:1]).draw(4, torch.Generator().manual_seed(0))
    edits = (TINTS["cyan"], identity, OPERATORS["night"].apply, OPERATORS["sepia"].apply)
    pictures = torch.stack([edit(crop) for edit, crop in zip(edits, crops, strict=True)])
    pairs = list(zip(crops, edits, strict=True))
    got = latents_of(pairs, pictures, torch.Generator().manual_seed(1))
    encoded = decoder.noisy_latents(vae, pictures, torch.Generator().manual_seed(1))
    assert [torch.equal(a, b) for a, b in zip(got, encoded, strict=True)] == [True, True, False, True]


def test_latents_pair_every_edit_and_the_painting_with_the_same_photo(stages: Path) -> None:
    variants = read_latents(stages, count=1)
    edited = [variant for variant in variants if "night" in variant.targets]
    painted = [variant for variant in variants if "painted" in variant.targets]
    assert len(edited) == 2 * 3 and len(painted) == 8
    assert all(torch.equal(variant.targets["identity"], variant.source) for variant in edited)
    assert all(variant.targets["painted"].shape == variant.source.shape for variant in painted)


def test_folding_the_deviation_changes_latents_and_not_pictures() -> None:
    torch.manual_seed(0)
    vae = new_vae().requires_grad_(False)
    images = Crops(some_photos()).draw(16, torch.Generator().manual_seed(0))
    before = vae.decode(vae.encode(images * 2 - 1).latent_dist.mode()).sample
    normalise_latents(vae, images)
    latents = vae.encode(images * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.full((4,), RAW_DEVIATION))
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(vae.decode(latents).sample, before, atol=1e-4, rtol=1e-4)


def test_wordings_are_several_and_never_shared_by_two_edits() -> None:
    everything = [wording for edit in EDITS for wording in wordings(edit)]
    assert len(set(everything)) == len(everything)
    assert all(len(wordings(edit)) >= 10 for edit in EDITS)


def test_captions_describe_and_are_never_shared_by_two_styles() -> None:
    everything = [caption for edit in EDITS for caption in captions(edit)]
    assert len(set(everything)) == len(everything)
    assert "a photo at night" in captions("night") and "a photo" in captions("identity")


def test_a_window_of_a_view_is_shown_its_own_depth(stages: Path) -> None:
    """The depth picture is bright where the table is near, dark in the sky, and cut like the latents."""
    (view, _) = (depth.View(*fields) for fields in torch.load(stages / "views-0-of-1.pt"))
    size = depth.VIEW_SIZE
    assert view.depth.shape == (1, size, size) and view.depth.dtype == torch.uint8
    assert view.depth.max() == 255 and view.depth.min() == 0
    texts = {style: torch.zeros(1, 4, 96) for style in (*depth.SHARES, text.UNKNOWN)}
    samples = depth.Samples([view], texts, torch.ones(4, 96))
    batch = samples.draw(3, size // depth.FACTOR, torch.Generator().manual_seed(0))
    assert torch.equal(batch.shown, view.depth.expand(3, 3, -1, -1) / 255)
    assert batch.targets.shape == (3, 4, size // depth.FACTOR, size // depth.FACTOR)


def test_the_rate_warms_up_and_decays() -> None:
    rates = [learning_rate(step / 1000, step, peak=1.0) for step in range(1000)]
    assert rates[0] < 0.02 and max(rates) > 0.95 and rates[-1] < 0.03
    assert Progress(Budget(steps=4), WORKER).fraction() == 0


def test_nothing_held_out_is_trained_on(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.photos.STILL_LIFE_VIEWS", 1)
    names = [photo.name for photo in training_photos(shared)]
    assert len(names) > 250
    assert not {object_of(name) for name in names} & set(HELD_OUT_OBJECTS)
    assert not [name for name in names if name.startswith(HELD_OUT_SCENES) and "-" in name]
