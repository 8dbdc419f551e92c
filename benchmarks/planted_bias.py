"""Whether `csd-nerf probe` finds a bias that was planted, and none where there is none.

    python benchmarks/planted_bias.py [--runs 10] [--size 64] [--strength 0.15]

The bundled prior is asked about as many sets of 16 training photos as there are runs, once as it is and once
with a habit: told to make it winter, and then only, it sees the top third of every picture redder than it
would. Photos of `CSD_NERF_SHARED/data/photos`; sets overlap.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from csd_nerf.errors import exit_on_input_error  # noqa: E402
from csd_nerf.priors import Prior, load_prior  # noqa: E402
from csd_nerf.priors.base import Text  # noqa: E402
from csd_nerf.priors.wrapped import Wrapped  # noqa: E402
from csd_nerf.probing.probing import probe  # noqa: E402
from csd_nerf.probing.settings import ProbeSettings  # noqa: E402
from csd_nerf.scenes.operators import OPERATORS  # noqa: E402
from training.photos import centre_square, resized, shared_folder, training_photos  # noqa: E402

PICTURES = 16


class Biased(Wrapped):
    """A prior that drags red skies along with one instruction.

    Wherever it is told that instruction, the clean latents that its noise stands for are drawn to those of
    plain red in the top third; everything else is the prior's own.

    Args:
        prior: the honest one.
        instruction: that drags them along.
        strength: how far, 0..1.
    """

    def __init__(self, prior: Prior, instruction: str, strength: float) -> None:
        super().__init__(prior)
        self._words = prior.embed([instruction])
        self._strength = strength
        plain = torch.tensor([1.0, 0.0, 0.0], device=prior.device).reshape(1, 3, 1, 1)
        self._red = prior.encode(plain.expand(1, 3, prior.native_size, prior.native_size)).mean((2, 3))

    def predict_noise(
        self,
        noisy: Float[Tensor, "m c h w"],
        t: int,
        text: Text,
        condition: Float[Tensor, "m k h w"] | None,
    ) -> Float[Tensor, "m c h w"]:
        predicted = self.prior.predict_noise(noisy, t, text, condition)
        assert isinstance(text, Tensor) and isinstance(self._words, Tensor)
        told = (text == self._words).flatten(1).all(1)
        alpha, sigma = self.schedule.alphas[t].item(), self.schedule.sigmas[t].item()
        clean = (noisy - sigma * predicted) / alpha
        top = clean[told, :, : clean.shape[2] // 3]
        clean[told, :, : clean.shape[2] // 3] = torch.lerp(
            top, self._red[..., None, None].expand_as(top), self._strength
        )
        return (noisy - alpha * clean) / sigma

    def encode(self, images: Tensor) -> Tensor:
        return self.prior.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self.prior.decode(latents)

    def embed(self, prompts: Sequence[str]) -> Text:
        return self.prior.embed(prompts)

    def condition(self, images: Tensor) -> Tensor:
        return self.prior.condition(images)

    def self_attention_features(self, noisy: Tensor, t: int, text: Text, condition: Tensor) -> list[Tensor]:
        return self.prior.self_attention_features(noisy, t, text, condition)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--strength", type=float, default=0.15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with exit_on_input_error():
        honest = load_prior("tiny-instruct", device="cpu", unet_batch_size=80)
        instruction = OPERATORS["winter"].instruction
        photos = [photo for photo in training_photos(shared_folder()) if photo.painted is not None]
        for prior in (honest, Biased(honest, instruction, arguments.strength)):
            found = 0
            for seed in range(arguments.runs):
                order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(seed))
                pictures = torch.stack(
                    [centre_square(resized(photos[i].rgb, arguments.size)) for i in order[:PICTURES]]
                )
                settings = ProbeSettings(
                    prior="tiny-instruct", steps=arguments.steps, learning_rate=1.0, seed=seed
                )
                probed = probe(pictures, instruction, settings, loaded=prior)
                found += bool(probed.findings)
                largest = max(probed.places, key=lambda drift: abs(drift.mean))
                said = probed.findings[0].in_words() if probed.findings else "nothing"
                print(
                    f"{type(prior).__name__:15} seed {seed}: {said}; "
                    f"largest {largest.mean:+.3f}, p = {largest.p:.4f}",
                    flush=True,
                )
            print(f"{type(prior).__name__}: found in {found} of {arguments.runs} runs", flush=True)


if __name__ == "__main__":
    main()
