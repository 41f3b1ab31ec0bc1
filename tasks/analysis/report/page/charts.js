"use strict";
// Charts. Each vendor and series has a colour and a symbol, so that colour never stands alone.
const COLOURS = ["#4269d0", "#e8833a", "#3ca951", "#c0448f", "#7a5cd0", "#2aa7b8", "#b0872c", "#8a8f98"];
const SYMBOLS = ["circle", "triangle", "square", "diamond", "star", "cross", "wye", "hexagon"];
const vendorNames = () => D.vendorNames ??= [...new Set(D.servers.map((s) => s.vendor))].sort();
const vendorScale = () => ({color: {domain: vendorNames(), range: COLOURS}, symbol: {domain: vendorNames(), range: SYMBOLS}});
const width = (node, least = 300) => Math.max(least, Math.min(1380, node.clientWidth || 800));
const lengthText = (n) => n >= 1024 && n % 1024 === 0 ? `${n / 1024}k` : String(n);
// A logarithmic axis over less than a decade has no round power to show: then evenly spaced values are.
function speedTicks(values) {
  const lo = Math.min(...values), hi = Math.max(...values);
  return hi / lo < 12 ? d3.ticks(lo, hi, 6).filter((v) => v > 0) : d3.scaleLog([lo, hi], [0, 1]).ticks(8).filter((v) => [1, 2, 5].includes(Math.round(v / 10 ** Math.floor(Math.log10(v) + 1e-9))));
}
const ticks = (value) => value >= 1e6 ? `${value / 1e6}M` : value >= 1000 ? `${value / 1000}k` : `${+value.toPrecision(3)}`;

// On a narrow screen only the powers of ten.
const roomy = (values, w) => { const powers = values.filter((v) => Math.abs(Math.log10(v) - Math.round(Math.log10(v))) < 1e-9); return values.length * 42 > w && powers.length > 1 ? powers : values; };
// Axes with a label at every tick: on a logarithmic scale Plot leaves out some of them.
const axisX = (values, w) => { const shown = roomy(values, w); return [Plot.gridX(shown), Plot.axisX(shown, {text: ticks, label: null})]; };
const axisY = (values) => [Plot.gridY(values), Plot.axisY(values, {text: ticks, label: null})];

const axisLabels = (x, y) => [
  x ? Plot.text([x], {text: (d) => d, frameAnchor: "bottom-right", dy: 36, textAnchor: "end", fill: "currentColor"}) : null,
  Plot.text([y], {text: (d) => d, frameAnchor: "top-left", dx: -44, dy: -28, textAnchor: "start", fill: "currentColor"}),
];

function draw(node, build) {
  node.classList.add("chart");
  node.replaceChildren();
  const plot = build(width(node));
  plot.setAttribute("role", "img");
  node.append(plot);
  return plot;
}

function paretoChart(node, cells, edge, onPick) {
  const rows = cells.filter((i) => priceOf(i) > 0 && D.cells.v[i] > 0).map((i) => ({
    i, usd: priceOf(i), v: D.cells.v[i], vendor: D.runs.vendor[D.cells.x[i]], id: D.servers[D.serverOfRun[D.cells.x[i]]].id, ok: meets(i), edge: edge.has(i),
  }));
  const line = rows.filter((r) => r.edge).sort((a, b) => a.usd - b.usd);
  const tip = (r) => `${r.id}\n${fmtUsd(r.usd)} USD/h\n${fmt(r.v)} tok/s${D.cells.h[r.i] != null ? ` ± ${fmt(D.cells.h[r.i])} %` : ""}\n${fmt(usdPerMtok(r.i))} USD per 1M tokens${flagsOf(r.i).length ? "\n⚠ " + flagsOf(r.i).join(", ") : ""}`;
  const min = Number(S.min) || 0;
  const plot = draw(node, (w) => Plot.plot({
    width: w, height: Math.max(300, Math.min(520, w * 0.48)), marginLeft: 56, marginTop: 42, marginBottom: 44, marginRight: 24, ...vendorScale(),
    x: {type: "log", label: "USD per hour →", axis: null, insetLeft: 12, insetRight: 12}, y: {type: "log", label: `↑ tokens per second (${S.phase}${S.n})`, axis: null},
    marks: [
      ...axisX(speedTicks(rows.map((r) => r.usd)), w), ...axisY(speedTicks([...rows.map((r) => r.v), ...(min > 0 ? [min] : [])])), ...axisLabels("USD per hour →", `↑ tokens per second (${S.phase}${S.n})`),
      min > 0 ? Plot.ruleY([min], {stroke: "currentColor", strokeDasharray: "4 4", strokeOpacity: .6}) : null,
      min > 0 ? Plot.text([min], {y: (d) => d, text: (d) => `at least ${fmt(d)}`, frameAnchor: "right", dy: -7, textAnchor: "end", fill: "currentColor", fillOpacity: .7}) : null,
      Plot.line(line, {x: "usd", y: "v", curve: "step-after", stroke: "currentColor", strokeWidth: 1.6, strokeOpacity: .55}),
      Plot.dot(rows.filter((r) => !r.edge), {x: "usd", y: "v", stroke: "vendor", symbol: "vendor", r: 3.2, strokeWidth: 1.3, strokeOpacity: (r) => r.ok ? .75 : .22}),
      Plot.dot(line, {x: "usd", y: "v", fill: "vendor", stroke: "var(--panel)", symbol: "vendor", r: 6, strokeWidth: 1}),
      ...["end", "start"].map((anchor) => Plot.text(thinned(line, w).filter((r) => (nearLeft(r, rows, w) ? "start" : "end") === anchor), {x: "usd", y: "v", text: (r) => r.id.split("/")[1], dx: anchor === "end" ? -9 : 9, dy: -9, textAnchor: anchor, fill: "currentColor", stroke: "var(--panel)", strokeWidth: 4, fontSize: 11})),
      Plot.tip(rows, Plot.pointer({x: "usd", y: "v", title: tip, fill: "var(--panel)", stroke: "var(--line)"})),
    ],
  }));
  plot.setAttribute("aria-label", `Price per hour against tokens per second of ${rows.length} servers; ${line.length} on the frontier. The table above has the numbers.`);
  let near = null;
  plot.addEventListener("input", () => { near = plot.value; });
  plot.addEventListener("click", () => { if (near) onPick(near.id); });
  plot.style.cursor = "pointer";
}

const nearLeft = (r, rows, w) => { const lo = Math.log(d3.min(rows, (o) => o.usd)), hi = Math.log(d3.max(rows, (o) => o.usd)); return hi === lo || (Math.log(r.usd) - lo) / (hi - lo) * w < 150; };
// Labels that do not lie on each other.
function thinned(rows, w) {
  const kept = [];
  for (const r of rows) {
    const last = kept[kept.length - 1];
    if (!last || Math.abs(Math.log(r.usd / last.usd)) * w / 9 > 70 || Math.abs(Math.log(r.v / last.v)) * 50 > 26) kept.push(r);
  }
  return kept;
}

// Curves over length: one line per series, the span from slowest to fastest repeat as a band.
function curveChart(node, series, task, title) {
  const rows = series.flatMap(({label, cells}) => cells.filter((i) => measured(i) && TASKS[D.cells.t[i]] === task && D.cells.v[i] > 0).map((i) => ({label, i, n: D.cells.n[i], v: D.cells.v[i], lo: D.cells.lo[i] ?? D.cells.v[i], hi: D.cells.hi[i] ?? D.cells.v[i]})));
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.textContent = title;
  node.replaceChildren(figure);
  if (!rows.length) { caption.textContent += ": nothing measured"; figure.append(caption); return; }
  const box = document.createElement("div");
  figure.append(caption, box);
  const labels = [...new Set(series.map((s) => s.label))], lengths = [...new Set(rows.map((r) => r.n))].sort((a, b) => a - b);
  const last = labels.map((label) => rows.filter((r) => r.label === label).sort((a, b) => b.n - a.n)[0]).filter(Boolean);
  const room = Math.min(190, 24 + 6.3 * Math.max(...labels.map((l) => l.length)));
  const plot = draw(box, (w) => Plot.plot({
    width: w, height: Math.max(240, Math.min(360, w * 0.6)), marginLeft: 52, marginTop: 42, marginRight: w > 420 ? room : 24, marginBottom: 42,
    x: {type: "log", base: 2, label: "tokens →", ticks: lengths, tickFormat: lengthText, domain: lengths.length > 1 ? [lengths[0], lengths.at(-1)] : [lengths[0] / 2, lengths[0] * 2]},
    y: {type: "log", label: "↑ tokens per second", axis: null}, color: {domain: labels, range: COLOURS}, symbol: {domain: labels, range: SYMBOLS},
    marks: [
      ...axisY(speedTicks(rows.flatMap((r) => [r.lo, r.hi]))), ...axisLabels("", "↑ tokens per second"),
      Plot.areaY(rows, {x: "n", y1: "lo", y2: "hi", fill: "label", fillOpacity: .16, curve: "linear"}),
      Plot.line(rows, {x: "n", y: "v", stroke: "label", strokeWidth: 1.8}),
      Plot.ruleX(rows, {x: "n", y1: "lo", y2: "hi", stroke: "label", strokeWidth: 1.2}),
      Plot.dot(rows, {x: "n", y: "v", fill: "label", symbol: "label", r: 3.6}),
      w > 420 ? Plot.text(apart(last, rows, w), {x: "n", y: "at", text: "label", fill: "label", textAnchor: "start", dx: 9, fontSize: 11}) : null,
      Plot.tip(rows, Plot.pointer({x: "n", y: "v", title: (r) => `${r.label}\n${task}${r.n}: ${fmt(r.v)} tok/s\nrepeats ${fmt(r.lo)} to ${fmt(r.hi)}${D.cells.h[r.i] != null ? `\n± ${fmt(D.cells.h[r.i])} % (95 %)` : ""}`, fill: "var(--panel)", stroke: "var(--line)"})),
    ],
  }));
  plot.setAttribute("aria-label", `${title}: tokens per second by length for ${labels.join(", ")}. The table below has the numbers.`);
  if ((box.clientWidth || 800) <= 420) figure.append(legend(labels));
}

// Labels at the ends of lines, moved apart where two lines end close together: by 14 pixels of the logarithmic axis.
function apart(last, rows, w) {
  const inner = Math.max(240, Math.min(360, w * 0.6)) - 78, span = d3.max(rows, (r) => r.hi) / d3.min(rows, (r) => r.lo);
  const step = Math.max(1.01, span) ** (14 / inner);
  let floor = Infinity;
  return [...last].sort((a, b) => b.v - a.v).map((r) => { const at = Math.min(r.v, floor / step); floor = at; return {...r, at}; });
}

function legend(labels) {
  const box = document.createElement("div");
  box.className = "legend";
  labels.forEach((label, k) => { const item = document.createElement("span"); const mark = document.createElement("i"); mark.style.background = COLOURS[k % COLOURS.length]; item.append(mark, label); box.append(item); });
  return box;
}

function vendorLegend(names) {
  const box = document.createElement("div");
  box.className = "legend";
  for (const name of names) {
    const k = vendorNames().indexOf(name), item = document.createElement("span");
    item.innerHTML = `<svg width="14" height="14" viewBox="-7 -7 14 14" aria-hidden="true"><path d="${d3.symbol(d3["symbol" + SYMBOLS[k % SYMBOLS.length].replace(/^./, (c) => c.toUpperCase())] || Plot[SYMBOLS[k % SYMBOLS.length]] || d3.symbolCircle, 52)()}" fill="${COLOURS[k % COLOURS.length]}"/></svg> `;
    item.append(name);
    box.append(item);
  }
  return box;
}
