"""One HTML page with everything in it: tables, and every image with a slider LQ | restored | reference.

The page refers to nothing outside itself, so it opens offline and can be mailed.
"""

import base64
import html
import io
import json

import numpy as np
from PIL import Image
from torch import Tensor

from osdface_core.images import from_unit

from ..metrics.base import Column
from .scores import Report, Row, finite_values, worst_first
from .table import to_text

LIMIT = 300
"""Images that are embedded at most; of more, the worst ones of each profile are."""
THUMB = 384
"""[px] longest side of an embedded picture: skin and eyes show, and the page is small enough to mail."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>%HEADING%</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 1500px; }
pre { overflow-x: auto; }
#bar { position: sticky; top: 0; z-index: 1; padding: .6rem 0; background: Canvas; }
#bar > * { margin-right: 1rem; }
#grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1rem; }
figure { margin: 0; }
.view { position: relative; cursor: ew-resize; touch-action: pan-y; user-select: none; }
.view img { display: block; width: 100%; pointer-events: none;
  clip-path: inset(0 0 0 calc((var(--place) - var(--shown)) * 100%)); }
.view img + img { position: absolute; inset: 0; }
figcaption input, table { width: 100%; font-size: .85rem; }
.stops { display: flex; justify-content: space-between; }
</style>
<h1>%HEADING%</h1>
<pre>%TABLES%</pre>
<div id="bar">
  <label>Sort by <select id="by"></select></label>
  <label><input type="checkbox" id="worst" checked> worst first</label>
  <label>All sliders <input type="range" id="all" max="2" step="0.01" value="0.5"></label>
  <span id="count"></span>
</div>
<div id="grid"></div>
<script type="application/json" id="data">%DATA%</script>
<script>
"use strict";
const [data, bar, by, worst, all, count, grid] =
  ["data", "bar", "by", "worst", "all", "count", "grid"].map(id => document.getElementById(id));
const {columns, rank, rows} = JSON.parse(data.textContent);
const LABELS = {input: "LQ", restored: "restored", reference: "reference"};
const filters = new Map();
const escape = text => text.replace(/[&<>"]/g, mark => `&#${mark.charCodeAt(0)};`);

function badness(row) {
  const column = columns.find(one => one.name === by.value), value = row.restored[by.value] ?? null;
  if (value === null) return -Infinity;
  return {higher: -value, lower: value, one: Math.abs(Math.log(Math.max(value, 1e-6)))}[column.better];
}
/* 0 shows the first picture, 1 the second, 2 the third; between two, a wipe from one to the next */
function move(figure, value) {
  const slider = figure.querySelector("input");
  slider.value = value;
  figure.style.setProperty("--shown", slider.value);
}
function numbers(row) {
  const text = (values, column) => values[column.name]?.toFixed(column.digits) ?? "";
  return columns.map(column => `<tr title="${escape(column.about)}"><td>${column.name}</td>
    <td>${text(row.restored, column)}</td><td>${text(row.input, column)}</td></tr>`).join("");
}
function card(row) {
  const sides = Object.keys(LABELS).filter(side => row.pictures[side]);
  const figure = document.createElement("figure");
  figure.innerHTML = `<div class="view"></div><figcaption>
    <input type="range" max="${sides.length - 1}" step="0.01">
    <div class="stops">${sides.map(side => `<span>${LABELS[side]}</span>`).join("")}</div>
    <b>${escape(row.name)}</b> ${escape(Object.values(row.groups).join(", "))}
    <table><tr><td></td><td>restored</td><td>LQ</td></tr>${numbers(row)}</table></figcaption>`;
  sides.forEach((side, place) => {
    const picture = new Image();
    picture.src = "data:image/jpeg;base64," + row.pictures[side];
    picture.alt = `${row.name}, ${LABELS[side]}`;
    picture.style.setProperty("--place", place);
    figure.firstChild.append(picture);
  });
  move(figure, all.value);
  return figure;
}
function show() {
  const kept = rows.filter(row => [...filters].every(
    ([key, select]) => !select.value || row.groups[key] === select.value));
  kept.sort((a, b) => (badness(b) - badness(a) || 0) * (worst.checked ? 1 : -1));
  grid.replaceChildren(...kept.map(card));
  count.textContent = `${kept.length} of ${rows.length}`;
}
for (const column of columns) by.add(new Option(column.name));
by.value = rank;
for (const key of new Set(rows.flatMap(row => Object.keys(row.groups)))) {
  const label = document.createElement("label"), select = document.createElement("select");
  select.add(new Option("all", ""));
  for (const value of [...new Set(rows.map(row => row.groups[key] ?? ""))].sort())
    if (value) select.add(new Option(value));
  label.append(key + " ", select);
  count.before(label);
  filters.set(key, select);
}
bar.addEventListener("change", event => { if (event.target !== all) show(); });
all.addEventListener("input", () => grid.querySelectorAll("figure").forEach(one => move(one, all.value)));
grid.addEventListener("input", event => move(event.target.closest("figure"), event.target.value));
grid.addEventListener("pointermove", event => {
  if (!event.buttons || event.target.className !== "view") return;
  const figure = event.target.parentNode, wipe = Math.ceil(figure.querySelector("input").value) - 1;
  const box = event.target.getBoundingClientRect();
  move(figure, Math.max(wipe, 0) + 1 - (event.clientX - box.left) / box.width);
});
show();
</script>
"""


def render(report: Report, *, heading: str = "Evaluation", verdict: str = "", sort: str | None = None) -> str:
    """Render the page as text.

    Args:
        verdict: preformatted text shown on top (the targets).
        sort: the column that ranks images at first; None takes the report's ranking column.
    """
    ranked = report.column(sort)
    rows = _embedded(report, ranked)
    tables = f"{verdict}\n\n{to_text(report)}"
    if len(rows) < sum(bool(row.thumbs) for row in report.rows):
        tables += f"\n{len(rows)} of {len(report.rows)} images are shown, the worst first.\n"
    data = {
        "columns": [vars(column) for column in report.columns if report.column(column.name)],
        "rank": ranked.name if ranked else "",
        "rows": [_row(row) for row in rows],
    }
    replacements = {
        "%HEADING%": html.escape(heading),
        # The page names where weights come from, but holds no link.
        "%TABLES%": html.escape(tables.strip().replace("https://", "").replace("http://", "")),
        "%DATA%": json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
    }
    page = PAGE
    for mark, text in replacements.items():
        page = page.replace(mark, text)
    return page


def _embedded(report: Report, ranked: Column | None) -> list[Row]:
    rows = [row for row in report.rows if row.thumbs]
    if len(rows) <= LIMIT or ranked is None:
        return rows[:LIMIT]
    share = LIMIT // len(report.profiles)
    kept = [
        worst_first([row for row in rows if row.profile == profile], ranked)[:share]
        for profile in report.profiles
    ]
    return [row for group in kept for row in group]


def _row(row: Row) -> dict[str, object]:
    return {
        "name": row.name,
        "groups": {**({"profile": row.profile} if row.profile else {}), **row.groups},
        "restored": finite_values(row.restored),
        "input": finite_values(row.input),
        "pictures": {side: base64.b64encode(data).decode("ascii") for side, data in row.thumbs.items()},
    }


def thumbnail(image: Tensor) -> bytes:
    """Encode (3,H,W) float in [0,1] -> JPEG of at most `THUMB` px."""
    picture = Image.fromarray(from_unit(image, np.uint8))
    picture.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
