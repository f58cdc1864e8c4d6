// Draws the page from DATA (made by sections.py). Text goes into the page with textContent only, so nothing that a run
// folder contains is ever read as HTML. Positions of axes are linear: log10 of a cost, "stretched" top-1, steps.
"use strict";

const $ = (id) => document.getElementById(id);
const POINTS = DATA.points.map((p, i) => ({ ...p, id: `point-${i}`, title: `${label(p.stage)}, measurement ${i + 1}` }));
const FAMILY = DATA.family.map((f) => ({ ...f, id: f.name, title: f.name }));
const state = { cost: DATA.cost, hidden: new Set(), selected: null };

// -- text

function label(stage) { return DATA.stages[stage].label; }
function percent(x, digits = 2) { return Number.isFinite(x) ? `${(100 * x).toFixed(digits)} %` : "–"; }
function short(x, unit = "") {
  if (!Number.isFinite(x)) return "–";
  const [scale, prefix] = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([s]) => Math.abs(x) >= s) ?? [1, ""];
  const value = x / scale, digits = value < 10 ? 2 : value < 100 ? 1 : 0;
  return `${prefix ? value.toFixed(digits) : Number(value.toPrecision(3))} ${prefix}${unit}`.trim();
}
function tick(x) { return short(x).replace(/(\.\d*?)0+ /, "$1 ").replace(". ", " "); }
function costText(value, cost) { return short(value, DATA.costs[cost].includes("bytes") ? "B" : ""); }
function costName(cost) { return DATA.costs[cost].replace(" (bytes)", ""); }
function facts(item) {
  const lines = [["Validation top-1", percent(item.top1)]];
  if (item.test !== undefined) lines.push(["Test top-1", percent(item.test)]);
  if (item.balanced_test != null) lines.push(["Balanced accuracy, test", percent(item.balanced_test)]);
  DATA.costs.forEach((_, c) => lines.push([costName(c), costText(item.costs[c], c)]));
  if (item.searcher) lines.push(["Found by", item.searcher]);
  return lines;
}

// -- elements

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}
function el(tag, attributes = {}, ...children) { return fill(document.createElement(tag), attributes, children); }
function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}
function numberIn(text) { // of "12.3 kB" or "98.1 %"; NaN of words
  const match = /^(-?[\d,]*\.?\d+) ?([kMGT]?)(B|%|ms|min|×)?$/.exec(text.trim());
  return match ? Number(match[1].replaceAll(",", "")) * { "": 1, k: 1e3, M: 1e6, G: 1e9, T: 1e12 }[match[2]] : NaN;
}
function sortable(box) { // a click on a title sorts the rows, a second one the other way round
  const heads = [...box.querySelectorAll("thead th")], body = box.querySelector("tbody");
  heads.forEach((head, column) => {
    const sort = () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const text = (row) => row.cells[column].textContent, sign = rising ? 1 : -1;
      body.append(...[...body.rows].sort((a, b) => {
        const [x, y] = [numberIn(text(a)), numberIn(text(b))];
        return sign * (Number.isNaN(x) || Number.isNaN(y) ? text(a).localeCompare(text(b)) : x - y);
      }));
    };
    head.replaceChildren(el("button", { type: "button", class: "sort", onclick: sort }, ...head.childNodes));
  });
  return box;
}
function table(caption, head, rows, foot, sorts) {
  const made = plainTable(caption, head, rows, foot);
  return sorts ? sortable(made) : made;
}
function plainTable(caption, head, rows, foot) {
  const side = (i) => (/^[\d–]/.test(rows[0][i]) ? null : "left"); // numbers to the right, words to the left
  const cell = (content, i) => el(i ? "td" : "th", { class: side(i), scope: i ? null : "row" }, content);
  const line = (cells) => el("tr", {}, ...cells.map(cell));
  return el("div", {}, el("p", { class: "soft" }, caption), // not a <caption>, which would scroll with a wide table
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, el("table", { "aria-label": caption },
      el("thead", {}, el("tr", {}, ...head.map((text, i) => el("th", { class: side(i), scope: "col" }, text)))),
      el("tbody", {}, ...rows.map(line)),
      foot && el("tfoot", {}, line(foot)))));
}
function list(pairs) {
  const kept = pairs.filter(([, value]) => value != null && value !== "" && value !== false);
  return el("dl", {}, ...kept.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}
function nothing(section, text) { $(section).querySelector(".content")?.remove(); $(section).append(el("p", { class: "soft" }, text)); }

// -- charts

const SHAPES = { // path of a marker around (x, y)
  o: (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
  s: (x, y, r) => `M${x - r * 0.9} ${y - r * 0.9}h${1.8 * r}v${1.8 * r}h${-1.8 * r}z`,
  "^": (x, y, r) => `M${x} ${y - 1.15 * r}l${1.1 * r} ${2 * r}h${-2.2 * r}z`,
  v: (x, y, r) => `M${x} ${y + 1.15 * r}l${1.1 * r} ${-2 * r}h${-2.2 * r}z`,
  D: (x, y, r) => `M${x} ${y - 1.25 * r}l${1.25 * r} ${1.25 * r}l${-1.25 * r} ${1.25 * r}l${-1.25 * r} ${-1.25 * r}z`,
  P: (x, y, r) => `M${x - r / 3} ${y - r}h${r / 1.5}v${r / 1.5}h${r / 1.5}v${r / 1.5}h${-r / 1.5}v${r / 1.5}h${-r / 1.5}v${-r / 1.5}h${-r / 1.5}v${-r / 1.5}h${r / 1.5}z`,
  X: (x, y, r) => `M${x - r} ${y - r}h${0.7 * r}l${0.3 * r} ${0.5 * r}l${0.3 * r} ${-0.5 * r}h${0.7 * r}l${-0.6 * r} ${r}l${0.6 * r} ${r}h${-0.7 * r}l${-0.3 * r} ${-0.5 * r}l${-0.3 * r} ${0.5 * r}h${-0.7 * r}l${0.6 * r} ${-r}z`,
};
function color(stage) { return `light-dark(${DATA.stages[stage].light}, ${DATA.stages[stage].dark})`; }
function marks(stage, places, r) { return places.map(([x, y]) => SHAPES[DATA.stages[stage].marker](x, y, r)).join(""); }
function line(places) {
  let open = false; // a value that is not a number interrupts the line
  return places.map(([x, y]) => {
    const step = Number.isFinite(y) ? `${open ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}` : "";
    open = step !== "";
    return step;
  }).join("");
}
function swatch(stage) {
  const shape = svg("path", { d: marks(stage, [[7, 7]], 5), style: `fill:${color(stage)}` });
  return svg("svg", { width: 14, height: 14, "aria-hidden": "true" }, shape);
}
function linearTicks(low, high) {
  const step = [1, 2, 5].flatMap((m) => [...Array(16).keys()].map((k) => m * 10 ** (k - 5))).sort((a, b) => a - b)
    .find((s) => (high - low) / s <= 6) ?? 1;
  const first = Math.ceil(low / step - 1e-9);
  return [...Array(8).keys()].map((k) => (first + k) * step).filter((t) => t <= high + 1e-9 * step);
}
function logTicks(low, high) {
  const decades = [...Array(Math.ceil(high - low) + 2).keys()].map((k) => Math.floor(low) + k);
  const ticks = [[1, 2, 5], [1, 2, 3, 4, 5, 6, 8], [...Array(18).keys()].map((k) => 1 + k / 2)].map((steps) =>
    decades.flatMap((e) => steps.map((m) => Math.log10(m) + e)).filter((t) => t >= low && t <= high));
  return ticks.find((t) => t.length > 2) ?? ticks[2];
}
// axes: {low, high, ticks: [[position, text]], title}; returns the drawing and the functions to pixels
function frame(box, x, y, name) {
  const width = box.clientWidth || 600, height = Math.max(340, Math.min(540, width * 0.78));
  const left = 56, right = 12, top = 22, bottom = 42;
  const px = (v) => left + (v - x.low) / (x.high - x.low || 1) * (width - left - right);
  const py = (v) => height - bottom - (v - y.low) / (y.high - y.low || 1) * (height - top - bottom);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": name });
  let last = -Infinity;
  for (const [at, text] of x.ticks) {
    root.append(svg("line", { class: "grid", x1: px(at), x2: px(at), y1: top, y2: height - bottom }));
    if (px(at) - last < 46 || px(at) > width - 20) continue; // no room for its text
    root.append(svg("text", { x: px(at), y: height - bottom + 17, "text-anchor": "middle" }, text));
    last = px(at);
  }
  for (const [at, text] of y.ticks) {
    root.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: py(at), y2: py(at) }));
    root.append(svg("text", { x: left - 7, y: py(at) + 4, "text-anchor": "end" }, text));
  }
  root.append(svg("text", { x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, x.title));
  root.append(svg("text", { x: 2, y: 12 }, y.title));
  box.replaceChildren(root);
  return { root, px, py, width };
}

function drawPareto() {
  const cost = state.cost, visible = (item) => !state.hidden.has(item.stage) && item.costs[cost] != null; // float has no cost of a table
  const xs = [...POINTS, ...FAMILY].filter(visible).map((i) => Math.log10(i.costs[cost]));
  const low = xs.length ? xs.reduce((a, b) => Math.min(a, b)) : 0, high = xs.length ? xs.reduce((a, b) => Math.max(a, b)) : 1;
  const margin = 0.04 * (high - low) || 0.1;
  const x = { low: low - margin, high: high + margin, title: DATA.costs[cost] };
  x.ticks = logTicks(x.low, x.high).map((t) => [t, tick(10 ** t)]);
  const { root, px, py, width } = frame($("pareto-chart"), x, { ...DATA.top1_axis, title: "Validation top-1" },
    `Validation top-1 against ${DATA.costs[cost]}; the table of chosen networks has the numbers`);
  const place = (item) => [px(Math.log10(item.costs[cost])), py(-Math.sqrt(Math.max(0, 1 - item.top1)))];
  const shown = (item) => visible(item) && -Math.sqrt(1 - item.top1) >= DATA.top1_axis.low;
  const below = POINTS.filter((p) => visible(p) && !shown(p)).length;
  $("below").textContent = below ? `${below} measured networks lie below the picture.` : "";
  const targets = [], walk = []; // targets: [item, x, y, bonus] for the pointer; walk: front items for the keyboard
  const aim = (items, bonus) => items.forEach((item) => targets.push([item, ...place(item), bonus]));
  const layers = [svg("g"), svg("g"), svg("g")];
  DATA.stages.forEach((_, stage) => {
    if (state.hidden.has(stage)) return;
    const points = POINTS.filter((p) => p.stage === stage && shown(p));
    const front = DATA.fronts[cost][stage].map((i) => POINTS[i]);
    const fill = `fill:${color(stage)}`;
    layers[0].append(svg("path", { d: marks(stage, points.map(place), 2.6), style: `${fill};opacity:.28` }));
    layers[1].append(svg("path", { d: line(front.map(place)), style: `fill:none;stroke:${color(stage)};stroke-width:2` }));
    layers[1].append(svg("path", { d: marks(stage, front.map(place), 3.6), style: fill }));
    aim(points, 0); aim(front, 4); walk.push(...front);
  });
  for (const item of FAMILY.filter(shown)) {
    const [cx, cy] = place(item), right = cx < 130; // up and left of a front there is room
    layers[2].append(svg("path", { d: marks(item.stage, [[cx, cy]], 7), style: `fill:${color(item.stage)};stroke:var(--text);stroke-width:1.5` }));
    layers[2].append(svg("text", { class: "name", x: cx + (right ? 9 : -9), y: cy - 8, "text-anchor": right ? "start" : "end" },
      item.name.replace(`${DATA.stages[item.stage].name}-`, ""))); // the colour says the rest
  }
  aim(FAMILY.filter(shown), 7);
  const ring = svg("circle", { r: 12, style: "fill:none;stroke:var(--accent);stroke-width:2.5" });
  if (state.selected && shown(state.selected)) fill(ring, { cx: place(state.selected)[0], cy: place(state.selected)[1] }, []);
  else ring.setAttribute("r", 0);
  root.append(...layers, ring);
  listen(root, targets, walk, width);
}
function listen(root, targets, walk, width) {
  const tip = el("div", { class: "tip", hidden: "" });
  $("pareto-chart").append(tip);
  const nearest = (event) => {
    const box = root.getBoundingClientRect(), mx = event.clientX - box.left, my = event.clientY - box.top;
    let best = null, least = 22;
    for (const [item, x, y, bonus] of targets) {
      const distance = Math.hypot(x - mx, y - my) - bonus;
      if (distance < least) [best, least] = [[item, x, y], distance];
    }
    return best;
  };
  root.addEventListener("pointermove", (event) => {
    const hit = nearest(event);
    tip.hidden = !hit;
    root.classList.toggle("pickable", Boolean(hit));
    if (!hit) return;
    tip.textContent = [hit[0].title, ...facts(hit[0]).map(([name, value]) => `${name}: ${value}`)].join("\n");
    tip.style.top = `${hit[2] + 14}px`;
    tip.style.left = `${Math.max(0, Math.min(hit[1] + 14, width - tip.offsetWidth))}px`;
  });
  root.addEventListener("pointerleave", () => { tip.hidden = true; });
  root.addEventListener("click", (event) => { const hit = nearest(event); if (hit) select(hit[0]); });
  fill(root, { tabindex: 0, onkeydown: (event) => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (!step || !walk.length) return;
    event.preventDefault();
    const now = walk.indexOf(state.selected);
    select(walk[now < 0 ? 0 : (now + step + walk.length) % walk.length]);
    $("pareto-chart").querySelector("svg").focus();
  } }, []);
}
function drawCurves() {
  const last = (series) => series.flatMap((points) => points.map(([step]) => step)).reduce((a, b) => Math.max(a, b), 1);
  const draw = (id, title, series, low, high) => {
    const steps = linearTicks(0, last(series.map((s) => s.points))), values = linearTicks(low, high);
    const x = { low: 0, high: last(series.map((s) => s.points)), title: "step", ticks: steps.map((t) => [t, tick(t)]) };
    const asText = (t) => (id === "top1-chart" ? `${Number((100 * t).toPrecision(6))} %` : String(Number(t.toPrecision(6))));
    const { root, px, py } = frame($(id), x, { low, high, title, ticks: values.map((t) => [t, asText(t)]) }, title);
    for (const { stage, points, dash, dots } of series) {
      const places = points.map(([step, value]) => [px(step), py(value)]);
      root.append(svg("path", { d: line(places), style: `fill:none;stroke:${color(stage)};stroke-width:1.8`, "stroke-dasharray": dash }));
      if (dots) root.append(svg("path", { d: marks(stage, places, 3), style: `fill:${color(stage)}` }));
      if (places.length && !dash) root.append(svg("text", { class: "name", x: places[0][0] + 4, y: 38 }, label(stage)));
    }
  };
  const losses = DATA.curves.map((c) => ({ stage: c.stage, points: c.loss }));
  const values = losses.flatMap((s) => s.points.map(([, v]) => v)).filter(Number.isFinite);
  draw("loss-chart", "Training loss", losses, 0, 1.15 * values.reduce((a, b) => Math.max(a, b), 0.01));
  const top1 = DATA.curves.flatMap((c) => [
    { stage: c.stage, points: c.largest, dots: true }, { stage: c.stage, points: c.smallest, dash: "5 4", dots: true }]);
  const least = top1.flatMap((s) => s.points.map(([, v]) => v)).reduce((a, b) => Math.min(a, b), 0.99);
  draw("top1-chart", "Validation top-1", top1, Math.max(0, least - 0.05), 1 + 0.1 * (1 - least));
}

// -- selecting a network

function select(item, quietly = false) {
  state.selected = item;
  if (!quietly) history.replaceState(null, "", `#select=${encodeURIComponent(item.id)}`);
  const rows = item.layers.map((i) => DATA.rows[i]);
  const cells = ([name, role, cin, cout, k, stride, size, w, a, macs, bytes]) => [
    name.includes(".") ? name.slice(0, name.lastIndexOf(".")) : name, name.includes(".") ? name.split(".").at(-1) : role, `${cin} → ${cout}`,
    `${k}×${k}`, String(stride), `${size}×${size}`, w === 32 && a === 32 ? "float" : `${w}/${a}`, short(macs), short(bytes, "B")];
  const sum = (column) => rows.reduce((total, row) => total + row[column], 0);
  const arch = Object.fromEntries(DATA.choices.map((name, i) => [name, item.arch[i]]).filter(([, value]) => value != null));
  $("panel").replaceChildren(
    el("h3", {}, item.title), list(facts(item)),
    table(`${rows.length} layers; bits of weights / inputs, size of the output`,
      ["Layer", "Role", "Channels", "Kernel", "Stride", "Size", "Bits", "MACs", "Weights"], rows.map(cells),
      ["Total", "", "", "", "", "", "", short(sum(9)), short(sum(10), "B")]),
    el("details", {}, el("summary", { class: "soft" }, "Architecture as JSON"), el("pre", {}, JSON.stringify(arch))));
  if ($("pareto-chart")) drawPareto();
}
function fromAddress() {
  const id = decodeURIComponent(location.hash.replace(/^#select=/, ""));
  return [...FAMILY, ...POINTS].find((item) => item.id === id);
}

// -- sections

function several() {
  const { columns, rows, note } = DATA.runs;
  $("title").textContent = `${rows.length} runs on common axes`;
  document.querySelector("#about h2").textContent = "The runs";
  $("about").append(el("p", {}, note), table("Volume: how much of the box over error and the logarithm of a cost, between the best and the worst network of all runs, the front of a run covers. More is better.", columns, rows, null, true));
  $("made").textContent = "Each run has a report of its own.";
}
function about() {
  if (DATA.runs) return several();
  const { run } = DATA, data = run.data ?? {}, model = run.model ?? {}, classes = data.classes ?? [];
  $("title").textContent = [run.method ?? "run", data.name].filter(Boolean).join(" on ");
  $("subtitle").textContent = [run.device, run.version && `oncequant ${run.version}`].filter(Boolean).join(" · ");
  const size = data.size && `${data.size}×${data.size} px, ${data.channels === 1 ? "grey" : "colour"}`;
  const splits = ["train", "validation", "test"].filter((s) => data[s] != null).map((s) => `${data[s]} ${s}`).join(", ");
  const names = classes.slice(0, 20).join(", ") + (classes.length > 20 ? ` and ${classes.length - 20} more` : "");
  $("about").append(list([
    ["Images", [splits, size].filter(Boolean).join("; ")], ["Classes", classes.length ? `${classes.length}: ${names}` : ""],
    ["Fingerprint of the data", data.fingerprint], ["Model", [model.name, model.preset].filter(Boolean).join(", ")],
    ["Seed", run.seed], ["Versions", [run.commit && `commit ${run.commit}`, run.torch && `torch ${run.torch}`].filter(Boolean).join(", ")],
    ["Commands", el("pre", {}, run.commands.join("\n"))]]));
  if (run.method_config) {
    $("about").append(el("details", {}, el("summary", { class: "soft" }, "All settings of the method and the model"),
      el("pre", {}, JSON.stringify({ method: run.method_config, model: model.config }, null, 1))));
  }
  $("made").textContent = [run.version && `Made by oncequant ${run.version}`, run.commit && `commit ${run.commit}`].filter(Boolean).join(", ") + ". Dates and times, among them the latency of files: times.html, beside this page.";
}
function familyTable() {
  const pick = (item) => el("button", { type: "button", onclick: () => { select(item); $("pareto").scrollIntoView(); } }, item.name);
  const names = { top1: "top-1", balanced: "balanced accuracy" }, several = FAMILY.some((f) => f.metric === "balanced");
  const extra = [["Balanced accuracy, test", "balanced_test"], ["Predicted", "predicted"], ["Balanced accuracy, predicted", "balanced_predicted"], ...(several ? [["Balanced accuracy, validation", "balanced_validation"]] : []), ["Before zero points were rounded", "before_folding"]].filter(([, key]) => FAMILY.some((f) => f[key] != null));
  $("family").append(table(`Chosen by ${several ? "accuracy" : "top-1"} on the validation images alone. Select a name to see its layers.`,
    ["Network", "Bits", ...(several ? ["Chosen by"] : []), "Test top-1", "Validation top-1", ...extra.map(([title]) => title), ...DATA.costs.map((_, c) => costName(c))],
    FAMILY.map((f) => [pick(f), label(f.stage), ...(several ? [names[f.metric]] : []), percent(f.test), percent(f.top1),
      ...extra.map(([, key]) => (f[key] == null ? "–" : percent(f[key]))), ...f.costs.map(costText)]), null, true));
}
function picture(name, alt, place = "mixed") {
  if (DATA.pictures?.[name]) $(place).append(el("img", { src: `data:image/png;base64,${DATA.pictures[name]}`, alt }));
}
function mixedTables() {
  const p = DATA.predictions, widths = [...new Set(DATA.bits_by_role.flatMap((r) => Object.keys(r.shares)))].sort((a, b) => a - b);
  if (DATA.bits_by_role.length) {
    $("mixed").append(table("Bit-widths along the front of validation top-1 and BitOPs: share of the layers of each role.",
      ["Role", "Of", "Layers", ...widths.map((w) => `${w} bit`), "Mean"],
      DATA.bits_by_role.map((r) => [r.role, r.what, String(r.layers), ...widths.map((w) => percent(r.shares[w] ?? 0, 0)), r.mean.toFixed(2)])));
  }
  if (p) {
    $("mixed").append(table("The accuracy predictor, judged on subnets that it was not fitted to.",
      ["Measured subnets", "Held out", "Kendall tau", "Root mean square error", "Hypervolume, mixed precision", "Hypervolume, uniform bits"],
      [[String(p.pairs), String(p.held_out), p.kendall_tau.toFixed(3), percent(p.rmse),
        ...["predicted", "uniform"].map((k) => (p.hypervolume?.[k] == null ? "–" : p.hypervolume[k].toFixed(4)))]]));
    picture("predictor", "Predicted against measured validation accuracy.");
  }
}
function distributionTable() {
  const d = DATA.distribution, last = d.tables.at(-1);
  $("mixed").append(table(
    `What the search learned: probability of each pair of bit-widths at its end (step ${d.times.at(-1)}). The mean entropy of a choice fell from ${
      d.entropy[0].toFixed(2)} to ${d.entropy.at(-1).toFixed(2)} bits.`,
    ["Choice", ...d.candidates], d.choices.map((name, i) => [name, ...last[i].map((p) => percent(p, 0))])));
  picture("distribution", "How the distribution sharpened over the steps of the search.");
}
function exportsTable() {
  const { names, columns, texts, notes } = DATA.exports;
  $("exports").append(table(`Each network has a folder in the run, exports/NAME. ${notes}`,
    ["Network", ...columns], names.map((name, i) => [name, ...texts[i]]), null, true));
}
function searcherTable() {
  $("searchers").append(table(
    "Hypervolume over top-1 and the logarithm of a cost: how much of the box between the worst and the best values measured at this bit-width the searcher's own front covers. More is better; compare at equal numbers of measurements.",
    ["Bits", "Searcher", "Measurements", "Best validation top-1", ...DATA.costs.map((_, c) => `Hypervolume, ${costName(c)}`)],
    DATA.searchers.map((s) => [label(s.stage), s.searcher, String(s.measured), percent(s.best), ...s.shares.map((x) => percent(x, 1))])));
}
function comparedTable() {
  const c = DATA.comparison, volume = (way, cost) => (c.hypervolumes[way] ? c.hypervolumes[way][cost].toFixed(3) : "–");
  const against = (way) => { const a = c.against_supernet[way];
    return a ? `${a.at_least} of ${a.budgets} (${(100 * a.mean_lead).toFixed(2)} points)` : "–"; };
  $("compared").append(table(`Networks of ${c.bits} bits for equal budgets of BitOPs, made in several ways; hypervolume of test error and a cost, as a share of the box up to the worst. The last column: at how many budgets the supernet's network is at least as accurate, and its mean lead.`,
    ["Way", "Networks", "Training images", "Seconds of training", "Mean test top-1", "Hypervolume, BitOPs", "Hypervolume, packed weights", "Supernet at least as accurate"],
    c.totals.filter((t) => t.deployments === c.deployments.filter((d) => d.way === t.way).length).map((t) => [t.way, String(t.networks), t.images.toLocaleString("en"),
      t.seconds.toFixed(0), percent(t.top1_test), volume(t.way, "bitops"), volume(t.way, "weight_bytes"), against(t.way)])));
  picture("compare", "Test top-1 against BitOPs and packed weights.", "compared");
}
function pareto() {
  DATA.costs.forEach((_, c) => $("cost").append(el("option", { value: c, selected: c === state.cost && "" }, costName(c))));
  $("cost").addEventListener("change", () => { state.cost = Number($("cost").value); drawPareto(); });
  DATA.stages.forEach((_, stage) => {
    if (![...POINTS, ...FAMILY].some((item) => item.stage === stage)) return;
    const box = el("input", { type: "checkbox", checked: "", onchange: () => {
      state.hidden[box.checked ? "delete" : "add"](stage); drawPareto(); } });
    $("legend").append(el("label", {}, box, swatch(stage), label(stage)));
  });
  select(fromAddress() ?? FAMILY.find((f) => !/(^|\/)float$/.test(DATA.stages[f.stage].name)) ?? FAMILY[0] ?? POINTS[0], true);
  window.addEventListener("hashchange", () => { const item = fromAddress(); if (item) select(item, true); });
}

about();
if (POINTS.length || FAMILY.length) pareto(); else nothing("pareto", "No network has been measured yet (measurements.jsonl).");
if (FAMILY.length) familyTable(); else nothing("family", "No network has been chosen yet (family.json).");
if (DATA.exports.names.length) exportsTable(); else nothing("exports", "Nothing has been exported yet (exports.json).");
if (DATA.bits_by_role.length || DATA.predictions) mixedTables();
if (DATA.distribution) distributionTable();
if (!(DATA.bits_by_role.length || DATA.predictions || DATA.distribution)) $("mixed").remove();
if (DATA.comparison) comparedTable(); else $("compared").remove();
if (DATA.searchers.length) searcherTable(); else $("searchers").remove();
if (DATA.curves.length) drawCurves(); else nothing("training", "No training step has been logged yet (metrics.jsonl).");
if (DATA.runs) $("training").remove(), $("answers").remove();
new ResizeObserver(() => {
  if (state.selected) drawPareto();
  if (DATA.curves.length) drawCurves();
}).observe(document.querySelector("main"));
