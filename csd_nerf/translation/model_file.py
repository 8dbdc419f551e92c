"""Translators on disk: one file with the weights and what they were trained for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from csd_nerf.errors import InputError, check
from csd_nerf.files import check_output, whole_file
from csd_nerf.translation.network import REACH, Translator

SUFFIX = ".safetensors"
ROWS = 512
"""Pixels of a strip: large pictures are translated in so many rows at a time."""


@dataclass(frozen=True)
class TrainedTranslator:
    """A translator and its targets.

    Args:
        network: with the weights.
        prompts: what each of its targets was asked for by.
        made_by: method, prior and size of its training, by their names.
    """

    network: Translator
    prompts: tuple[str, ...]
    made_by: dict[str, str]

    def target(self, prompt: str | None) -> int:
        """Number of a target.

        Args:
            prompt: its own; None where there is but one.

        Raises:
            InputError: it has no such target.
        """
        if prompt is None and len(self.prompts) == 1:
            return 0
        check(
            prompt in self.prompts,
            "the translator has several targets" if prompt is None else "the translator has no such target",
            expected=" or ".join(map(repr, self.prompts)),
            got="none chosen" if prompt is None else repr(prompt),
            hint="choose one of these by --prompt, or train another with `csd-nerf translate train`",
        )
        return self.prompts.index(str(prompt))

    def digest(self) -> str:
        """Of its weights: translators that say the same of all pictures have the same."""
        digest = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + value.cpu().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def translate(self, picture: Float[Tensor, "3 height width"], target: int) -> Tensor:
        """A picture of any size as it becomes, (3, height, width), RGB in 0..1, on the CPU.

        Large ones are translated in strips that see as far beyond their edges as the network does, which
        makes no difference but in the memory that it takes.

        Args:
            picture: RGB in 0..1.
            target: number of the target.
        """
        device = self.network.asked.weight.device
        strips = []
        for top in range(0, picture.shape[1], ROWS):
            above = min(top, REACH)
            seen = picture[:, top - above : top + ROWS + REACH].to(device)
            strips.append(self.network(seen[None], target)[0, :, above : above + ROWS].cpu())
        return torch.cat(strips, dim=1).clamp(0, 1)


def save_translator(translator: TrainedTranslator, path: Path) -> None:
    """Write a translator, whole or not at all.

    Raises:
        InputError: the file system refuses.
    """
    network = translator.network
    about = {
        "prompts": translator.prompts,
        "shape": network.shape,
        "made_by": translator.made_by,
    }
    weights = {name: value.cpu().contiguous().clone() for name, value in network.state_dict().items()}
    with whole_file(path) as partial:
        save_file(weights, partial, metadata={"translator": json.dumps(about)})


def load_translator(path: Path, device: torch.device | str = "cpu") -> TrainedTranslator:
    """Read a translator.

    Raises:
        InputError: no such file, or one that holds no translator.
    """
    check(
        path.is_file(),
        f"there is no translator {path}",
        expected=f"a {SUFFIX} file that `csd-nerf translate train` wrote",
        got="a folder" if path.is_dir() else "no such file",
        hint="check the path",
    )
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["translator"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        prompts = tuple(map(str, about["prompts"]))
        network = Translator(len(prompts), **about["shape"])
        network.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} holds no translator",
            expected="a file that `csd-nerf translate train` wrote",
            got=str(error).splitlines()[0][:200],
            hint="check that the file is whole, or train one",
        ) from error
    return TrainedTranslator(network.to(device).eval(), prompts, about["made_by"])


def check_translator_output(path: Path, *, force: bool) -> None:
    """See that a translator can be written there.

    Raises:
        InputError: see `check_output`.
    """
    check_output(path, (SUFFIX,), force=force)
