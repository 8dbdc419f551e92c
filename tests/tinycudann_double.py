"""A stand-in for `tinycudann` on the CPU that behaves as the real binding does where behaviour matters.

Outputs are float16; every network keeps its weights in one flat float32 `params`, cast in each call; batches
are padded; gradients are scaled by 128 on their way through half precision; what a backward pass needs is a
native context, a plain attribute of autograd's `ctx`, which no tensor hook sees and which lives as long as
the graph does; and memory that runs out is said in the words of its arena. The functions themselves are
small ones of the same shapes, and not tiny-cuda-nn's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from nerfstudio.utils.math import components_from_spherical_harmonics
from torch import Tensor, nn
from torch.nn import functional

OUT_OF_MEMORY = (
    "/tmp/tiny-cuda-nn/include/tiny-cuda-nn/gpu_memory.h:582 cuMemCreate(&m_handles.back(), "
    "n_bytes_to_allocate, &prop, 0) failed: CUDA_ERROR_OUT_OF_MEMORY"
)
"""What the real arena throws, as a RuntimeError."""
_BATCH_GRANULARITY = 256
_LOSS_SCALE = 128.0
_PRIMES = (1, 2654435761, 805459861)


class Arena:
    """The account of native contexts, in the place of tiny-cuda-nn's memory on a GPU.

    Attributes:
        alive: contexts that are held now.
        most: that were held at a time.
        dy_dx: contexts of hash grids made so far that also keep the derivatives by position.
        room: contexts that there is memory for; None is any number.
    """

    def __init__(self) -> None:
        self.alive = self.most = self.dy_dx = 0
        self.room: int | None = None


arena = Arena()


@contextmanager
def installed() -> Iterator[Arena]:
    """For a while, let fields run in this, on any device; gives a new account."""
    from nerfstudio.field_components import encodings, mlp

    from csd_nerf.nerf import model, scene_trainer

    global arena
    before, arena = arena, Arena()
    with ExitStack() as patches:
        for importer in (encodings, mlp):
            patches.enter_context(patch.multiple(importer, TCNN_EXISTS=True, tcnn=sys.modules[__name__]))
        for asking in (model, scene_trainer):
            patches.enter_context(patch.object(asking, "tcnn_runs_on", lambda _: True))
        yield arena
    arena = before


class _NativeContext:
    def __init__(self, *, input_gradient: bool, dy_dx: bool) -> None:
        self.arena = arena
        if arena.room is not None and arena.alive >= arena.room:
            raise RuntimeError(OUT_OF_MEMORY)
        arena.alive += 1
        arena.most = max(arena.most, arena.alive)
        arena.dy_dx += dy_dx
        self.input_gradient = input_gradient
        self.counted = True

    def __del__(self) -> None:
        if getattr(self, "counted", False):  # not one that there was no room for
            self.arena.alive -= 1


class _ModuleFunction(torch.autograd.Function):
    """The binding's `_module_function`."""

    @staticmethod
    def forward(ctx: Any, native_module: Module, rows: Tensor, params: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        by_rows = rows.requires_grad
        if by_rows or params.requires_grad:
            ctx.native_ctx = _NativeContext(input_gradient=by_rows, dy_dx=by_rows and native_module.has_grid)
        output = native_module.compute(rows.detach(), params.detach().float()).half()
        ctx.save_for_backward(rows, params)
        ctx.native_module = native_module
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, Tensor | None, Tensor | None]:
        (gradient,) = gradients
        if gradient is None:
            return None, None, None
        rows, params = ctx.saved_tensors
        scaled = gradient.half() * _LOSS_SCALE  # overflows as there
        with torch.enable_grad():
            leaf = rows.detach().requires_grad_(ctx.native_ctx.input_gradient)
            weights = params.detach().float().requires_grad_()
            output = ctx.native_module.compute(leaf, weights)
            wanted = [leaf] if leaf.requires_grad else []
            wanted += [weights] if len(weights) else []
            found = dict(
                zip(
                    map(id, wanted),
                    torch.autograd.grad(output, wanted, scaled.float(), allow_unused=True)
                    if wanted and output.requires_grad
                    else [None] * len(wanted),
                    strict=True,
                )
            )
        of_rows, of_params = found.get(id(leaf)), found.get(id(weights))
        return (
            None,
            None if of_rows is None else of_rows / _LOSS_SCALE,
            None if of_params is None else of_params.half() / _LOSS_SCALE,
        )


class Module(nn.Module):
    """The binding's `Module`: `(N, n_input_dims)` of any float to `(N, n_output_dims)` in float16."""

    params: nn.Parameter
    has_grid = False

    def __init__(self, n_input_dims: int, n_output_dims: int, count: int, initial: float) -> None:
        super().__init__()
        self.n_input_dims, self.n_output_dims = n_input_dims, n_output_dims
        generator = torch.Generator().manual_seed(1337)
        self.params = nn.Parameter((2 * torch.rand(count, generator=generator) - 1) * initial)

    def compute(self, rows: Tensor, params: Tensor) -> Tensor:
        """Differentiable, in float32."""
        raise NotImplementedError

    def forward(self, rows: Tensor) -> Tensor:
        count = len(rows)
        padding = -count % _BATCH_GRANULARITY
        padded = functional.pad(rows, [0, 0, 0, padding]) if padding else rows
        output = _ModuleFunction.apply(self, padded.float().contiguous(), self.params.half().contiguous())
        return output[:count, : self.n_output_dims]


class Encoding(Module):
    """HashGrid, SphericalHarmonics or Frequency; the latter two have a `params` of no elements."""

    def __init__(self, n_input_dims: int, encoding_config: dict[str, Any], seed: int = 1337) -> None:
        self.has_grid = encoding_config["otype"] == "HashGrid"
        self._function, width, count = _encoding(n_input_dims, encoding_config)
        super().__init__(n_input_dims, width, count, initial=1e-4)

    def compute(self, rows: Tensor, params: Tensor) -> Tensor:
        return self._function(rows, params)


class Network(Module):
    """Layers without biases; the width of the output is padded to a multiple of 16, as there."""

    def __init__(
        self, n_input_dims: int, n_output_dims: int, network_config: dict[str, Any], seed: int = 1337
    ) -> None:
        self._function, count = _network(n_input_dims, n_output_dims, network_config)
        super().__init__(n_input_dims, n_output_dims, count, initial=0.3)

    def compute(self, rows: Tensor, params: Tensor) -> Tensor:
        return self._function(rows, params)


class NetworkWithInputEncoding(Module):
    """An encoding, padded to 16, 32 ... features, and a network, whose weights are first in `params`."""

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        encoding_config: dict[str, Any],
        network_config: dict[str, Any],
        seed: int = 1337,
    ) -> None:
        self.has_grid = encoding_config["otype"] == "HashGrid"
        self._encode, width, of_encoding = _encoding(n_input_dims, encoding_config)
        self._padding = -width % 16
        self._network, self._of_network = _network(width + self._padding, n_output_dims, network_config)
        super().__init__(n_input_dims, n_output_dims, self._of_network + of_encoding, initial=0.3)
        with torch.no_grad():
            self.params[self._of_network :] *= 1e-4 / 0.3

    def compute(self, rows: Tensor, params: Tensor) -> Tensor:
        of_network, of_encoding = params.tensor_split([self._of_network])
        features = functional.pad(self._encode(rows, of_encoding), [0, self._padding])
        return self._network(features, of_network)


_Function = Callable[[Tensor, Tensor], Tensor]


def _encoding(dims: int, config: dict[str, Any]) -> tuple[_Function, int, int]:
    """The function of rows and parameters, the width of what it returns, and how many parameters it has."""
    kind = config["otype"]
    if kind == "SphericalHarmonics":
        degree = config["degree"]
        return lambda rows, _: components_from_spherical_harmonics(degree, rows * 2 - 1), degree**2, 0
    if kind == "Frequency":
        powers = 2.0 ** torch.arange(config["n_frequencies"])

        def waves(rows: Tensor, _: Tensor) -> Tensor:
            angles = torch.pi * (rows[..., None] * powers.to(rows.device)).flatten(1)
            return torch.cat([angles.sin(), angles.cos()], dim=1)

        return waves, 2 * dims * len(powers), 0
    assert kind == "HashGrid" and dims == 3
    levels, features = config["n_levels"], config["n_features_per_level"]
    size = 2 ** config["log2_hashmap_size"]
    scales = config["base_resolution"] * config["per_level_scale"] ** torch.arange(levels)
    all_corners = torch.cartesian_prod(*[torch.arange(2)] * 3)  # (8, 3)
    all_offsets = torch.arange(levels) * size

    def look_up(rows: Tensor, params: Tensor) -> Tensor:
        corners, offsets = all_corners.to(rows.device), all_offsets.to(rows.device)
        scaled = rows[:, None] * scales.float().to(rows.device)[:, None]  # (N, L, 3)
        below = scaled.floor()
        share = (scaled - below)[:, :, None]  # (N, L, 1, 3)
        places = below.long()[:, :, None] + corners  # (N, L, 8, 3)
        hashed = places[..., 0] * _PRIMES[0] ^ places[..., 1] * _PRIMES[1] ^ places[..., 2] * _PRIMES[2]
        weights = torch.where(corners.bool(), share, 1 - share).prod(-1, keepdim=True)  # (N, L, 8, 1)
        values = params.view(-1, features)[hashed % size + offsets[:, None]]  # (N, L, 8, F)
        return (weights * values).sum(2).flatten(1)

    return look_up, levels * features, levels * size * features


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "ReLU": torch.relu, "Sigmoid": torch.sigmoid, "None": lambda values: values
}  # fmt: skip


def _network(inputs: int, outputs: int, config: dict[str, Any]) -> tuple[_Function, int]:
    """The function of rows and parameters, and how many parameters it has."""
    hidden = [config["n_neurons"]] * config["n_hidden_layers"]
    widths = [inputs, *hidden, outputs + -outputs % 16]
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    between, last = (_ACTIVATIONS[config[name]] for name in ("activation", "output_activation"))

    def layers(rows: Tensor, params: Tensor) -> Tensor:
        weights = params.split([height * width for height, width in shapes])
        for number, (weight, shape) in enumerate(zip(weights, shapes, strict=True)):
            activation = last if number == len(shapes) - 1 else between
            rows = activation(rows @ weight.view(shape).t())
        return rows

    return layers, sum(height * width for height, width in shapes)
