"""A page on this machine to try a model on: drop an image, see the prediction and what explains it.

    with serve("runs/a") as url:
        ...    # http://127.0.0.1:7860/

It listens on 127.0.0.1 alone, contacts no other machine, and keeps uploads for an hour at most.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfpipe.common.errors import DataError, RejectedImage
from tfpipe.common.files import temporary_folder
from tfpipe.common.text import plural
from tfpipe.evaluation import feature_index
from tfpipe.evaluation.feature_index import FeatureIndex
from tfpipe.formats import opening
from tfpipe.images.headers import DEFAULT_MAX_PIXELS
from tfpipe.listing.selection import natural_key
from tfpipe.models.classifiers import Classifier, Predictor, task_of
from tfpipe.page import page_markup, preflight
from tfpipe.page.answers import Answers, Upload
from tfpipe.page.preflight import HOST
from tfpipe.records import run_folders
from tfpipe.records.manifest import REGRESSION
from tfpipe.report import templates

DEFAULT_PORT = 7860
DEFAULT_MAX_BYTES = 20_000_000
DEFAULT_MAX_TRAINING = 1000

_KEPT_SECONDS = 3600
_FONTS = ("system-ui", "Segoe UI", "Roboto", "Noto Sans", "Noto Sans CJK SC", "sans-serif")
_log = logging.getLogger("tfpipe")


@contextlib.contextmanager
def serve(
    model: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    split: str = "train",
    max_training: int = DEFAULT_MAX_TRAINING,
    port: int = DEFAULT_PORT,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    open_browser: bool = False,
    progress: bool = True,
    allowed_hosts: Sequence[str] = (),
    trust: bool = False,
) -> Iterator[str]:
    """Opens the page and yields its address; the page ends with the block.

    Args:
        model: a run's folder or a .keras file: everything; a file or folder of an export: scores
            and the model's input.
        data: training images to look for neighbours among; default the data set of the run, if it
            is still there.
        split: of the data set.
        max_training: at most so many training images (up to a full batch), as they are stored; 0:
            no neighbours.
        port: to listen on; 0: any free one.
        max_bytes: of an uploaded file.
        max_pixels: height times width above which an image is rejected.
        open_browser: show the page in the browser.
        progress: show a bar while the training images are read.
        allowed_hosts: names beside 127.0.0.1 and localhost under which the page responds, on any
            port: those of a proxy. Under others, any page in the browser could read it, once its
            name leads here ("DNS rebinding").
        trust: the model's author, see `tfpipe.load`.

    Raises:
        ImportError: Gradio is not installed.
        OSError: the port is taken.
        ValueError, FileNotFoundError, DataError: there is no such model or given data set, or the
            model cannot compare images.
    """
    gradio = _import_gradio()
    own_names = preflight.host_names(allowed_hosts)
    port = preflight.free_port(port)  # before minutes of work
    predictor = opening.load(model, trust=trust)
    if task_of(predictor) == REGRESSION:
        raise ValueError(f"{model}: the page shows classes and their probabilities, and this is a regression: take predict")
    index, notes = _open_index(predictor, model, data, split, max_training, progress)
    answers = Answers(predictor, index, max_pixels)
    predictor.predict(np.zeros((1, *predictor.image_size, 3), np.uint8))  # the first call takes longest
    with temporary_folder("page") as folder, _environment(folder):
        title = os.path.basename(os.path.abspath(model))
        page = _layout(gradio, title, page_markup.header(title, predictor, notes), answers)
        try:
            page.launch(
                server_name=HOST,
                server_port=port,
                max_file_size=max_bytes,
                inbrowser=open_browser,
                theme=gradio.themes.Base(font=_FONTS, font_mono=["monospace"]),
                css=templates.render("page.css"),
                js=templates.render("page.js"),
                share=False,
                ssr_mode=False,
                run_history=False,
                enable_monitoring=False,
                footer_links=[],
                prevent_thread_lock=True,
                quiet=True,
                app_kwargs={"lifespan": functools.partial(_guarded, own_names=own_names)},
            )
            yield page.local_url
        finally:
            page.close(verbose=False)


@contextlib.asynccontextmanager
async def _guarded(app: Any, own_names: frozenset[str]) -> AsyncIterator[None]:
    # When the server starts, and around all that Gradio has: its CORS accepts requests from this
    # machine, and from the pages of any host.
    app.middleware_stack = _OwnPages(app.middleware_stack, own_names)
    yield


class _OwnPages:
    """Accepts requests under the page's names, and from its own pages, see `preflight.is_own_page`."""

    def __init__(self, app: Any, own_names: frozenset[str]) -> None:
        self._app, self._own_names = app, own_names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            if not preflight.is_own_page(headers.get(b"host", ""), headers.get(b"origin"), self._own_names):
                await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
                await send({"type": "http.response.body", "body": preflight.NOT_OWN.encode()})
                return
        await self._app(scope, receive, send)


def _import_gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ImportError(f"the page needs Gradio ({error}): pip install 'tfpipe[page]'") from error
    return gradio


@contextlib.contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Makes Gradio keep uploads in a folder, and check that it is up without a proxy in between."""
    direct = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), HOST)))
    wanted = {"GRADIO_TEMP_DIR": os.path.realpath(folder), "no_proxy": direct, "NO_PROXY": direct}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _open_index(
    predictor: Predictor,
    model: str | os.PathLike[str],
    data: str | os.PathLike[str] | None,
    split: str,
    max_training: int,
    progress: bool,
) -> tuple[FeatureIndex | None, list[str]]:
    """Returns the features of the training images where available, and notes for the page."""
    if not isinstance(predictor, Classifier):
        if data is not None:
            raise ValueError(f"data={os.fspath(data)!r} needs a run's model to compare with; {model} has probabilities only")
        return None, ["Probabilities only: Grad-CAM and the nearest training images need the run's folder."]
    if not max_training:
        return None, []
    try:
        directory = run_folders.locate_data(model) if data is None else Path(data)
        index = feature_index.collect(predictor, directory, split, max_images=max_training, progress=progress)
    except (DataError, FileNotFoundError, ValueError) as error:
        if data is not None:
            raise
        _log.warning("no nearest training images: %s; give their place with --data=FOLDER", error)
        return None, [f"No nearest training images: {error}."]
    return index, []


def _describe(index: FeatureIndex | None) -> str:
    if index is None:
        return ""
    num_all, num_here = index.reader.num_records, len(index.keys)
    drawn = f"{num_here:,} drawn from its {plural(num_all, 'image')}" if num_here < num_all else plural(num_all, "image")
    return f"{index.split}, {drawn}"


def _layout(gradio: Any, title: str, header: str, answers: Answers) -> Any:
    """Returns the page, not served yet."""
    predictor, described = answers.predictor, _describe(answers.index)

    def respond(uploads: Sequence[Upload], progress: Any) -> str:
        if len(uploads) == 1:
            name, path = uploads[0]
            found = answers.answer(path)
            if isinstance(found, RejectedImage):
                return page_markup.rejection(name, found.message)
            return page_markup.answer(name, found, predictor, described)
        ordered = sorted(uploads, key=lambda upload: natural_key(upload.name))
        rows = list(progress.tqdm(answers.rows(ordered), total=len(ordered), desc="images", unit="images"))
        return page_markup.table(rows, predictor.class_names, page_markup.labels_of(predictor))

    def receive(files: Sequence[Mapping[str, Any]], progress: Any = gradio.Progress()) -> tuple[str, None]:  # noqa: B008
        uploads = [Upload(file.get("orig_name") or os.path.basename(file["path"]), file["path"]) for file in files or ()]
        return respond(uploads, progress), None  # None: ready for the next one

    with gradio.Blocks(title=f"{title} · tfpipe", analytics_enabled=False, delete_cache=(60, _KEPT_SECONDS)) as page:
        gradio.HTML(header, js_on_load=None)
        images = gradio.File(file_count="multiple", show_label=False, elem_id="images", height=130)
        shown = gradio.HTML("", elem_id="answer", js_on_load=None)
        # Without Gradio's preprocessing, which would drop the file's own name; where the path leads
        # is checked all the same. multiple: by default Gradio drops uploads while it is busy.
        options = {"preprocess": False, "api_visibility": "private", "trigger_mode": "multiple"}
        images.upload(receive, [images], [shown, images], **options)
    return page
