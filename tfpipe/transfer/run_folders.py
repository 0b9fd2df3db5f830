"""What lies in a run's folder, by name, for those who read it without training.

    locate_data("runs/a")    # the folder of the data set that it was trained on

What writes them is `tfpipe.transfer.runs`, which exporting and serving do not import.
"""

from __future__ import annotations

import os
from pathlib import Path

from tfpipe.records import manifest
from tfpipe.records.errors import DataError
from tfpipe.records.files import read_json

MODEL_NAME = "model.keras"  # the best weights
LAST_NAME = "last.keras"  # those of the last step
RUN_NAME = "run.json"
SUMMARY_NAME = "summary.json"
BACKBONE_NAME = "backbone.json"
HEAD_NAME = "head.json"  # the heads that were tried, and the best
STATE_FOLDER = "state"  # a file for each phase, until the run is finished


def state_file(folder: Path, phase: str) -> Path:
    """Returns where a run keeps the state of a phase."""
    return folder / STATE_FOLDER / f"{phase}.npz"


def locate_data(model: str | os.PathLike[str]) -> Path:
    """Returns the folder of the data set that a run was trained on, as its run.json has it.

    Args:
        model: the run's folder or a .keras file in it.

    Raises:
        FileNotFoundError: there is no run.json, it does not say where the data were, or they are no longer there.
        DataError: it cannot be read, or there is another data set at that place now.
    """
    path = Path(model) / RUN_NAME if Path(model).is_dir() else Path(model).parent / RUN_NAME
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, which would say where the training data are")
    facts = read_json(path)
    try:
        directory, root_hash = facts.get("directory"), facts["data"]["root_hash"]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"cannot be understood: {type(error).__name__}: {error}", path=path) from None
    if not directory:
        raise FileNotFoundError(f"{path}: does not say where the training data are")
    if manifest.load(directory).root_hash != root_hash:
        raise DataError(f"the model was trained on another data set than the one that is there now ({path})", path=directory)
    return Path(directory)
