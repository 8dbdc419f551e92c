"""Checking a model folder in diffusers format with nothing but the standard library."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csd_nerf.errors import InputError, check

if TYPE_CHECKING:
    from csd_nerf.priors.base import GuidedBy

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
"""Folder of each part with weights, and how the weights' file names begin."""
SECOND_TEXT_ENCODER = "text_encoder_2"
"""Of SDXL; its tokenizer is in `tokenizer_2`."""
CONFIGS = (
    "model_index.json",
    *(f"{part}/config.json" for part in WEIGHTS),
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
)
PATCH = 2
"""Side, in latents of the VAE, of what is one token of a flow transformer."""
NATIVE_TOKENS = 64
"""Side of the square pictures, in tokens, that flow transformers were made for: 1024 pixels."""
FLOW_SCHEDULER = "FlowMatchEulerDiscreteScheduler"


@dataclass(frozen=True)
class FlowPipeline:
    """The parts of a pipeline of flow matching in diffusers.

    Attributes:
        transformer, vae: their classes.
        second_text_encoder: whether there is one, with a tokenizer of its own.
        processor: folder of what prepares words and pictures for a text encoder that sees both; empty where
            it sees words alone.
        edits: whether it is a model that edits pictures, or else one that makes them of a description.
        clips: whether its pictures are clips.
    """

    transformer: str
    vae: str
    second_text_encoder: bool = False
    processor: str = ""
    edits: bool = True
    clips: bool = False

    @property
    def weights(self) -> dict[str, str]:
        """Folder of each part with weights, and how the weights' file names begin."""
        first = {**WEIGHTS, "transformer": WEIGHTS["unet"]}
        del first["unet"]
        return first | ({SECOND_TEXT_ENCODER: "model"} if self.second_text_encoder else {})

    @property
    def tokenizers(self) -> list[str]:
        if self.processor:
            return [self.processor]
        return ["tokenizer", "tokenizer_2"] if self.second_text_encoder else ["tokenizer"]

    @property
    def configs(self) -> list[str]:
        return [
            "model_index.json",
            *(f"{part}/config.json" for part in self.weights),
            "scheduler/scheduler_config.json",
            *(f"{tokenizer}/tokenizer_config.json" for tokenizer in self.tokenizers),
        ]


FLOW_PIPELINES = {
    "FluxKontextPipeline": FlowPipeline("FluxTransformer2DModel", "AutoencoderKL", second_text_encoder=True),
    "FluxPipeline": FlowPipeline(
        "FluxTransformer2DModel", "AutoencoderKL", second_text_encoder=True, edits=False
    ),
    "Flux2KleinPipeline": FlowPipeline("Flux2Transformer2DModel", "AutoencoderKLFlux2"),
    "Flux2KleinKVPipeline": FlowPipeline("Flux2Transformer2DModel", "AutoencoderKLFlux2"),
    "QwenImageEditPlusPipeline": FlowPipeline(
        "QwenImageTransformer2DModel", "AutoencoderKLQwenImage", processor="processor"
    ),
    "LongCatImageEditPipeline": FlowPipeline(
        "LongCatImageTransformer2DModel", "AutoencoderKL", processor="text_processor"
    ),
    "WanPipeline": FlowPipeline("WanTransformer3DModel", "AutoencoderKLWan", edits=False, clips=True),
    "LucyEditPipeline": FlowPipeline("WanTransformer3DModel", "AutoencoderKLWan", clips=True),
}
"""By the class that a folder's model_index.json names."""
PICTURE_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Either says how pictures are prepared for a text encoder that sees them."""
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Either will do: without any, a tokenizer would take every word for an unknown one."""
HALF = "fp16"
"""The variant in whose files models are saved in half precision, often alone."""
CLIP_UNET = "UNetMotionModel"
"""Class of a U-Net with layers of motion in it."""
NOISE_PREDICTIONS = ("epsilon", "v_prediction")
"""What a U-Net may predict: what can be turned into noise."""
NOISE_LEVELS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
"""Names of the noise schedules that can be computed from a scheduler's config."""
USUAL_SCALING_FACTOR = 0.18215
"""Of an autoencoder's latents, where its config is silent."""
USUAL_SAMPLE_SIZE = 64
"""Side of the latents that a U-Net was made for, where its config does not say: that of Stable Diffusion."""
REPAIR_HINT = "save the model again with its pipeline's save_pretrained(folder), or download it again"


def download_command(hub_id: str, folder: str) -> str:
    """What to type where there is a network to get the files of a prior that are needed, and no others."""
    wanted = ("*.json", "tokenizer*/*", *(f"{part}/{stem}.safetensors" for part, stem in WEIGHTS.items()))
    command = shlex.join(["hf", "download", hub_id, "--local-dir", folder])
    return " ".join([command, *(f'--include "{pattern}"' for pattern in wanted)])


def check_folder(folder: Path, *, with_weights: bool = True) -> None:
    """Check that a folder holds a whole prior: every part, readable, and of a kind that can be used.

    Args:
        folder: the model's folder.
        with_weights: whether the weights must be there, too.

    Raises:
        InputError: naming everything that is missing, or the first file that cannot be read.
    """
    configs, parts, tokenizers = list(CONFIGS), dict(WEIGHTS), ["tokenizer"]
    flow = flow_pipeline(folder)
    if flow is not None:
        configs, parts, tokenizers = flow.configs, flow.weights, flow.tokenizers
    elif (folder / "unet/config.json").is_file() and is_xl(folder):
        configs += [f"{SECOND_TEXT_ENCODER}/config.json", "tokenizer_2/tokenizer_config.json"]
        parts[SECOND_TEXT_ENCODER] = "model"
        tokenizers.append("tokenizer_2")
    missing = [name for name in configs if not (folder / name).is_file()]
    weights = {part: find_weights(folder / part, stem) for part, stem in parts.items() if with_weights}
    for tokenizer in tokenizers:
        names = [[f"{tokenizer}/{name}" for name in either] for either in VOCABULARIES]
        if not any(all((folder / name).is_file() for name in either) for either in names):
            missing.append(" or ".join(" and ".join(either) for either in names))
    if flow is not None and flow.processor:
        names_of = [f"{flow.processor}/{name}" for name in PICTURE_PROCESSORS]
        if not any((folder / name).is_file() for name in names_of):
            missing.append(" or ".join(names_of))
    missing += [f"{part}/{name}" for part, found in weights.items() for name in found.missing]
    if missing:
        pickles = " (there are .bin weights, which are not read)" if any(folder.glob("*/*.bin")) else ""
        raise InputError(
            f"the prior in {folder} is missing parts",
            expected="a folder in diffusers format with weights as safetensors",
            got=f"no {', no '.join(missing)}{pickles}",
            hint=REPAIR_HINT,
        )
    contents = {name: read_json(folder / name) for name in configs}
    for found in weights.values():
        for file in found.files:
            check_weights(file)
    if flow is not None:
        _check_flow(folder, flow, contents)
        return
    unet, vae = contents["unet/config.json"], contents["vae/config.json"]
    check_channels(unet.get("in_channels"), vae.get("latent_channels"))
    _check_conditions(folder, unet)
    check(
        not (unet.get("_class_name") == CLIP_UNET and is_xl(folder)),
        f"the prior in {folder} is of a kind that cannot be used",
        expected="layers of motion in a Stable Diffusion 1 or 2",
        got="layers of motion in an XL",
        hint="use another model",
    )
    sample_size(unet)
    check_scheduler(folder, contents["scheduler/scheduler_config.json"])
    check_autoencoder(folder / "vae", vae, ("AutoencoderKL",))


@dataclass(frozen=True)
class Weights:
    """The files with the weights of a part.

    Attributes:
        files: that there are: one, or shards.
        variant: of their names, for diffusers and transformers; None for the plain ones.
        missing: names of those that there should be.
    """

    files: tuple[Path, ...] = ()
    variant: str | None = None
    missing: tuple[str, ...] = ()


def find_weights(folder: Path, stem: str) -> Weights:
    """The weights in the folder of a part; those in half precision where there are no others.

    Args:
        folder: of the part.
        stem: how the weights' file names begin.
    """
    for variant in (None, HALF):
        suffix = f".{variant}" if variant else ""
        whole = folder / f"{stem}{suffix}.safetensors"
        index = folder / f"{stem}.safetensors.index{suffix}.json"
        if index.is_file():
            names = sorted({str(name) for name in (read_json(index).get("weight_map") or {}).values()})
            there = tuple(folder / name for name in names if (folder / name).is_file())
            return Weights(there, variant, tuple(name for name in names if not (folder / name).is_file()))
        if whole.is_file():
            return Weights((whole,), variant)
    shards = any(folder.glob(f"{stem}*-of-*.safetensors"))
    return Weights(missing=(f"{stem}.safetensors" + (".index.json" if shards else ""),))


def variant_of(folder: Path) -> str | None:
    """The variant by which a pipeline of diffusers finds all weights in a folder that was checked."""
    found = [find_weights(folder / part, stem).variant for part, stem in WEIGHTS.items()]
    return HALF if HALF in found else None


def check_model_weights(folder: Path, stem: str, kind: str) -> None:
    """Check that the weights of a model in a folder of its own are there and whole.

    Args:
        folder: the model's own.
        stem: how the weights' file names begin.
        kind: of model, for the message.

    Raises:
        InputError: they are not.
    """
    weights = find_weights(folder, stem)
    check(
        not weights.missing,
        f"the {kind} in {folder} is missing parts",
        expected="weights as safetensors beside its config.json",
        got=f"no {', no '.join(weights.missing)}",
        hint="save it again with its save_pretrained(folder), or download it again",
    )
    for file in weights.files:
        check_weights(file)


def flow_pipeline(folder: Path) -> FlowPipeline | None:
    """The pipeline of flow matching that a folder holds; None for one with a U-Net, or nothing that is known.

    Raises:
        InputError: a pipeline with a transformer that is not known.
    """
    if not (folder / "model_index.json").is_file():
        return None
    index = read_json(folder / "model_index.json")
    name = str(index.get("_class_name"))
    check(
        name in FLOW_PIPELINES or "transformer" not in index,
        f"the prior in {folder} is of a kind that cannot be used",
        expected=f"a pipeline with a U-Net, or one of {', '.join(FLOW_PIPELINES)}",
        got=f"{name} in its model_index.json",
        hint="use another model",
    )
    return FLOW_PIPELINES.get(name)


def _check_flow(folder: Path, flow: FlowPipeline, contents: dict[str, dict[str, Any]]) -> None:
    """Refuse parts of other classes than the pipeline's, and a transformer for other latents.

    Args:
        folder: the model's.
        flow: its pipeline.
        contents: of its configs.
    """
    for name, wanted in (
        ("transformer/config.json", flow.transformer),
        ("vae/config.json", flow.vae),
    ):
        check(
            contents[name].get("_class_name") == wanted,
            f"the prior in {folder} has a part of another kind",
            expected=f"{wanted} in {name}",
            got=repr(contents[name].get("_class_name")),
            hint=REPAIR_HINT,
        )
    scheduler = contents["scheduler/scheduler_config.json"]
    check(
        scheduler.get("_class_name") == FLOW_SCHEDULER
        or bool(flow.clips and scheduler.get("use_flow_sigmas")),
        f"the prior in {folder} has a part of another kind",
        expected=f"{FLOW_SCHEDULER} in scheduler/scheduler_config.json"
        + (", or another with use_flow_sigmas" if flow.clips else ""),
        got=repr(scheduler.get("_class_name")),
        hint=REPAIR_HINT,
    )
    channels = contents["transformer/config.json"].get("in_channels")
    vae = contents["vae/config.json"]
    latents = vae.get("latent_channels") or vae.get("z_dim") or 0
    if flow.clips:
        fitting = (1 + flow.edits) * latents
        of = f"{latents} latent channels" + (", noisy and of the source" if flow.edits else "")
    else:
        fitting, of = PATCH**2 * latents, f"{PATCH} x {PATCH} of {latents} latent channels"
    check(
        channels == fitting,
        f"the transformer and the autoencoder in {folder} are not of one model",
        expected=f"{fitting} input channels, for {of}",
        got=f"{channels} input channels",
        hint=REPAIR_HINT,
    )
    stages = contents["model_index.json"].get("boundary_ratio")
    check(
        stages is None,
        f"the prior in {folder} has two transformers, one for much noise and one for little",
        expected="a model with one, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        got=f"boundary_ratio {stages}",
        hint="use another model",
    )


def vae_factor(folder: Path) -> int:
    """Pixels per latent of the prior along each side, from the configs in a folder that was checked."""
    patch = 1 if flow_pipeline(folder) is None else PATCH
    return patch * pixels_per_latent(read_json(folder / "vae/config.json"))


def pixels_per_latent(vae: dict[str, Any]) -> int:
    """The same, from the config of an autoencoder of any class, which halves between two blocks."""
    blocks = next(filter(None, map(vae.get, _BLOCKS)), [0])
    return vae.get("scale_factor_spatial") or 2 ** (len(blocks) - 1)


_BLOCKS = ("encoder_block_out_channels", "block_out_channels", "dim_mult")
"""Where configs of autoencoders have a number for each block."""


def sample_size(unet: dict[str, Any]) -> int:
    """Side of the square latents that a U-Net was made for, from its config: of two numbers the smaller.

    Raises:
        InputError: it is no size.
    """
    given = unet.get("sample_size")
    sides = given if isinstance(given, list) else [USUAL_SAMPLE_SIZE if given is None else given]
    if not sides or not all(isinstance(side, int) and side > 0 for side in sides):
        raise InputError(
            "the U-Net's config does not say for which size it was made",
            expected="a sample_size that is a number of latents, or two, or null",
            got=f"sample_size {given!r}",
            hint=f"put the side of its latents there, {USUAL_SAMPLE_SIZE} for Stable Diffusion 1",
        )
    return min(sides)


def check_scheduler(folder: Path, config: dict[str, Any]) -> None:
    """Refuse a scheduler whose noise levels are not those of a diffusion by steps (DDPM).

    Raises:
        InputError: flow matching, EDM and their like, an unknown noise schedule, or a prediction that is no
            noise.
    """
    name, prediction = config.get("_class_name"), config.get("prediction_type", "epsilon")
    levels, flows = config.get("beta_schedule"), config.get("use_flow_sigmas")
    trained = config.get("trained_betas") is not None
    for holds, problem, expected, got in (
        (
            (levels is not None or trained) and not flows,
            f"the prior in {folder} is no diffusion by steps",
            "a scheduler with the noise levels of DDPM, such as DDIMScheduler or PNDMScheduler",
            f"{name} with use_flow_sigmas" if flows else f"{name}, without a beta_schedule in its config",
        ),
        (
            levels in NOISE_LEVELS or trained,
            f"the noise levels of the prior in {folder} are not known",
            f"a beta_schedule that is one of {', '.join(NOISE_LEVELS)}",
            f"beta_schedule {levels!r} in its scheduler's config",
        ),
        (
            prediction in NOISE_PREDICTIONS,
            "the prior predicts something that cannot be turned into noise",
            " or ".join(NOISE_PREDICTIONS),
            f"prediction_type {prediction!r} in its scheduler's config",
        ),
    ):
        check(holds, problem, expected=expected, got=got, hint="use another model")


def check_autoencoder(folder: Path, config: dict[str, Any], classes: tuple[str, ...]) -> None:
    """Refuse an autoencoder of another class, and one whose latents are not just scaled.

    Args:
        folder: its own, for the message.
        config: of it.
        classes: that it may be of.

    Raises:
        InputError: see above.
    """
    name = config.get("_class_name", "AutoencoderKL")
    check(
        name in classes,
        f"the autoencoder in {folder} cannot be used",
        expected=" or ".join(classes),
        got=repr(name),
        hint="another autoencoder than the prior's own is given by --pipeline.vae (--vae of the editors)"
        if name == "AutoencoderTiny"
        else "use another model",
    )
    moved = [key for key in ("shift_factor", "latents_mean", "latents_std") if config.get(key)]
    check(
        not moved,
        f"the latents of the autoencoder in {folder} are moved, and not just scaled",
        expected="an autoencoder whose config has a scaling_factor alone",
        got=" and ".join(f"{key} {config[key]}" for key in moved),
        hint="use another model",
    )


def is_image_conditioned(folder: Path) -> bool:
    """Whether a folder that was checked holds a model that edits pictures; otherwise it is a text-to-image
    model."""
    flow = flow_pipeline(folder)
    if flow is not None:
        return flow.edits
    unet, vae = (read_json(folder / part / "config.json") for part in ("unet", "vae"))
    return check_channels(unet.get("in_channels"), vae.get("latent_channels"))


def is_for_clips(folder: Path) -> bool:
    """Whether a folder that was checked holds a model for clips, see `Prior.clip_frames`."""
    flow = flow_pipeline(folder)
    if flow is not None:
        return flow.clips
    return read_json(folder / "unet/config.json").get("_class_name") == CLIP_UNET


def check_pictures(folder: Path) -> None:
    """Refuse a model for clips where pictures are edited.

    Args:
        folder: of a prior, checked.

    Raises:
        InputError: it is one.
    """
    check(
        not is_for_clips(folder),
        f"the prior in {folder} is one for clips, and here pictures are edited",
        expected="a prior for pictures, such as tiny-instruct or timbrooks/instruct-pix2pix",
        got="a model that sees several frames at once",
        hint="use another prior, or `csd-nerf video`, which edits clips with this one",
    )


def guided_by(folder: Path) -> GuidedBy:
    """How the model in a folder that was checked is guided, see `Prior.guided_by`."""
    if flow_pipeline(folder) is not None:
        # Kontext is told a scale; klein's distilled variant knows none, and its pipeline says so.
        told = read_json(folder / "transformer/config.json").get("guidance_embeds")
        index = read_json(folder / "model_index.json")
        never = index["_class_name"] in _NEVER_GUIDED
        return "itself" if told or index.get("is_distilled") or never else "text"
    return "picture-and-text" if is_image_conditioned(folder) else "text"


_NEVER_GUIDED = ("FluxPipeline", "Flux2KleinKVPipeline")
"""Pipelines of models that all have guidance distilled into them: FLUX.1 schnell is told no scale, and needs
none."""


def is_xl(folder: Path) -> bool:
    """Whether a folder with a U-Net's config holds a Stable Diffusion XL."""
    if flow_pipeline(folder) is not None:
        return False
    return read_json(folder / "unet/config.json").get("addition_embed_type") == "text_time"


def check_channels(unet_channels: int | None, latent_channels: int | None) -> bool:
    """Tell by the channels whether a U-Net is shown a picture beside the noisy latents.

    Returns:
        True for twice the latent channels, an InstructPix2Pix; False for as many, a text-to-image model.

    Raises:
        InputError: neither.
    """
    if latent_channels is None or unet_channels not in (latent_channels, 2 * latent_channels):
        raise InputError(
            "the prior is neither an InstructPix2Pix nor a text-to-image model",
            expected="a U-Net with twice as many input channels as the VAE has latent channels (8 and 4), or "
            "as many (4 and 4)",
            got=f"{unet_channels} input channels and {latent_channels} latent channels",
            hint="use timbrooks/instruct-pix2pix, stable-diffusion-v1-5/stable-diffusion-v1-5, a model of "
            "their kind, or the bundled tiny-instruct",
        )
    return unet_channels != latent_channels


def _check_conditions(folder: Path, unet: dict[str, Any]) -> None:
    """Refuse a U-Net that must be told more than a prompt and a size: upscalers, unCLIP."""
    known = {"addition_embed_type": "text_time"}  # of an XL
    more = [
        name
        for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type")
        if unet.get(name) not in (None, known.get(name))
    ]
    if more:
        raise InputError(
            f"the U-Net in {folder} must be told more than a prompt",
            expected="an InstructPix2Pix or a Stable Diffusion, of 1, 2 or XL",
            got=" and ".join(f"{name} {unet[name]!r}" for name in more) + " in its config",
            hint="use another model",
        )


def read_json(file: Path) -> dict[str, Any]:
    """A config file's content.

    Raises:
        InputError: it is no JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        content = error
    if not isinstance(content, dict):
        raise InputError(
            f"{file} cannot be read", expected="a JSON object", got=f"{content}"[:200], hint=REPAIR_HINT
        )
    return content


def check_weights(file: Path) -> None:
    """See that a safetensors file is whole.

    Raises:
        InputError: it is not.
    """
    try:
        weights_header(file)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{file} cannot be read",
            expected="a complete safetensors file",
            got=f"{error} ({file.stat().st_size} bytes)",
            hint=REPAIR_HINT + " (a file of a few hundred bytes is a git-lfs pointer: run `git lfs pull`)",
        ) from error


def weights_header(file: Path) -> dict[str, dict[str, Any]]:
    """What a safetensors file says of each of its tensors: `dtype`, `shape`, and `data_offsets` in bytes.

    Read without safetensors, which maps the whole file and cannot where it is larger than the memory.

    Raises:
        ValueError: it is no such file, or cut off.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= size - 8:
            raise ValueError("it does not begin with a header")
        header = json.loads(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    end = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    if end != size:
        raise ValueError(f"it should have {end} bytes")
    return tensors
