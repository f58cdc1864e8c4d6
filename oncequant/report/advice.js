// Which network to take for a budget: the chosen ones in words, and the best measured ones at each bit-width. After charts.js.

function range(low, high) { return `${percent(low, 1).replace(" %", "")} to ${inText(high)}`; }
function signed(x) { return (100 * x).toFixed(1).replace(/^-0\.0$/, "0.0").replace("-", "−"); }
function points(x) { return `${signed(x)}\u00a0points`; }
function costWords(cost) { return costName(cost).replace(/^[A-Z](?=[a-z])/, (letter) => letter.toLowerCase()); }

function adviceInWords() { // for the cost that is shown
  const { images, by_cost } = DATA.advice, steps = by_cost[state.cost] ?? [];
  const unit = (value) => costText(value, state.cost).replace(" ", "\u00a0");
  const lead = (step, before) => {
    if (!before) return "";
    if (!step.lead) return " Answers to the images are not kept, so its lead has no interval.";
    const { value, low, high, verdict } = step.lead, name = FAMILY[before.network].name, ends = `(${signed(low)} to ${points(high)})`;
    if (verdict === "confirmed") return ` It is better than ${name} by ${points(value)} ${ends}.`;
    if (verdict === "refuted") return ` Here it is worse than ${name} by ${points(-value)}, although the validation images said otherwise.`;
    return ` Whether it is better than ${name}, these images cannot tell: ${points(value)} ${ends}.`;
  };
  const item = (step, i) => {
    const one = FAMILY[step.network], next = steps[i + 1];
    const from = unit(one.costs[state.cost]), to = next && unit(FAMILY[next.network].costs[state.cost]);
    return el("li", {}, to ? `From ${from}, below ${to}: ` : `From ${from}: `, networkButton(one),
      `. ${inText(one.test)} of ${images.toLocaleString("en")} test images are right (${range(...step.interval)}).${lead(step, steps[i - 1])}`);
  };
  $("advice-words").replaceChildren(
    el("p", {}, `Budget of ${costWords(state.cost)}, and the network to take. In brackets: where a number lies with 95 %, were there very many such images.`),
    steps.length ? el("ol", {}, ...steps.map(item)) : el("p", {}, "No chosen network has this cost."));
}

// -- a budget that the reader names

function budgetIn(text) { // of "64k", "64 kB", "1.5 M", "64,000"; NaN of words
  const match = /^([\d,]*\.?\d+) *([kMGT]?) *B?$/i.exec(text.trim());
  const factor = { "": 1, K: 1e3, M: 1e6, G: 1e9, T: 1e12 };
  return match ? Number(match[1].replaceAll(",", "")) * factor[match[2].toUpperCase()] : NaN;
}
function bestWithin(stage, limit) { // the most accurate on validation images, of equal ones the cheapest
  const within = [...FAMILY, ...POINTS].filter((one) => one.stage === stage && one.costs[state.cost] != null && one.costs[state.cost] <= limit);
  return within.sort((a, b) => b.top1 - a.top1 || a.costs[state.cost] - b.costs[state.cost])[0];
}
function showBudget() {
  const limit = budgetIn($("budget").value), known = Number.isFinite(limit) && limit > 0;
  $("budget").setAttribute("aria-invalid", String(!known));
  state.budget = known ? limit : null;
  if (!known) return $("budget-table").replaceChildren(el("p", {}, "Write a number above 0, such as 64k or 1.5M."));
  const rows = DATA.stages.map((_, stage) => [stage, bestWithin(stage, limit)]).filter(([stage]) => [...POINTS, ...FAMILY].some((one) => one.stage === stage));
  const found = rows.filter(([, one]) => one).map(([, one]) => one), least = Math.min(...found.map((one) => one.top1));
  const best = found.reduce((a, b) => (b.top1 > a.top1 ? b : a), found[0]);
  const named = (some) => some.map((one) => label(one.stage)).join(", ");
  const others = found.filter((one) => one.top1 < best.top1 && one.interval && one.interval[1] >= best.interval[0]);
  const said = !best ? "Nothing that was measured is within this budget."
    : best.top1 === least && found.length > 1 ? "All bit-widths reach the same here."
      : `Most accurate here: ${named(found.filter((one) => one.top1 === best.top1))}.`
        + (others.length ? ` May be as good, since the intervals overlap: ${named(others)}.` : "");
  const cells = ([stage, one]) => (one ? [label(stage), networkButton(one), percent(one.top1), one.interval ? range(...one.interval) : "–",
    one.test == null ? "–" : percent(one.test), ...one.costs.map(costText)] : [label(stage), "none within the budget", ...Array(3 + DATA.costs.length).fill("–")]);
  $("budget-table").replaceChildren(el("p", { role: "status" }, said), table(
    "The best network at each bit-width within the budget, of those that were measured on the validation images. It is the best of many by these same images, so its accuracy is somewhat too good; the interval is that of one network on so many images. Only chosen networks were measured on the test images.",
    ["Bits", "Network", "Validation top-1", "With 95 %", "Test top-1", ...DATA.costs.map((_, c) => costName(c))], rows.map(cells), null, true));
  tellOfScrolling();
}
function budgetEnds() {
  const costs = [...POINTS, ...FAMILY].map((one) => one.costs[state.cost]).filter((cost) => cost > 0);
  return [Math.log10(Math.min(...costs)), Math.log10(Math.max(...costs))];
}
function moveBudget(value) { // three digits, rounded up, so that the most expensive network is within reach
  const unit = 10 ** (Math.floor(Math.log10(value)) - 2);
  $("budget").value = tick(Math.ceil(value / unit - 1e-6) * unit);
}
function adviceFor(cost) { // when the axis is switched, and at the start
  state.cost = cost;
  for (const id of ["cost", "budget-cost"]) $(id).value = cost;
  const [low, high] = budgetEnds();
  moveBudget(10 ** ((low + high) / 2));
  $("budget-slider").value = 500;
  if (DATA.advice) adviceInWords(); else $("advice-words").replaceChildren();
  showBudget();
}
function adviceSection() {
  DATA.costs.forEach((_, c) => $("budget-cost").append(el("option", { value: c }, costName(c))));
  $("budget-cost").addEventListener("change", () => { adviceFor(Number($("budget-cost").value)); drawPareto(); });
  $("budget").addEventListener("input", () => {
    showBudget();
    const [low, high] = budgetEnds();
    if (state.budget) $("budget-slider").value = 1000 * (Math.log10(state.budget) - low) / (high - low || 1);
    drawPareto();
  });
  $("budget-slider").addEventListener("input", () => {
    const [low, high] = budgetEnds(), value = 10 ** (low + (high - low) * Number($("budget-slider").value) / 1000);
    moveBudget(value);
    showBudget();
    drawPareto();
  });
  adviceFor(state.cost);
}
