"""Apache Beam as the engine: each step of a build is a pipeline over the names of its tasks.

Tasks and results are files beside the state of the build, which the runner's workers must see: so
results arrive while the pipeline runs, whatever the runner, and bytes do not depend on it.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tfpipe.building.engines.results import accept, function_of, name_of, run_task
from tfpipe.building.engines.tasks_on_disk import Tasks
from tfpipe.common.errors import lines_of
from tfpipe.common.text import plural

_FOLDER = "beam"
_POLL_SECONDS = 0.1


class BeamPipeline:
    """Pipelines of one build, with the options of a runner."""

    def __init__(self, options: Sequence[str], folder: Path) -> None:
        try:
            import apache_beam
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError as error:
            raise ImportError("engine=beam needs Apache Beam: pip install 'tfpipe[beam]'") from error
        self._beam: Any = apache_beam
        self._options = PipelineOptions(list(options))
        self._folder = folder / _FOLDER

    def __enter__(self) -> BeamPipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, function: str, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yields `Done` and results, as `Workers.run`; all tasks are written before the first runs."""
        shutil.rmtree(self._folder, ignore_errors=True)  # of a run that was killed
        files = Tasks(self._folder, "driver")
        files.create()
        todo = {}
        for task in tasks:
            todo[name_of(function, task)] = task
            files.publish(name_of(function, task), task)
        if not todo:
            return
        pipeline = _Running(self._beam, self._options, self._folder, list(todo))
        while todo:
            has_ended = not pipeline.is_alive()  # before looking: then all results are there
            for name in files.handed_in():
                if outcome := files.read(name):
                    files.keep(name)
                    if name in todo:  # a runner may do a task twice
                        yield from accept(todo.pop(name), outcome)
            if has_ended and todo:
                reason = pipeline.error or f"the pipeline ended without {plural(len(todo), 'result')}"
                raise RuntimeError(f"Beam: {reason}; what was finished is kept: run the same command again")
            pipeline.join(_POLL_SECONDS)
        pipeline.join()


class _Running(threading.Thread):
    """A pipeline that runs: some runners return from `run` only when all is done."""

    def __init__(self, beam: Any, options: Any, folder: Path, names: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self.error = ""
        self._pipeline = beam.Pipeline(options=options)
        created = self._pipeline | "tasks" >> beam.Create(names) | "spread" >> beam.Reshuffle()
        created | "run" >> beam.Map(_run, os.path.abspath(folder))
        self.start()

    def run(self) -> None:
        try:
            self._pipeline.run().wait_until_finish()
        except Exception as error:  # whatever a runner raises is reported by the caller
            self.error = lines_of(error)[-1]  # the cause, after the worker's traceback


def _run(name: str, folder: str) -> str:
    machine = f"{socket.gethostname()}, process {os.getpid()}"
    files = Tasks(Path(folder), machine)
    files.hand_in(name, run_task(function_of(name), files.task(name), machine))
    return name
