// Drawings: accuracy against cost, and training. Positions of axes are linear: log10 of a cost, "stretched" top-1, steps.

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
  const focused = $("pareto-chart").contains(document.activeElement); // of the drawing that is replaced
  const { root, px, py, width } = frame($("pareto-chart"), x, { ...DATA.top1_axis, title: "Validation top-1" },
    `Validation top-1 against ${DATA.costs[cost]}; the table of chosen networks has the numbers`);
  const place = (item) => [px(Math.log10(item.costs[cost])), py(-Math.sqrt(Math.max(0, 1 - item.top1)))];
  const shown = (item) => visible(item) && -Math.sqrt(1 - item.top1) >= DATA.top1_axis.low;
  const below = POINTS.filter((p) => visible(p) && !shown(p)).length;
  $("below").textContent = below ? `${below} measured networks lie below the picture.` : "";
  const budget = state.budget && Math.log10(state.budget);
  if (budget > x.low && budget < x.high) root.append(svg("path", { class: "budget", d: `M${px(budget)} 22V${py(DATA.top1_axis.low)}` }));
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
  const taken = []; // places of names: [left, right, height]
  for (const item of FAMILY.filter(shown)) {
    const [cx, cy] = place(item), name = item.name.replace(`${DATA.stages[item.stage].name}-`, ""); // the colour says the rest
    const right = cx < Math.max(130, 7.5 * name.length + 12), letters = Math.floor(((right ? width - cx : cx) - 12) / 7.5); // up and left of a front there is room
    layers[2].append(svg("path", { "data-name": item.name, d: marks(item.stage, [[cx, cy]], 7), style: `fill:${color(item.stage)};stroke:var(--text);stroke-width:1.5` }));
    const text = name.length > letters ? `${name.slice(0, letters - 1)}…` : name, wide = 7.5 * text.length, from = right ? cx + 9 : cx - 9 - wide;
    if (taken.some(([low, high, y]) => from < high && from + wide > low && Math.abs(cy - y) < 13)) continue; // hint and table say it
    taken.push([from, from + wide, cy]);
    layers[2].append(svg("text", { class: "name", x: cx + (right ? 9 : -9), y: cy - 8, "text-anchor": right ? "start" : "end" }, text));
  }
  aim(FAMILY.filter(shown), 7);
  const ring = svg("circle", { r: 12, style: "fill:none;stroke:var(--accent);stroke-width:2.5" });
  if (state.selected && shown(state.selected)) fill(ring, { cx: place(state.selected)[0], cy: place(state.selected)[1] }, []);
  else ring.setAttribute("r", 0);
  root.append(...layers, ring);
  listen(root, targets, walk, width);
  if (focused) root.focus({ preventScroll: true });
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
