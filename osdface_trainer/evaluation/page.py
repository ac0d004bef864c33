"""The page of the gallery: markup, style and script, with %MARKS% where the report goes in."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>%HEADING%</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 1500px; }
h1 { font-size: 1.4rem; }
pre { overflow-x: auto; background: var(--soft); padding: .7rem; border-radius: 6px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
th, td { text-align: left; padding: .2rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
details { margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
.bar { position: sticky; top: 0; z-index: 5; padding: .6rem 0; background: Canvas;
  border-bottom: 1px solid var(--line);
  display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; }
.bar input[type=range] { width: 10rem; vertical-align: middle; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1rem;
  margin-top: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.view { position: relative; background: var(--soft);
  cursor: ew-resize; touch-action: pan-y; user-select: none; }
.view img { display: block; width: 100%; pointer-events: none; }
.view img + img { position: absolute; inset: 0; height: 100%; }
.edge { position: absolute; top: 0; bottom: 0; width: 2px; background: #fff; box-shadow: 0 0 3px #000; }
.tag { position: absolute; bottom: 6px; padding: 0 .4rem; border-radius: 4px;
  background: #000a; color: #fff; font-size: .75rem; }
figcaption { padding: .4rem .6rem .6rem; font-size: .85rem; }
figcaption b { overflow-wrap: anywhere; }
figcaption input { width: 100%; margin: .2rem 0; }
.stops { display: flex; justify-content: space-between; font-size: .75rem; opacity: .75; }
.numbers { display: grid; grid-template-columns: 1fr auto auto; gap: 0 .8rem; margin-top: .3rem;
  font-variant-numeric: tabular-nums; }
.rank { font-weight: 700; }
.soft { opacity: .7; }
</style>
</head>
<body>
<h1>%HEADING%</h1>
%VERDICT%
<div class="scroll">%TABLES%</div>
%NOTES%
<div class="bar">
  <label>Sort by <select id="by"></select></label>
  <label><input type="checkbox" id="worst" checked> worst first</label>
  <label id="profiles" hidden>Profile <select id="profile"></select></label>
  <label id="groupings" hidden>Group <select id="group"></select></label>
  <label>All sliders <input type="range" id="all" min="0" max="2" step="0.01" value="0.5"></label>
  <span id="count"></span>
</div>
<div class="grid" id="grid"></div>
<p><button id="more">Show more</button></p>
<script type="application/json" id="data">%DATA%</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const LABELS = {input: "LQ", restored: "restored", reference: "reference"};
const columns = new Map(data.columns.map(c => [c.name, c]));
let limit = data.first;

function option(select, value, text) {
  const node = document.createElement("option");
  node.value = value;
  node.textContent = text;
  select.append(node);
}
function span(text, cls) {
  const node = document.createElement("span");
  node.textContent = text;
  if (cls) node.className = cls;
  return node;
}
function badness(row) {
  const c = columns.get($("by").value), v = c && row.restored[c.name];
  if (v === null || v === undefined) return -Infinity;
  return c.better === "higher" ? -v : c.better === "lower" ? v : Math.abs(Math.log(Math.max(v, 1e-6)));
}
/* position 0 shows the first picture, 1 the second, 2 the third; between two, a wipe from one to the next */
function place(view, position) {
  const pictures = [...view.querySelectorAll("img")], last = pictures.length - 1;
  const p = Math.min(Math.max(position, 0), last);
  const i = Math.min(Math.floor(p), Math.max(last - 1, 0)), t = p - i;
  pictures.forEach((picture, k) => {
    picture.style.visibility = k === i || k === i + 1 ? "visible" : "hidden";
    picture.style.clipPath = k === i + 1 ? `inset(0 0 0 ${(1 - t) * 100}%)` : "none";
  });
  const edge = view.querySelector(".edge"), [left, right] = view.querySelectorAll(".tag");
  edge.style.left = `calc(${(1 - t) * 100}% - 1px)`;
  edge.hidden = t < 0.005 || t > 0.995;
  left.textContent = pictures[i].dataset.label;
  left.style.left = "6px";
  left.hidden = t > 0.9;
  right.textContent = last > 0 ? pictures[i + 1].dataset.label : "";
  right.style.right = "6px";
  right.hidden = last < 1 || t < 0.1;
}
function makeView(row, sides) {
  const view = document.createElement("div");
  view.className = "view";
  for (const side of sides) {
    const picture = document.createElement("img");
    picture.src = "data:image/jpeg;base64," + row.pictures[side];
    picture.alt = `${row.name}, ${LABELS[side]}`;
    picture.dataset.label = LABELS[side];
    view.append(picture);
  }
  view.append(span("", "edge"), span("", "tag"), span("", "tag"));
  return view;
}
function makeSlider(view, sides) {
  const slider = document.createElement("input");
  Object.assign(slider, {type: "range", min: 0, max: Math.max(sides.length - 1, 0), step: 0.01});
  slider.value = Math.min(Number($("all").value), sides.length - 1);
  slider.ariaLabel = sides.map(s => LABELS[s]).join(", ");
  slider.addEventListener("input", () => place(view, Number(slider.value)));
  let wipe = 0;
  const drag = event => {
    const box = view.getBoundingClientRect(), t = 1 - (event.clientX - box.left) / box.width;
    slider.value = wipe + Math.min(Math.max(t, 0), 1);
    place(view, Number(slider.value));
  };
  view.addEventListener("pointerdown", event => {
    wipe = Math.min(Math.floor(Number(slider.value)), Math.max(sides.length - 2, 0));
    drag(event);
    view.setPointerCapture(event.pointerId);
  });
  view.addEventListener("pointermove", event => { if (event.buttons) drag(event); });
  return slider;
}
function makeNumbers(row) {
  const numbers = document.createElement("div");
  numbers.className = "numbers";
  for (const c of data.columns) {
    const text = v => v === null || v === undefined ? "–" : v.toFixed(c.digits);
    const cls = c.name === $("by").value ? "rank" : "";
    const before = c.name in row.input ? "LQ " + text(row.input[c.name]) : "";
    const cells = [span(c.name, cls), span(text(row.restored[c.name]), cls), span(before, "soft")];
    for (const cell of cells) cell.title = c.about;
    numbers.append(...cells);
  }
  return numbers;
}
function card(row) {
  const figure = document.createElement("figure"), caption = document.createElement("figcaption");
  const sides = ["input", "restored", "reference"].filter(s => row.pictures[s]);
  const view = makeView(row, sides), slider = makeSlider(view, sides);
  const stops = document.createElement("div"), name = document.createElement("b");
  stops.className = "stops";
  stops.append(...sides.map(s => span(LABELS[s])));
  name.textContent = (row.profile ? row.profile + "/" : "") + row.name;
  const groups = Object.entries(row.groups).map(([k, v]) => `${k} ${v}`).join(", ");
  caption.append(slider, stops, name, span(groups ? "  " + groups : ""), makeNumbers(row));
  figure.append(view, caption);
  place(view, Number(slider.value));
  return figure;
}
function show() {
  const profile = $("profile").value, [key, value] = JSON.parse($("group").value || "[null,null]");
  const sign = $("worst").checked ? -1 : 1;
  const rows = data.rows.filter(
    r => (!profile || r.profile === profile) && (!key || r.groups[key] === value));
  rows.sort((a, b) => { const x = badness(a), y = badness(b); return x === y ? 0 : x < y ? -sign : sign; });
  $("grid").replaceChildren(...rows.slice(0, limit).map(card));
  $("count").textContent = `${Math.min(limit, rows.length)} of ${rows.length}`;
  $("more").hidden = rows.length <= limit;
}
for (const c of data.columns) option($("by"), c.name, c.name);
$("by").value = data.rank;
const profiles = [...new Set(data.rows.map(r => r.profile))];
option($("profile"), "", "all");
for (const p of profiles) if (p) option($("profile"), p, p);
$("profiles").hidden = profiles.length < 2;
option($("group"), "", "all");
const seen = new Set();
for (const r of data.rows) for (const pair of Object.entries(r.groups)) seen.add(JSON.stringify(pair));
for (const pair of [...seen].sort()) option($("group"), pair, JSON.parse(pair).join(" = "));
$("groupings").hidden = seen.size === 0;
for (const id of ["by", "worst", "profile", "group"])
  $(id).addEventListener("change", () => { limit = data.first; show(); });
$("more").addEventListener("click", () => { limit += data.first; show(); });
$("all").addEventListener("input", () => {
  for (const figure of document.querySelectorAll("figure")) {
    const slider = figure.querySelector("input");
    slider.value = $("all").value;
    place(figure.querySelector(".view"), Number(slider.value));
  }
});
show();
</script>
</body>
</html>
"""
