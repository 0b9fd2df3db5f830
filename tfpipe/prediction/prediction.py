"""`tfpipe.predict()`: one row per image, whatever becomes of the image.

    predict("runs/a", "photos/", "predictions.csv")                            # id,filename,reason,class_1,score_1,...
    predict("runs/a", "photos/", "predictions.jsonl")                          # an object per image
    predict("runs/a", "test1/", "submission.csv", columns="label")             # id,label: 1,dog
    predict("runs/a", "test1/", "submission.csv", columns="probability")       # id,label: 1,0.998712003
    predict("runs/a", "shards/", "table.csv", split="test1", columns="table")  # the columns of evaluate's predictions.csv

Pixels are those that evaluation sees: the same decoder, orientation and resize. Which rows there
are, and in which order, is known before the model runs, so rows are written as they come, memory
does not grow with them, and a prediction that was stopped goes on at its next batch.
"""

from __future__ import annotations

import hashlib
import logging
import os
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
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
from tfpipe.models.classifiers import Predictor
from tfpipe.prediction import preflight, resumption, tables
from tfpipe.prediction.batches import ImageBatches, Predicted, look
from tfpipe.prediction.models import Model
from tfpipe.prediction.resumption import Unfinished

_log = logging.getLogger("tfpipe")
_SHOWN = 10


@dataclass(frozen=True)
class Summary:
    """What was written.

    Attributes:
        num_rows: of the output, one per image.
        counts: images by predicted class, in the model's order.
        mean_scores: of the images of each predicted class: how sure the model is; without those
            that have none.
        rejected: reason by image, for those whose row has no value.
        rejected_path: where those are listed, None where there are none.
        passed_over: names in folders and globs that were not taken for images.
    """

    num_rows: int
    counts: Mapping[str, int]
    mean_scores: Mapping[str, float]
    rejected: Mapping[str, str]
    rejected_path: Path | None
    passed_over: Sequence[str]

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
    max_pixels: int = headers.DEFAULT_MAX_PIXELS,
    progress: bool = True,
    trust: bool = False,
) -> Summary:
    """Writes one row per image, ordered by id (1, 2, 10), and replaces the output when all rows are there.

    Stopped, by Ctrl-C, a full disk or kill -9, it goes on when it is called again with the same
    arguments, and the output is the same, byte by byte. What is done until then lies in a hidden
    file beside the output. With another model, other images or other arguments, it begins anew.

    An id is the path below what was given, without an image's extension; x.jpg beside x.png keep
    theirs, where rows hold file names.

    Args:
        model: a run's folder, a .keras file of `tfpipe.train`, a file or folder of an export, or
            what `tfpipe.load` returns.
        input: files, folders (with all folders below), globs, CSV files with a column `path`
            (relative to the CSV's folder) and, if you like, `id`, or "-": paths on standard input,
            one a line or separated by NULs; or one data set.
        output: the file to write.
        split: of the data set; needed where it has several.
        columns: "full": id, filename, reason (empty where there is nothing to say), class_1,
            score_1, class_2, ..., then every probability. "label": id and predicted class. "index":
            id and its number, 0-based. "probability": id and that of `positive_class`, or of every
            class where there are more than two and none is named. "table": key, filename, label
            (empty), predicted and every probability, as evaluation writes them. Probabilities have
            9 significant digits.
        format: "csv", or "jsonl" for an object per image: id, filename, class, score, top,
            probabilities, reason. By default what the output's name ends with, else "csv".
        top_k: how many classes "full" and "jsonl" name; by default 5, and never more than there
            are.
        positive_class: whose probability to write; of two classes the second if not given.
        id_column: header of the ids.
        value_column: header of the one value beside them.
        csv_safe: put an apostrophe before names of a CSV that a spreadsheet would compute, those
            that begin with =, +, -, @ or a control character;
            `tfpipe.common.tables.unescape_formula` removes it. columns="table" always does, as
            evaluation.
        on_error: "fail": bad images are named and nothing is written. "report": they have a row
            without a value, and are listed in OUTPUT.rejected.jsonl, without OUTPUT's ".csv" or
            ".jsonl". By default "report" where the row says the reason, "fail" where it has no
            place for it.
        batch_size: images that the model sees at once. Probabilities depend on it by about 1e-6.
        max_pixels: height times width above which an image is bad.
        progress: show a bar.
        trust: whoever made the model, see `tfpipe.load`.

    Raises:
        ValueError: an argument is not what it should be, two images have the same id, an image has
            two, or there are none.
        FileNotFoundError: there is no such model or input.
        DataError: an image is bad; all that can be seen to be so without decoding them are named at
            once.
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
    if on_error is not None:
        arguments.choice("on_error", on_error, ("fail", "report"))
    path = preflight.check_output(arguments.path("output", output), model)
    file_format = preflight.format_of(path) if format is None else format
    tables.check_options(file_format, columns)
    # Whoever asks for ids alone would meet one that he does not know.
    inputs = selection.given_paths(input)  # an iterator can be asked once
    listing = selection.list_images(inputs, split, tell_apart=columns not in tables.COMPETITION)
    _check_replaced(path, inputs, listing)
    _say_passed_over(listing.passed_over)
    predictor = _loaded(model, trust)
    words = (positive_class, id_column, value_column, csv_safe)
    form = tables.choose_form(file_format, columns, predictor.class_names, top_k, *words)
    if csv_safe and columns in tables.COMPETITION:
        _say_escaped([*(image.id for image in listing.images), *predictor.class_names])
    on_error = on_error or ("report" if form.reports else "fail")
    # "scores": what parts hold, since others were without.
    options = ["scores", file_format, columns, top_k, *words, on_error, batch_size, max_pixels, tfpipe.__version__]
    purpose = {"model": _identity(model, predictor), "inputs": selection.hash_listing(listing), "options": repr(options)}
    with resumption.unfinished(path, purpose) as work:  # opened first: a folder that cannot be written to fails here
        if on_error == "fail" and not work.following:
            _check_images(listing, max_pixels, progress)
        batches = ImageBatches(listing, predictor, batch_size, max_pixels)
        _predict_rest(work, batches, listing, form, fail=on_error == "fail", progress=progress)
        return _finish(work, path, listing, form, predictor.class_names)


def _predict_rest(
    work: Unfinished, batches: ImageBatches, listing: Listing, form: tables.Form, *, fail: bool, progress: bool
) -> None:
    """Adds a part for each batch that is not done."""
    if work.following:
        _log.info("goes on after %s of %s", f"{work.following:,}", plural(len(listing.images), "image"))
    bar = ProgressBar("predict", len(listing.images), initial=work.following, enabled=progress)
    with bar, closing(batches.predict(work.following)) as predicted:
        for batch in predicted:
            problems = [(index, answer) for index, answer in batch.rows if isinstance(answer, RejectedImage)]
            if problems and fail:
                raise problems[0][1]
            work.append(batch.stop, _part(batch, listing, form, problems))
            bar.add(len(batch.rows), 0)


def _part(
    batch: Predicted, listing: Listing, form: tables.Form, problems: Sequence[tuple[int, RejectedImage]]
) -> dict[str, Any]:
    rows = b"".join(form.row(listing.images[index], answer) for index, answer in batch.rows)
    answers = [answer for _, answer in batch.rows if not isinstance(answer, RejectedImage)]
    best = [[int(answer.argmax()), float(answer.max())] for answer in answers]
    rejected = [[index, problem.reason, problem.message] for index, problem in problems]
    return {"rows": rows.decode(), "best": best, "rejected": rejected}


def _finish(work: Unfinished, path: Path, listing: Listing, form: tables.Form, class_names: Sequence[str]) -> Summary:
    """Puts the output in place, and the list of bad images beside it."""
    best, sums = Counter[int](), Counter[int]()
    rejected: dict[selection.Image, RejectedImage] = {}
    clear_up(tables.rejected_path(path))  # which may not be written this time
    with written_atomically(path) as file:
        file.write(form.header())
        for part in work.parts():
            file.write(part["rows"].encode())
            for label, score in part["best"]:
                best[label] += 1
                sums[label] += score
            rejected |= {listing.images[index]: RejectedImage(code, message) for index, code, message in part["rejected"]}
        num_rows = best.total() + len(rejected)
        if num_rows != len(listing.images):
            raise DataError(f"{plural(num_rows, 'row')}, expected {len(listing.images):,}: predict again", path=path)
        rejected_path = tables.write_rejected(path, rejected.items())
    counts = {name: best[index] for index, name in enumerate(class_names)}
    means = {name: sums[index] / best[index] for index, name in enumerate(class_names) if best[index]}
    messages = {image.key: problem.message for image, problem in rejected.items()}
    return Summary(len(listing.images), counts, means, messages, rejected_path, listing.passed_over)


def _loaded(model: Any, trust: bool) -> Predictor:
    if isinstance(model, Model):
        return model.predictor
    predictor: Predictor = model if hasattr(model, "class_names") else opening.load(model, trust=trust)
    return predictor


def _identity(model: Any, predictor: Predictor) -> str:
    """Returns a hash that is another one where probabilities may be others, be it in their last digit."""
    facts: list[object] = [type(predictor).__qualname__, getattr(predictor, "form", ""), predictor.sha256]
    if isinstance(model, str | os.PathLike):  # every form of a model has the hash of the one that it was made from
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


def _say_passed_over(names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        _log.info("passed over, by their names no images or walked already: %s%s", ", ".join(names[:_SHOWN]), more)


def _say_escaped(names: Sequence[str]) -> None:
    if escaped := [name for name in names if escape_formula(name) != name]:
        advice = "if these rows are for a program: csv_safe=False (--nocsv_safe)"
        _log.warning(
            "%r is written as %r, so that no spreadsheet computes it; %s", escaped[0], escape_formula(escaped[0]), advice
        )


def _check_images(listing: Listing, max_pixels: int, progress: bool) -> None:
    """Raises DataError if a file is no image, as far as can be seen without decoding; names all. Records were looked at."""
    if listing.data_set is not None:
        return
    problems = []
    with ProgressBar("look at the headers", len(listing.images), enabled=progress) as bar:
        for image in listing.images:
            found = look(image, max_pixels)
            problems += [found] if isinstance(found, RejectedImage) else []
            bar.add(1, 0 if isinstance(found, RejectedImage) else len(found.data))
    if problems:
        raise _all_bad(problems)


def _all_bad(problems: Sequence[RejectedImage]) -> DataError:
    advice = "mend or remove them, choose with a glob ('test1/**/*.jpg'), or give them rows without a value (on_error=report)"
    return DataError(
        f"{plural(len(problems), 'input')} cannot be predicted; {advice}:" + "".join(f"\n  {problem}" for problem in problems),
        problems=problems,
    )
