// Numbers as text, and elements of the page. Text goes into the page with textContent only, so nothing that a run folder
// contains is ever read as HTML.
"use strict";

const $ = (id) => document.getElementById(id);

// -- text

function label(stage) { return DATA.stages[stage].label; }
function percent(x, digits = 2) { return Number.isFinite(x) ? `${(100 * x).toFixed(digits)} %` : "–"; }
function inText(x) { return percent(x, 1).replace(" ", "\u00a0"); } // no line ends before the sign
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
  DATA.costs.forEach((_, c) => item.costs[c] != null && lines.push([costName(c), costText(item.costs[c], c)]));
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
function numberIn(text) { // of "12.3 kB", "98.1 %" or "0.51 (0.42 to 0.60)"; NaN of words
  const match = /^(-?[\d,]*\.?\d+) ?([kMGT]?)(B|%|ms|min|×)?( \(.* to .*\))?$/.exec(text.trim());
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
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, el("table", { "aria-label": caption, class: head.length > 10 && "dense" },
      el("thead", {}, el("tr", {}, ...head.map((text, i) => el("th", { class: side(i), scope: "col" }, text.replaceAll("top-1", "top\u20111"))))),
      el("tbody", {}, ...rows.map(line)),
      foot && el("tfoot", {}, line(foot)))));
}
function list(pairs) {
  const kept = pairs.filter(([, value]) => value != null && value !== "" && value !== false);
  return el("dl", {}, ...kept.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}
function nothing(section, text) { $(section).querySelector(".content")?.remove(); $(section).append(el("p", { class: "soft" }, text)); }
function tellOfScrolling() { // bars of scrolling are hidden on many systems
  for (const box of document.querySelectorAll(".scroll")) box.classList.toggle("wider", box.scrollWidth > box.clientWidth + 1);
}
function whenWidthChanges(draw) { // and once at the start; heights change with what is selected
  const page = document.querySelector("main");
  let drawn = 0;
  new ResizeObserver(() => {
    if (page.clientWidth === drawn) return;
    drawn = page.clientWidth;
    draw();
  }).observe(page);
}
