// What tests/browser.py asks of a page; each function returns texts about what is wrong.
"use strict";

// elements that a reader cannot see or reach
function cutOff() {
  const found = [], name = (node) => node.id ? "#" + node.id : `<${node.localName}> "${node.textContent.trim().slice(0, 50)}"`;
  const root = document.scrollingElement;
  if (root.scrollWidth > root.clientWidth) found.push(`the page is ${root.scrollWidth} px wide, the window ${root.clientWidth}`);
  const cuts = (node) => getComputedStyle(node).overflowX !== "visible";
  for (const node of document.body.querySelectorAll("*")) {
    const box = node.getBoundingClientRect();
    if (!box.width || !box.height || node.closest("[aria-hidden=true], defs, title")) continue;
    let inner = node;
    for (let outer = node.parentElement; outer; outer = outer.parentElement) {
      if (!cuts(outer)) continue;
      const shown = outer.getBoundingClientRect(), style = getComputedStyle(outer), from = inner.getBoundingClientRect();
      if (/auto|scroll/.test(style.overflowX + style.overflowY)) { // what is outside can be reached by scrolling
        if (outer !== root && outer !== document.body && outer.scrollWidth > outer.clientWidth + 1 && outer.tabIndex < 0)
          found.push(`${name(outer)} scrolls, but not with the keyboard`);
        if (from.left + outer.scrollLeft < shown.left - 1) found.push(`${name(node)} begins left of ${name(outer)}`);
        inner = outer;
        continue;
      }
      if (from.left < shown.left - 1 || from.right > shown.right + 1 || from.top < shown.top - 1 || from.bottom > shown.bottom + 1)
        found.push(`${name(node)} sticks out of ${name(outer)}`);
    }
    const last = inner.getBoundingClientRect();
    if (last.left < -1 || last.right > root.clientWidth + 1) found.push(`${name(node)} reaches from ${last.left} to ${last.right} px`);
  }
  return [...new Set(found)];
}

// tables and pictures that are wider than their place, so that one must scroll to see all of them
function scrolling() {
  return [...document.querySelectorAll(".scroll")].filter((one) => one.scrollWidth > one.clientWidth + 1)
    .map((one) => `${one.ariaLabel.slice(0, 60)}: ${one.scrollWidth} px, ${one.clientWidth} px shown`);
}

// texts in drawings with a contrast below 4.5, and marks below 3: axe-core does not look into drawings
function faint() {
  const channels = (text) => { // rgb(...) or rgba(...), also color(srgb r g b / a)
    const numbers = text.match(/[\d.]+/g).map(Number), scale = text.startsWith("color(") ? 255 : 1;
    return [...numbers.slice(0, 3).map((v) => v * scale), numbers[3] ?? 1];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((v, i) => a * v + (1 - a) * under[i]);
  const light = (rgb) => rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const found = [], name = (node) => `<${node.localName}> "${node.textContent.slice(0, 30)}" of ${node.closest("[id]").id}`;
  const ground = (node) => {
    let under = [255, 255, 255];
    const above = [];
    for (let one = node.parentElement; one; one = one.parentElement) above.unshift(one);
    for (const one of above) if (!(one instanceof SVGElement)) under = over(channels(getComputedStyle(one).backgroundColor), under);
    return under;
  };
  for (const node of document.querySelectorAll("main svg :is(text, path)")) {
    const style = getComputedStyle(node), text = node.localName === "text", opacity = style.opacity * style.fillOpacity;
    let under = ground(node);
    const cell = text && node.parentElement.querySelector(":scope > rect:not(.grid)");
    if (cell) { // a number on a coloured cell
      const own = getComputedStyle(cell), [r, g, b, a] = channels(own.fill);
      under = over([r, g, b, a * own.fillOpacity], under);
    }
    // a hollow mark is seen by its outline
    const paints = (text ? [style.fill] : [style.fill, style.stroke]).filter((one) => one !== "none");
    if (!paints.length || opacity < 0.5 || node.classList.contains("grid")) continue; // faint on purpose: one of very many
    const [ratio, paint] = paints.map((one) => [contrast(over(channels(one), under), under), one]).sort((p, q) => q[0] - p[0])[0];
    if (ratio < (text ? 4.5 : 3)) found.push(`${name(node)}: ${paint} has a contrast of ${ratio.toFixed(2)}`);
  }
  return [...new Set(found)];
}
