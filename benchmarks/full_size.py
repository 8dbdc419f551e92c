"""An InstructPix2Pix of the real one's size with random weights: what loading and asking it takes.

    python benchmarks/full_size.py --out full_size.json

Writes a folder laid out as the one on the hub (860 million weights in the U-Net, 84 in the autoencoder, 123
in the text encoder; 4.3 GB, to a temporary place or to `--folder`), loads it in a process of its own, and
asks it for one round of one view: photo, view, a step of descent, decoding. Then the same folder in the other
forms that such folders come in is loaded, one after the other. Speed and memory do not depend on what the
weights say. The tokenizer is the bundled prior's, whose vocabulary is smaller.
"""

from __future__ import annotations

import copy
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from csd_nerf.bundled import bundled_path
from csd_nerf.priors.folder import WEIGHTS

PROMPT = "make it night"
UNET = {"in_channels": 8, "cross_attention_dim": 768, "sample_size": 64, "attention_head_dim": 8}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
}
SMALL: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
    },
    "vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
    "text": {"intermediate_size": 64, "num_hidden_layers": 1},
}
"""What is smaller for a test."""
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Names of the autoencoder's attention in the files of Stable Diffusion 1."""


@dataclass
class Options:
    """Where to write, and what to ask."""

    folder: Path | None = None
    """Folder for the model; a temporary one, removed afterwards, if left out."""
    device: str = "cpu"
    """cpu or cuda."""
    size: int = 256
    """Side of the view of the round, in pixels."""
    small: bool = False
    """A small model instead, to see that this works."""
    out: Path | None = None
    """Also write the rows as JSON."""


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "instruct-pix2pix"
        write_folder(folder, small=options.small)
        rows = []
        print(f"{'form':42} {'load s':>7} {'round s':>8} {'peak MiB':>9}")
        for form, change in FORMS.items():
            change(folder)
            size = options.size if not rows else 0  # one round is enough
            command = [sys.executable, __file__, "--measure", str(folder), options.device, str(size)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            row = {"form": form, **json.loads(done.stdout.splitlines()[-1])}
            rows.append(row)
            seconds = f"{row['round_seconds']:8.1f}" if row["round_seconds"] else " " * 8
            print(f"{form:42} {row['load_seconds']:7.1f} {seconds} {row['peak_mib']:9.0f}", flush=True)
        if any(row["answers"] != rows[0]["answers"] for row in rows if row["form"] not in HALVED):
            raise SystemExit("the forms of one model do not answer alike")
        if options.out is not None:
            options.out.write_text(json.dumps(rows, indent=1) + "\n")


def measure(folder: Path, device: str, size: int) -> dict[str, Any]:
    """Load a folder and ask it: seconds, the process's peak memory, and a digest of its answers.

    Args:
        folder: of the model.
        device: where it is to run.
        size: side of the view of a round, in pixels; 0 for none.
    """
    from csd_nerf.distillation import Objective, ObjectiveConfig
    from csd_nerf.priors import load_prior

    began = time.perf_counter()
    prior: Any = load_prior(str(folder), device=device)
    text = prior.embed([PROMPT, ""])
    loaded = time.perf_counter()
    answers = [float(text.double().sum()), *(float(w.double().sum()) for w in prior.vae.parameters())]
    answers += [float(weights.double().sum()) for weights in prior.unet.parameters()]
    row = {"load_seconds": loaded - began, "round_seconds": None, "answers": f"{sum(answers):.6f}"}
    if size:
        began = time.perf_counter()
        view = torch.rand(1, 3, size, size, device=device)
        with torch.no_grad():
            source, condition = prior.encode_source(view)
            start = prior.encode(view)
            objective = Objective(ObjectiveConfig(), prior)
            step = objective.gradient(start, source, condition, prompt=PROMPT).gradient
            edited = prior.decode(start - 0.1 * step)
        assert edited.isfinite().all()
        row["round_seconds"] = time.perf_counter() - began
    row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return row


# ------------------------------------------------------------------------------------------ the model


def random_parts(device: str, *, small: bool = False, **dtypes: torch.dtype) -> dict[str, Any]:
    """A U-Net, an autoencoder and a text encoder with random weights, made where they are to be.

    Args:
        device: of U-Net and autoencoder; the text encoder is on the CPU, as one that is loaded for a prompt.
        small: much smaller ones, for a test.
        dtypes: of `unet`, `vae` and `text`; float32 where none is given.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    smaller: dict[str, Any] = SMALL if small else {name: {} for name in SMALL}
    kinds: dict[str, Callable[[], Any]] = {
        "unet": lambda: UNet2DConditionModel(**{**UNET, **smaller["unet"]}),
        "vae": lambda: AutoencoderKL(**{**VAE, **smaller["vae"]}),
        "text": lambda: CLIPTextModel(CLIPTextConfig(**{**TEXT, **smaller["text"]})),
    }
    parts = {}
    for name, make in kinds.items():
        where = "cpu" if name == "text" else device
        with torch.device(where), default_dtype(dtypes.get(name, torch.float32)):
            parts[name] = make()
    return parts


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let new weights be of a dtype, so that large ones need not be made twice as large at first."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def tokenizer() -> Any:
    """The bundled prior's, of the length of the real one."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(
        bundled_path("tiny-instruct"), subfolder="tokenizer", model_max_length=TEXT["max_position_embeddings"]
    )


def random_prior(
    device: str, *, small: bool = False, vae_dtype: torch.dtype | None = None, unet_batch_size: int = 20
) -> Any:
    """An `InstructPix2Pix` of such parts, in the precisions that `load_prior` would choose.

    Args:
        device, small: as for `random_parts`.
        vae_dtype: of the autoencoder, if not that.
        unet_batch_size: most rows in the U-Net at once.
    """
    from diffusers import DDIMScheduler

    from csd_nerf.priors import NoiseSchedule
    from csd_nerf.priors.base import memory_format
    from csd_nerf.priors.instruct_pix2pix import InstructPix2Pix
    from csd_nerf.priors.loading import automatic_dtype, automatic_vae_dtype

    where = torch.device(device)
    parts = random_parts(
        device,
        small=small,
        unet=automatic_dtype(where),
        vae=vae_dtype or automatic_vae_dtype(where, {}),
    )
    return InstructPix2Pix(
        unet=parts["unet"].to(memory_format=memory_format(where)),
        vae=parts["vae"].to(memory_format=memory_format(where, of="autoencoder")),
        load_text=lambda: [(tokenizer(), copy.deepcopy(parts["text"]))],  # which is moved, and dropped
        schedule=NoiseSchedule.from_alphas_cumprod(DDIMScheduler(**SCHEDULER).alphas_cumprod),
        unet_batch_size=unet_batch_size,
        vae_batch_size=1,
    )


def write_folder(folder: Path, *, small: bool = False) -> None:
    """Write such a model as its pipeline's `save_pretrained` does, with a safety checker beside it."""
    torch.manual_seed(0)
    parts = random_parts("cpu", small=small)
    for name, part in (("unet", "unet"), ("vae", "vae"), ("text", "text_encoder")):
        parts.pop(name).save_pretrained(folder / part)
    tokenizer().save_pretrained(folder / "tokenizer")
    bundled = bundled_path("tiny-instruct")
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(bundled / "tokenizer" / file, folder / "tokenizer")
    shutil.copytree(bundled / "scheduler", folder / "scheduler")
    shutil.copy(bundled / "model_index.json", folder)
    _edit_json(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        requires_safety_checker=True,
    )
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker/config.json").write_text('{"model_type": "clip"}')
    (folder / "safety_checker/model.safetensors").write_bytes(b"never looked at")


# ------------------------------------------------------------------------------------------ its forms


def without_safety_checker(folder: Path) -> None:
    shutil.rmtree(folder / "safety_checker")
    _edit_json(
        folder / "model_index.json",
        safety_checker=[None, None],
        feature_extractor=[None, None],
        requires_safety_checker=False,
    )


def with_vocabulary_alone(folder: Path) -> None:
    (folder / "tokenizer/tokenizer.json").unlink()


def with_old_names(folder: Path) -> None:
    """Weights and settings under the names that the files on the hub still have."""
    from safetensors.torch import load_file, save_file

    vae = folder / "vae/diffusion_pytorch_model.safetensors"
    old = {}
    for name, value in load_file(vae).items():
        for new, before in OLD_ATTENTION.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        old[name] = value
    save_file(old, vae)
    encoder = folder / "text_encoder/model.safetensors"
    positions = torch.arange(TEXT["max_position_embeddings"])[None]
    weights = load_file(encoder)
    save_file({**weights, "text_model.embeddings.position_ids": positions}, encoder, {"format": "pt"})
    for file, kept in (
        ("unet/config.json", {"_class_name", "layers_per_block", *UNET, *SMALL["unet"]}),
        ("vae/config.json", {"_class_name", "latent_channels", "norm_num_groups", *VAE}),
    ):
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({name: config[name] for name in config if name in kept}))
    scheduler = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1, **SCHEDULER}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))


def in_half_precision_alone(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    for part, stem in WEIGHTS.items():
        whole = folder / part / f"{stem}.safetensors"
        half = {
            name: value.half() if value.is_floating_point() else value
            for name, value in load_file(whole).items()
        }
        save_file(half, whole.with_suffix(".fp16.safetensors"), {"format": "pt"})
        whole.unlink()


def as_it_is(folder: Path) -> None:
    """As it was written."""


FORMS: dict[str, Callable[[Path], None]] = {
    "float32, with a safety checker": as_it_is,
    "without safety checker": without_safety_checker,
    "tokenizer of vocab.json and merges.txt": with_vocabulary_alone,
    "names and settings of old": with_old_names,
    "fp16 files alone": in_half_precision_alone,
}
"""What a folder is changed to, one after the other."""
HALVED = ("fp16 files alone",)
"""Forms whose weights are rounded."""


def _edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))))
    else:
        main(tyro.cli(Options, description=__doc__))
