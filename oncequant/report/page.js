// The sections of the page, drawn from DATA (made by sections.py). After elements.js and charts.js, with their functions.

const POINTS = DATA.points.map((p, i) => ({ ...p, id: `point-${i}`, title: `${label(p.stage)}, measurement ${i + 1}` }));
const FAMILY = DATA.family.map((f) => ({ ...f, id: f.name, title: f.name }));
const state = { cost: DATA.cost, hidden: new Set(), selected: null, budget: null };

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
  tellOfScrolling();
}
function fromAddress() {
  const id = decodeURIComponent(location.hash.replace(/^#select=/, ""));
  return [...FAMILY, ...POINTS].find((item) => item.id === id);
}

// -- sections

function several() {
  const { tables, note } = DATA.runs;
  $("title").textContent = `${DATA.run.method} on common axes`;
  document.querySelector("#about h2").textContent = "The runs";
  $("about").append(el("p", {}, note), ...tables.map(({ caption, columns, rows }) => table(caption, columns, rows, null, true)));
  for (const one of document.querySelectorAll("#about table")) one.classList.add("dense");
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
function networkButton(item) { // beside its bits
  const parts = item.title.replace(`${label(item.stage)}, `, "").split("/").flatMap((part, i) => [i ? "/" : null, i ? el("wbr") : null, el("span", { class: "whole" }, part)]);
  return el("button", { type: "button", onclick: () => { select(item); $("pareto").scrollIntoView(); } }, ...parts);
}
function familyTable() {
  const names = { top1: "top-1", balanced: "balanced accuracy" }, several = FAMILY.some((f) => f.metric === "balanced");
  const extra = [["Balanced accuracy, test", "balanced_test"], ["Predicted", "predicted"], ["Balanced accuracy, predicted", "balanced_predicted"], ...(several ? [["Balanced accuracy, validation", "balanced_validation"]] : []), ["Before zero points were rounded", "before_folding"]]
    .filter(([, key]) => FAMILY.some((f) => f[key] != null) && !(DATA.runs && ["predicted", "before_folding"].includes(key))); // reports of their own have them
  $("family").append(table(`Chosen by ${several ? "accuracy" : "top-1"} on the validation images alone. Select a name to see its layers.`,
    ["Network", "Bits", ...(several ? ["Chosen by"] : []), "Test top-1", "Validation top-1", ...extra.map(([title]) => title), ...DATA.costs.map((_, c) => costName(c))],
    FAMILY.map((f) => [networkButton(f), label(f.stage).replace(/^.*: /, ""), ...(several ? [names[f.metric]] : []), percent(f.test), percent(f.top1),
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
function exportsTables() {
  const { names, tables } = DATA.exports;
  for (const { format, columns, texts, notes } of tables) {
    if (format) $("exports").append(el("h3", {}, `Format ${format}`));
    $("exports").append(table(format ? notes : `Each network has a folder in the run, exports/NAME. ${notes}`,
      ["Network", ...columns], names.map((name, i) => [name, ...texts[i]]), null, true));
  }
}
function searcherTable() {
  $("searchers").append(table(
    "The columns of costs are hypervolumes over top-1 and the logarithm of this cost: how much of the box between the worst and the best values measured at this bit-width the searcher's own front covers. More is better; compare at equal numbers of measurements.",
    ["Bits", "Searcher", "Measurements", "Best validation top-1", ...DATA.costs.map((_, c) => costName(c))],
    DATA.searchers.map((s) => [label(s.stage), s.searcher, String(s.measured), percent(s.best), ...s.shares.map((x) => percent(x, 1))])));
}
function comparedTable() {
  const c = DATA.comparison, volume = (way, cost) => (c.hypervolumes[way] ? c.hypervolumes[way][cost].toFixed(3) : "–");
  const against = (way) => { const a = c.against_supernet[way];
    return a ? `${a.at_least} of ${a.budgets} (${(100 * a.mean_lead).toFixed(2)} points)` : "–"; };
  $("compared").append(table(`Networks of ${c.bits} bits for equal budgets of BitOPs, made in several ways; hypervolume of test error and a cost, as a share of the box up to the worst. The last column: at how many budgets the supernet's network is at least as accurate, and its mean lead; every way hands out the best of its networks within a budget.`,
    ["Way", "Networks", "Training images", "Seconds of training", "Mean test top-1", "Hypervolume, BitOPs", "Hypervolume, packed weights", "Supernet at least as accurate"],
    c.totals.filter((t) => t.deployments === c.deployments.filter((d) => d.way === t.way).length).map((t) => [t.way, String(t.networks), t.images.toLocaleString("en"),
      t.seconds.toFixed(0), percent(t.top1_test), volume(t.way, "bitops"), volume(t.way, "weight_bytes"), against(t.way)])));
  picture("compare", "Test top-1 against BitOPs and packed weights.", "compared");
}
function pareto() {
  DATA.costs.forEach((_, c) => $("cost").append(el("option", { value: c, selected: c === state.cost && "" }, costName(c))));
  $("cost").addEventListener("change", () => { adviceFor(Number($("cost").value)); drawPareto(); });
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
if (POINTS.length || FAMILY.length) pareto(), adviceSection();
else nothing("pareto", "No network has been measured yet (measurements.jsonl)."), $("advice").remove();
if (FAMILY.length) familyTable(); else nothing("family", "No network has been chosen yet (family.json).");
if (DATA.exports.names.length) exportsTables(); else nothing("exports", "Nothing has been exported yet (exports.json).");
if (DATA.bits_by_role.length || DATA.predictions) mixedTables();
if (DATA.distribution) distributionTable();
if (!(DATA.bits_by_role.length || DATA.predictions || DATA.distribution)) $("mixed").remove();
if (DATA.comparison) comparedTable(); else $("compared").remove();
if (DATA.searchers.length) searcherTable(); else $("searchers").remove();
if (DATA.curves.length) drawCurves(); else nothing("training", "No training step has been logged yet (metrics.jsonl).");
if (DATA.runs) $("training").remove(), $("answers").remove();
whenWidthChanges(() => {
  if (state.selected) drawPareto();
  if (DATA.curves.length) drawCurves();
  tellOfScrolling();
});
