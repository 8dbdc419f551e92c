"""What an edit would take on several GPUs, worked out from what its parts take on one: nothing is measured.

    python benchmarks/gpu.py
    python benchmarks/placement.py benchmarks/results/gpu.json

docs/clusters.md has the formulas. What is shared is taken to be shared without loss, so that the times of
several processes are the least that can be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro


@dataclass
class Options:
    """From which figures, and for what."""

    figures: tyro.conf.Positional[Path]
    """Written by benchmarks/gpu.py."""
    processes: tuple[int, ...] = (2, 8, 16)
    """Numbers of processes of one edit, and of GPUs with an edit each."""
    bandwidth: float = 100.0
    """Of what connects the processes, in GB a second: about 100 within a machine with NVLink, 10 with PCIe or
    a fast network, 1 with a slow one."""
    fits: int = 100
    """To a round."""
    fit_megabytes: float = 150.0
    """That a process is sent in a fit; see benchmarks/communication.py."""
    round_megabytes_a_view: float = 11.0
    """That a process is sent in a round, for each view of it; see there."""


def main(options: Options) -> None:
    rows = [row for row in json.loads(options.figures.read_text())["rows"] if row["edit_seconds"]]
    for row in rows:
        about = f"{row['views']} views, fields {row['fields']}, VAE {row['vae']}"
        print(f"{about}: seconds of a round with its fits")
        for name, milliseconds in placements(row["milliseconds"], row["views"], options).items():
            print(f"  {name:30} {milliseconds / 1000:8.2f}")


def placements(parts: Mapping[str, float], views: int, options: Options) -> dict[str, float]:
    """Milliseconds of a round with its fits, by where it is done.

    Args:
        parts: milliseconds of draw, encode, unet, decode, round and fit, on one GPU.
        views: of the round.
        options: with the rest.
    """
    fits = options.fits * parts["fit"]
    result: dict[str, Any] = {
        "one GPU": parts["round"] + fits,
        "prior-device, 2 GPUs": max(parts["round"], fits) + parts["draw"],
    }
    shared = sum(parts[name] for name in ("draw", "encode", "unet", "decode"))
    left = parts["round"] - shared
    for count in options.processes:
        share = (
            -(-views // count) / views if views >= count else 1.0
        )  # fewer views than processes: all do all
        sent = options.round_megabytes_a_view * views + options.fits * options.fit_megabytes
        talk = sent / options.bandwidth  # MB by GB a second are milliseconds
        of_round, of_fits = shared * share + left, fits / count
        result[f"{count} processes"] = of_round + of_fits + talk
        apart = max(of_round, of_fits + talk) + parts["draw"] * share
        result[f"{count} with prior-device, {2 * count} GPUs"] = apart
        result[f"Ray, {count} edits, each"] = (parts["round"] + fits) / count
    return result


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
