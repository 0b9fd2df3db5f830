"""How the demo page looks: answers as pieces of HTML, in the colours and the font of the page they are put in.

Every name that comes from outside is escaped by `tfpipe.report.markup`; pictures and the CSV are part of the markup, so that
no file is made for them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfpipe.common.tables import escape_formula
from tfpipe.common.text import plural
from tfpipe.models.classifiers import Predictor
from tfpipe.page.answers import Answer, Resemblance, Row
from tfpipe.prediction.tables import best_of
from tfpipe.report import figures
from tfpipe.report.markup import Html, element, image, join

STYLE = """
footer { display: none !important; } .html-container { padding: 0 !important; }
.gradio-container .main.app { max-width: 1140px; margin-left: auto; margin-right: auto; padding: 20px; }
@media (max-width: 760px) { .gradio-container .main.app { padding: 14px 12px; } }
.tfpipe { font-size: 1rem; line-height: 1.5; overflow-wrap: anywhere; }
.tfpipe h1 { font-size: 1.4rem; font-weight: 600; margin: 0 0 .2em; }
.tfpipe h2 { font-size: 1.05rem; font-weight: 600; margin: 0 0 .6em; }
.tfpipe p { margin: .2em 0; }
.tfpipe .faint, .tfpipe figcaption { font-size: .875rem; line-height: 1.4; font-weight: 400;
  color: color-mix(in srgb, var(--body-text-color) 68%, var(--body-background-fill)); }
.tfpipe section { background: var(--block-background-fill); border: 1px solid var(--border-color-primary);
  border-radius: 8px; padding: 18px 20px; margin-bottom: 16px; }
.tfpipe figure { margin: 0; min-width: 0; }
.tfpipe figure img { display: block; border-radius: 4px; margin-bottom: 6px; max-width: 100%; }
.tfpipe .answer { display: grid; grid-template-columns: 1fr 1fr 1.4fr; gap: 20px; align-items: start; }
.tfpipe .answer.short { grid-template-columns: 1fr 2.4fr; }
.tfpipe .answer figure img { width: 100%; max-height: 420px; object-fit: contain; object-position: top left; }
.tfpipe .label { font-size: 1.6rem; font-weight: 600; line-height: 1.2; margin: 0 0 .5em; }
.tfpipe .bars { display: grid; grid-template-columns: minmax(4em, auto) minmax(60px, 1fr) max-content; gap: 6px 12px;
  align-items: center; font-size: .95rem; }
.tfpipe .bars > * { min-width: 0; } .tfpipe .value { text-align: right !important; font-variant-numeric: tabular-nums; }
.tfpipe .track { background: var(--border-color-primary); border-radius: 3px; height: 10px; overflow: hidden; }
.tfpipe .track i { display: block; height: 100%; background: #3d7ea6; }
.tfpipe .neighbours { display: grid; grid-template-columns: repeat(auto-fit, minmax(104px, 1fr)); gap: 16px; }
.tfpipe .neighbours img { width: 100%; aspect-ratio: 1; object-fit: contain; object-position: bottom left; }
.tfpipe .neighbours b, .tfpipe .neighbours span { display: block; } .tfpipe figcaption span { color: inherit; }
.tfpipe .seen { display: grid; grid-template-columns: repeat(auto-fill, minmax(120px, 300px)); gap: 20px; }
.tfpipe .seen img { width: 100%; image-rendering: pixelated; }
.tfpipe .problem { border-left: 4px solid #b3412e; } .tfpipe .reason { color: #b3412e; }
.dark .tfpipe .reason { color: #e8907f; }
.tfpipe .scroll { overflow: auto; max-height: 70vh; }
.tfpipe table, .tfpipe tr { border: 0 !important; background: none; }
.tfpipe table { border-collapse: collapse; width: 100%; margin: 0; font-size: .9rem; }
.tfpipe th, .tfpipe td { padding: 6px 14px 6px 0; text-align: left; vertical-align: middle; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important; overflow-wrap: break-word; }
.tfpipe th { position: sticky; top: 0; background: var(--block-background-fill); font-weight: 600; }
.tfpipe th:first-child { width: 62px; } .tfpipe th.value, .tfpipe td.value { width: 5em; padding-right: 24px; }
.tfpipe td img { width: 48px; min-width: 48px; height: 48px; object-fit: contain; border-radius: 3px; margin: 0; }
.tfpipe td.name { overflow-wrap: anywhere; min-width: 6em; }
.tfpipe .bar-line { display: flex; justify-content: space-between; align-items: baseline; gap: 4px 20px; flex-wrap: wrap; }
.tfpipe a.keep { color: var(--link-text-color); text-decoration: underline; font-size: .95rem;
  padding: 0 !important; margin: 0 !important; }
@media (max-width: 760px) {
  .tfpipe .answer, .tfpipe .answer.short { grid-template-columns: 1fr 1fr; gap: 14px; }
  .tfpipe .answer > div { grid-column: 1 / -1; grid-row: 1; }
  .tfpipe .answer.short figure { grid-column: 1 / -1; }
  .tfpipe .seen { grid-template-columns: 1fr 1fr; gap: 14px; } .tfpipe section { padding: 14px; }
  .tfpipe .neighbours { grid-template-columns: repeat(3, 1fr); gap: 12px; }
  .tfpipe th, .tfpipe td { padding-right: 10px; } .tfpipe .then { display: none; }
}
"""

_INVITATION = "Drop a picture here, choose one, or paste one. Several become a table."
_MAX_BARS = 10
_MAX_ROWS = 1000
_TOP = 3
_COLUMNS = {"": "", "file": "", "class": "", "score": "value", "then": "then"}  # and the class of their cells

Array = np.ndarray[Any, Any]


def header(title: str, predictor: Predictor, notes: Sequence[str]) -> Html:
    """Returns the head of the page: what is asked here, and what cannot be shown."""
    height, width = predictor.image_size
    classes = plural(len(predictor.class_names), "class", "classes")
    facts = f"{classes} · input {height} x {width}, resize={predictor.resize} · model {predictor.sha256[:12]}"
    lines = (element("p", note, class_="faint") for note in notes)
    return _block(element("h1", title), element("p", facts, class_="faint"), *lines, element("p", _INVITATION))


def answer(name: str, said: Answer, predictor: Predictor, gallery_name: str) -> Html:
    """Returns what is said of one picture.

    Args:
        name: of its file.
        said: the answer.
        predictor: the model that gave it.
        gallery_name: what the neighbours were looked for in: "train, 1,080 pictures".
    """
    sections = [element("section", _first(name, said, predictor))]
    if said.neighbours:
        title = element("h2", "Nearest training pictures ", element("span", f"by feature, of {gallery_name}", class_="faint"))
        found = element("div", *map(_neighbour, said.neighbours), class_="neighbours")
        sections.append(element("section", title, found))
    seen = element("div", *_seen(said), class_="seen")
    return _block(*sections, element("section", element("h2", "What the model sees"), seen))


def _first(name: str, said: Answer, predictor: Predictor) -> Html:
    best = predictor.class_names[int(said.probabilities.argmax())]
    shown = [_figure(said.picture, 640, name)]
    if said.heat is not None:
        speaks = join(["what speaks for ", element("b", best), ", most where it is red (Grad-CAM)"])
        shown.append(_figure(said.heat, 640, speaks if said.speaks else join(["no place speaks for ", best, " (Grad-CAM)"])))
    bars = element("div", element("p", best, class_="label"), *_bars(said.probabilities, predictor.class_names))
    return element("div", *shown, bars, class_="answer" if len(shown) > 1 else "answer short")


def _bars(probabilities: Array, class_names: Sequence[str]) -> Iterator[Html]:
    order = best_of(probabilities, len(probabilities))
    cells = []
    for place in order[:_MAX_BARS]:
        share = float(probabilities[place])
        track = Html(f'<span class="track"><i style="width:{share:.2%}"></i></span>')
        cells += [element("span", class_names[place]), track, element("span", _percent(share), class_="value")]
    yield element("div", *cells, class_="bars")
    if len(order) > _MAX_BARS:
        rest = float(probabilities[order[_MAX_BARS:]].sum())
        yield element(
            "p",
            f"{plural(len(order) - _MAX_BARS, 'more class', 'more classes')} with {_percent(rest)} together",
            class_="faint",
        )


def _neighbour(found: Resemblance) -> Html:
    neighbour, picture = found
    shown = Html("") if picture is None else image(figures.photograph(picture, 256), "training picture")
    gone = element("span", "cannot be read any more", class_="reason") if picture is None else Html("")
    similarity = element("span", f"{neighbour.similarity:.3f}")
    name = element("b", neighbour.class_name or "no class")
    caption = element("figcaption", gone, name, similarity, element("span", neighbour.key))
    return element("figure", shown, caption)


def _seen(said: Answer) -> Iterator[Html]:
    height, width = said.seen.shape[:2]
    yield _figure(said.seen, None, f"the picture, resized to {height} x {width}, 8 bits a channel")
    if said.prepared is not None:
        shown, words = visible(said.prepared)
        yield _figure(shown, None, words)


def visible(prepared: Array) -> tuple[Array, str]:
    """Returns numbers as a picture, uint8 [H, W, 3], and how they were made visible.

    Args:
        prepared: float32 [H, W, 1 or 3].
    """
    low, high = float(prepared.min()), float(prepared.max())
    levels = np.rint((prepared - low) / ((high - low) or 1) * 255).astype(np.uint8)
    channels = "as grey" if prepared.shape[-1] == 1 else "the channels, in the network's order, as red, green and blue"
    words = f"what its preprocessing makes of that: {low:.4g} to {high:.4g}, drawn from dark to bright, {channels}"
    return np.broadcast_to(levels, (*levels.shape[:2], 3)), words


def refusal(name: str, problem: str) -> Html:
    """Returns why a file has no answer."""
    title = element("h2", "No picture that can be read")
    said = element("p", problem, class_="reason")
    expected = element("p", "JPEG and PNG files are taken.", class_="faint")
    return _block(element("section", title, element("p", element("b", name)), said, expected, class_="problem"))


def table(rows: Sequence[Row], class_names: Sequence[str]) -> Html:
    """Returns a line per file, and the same as a CSV to keep."""
    num_bad = sum(1 for row in rows if row.probabilities is None)
    said = plural(len(rows), "file") + (f", {num_bad:,} of them no pictures that can be read" if num_bad else "")
    shortened = f"The first {_MAX_ROWS:,} are shown; all are in the CSV." if len(rows) > _MAX_ROWS else ""
    uri = figures.data_uri(to_csv(rows, class_names), "text/csv;charset=utf-8")
    link = element("a", "Download as CSV", href=uri, download="predictions.csv", class_="keep")
    head = element("tr", *(element("th", name, class_=kind) for name, kind in _COLUMNS.items()))
    lines = (_line(row, class_names) for row in rows[:_MAX_ROWS])
    drawn = element("div", element("table", element("thead", head), element("tbody", *lines)), class_="scroll")
    title = element("div", element("h2", said), link, class_="bar-line")
    return _block(element("section", title, element("p", shortened, class_="faint"), drawn))


def _line(row: Row, class_names: Sequence[str]) -> Html:
    name = element("td", row.name, class_="name")
    if row.probabilities is None or row.picture is None:
        return element("tr", element("td"), name, Html(f'<td colspan="3" class="reason">{join([row.problem])}</td>'))
    thumbnail = element("td", image(figures.photograph(row.picture, 96), "picture"))
    (best, score), *others = _top(row.probabilities, class_names)
    then = ", ".join(f"{other} {_percent(share)}" for other, share in others)
    cells = (
        element("td", element("b", best)),
        element("td", _percent(score), class_="value"),
        element("td", then, class_="then"),
    )
    return element("tr", thumbnail, name, *cells)


def to_csv(rows: Sequence[Row], class_names: Sequence[str]) -> bytes:
    """Returns the rows as a CSV for spreadsheets: UTF-8 with a byte order mark, every cell quoted, none a formula.

    A text that a spreadsheet would compute ("=1+1.jpg", "-3", "@x") has an apostrophe before it, its sign for text. Scores
    have 9 significant digits: read back as float32, they are the same numbers.
    """
    ranks = range(min(_TOP, len(class_names)))
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)  # quoted, so that a ";" in a name is no border where commas are not
    names = [f"{word}{f' {rank + 1}' if rank else ''}" for rank in ranks for word in ("class", "score")]
    writer.writerow(["file", *names, "problem"])
    for row in rows:
        best = [] if row.probabilities is None else _top(row.probabilities, class_names)
        answers = [cell for name, share in best for cell in (escape_formula(name), f"{share:.9g}")] or [""] * len(names)
        writer.writerow([escape_formula(row.name), *answers, escape_formula(row.problem)])
    return file.getvalue().encode("utf-8-sig", "replace")


def _top(probabilities: Array, class_names: Sequence[str]) -> list[tuple[str, float]]:
    return [(class_names[place], float(probabilities[place])) for place in best_of(probabilities, _TOP)]


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _figure(picture: Array, side: int | None, caption: object) -> Html:
    """Returns a picture with what it is; exact levels where there is no side that it has to fit in."""
    uri = figures.data_uri(_png(picture), "image/png") if side is None else figures.photograph(picture, side)
    return element("figure", image(uri, "picture"), element("figcaption", caption))


def _png(picture: Array) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "PNG")
    return file.getvalue()


def _block(*content: object) -> Html:
    return element("div", *content, class_="tfpipe")
