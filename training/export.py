"""The last stage: half-precision weights in diffusers' folder layout."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers import DiffusionPipeline
from torch import nn

from training.depth import load_control_net

LARGEST_BYTES = 20_000_000


def export_pipeline(pipeline: DiffusionPipeline, work: Path, out: Path) -> None:
    """Write the pipeline of what is in `work` to `out`, whole or not at all; a model card in `out` stays."""
    encoders = [name for name in ("text_encoder", "text_encoder_2") if name in pipeline.components]
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.half()
    with _replacing(out) as fresh:
        pipeline.save_pretrained(fresh, safe_serialization=True)
        for name in ("vocab.json", "merges.txt"):  # transformers 4 reads these, transformers 5 tokenizer.json
            shutil.copy2(work / "tokenizer" / name, fresh / "tokenizer" / name)
        for name in encoders:
            _load_in_single_precision_by_default(fresh / name / "config.json")


def export_control_net(work: Path, out: Path) -> None:
    """Write the ControlNet of what is in `work` to `out`, as `export_pipeline` does."""
    with _replacing(out) as fresh:
        load_control_net(work).half().save_pretrained(fresh, safe_serialization=True)


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A fresh folder that takes the place of `out`, and takes over its model card, once it is complete."""
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(out.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    yield fresh
    size = sum(file.stat().st_size for file in fresh.rglob("*") if file.is_file())
    if size > LARGEST_BYTES:
        raise RuntimeError(f"{fresh} has {size} bytes, more than the {LARGEST_BYTES} that may be bundled")
    if (out / "README.md").exists():
        shutil.copy2(out / "README.md", fresh / "README.md")
    replaced = out.with_name(out.name + ".replaced")
    if out.exists():
        os.replace(out, replaced)
    os.replace(fresh, out)
    shutil.rmtree(replaced, ignore_errors=True)


def _load_in_single_precision_by_default(config: Path) -> None:
    """transformers loads a model in the precision its config names, diffusers in float32: make them agree."""
    fields = json.loads(config.read_text())
    fields["dtype"] = "float32"
    config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
