"""Engines by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tfpipe.building.engines.beam_pipeline import BeamPipeline
from tfpipe.building.engines.ray_cluster import RayCluster
from tfpipe.building.steps import Engine
from tfpipe.common import arguments

ENGINES = ("processes", "ray", "beam")


def check_engine(
    engine: str, address: str | None, options: Sequence[str], workers: int | None, is_shared: bool, has_lease: bool
) -> None:
    """Raises ValueError if arguments do not go together."""
    arguments.choice("engine", engine, ENGINES)
    for name, given, owner in (("engine_address", address, "ray"), ("engine_options", options, "beam")):
        if given and engine != owner:
            raise ValueError(f"{name} is for engine={owner} (the engine is {engine!r})")
    if workers is not None and engine != "processes":
        raise ValueError(f"workers is for engine='processes'; engine={engine!r} has its own (got {workers})")
    if has_lease and not is_shared:
        raise ValueError("lease_seconds is for workers_folder, and none is given")
    if is_shared and engine != "processes":
        raise ValueError(f"workers_folder needs no engine: give one of them (the engine is {engine!r})")


def start_engine(engine: str, address: str | None, options: Sequence[str], folder: Path) -> Engine:
    """Returns an engine of other machines; raises ImportError, which names the extra, without its package."""
    return RayCluster(address) if engine == "ray" else BeamPipeline(options, folder)
