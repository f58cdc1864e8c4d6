// What the chosen networks get right and wrong: confusion matrix, classes, surest mistakes. After the other scripts.
const ANSWERS = DATA.answers;
const CARDS = ["#ffffff", "#1e2127"]; // --card of page.css, light and dark
const CELLS = { right: ["#004488", "#77aaff"], wrong: ["#bb3344", "#ff7788"] };

function quoted(name) { return `“${name}”`; }
function share(part, whole) { return whole ? inText(part / whole) : "–"; }

function readableOn(fill, opacity, ground) { // black or white, whichever stands out more: at least 4.58 to 1
  const part = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16) / 255;
  const light = [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
    const value = opacity * part(fill, i) + (1 - opacity) * part(ground, i);
    return sum + weight * (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  }, 0);
  return (light + 0.05) / 0.05 > 1.05 / (light + 0.05) ? "#000000" : "#ffffff";
}

function answersSection() {
  const { networks } = ANSWERS;
  const first = networks.findIndex((n) => n.name === state.selected?.name);
  networks.forEach((n, i) => $("network").append(el("option", { value: i, selected: i === Math.max(0, first) && "" }, n.name)));
  $("network").addEventListener("change", drawAnswers);
  drawAnswers();
}
function drawAnswers() {
  const network = ANSWERS.networks[Number($("network").value)];
  $("answers-facts").replaceChildren(list([
    ["Test top-1", percent(network.top1)], ["Balanced accuracy", percent(network.balanced)],
    ["Wrong", `${network.wrong} of ${network.images.reduce((a, b) => a + b, 0)} images`]]));
  drawConfusion(network);
  $("confusions").replaceChildren(...confusions(network));
  $("classes").replaceChildren(classTable(network));
  $("mistakes").replaceChildren(...mistakes(network));
}

// the matrix: a row for each true class, a column for each answer; the colour of a cell is its share of the row
function drawConfusion(network) {
  const box = $("confusion-chart"), { classes } = ANSWERS, count = classes.length, many = count > 18;
  $("confusion-split").classList.toggle("wide", many); // the whole width of the page
  if (count > ANSWERS.drawn) {
    box.replaceChildren(el("p", { class: "soft" }, `A picture of ${count} classes could not be read. confusion.csv, beside this page, has the matrix.`));
    return;
  }
  const width = Math.min(box.parentElement.clientWidth || 600, many ? 1240 : 760), longest = Math.max(...classes.map((name) => name.length));
  const margin = Math.min(width * 0.32, 24 + 6.4 * longest), letters = Math.max(3, Math.floor((margin - 24) / 6.4));
  const least = many ? 10 : 20, side = Math.max(least, Math.min(44, (width - margin - 8) / count));
  const font = Math.min(12, side - 1), extent = margin + side * count + 8, middle = (i) => margin + (i + 0.5) * side;
  const cut = (name) => (name.length > letters ? `${name.slice(0, letters - 1)}…` : name);
  const root = svg("svg", { viewBox: `0 0 ${extent} ${extent}`, width: extent, height: extent, role: "img",
    "aria-label": `Confusion matrix of ${network.name}; the most frequent confusions and the table of classes say it in words` });
  root.append(svg("text", { x: margin + side * count / 2, y: 11, "text-anchor": "middle" }, "answer"),
    svg("text", { transform: `translate(11 ${margin + side * count / 2}) rotate(-90)`, "text-anchor": "middle" }, "true class"));
  classes.forEach((name, i) => {
    const style = `font-size:${font}px`;
    root.append(
      svg("text", { x: margin - 5, y: middle(i) + font / 3, "text-anchor": "end", style }, cut(name), svg("title", {}, name)),
      svg("text", { transform: `translate(${middle(i) + font / 3} ${margin - 5}) rotate(-90)`, style }, cut(name), svg("title", {}, name)));
  });
  root.append(svg("rect", { x: margin, y: margin, width: side * count, height: side * count, class: "grid", style: "fill:none" }));
  for (let i = 5; many && i < count; i += 5) { // to follow rows and columns
    const at = margin + i * side;
    root.append(svg("path", { class: "grid", d: `M${margin} ${at}h${side * count}M${at} ${margin}v${side * count}` }));
  }
  const right = network.right.map((n, i) => [i, i, n]).filter(([, , n]) => n);
  for (const [t, p, n] of [...right, ...network.confused]) {
    const of = n / network.images[t], opacity = 0.08 + 0.92 * (t === p ? of : Math.sqrt(of)), gap = side > 15 ? 1 : 0;
    const fill = CELLS[t === p ? "right" : "wrong"];
    const cell = svg("g", {}, svg("title", {}, cellText(network, t, p, n)), svg("rect", { x: margin + p * side + gap, y: margin + t * side + gap,
      width: side - gap, height: side - gap, style: `fill:light-dark(${fill});fill-opacity:${opacity.toFixed(3)}` }));
    const ink = CARDS.map((card, scheme) => readableOn(fill[scheme], opacity, card));
    if (side >= 20) cell.append(svg("text", { x: middle(p), y: middle(t) + 4, "text-anchor": "middle",
      style: `fill:light-dark(${ink});font-size:${Math.min(12, (side - 4) / String(n).length * 1.6)}px` }, String(n)));
    root.append(cell);
  }
  box.replaceChildren(root);
}
function cellText(network, t, p, n) {
  const { classes } = ANSWERS, of = `${share(n, network.images[t])} of all ${quoted(classes[t])}`;
  const images = `${n} ${n === 1 ? "image" : "images"}`;
  return t === p ? `${quoted(classes[t])} found: ${images}, ${of}` : `${quoted(classes[t])} taken for ${quoted(classes[p])}: ${images}, ${of}`;
}
function confusions(network) {
  if (!network.confused.length) return [el("p", {}, "No test image is taken for another class.")];
  return [el("h3", {}, "Most frequent confusions"),
    el("ol", {}, ...network.confused.slice(0, 8).map(([t, p, n]) => el("li", {}, cellText(network, t, p, n))))];
}
function classTable(network) {
  const { classes } = ANSWERS, { images, right, said } = network;
  const worst = classes.map((_, i) => i).sort((a, b) => (images[a] ? right[a] / images[a] : 2) - (images[b] ? right[b] / images[b] : 2));
  const mostly = (i) => (network.mostly[i] ? `${classes[network.mostly[i][0]]} (${network.mostly[i][1]})` : "–");
  return table("Classes, those of which the fewest images are found first. Recall: share of its images that are found. Precision: share of the images taken for it that are of it.",
    ["Class", "Images", "Recall", "Precision", "Most often taken for"],
    worst.map((i) => [classes[i], String(images[i]), share(right[i], images[i]), share(right[i], said[i]), mostly(i)]));
}
function mistakes(network) {
  const { classes, thumbnails } = ANSWERS;
  if (!network.mistakes.length) return [];
  return [el("h3", {}, "Surest mistakes"), ANSWERS.note && el("p", { class: "soft" }, ANSWERS.note),
    el("div", { class: "thumbnails" }, ...network.mistakes.map(([index, t, p, probability, name]) => {
      const text = `${quoted(classes[t])}, taken for ${quoted(classes[p])} (${inText(probability)})`;
      const source = network.shown && thumbnails[index];
      return el("figure", {}, source ? el("img", { src: source, alt: text }) : null,
        el("figcaption", {}, text, el("span", { class: "soft" }, name || `test image ${index}`)));
    }))].filter((part) => part);
}
if (ANSWERS) answersSection(); else if ($("answers")) nothing("answers", "No answers to test images are kept (answers/); a search keeps those of the networks that it chooses.");
whenWidthChanges(() => { if (ANSWERS) drawConfusion(ANSWERS.networks[Number($("network").value)]); });
