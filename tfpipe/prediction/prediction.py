"""`tfpipe.predict()`: a table with one row per image, good or bad.

    predict("runs/a", "photos/", "predictions.csv")                            # id,filename,reason,class_1,score_1,...
    predict("runs/a", "photos/", "predictions.jsonl")                          # an object per image
    predict("runs/a", "test1/", "submission.csv", columns="label")             # id,label: 1,dog
    predict("runs/a", "test1/", "submission.csv", columns="probability")       # id,label: 1,0.998712003
    predict("runs/a", "shards/", "table.csv", split="test1", columns="table")  # the columns of evaluate's predictions.csv

Images are decoded and resized as in evaluation. The rows and their order are known before the model
runs: rows are written as they come, memory does not grow with them, and a stopped prediction
resumes at its next batch.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tfpipe
from tfpipe.common import arguments
from tfpipe.common.errors import DataError, RejectedImage
from tfpipe.common.files import clear_up, written_atomically
from tfpipe.common.progress import ProgressBar
from tfpipe.common.tables import escape_formula
from tfpipe.common.text import html_table, plural
from tfpipe.formats import opening
from tfpipe.images import headers
from tfpipe.listing import selection
from tfpipe.listing.selection import Listing
from tfpipe.models import tta as views
from tfpipe.models.classifiers import Predictor, task_of, thresholds_of, units_of
from tfpipe.prediction import resumption, tables
from tfpipe.prediction.batches import ImageStream, read_image
from tfpipe.prediction.models import Model
from tfpipe.prediction.resumption import Unfinished

_log = logging.getLogger("tfpipe")
_SHOWN = 10


@dataclass(frozen=True)
class Summary:
    """Result of a prediction.

    Attributes:
        num_rows: of the output, one per image.
        counts: number of images by predicted class, in the model's order; an image may have several.
        mean_scores: mean probability of each class that was predicted.
        rejected: reason by image, for rows without a value.
        rejected_path: the list of these images, None without any.
        passed_over: names in folders and globs that do not look like images.
        has_numbers: the model is a regression: `counts` and `mean_scores` are of its targets, and the
            latter the mean of their values.
    """

    num_rows: int
    counts: Mapping[str, int]
    mean_scores: Mapping[str, float]
    rejected: Mapping[str, str]
    rejected_path: Path | None
    passed_over: Sequence[str]
    has_numbers: bool = False

    def __repr__(self) -> str:
        others = f"{len(self.rejected)} rejected, {len(self.passed_over)} passed over"
        return f"Summary(num_rows={self.num_rows}, counts={reprlib.repr(dict(self.counts))}, {others})"

    def _repr_html_(self) -> str:
        rows = [[name, count, self.mean_scores.get(name, "")] for name, count in self.counts.items()]
        return html_table(repr(self), ["predicted class", "images", "mean score"], rows)


@arguments.renamed(inputs="input")
def predict(
    model: Predictor | Model | str | os.PathLike[str],
    input: selection.Inputs,  # noqa: A002 (as the flag)
    output: str | os.PathLike[str],
    *,
    split: str | None = None,
    columns: tables.Columns = "full",
    format: tables.Format | None = None,  # noqa: A002
    top_k: int | None = None,
    positive_class: str | None = None,
    id_column: str = "id",
    value_column: str = "label",
    csv_safe: bool = True,
    on_error: Literal["fail", "report"] | None = None,
    batch_size: int = 64,
    tta: str | int | views.Tta | None = None,
    max_pixels: int = headers.DEFAULT_MAX_PIXELS,
    progress: bool = True,
    trust: bool = False,
) -> Summary:
    """Writes one row per image, ordered by id (1, 2, 10); replaces the output when complete.

    Stopped by Ctrl-C, a full disk or kill -9, it resumes when called again with the same arguments,
    from a hidden file beside the output, which is the same byte by byte. With another model, other
    images or other arguments, it starts from scratch.

    An id is the path below the given folder, without the extension of an image; x.jpg beside x.png
    keep theirs, where rows hold file names.

    Args:
        model: a run's folder, a .keras file of `tfpipe.train`, a file or folder of an export, or a
            model from `tfpipe.load`.
        input: files, folders (with all folders below), globs, CSV files with a column `path`
            (relative to the CSV's folder) and optionally `id`, or "-": paths on standard input, one
            a line or separated by NULs; or one data set.
        output: the file to write.
        split: of the data set; needed if it has several.
        columns: "full": id, filename, reason (empty for a good image), class_1, score_1, class_2,
            ..., then every probability. "label": id and predicted class. "index": id and its index,
            0-based. "probability": id and that of `positive_class`, or of every class if there are
            more than two and none is named. "table": key, filename, label (empty), predicted and
            every probability, as in evaluation. Probabilities have 9 significant digits. Of a model
            of several labels an image, those at their thresholds or above are predicted: "full" has
            a column more, labels, after reason; "label" is as "cat|dog"; there is no "index"; JSON
            lines have a list, labels. Of a regression: "full" has a column for each target after
            reason, as "age [years]"; "value" has id and these alone, without units; "table" has
            empty targets; JSON lines have an object, values.
        format: "csv", or "jsonl" for an object per image: id, filename, class, score, top,
            probabilities, reason. By default the extension of the output, else "csv".
        top_k: number of classes named in "full" and "jsonl"; 5 by default, at most all.
        positive_class: class of the probability; of two classes the second by default.
        id_column: header of the ids.
        value_column: header of the column of values.
        csv_safe: put an apostrophe before names that a spreadsheet would compute, those that begin
            with =, +, -, @ or a control character; `tfpipe.common.tables.unescape_formula` removes
            it. Always on with columns="table", as in evaluation.
        on_error: "fail": bad images are named and nothing is written. "report": they have a row
            without a value, and are listed in OUTPUT.rejected.jsonl, without OUTPUT's ".csv" or
            ".jsonl". By default "report" if rows hold the reason, else "fail".
        batch_size: images per call of the model. Probabilities depend on it by about 1e-6.
        tta: average several views of each image, see `tfpipe.evaluate`.
        max_pixels: height times width above which an image is bad.
        progress: show a bar.
        trust: trust the author of the model, see `tfpipe.load`.

    Raises:
        ValueError: an invalid argument, two images with one id, an image with two, or no images.
        FileNotFoundError: there is no such model or input.
        DataError: an image is bad; all that are bad without decoding are named at once.
        BlockingIOError: another process is writing this output.
        OSError: the output cannot be written.
    """
    batch_size, max_pixels, csv_safe, progress, trust, id_column, value_column = arguments.check(
        batch_size=batch_size,
        max_pixels=max_pixels,
        csv_safe=csv_safe,
        progress=progress,
        trust=trust,
        id_column=id_column,
        value_column=value_column,
    )
    (top_k,) = arguments.check_given(top_k=top_k)
    tta = views.check(tta)
    if on_error is not None:
        arguments.choice("on_error", on_error, ("fail", "report"))
    path = tables.check_output(arguments.path("output", output), model)
    file_format = tables.format_of(path) if format is None else format
    tables.check_options(file_format, columns)
    inputs = selection.given_paths(input)  # an iterator can be read only once
    listing = selection.list_images(inputs, split, tell_apart=columns not in tables.COMPETITION)
    _check_replaced(path, inputs, listing)
    _log_passed_over(listing.passed_over)
    predictor = _loaded(model, trust, tta)
    names = (positive_class, id_column, value_column, csv_safe)
    of_model = task_of(predictor), thresholds_of(predictor), units_of(predictor)
    form = tables.choose_form(file_format, columns, predictor.class_names, top_k, *names, *of_model)
    if csv_safe and columns in tables.COMPETITION:
        _warn_about_escapes([*(image.id for image in listing.images), *predictor.class_names])
    on_error = on_error or ("report" if form.has_reasons else "fail")
    # "names" tells these parts from those of versions that kept one class an image.
    options = ["names", file_format, columns, top_k, *names, on_error, batch_size, max_pixels, tfpipe.__version__]
    options += [str(way)] if (way := views.tta_of(predictor)) else []
    purpose = {"model": _identity(model, predictor), "inputs": selection.hash_listing(listing), "options": repr(options)}
    with resumption.unfinished(path, purpose) as work:  # opened first: a folder that cannot be written to fails here
        if on_error == "fail" and not work.following:
            _check_headers(listing, max_pixels, progress)
        if work.following:
            _log.info("resumes after %s of %s", f"{work.following:,}", plural(len(listing.images), "image"))
        batches = ImageStream(listing, predictor, batch_size, max_pixels).predict(work.following)
        bar = ProgressBar("predict", len(listing.images), initial=work.following, enabled=progress)
        with bar, closing(batches):
            for stop, outcomes in batches:
                work.append(stop, _part(outcomes, listing, form, fail=on_error == "fail"))
                bar.add(len(outcomes), 0)
        return _finish(work, path, listing, form, predictor.class_names)


def _part(outcomes: Mapping[int, tables.Outcome], listing: Listing, form: tables.Form, *, fail: bool) -> dict[str, Any]:
    """Returns the rows and statistics of a batch; raises the first rejection if `fail`."""
    best, rejected = [], []
    for index, outcome in outcomes.items():
        if not isinstance(outcome, RejectedImage):
            best.append([[index, float(outcome[index])] for index in form.named(outcome)])
        elif fail:
            raise outcome
        else:
            rejected.append([index, outcome.reason, outcome.message])
    rows = b"".join(form.row(listing.images[index], outcome) for index, outcome in outcomes.items())
    return {"rows": rows.decode(), "best": best, "rejected": rejected}


def _finish(work: Unfinished, path: Path, listing: Listing, form: tables.Form, class_names: Sequence[str]) -> Summary:
    """Puts the output and the list of bad images in place."""
    best, sums = Counter[int](), Counter[int]()
    rejected: dict[selection.Image, RejectedImage] = {}
    num_good = 0
    clear_up(tables.rejected_path(path))  # which may not be written this time
    with written_atomically(path) as file:
        file.write(form.header)
        for part in work.parts():
            file.write(part["rows"].encode())
            num_good += len(part["best"])
            for label, score in itertools.chain.from_iterable(part["best"]):
                best[label] += 1
                sums[label] += score
            rejected |= {listing.images[index]: RejectedImage(code, message) for index, code, message in part["rejected"]}
        num_rows = num_good + len(rejected)
        if num_rows != len(listing.images):
            raise DataError(f"{plural(num_rows, 'row')}, expected {len(listing.images):,}: predict again", path=path)
        rejected_path = tables.write_rejected(path, rejected.items())
    counts = {name: best[index] for index, name in enumerate(class_names)}
    means = {name: sums[index] / best[index] for index, name in enumerate(class_names) if best[index]}
    messages = {image.key: problem.message for image, problem in rejected.items()}
    return Summary(len(listing.images), counts, means, messages, rejected_path, listing.passed_over, form.names_all)


def _loaded(model: Any, trust: bool, tta: str | int | views.Tta | None) -> Predictor:
    if not isinstance(model, Model):
        is_path = not hasattr(model, "class_names")
        model = Model(opening.load(model, trust=trust) if is_path else model, source=model if is_path else None)
    predictor: Predictor = model.averaging(tta)
    return predictor


def _identity(model: Any, predictor: Predictor) -> str:
    """Returns a hash that changes if probabilities may change, even in their last digit."""
    facts: list[object] = [type(predictor).__qualname__, getattr(predictor, "form", ""), predictor.sha256]
    if (thresholds := thresholds_of(predictor)) is not None:
        facts.append(thresholds.tolist())
    if isinstance(model, str | os.PathLike):  # all files of an export have the hash of one model
        path = Path(model).resolve()
        graphs = sorted(path.rglob("*.pb")) if path.is_dir() else [path]
        facts += [(os.fspath(file), file.stat().st_size, file.stat().st_mtime_ns) for file in graphs]
    return hashlib.sha256(repr(facts).encode("utf-8", "backslashreplace")).hexdigest()


def _check_replaced(path: Path, inputs: Sequence[str | os.PathLike[str]], listing: Listing) -> None:
    if not path.exists():
        return
    for name in (*inputs, *(image.path for image in listing.images)):
        if os.path.exists(name) and os.path.samefile(name, path):
            raise ValueError(f"{path}: output must be another file than the inputs, of which this is one")


def _log_passed_over(names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        _log.info("passed over, by their names no images or walked already: %s%s", ", ".join(names[:_SHOWN]), more)


def _warn_about_escapes(names: Iterable[str]) -> None:
    if name := next((name for name in names if escape_formula(name) != name), None):
        advice = "if these rows are for a program: csv_safe=False (--nocsv_safe)"
        _log.warning("%r is written as %r, so that no spreadsheet computes it; %s", name, escape_formula(name), advice)


def _check_headers(listing: Listing, max_pixels: int, progress: bool) -> None:
    """Raises DataError with all files with bad headers; records were checked when packed."""
    if listing.data_set is not None:
        return
    problems = []
    with ProgressBar("check headers", len(listing.images), enabled=progress) as bar:
        for image in listing.images:
            found = read_image(image, max_pixels)
            problems += [found] if isinstance(found, RejectedImage) else []
            bar.add(1, 0 if isinstance(found, RejectedImage) else len(found.data))
    if problems:
        advice = (
            "mend or remove them, choose with a glob ('test1/**/*.jpg'), or give them rows without a value (on_error=report)"
        )
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise DataError(f"{plural(len(problems), 'input')} cannot be predicted; {advice}:{listed}", problems=problems)
