"use strict";
// The sections. Each draws itself from the state; text from the data is always escaped.
const $ = (id) => document.getElementById(id);
const esc = (text) => String(text ?? "").replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const fmt = (v) => v == null ? "" : v >= 1000 ? Math.round(v).toLocaleString("en-US") : v >= 100 ? v.toFixed(0) : String(+v.toPrecision(3));
const fmtUsd = (v) => v == null ? "" : v >= 100 ? v.toFixed(0) : v >= 1 ? v.toFixed(2) : String(+v.toPrecision(3));
const fmtBytes = (v) => { if (v == null) return ""; let k = 0; while (v >= 1000 && k < 4) { v /= 1024; k++; } return `${+v.toPrecision(3)} ${["B", "KiB", "MiB", "GiB", "TiB"][k]}`; };
const day = (d) => d == null ? "" : new Date(d * 864e5).toISOString().slice(0, 10);
const flagTags = (i) => flagsOf(i).map((f) => `<span class="tag flag" title="${esc(FLAG_TEXT[f])}">${esc(f.replaceAll("_", " "))}</span>`).join("");
const hwOf = (s) => s.nGpus ? `${s.nGpus}× ${s.gpu || "GPU"}` : (s.cpu || "").replace(/( \d+-Core)? Processor$/, "");
const hwTag = (i) => onGpu(i) ? '<span class="tag gpu">GPU</span>' : '<span class="tag">CPU</span>';
const SHOWN = {best: 25, cover: 25, frontier: 12};

function table({caption, columns, rows, sort, dir, onSort, className = "", key}) {
  const head = columns.map((c) => {
    const sorted = onSort && c.sort && c.sort === sort ? ` aria-sort="${dir > 0 ? "ascending" : "descending"}"` : "";
    const label = c.sort && onSort ? `<button type="button" data-sort="${c.sort}">${c.label}</button>` : c.label;
    return `<th scope="col" class="${c.className || ""}"${sorted}${c.title ? ` title="${esc(c.title)}"` : ""}>${label}</th>`;
  }).join("");
  const body = rows.map((row, k) => `<tr${key ? ` data-key="${esc(key(row))}"` : ""}>${columns.map((c) => `<td class="${c.className || ""}">${c.cell(row, k)}</td>`).join("")}</tr>`).join("");
  const box = document.createElement("div");
  box.className = "scroll";
  box.tabIndex = -1;
  box.innerHTML = `<table class="${className}"><caption>${caption}</caption><thead><tr>${head}</tr></thead><tbody>${body}</tbody></table>`;
  if (onSort) box.addEventListener("click", (e) => { const b = e.target.closest("[data-sort]"); if (b) onSort(b.dataset.sort); });
  return box;
}

const pick = (id) => `<input type="checkbox" class="pick" data-compare="${esc(id)}" aria-label="Compare ${esc(id)}"${compared().includes(id) ? " checked" : ""}>`;
const open = (id, label) => `<button type="button" class="link name" data-open="${esc(id)}">${label ?? esc(id.slice(id.indexOf("/") + 1))}</button>`;
const emptyBox = (html) => { const p = document.createElement("p"); p.className = "empty"; p.innerHTML = html; return p; };
const command = (text) => `<div class="cmd"><code>${esc(text)}</code><button type="button" data-copy="${esc(text)}">Copy</button></div>`;

// Whose measurement it is, where it is not our own.
const imported = (i) => { const source = (D.cells.how[i] || "").split("|").at(-1); return source && source !== "tokensweep" ? `from ${source.split("/")[0]}` : ""; };

// ---- best -----------------------------------------------------------------------------------------------------

const SORTS = {
  usd: [(i) => priceOf(i) ?? Infinity, 1], speed: [(i) => D.cells.v[i], -1], mtok: [(i) => usdPerMtok(i) ?? Infinity, 1], spread: [(i) => D.cells.h[i] ?? Infinity, 1],
  repeats: [(i) => D.cells.k[i], -1], day: [(i) => D.cells.d[i] ?? 0, -1], name: [(i) => D.servers[D.serverOfRun[D.cells.x[i]]].id, 1], flags: [(i) => flagsOf(i).length, -1],
};
function sortedCells(cells) {
  const [by, natural] = SORTS[S.sort] || SORTS.usd, sign = natural * (Number(S.dir) || 1);
  return [...cells].sort((a, b) => { const x = by(a), y = by(b); return (x < y ? -1 : x > y ? 1 : 0) * sign || (priceOf(a) ?? 1e9) - (priceOf(b) ?? 1e9) || D.cells.v[b] - D.cells.v[a]; });
}

function viewBest() {
  const all = candidates(), cells = sortedCells(all.filter(meets)), view = $("best-view");
  const cell = `${S.model} ${S.phase}${S.n}`, least = Number(S.min) || 0;
  const known = cells.map(usdPerMtok).filter((v) => v != null), cheapest = Math.min(...known), fastest = Math.max(...cells.slice(0, SHOWN.best).map((i) => D.cells.v[i]));
  $("best-lead").innerHTML = `<b>${cells.length.toLocaleString("en-US")}</b> of ${all.length.toLocaleString("en-US")} measured servers run <b>${esc(cell)}</b>${least ? ` at <b>${fmt(least)} tok/s</b> or more` : ""}. One sequence at a time; prices as read on the day shown.`;
  announce(`${cells.length} servers for ${cell}`);
  if (!cells.length) {
    const most = all.reduce((a, b) => a == null || D.cells.v[b] > D.cells.v[a] ? b : a, null);
    view.replaceChildren(emptyBox(most == null ? "No server that passes these filters was measured in this cell. <b>Coverage</b> below says why." : `None is that fast. The fastest that passes the other filters: ${open(D.servers[D.serverOfRun[D.cells.x[most]]].id)} with <b>${fmt(D.cells.v[most])} tok/s</b>.`));
    return;
  }
  const natural = (SORTS[S.sort] || SORTS.usd)[1] * (Number(S.dir) || 1);
  const shown = cells.slice(0, SHOWN.best), server = (i) => D.servers[D.serverOfRun[D.cells.x[i]]];
  const grid = table({
    caption: `Newest measurement of each server. ± is half the 95 % interval.`, rows: shown, sort: S.sort, dir: natural, key: (i) => server(i).id,
    onSort: (by) => change({sort: by, dir: S.sort === by ? String(-(Number(S.dir) || 1)) : "1"}),
    columns: [
      {label: '<span class="visually-hidden">Compare</span>', className: "pickcol", cell: (i) => pick(server(i).id)},
      {label: "#", className: "rank num less", cell: (_, k) => k + 1},
      {label: "Server", sort: "name", cell: (i) => `${open(server(i).id)}<div class="sub">${esc([server(i).vendor, D.runs.place[D.cells.x[i]], D.runs.spot[D.cells.x[i]] ? "spot" : "", imported(i)].filter(Boolean).join(" · "))}</div>`},
      {label: "Runs on", className: "wide hw", cell: (i) => `${hwTag(i)}<div class="sub">${esc(hwOf(server(i)))}${server(i).cpus ? ` · ${server(i).cpus} CPU${server(i).cpus === 1 ? "" : "s"}` : ""}</div>`},
      {label: "USD/h", sort: "usd", className: "num", cell: (i) => fmtUsd(priceOf(i)) || '<span class="soft">unknown</span>'},
      {label: "tok/s", sort: "speed", className: "num", cell: (i) => `<b>${fmt(D.cells.v[i])}</b>`},
      {label: "", className: "barbox wide", cell: (i) => `<span class="bar" style="width:${Math.max(2, 100 * D.cells.v[i] / fastest).toFixed(1)}%"></span>`},
      {label: "±", sort: "spread", className: "num", title: "Half the 95 % interval of the mean", cell: (i) => D.cells.h[i] == null ? '<span class="soft">–</span>' : `${fmt(D.cells.h[i])} %`},
      {label: "USD per 1M", sort: "mtok", className: "num", title: "For a million tokens at this speed, the server fully used", cell: (i) => fmtUsd(usdPerMtok(i))},
      {label: "× best", className: "num less", title: "Price per token over the cheapest shown", cell: (i) => usdPerMtok(i) == null ? "" : (usdPerMtok(i) / cheapest).toFixed(2)},
      {label: "n", sort: "repeats", className: "num wide less", title: "Repeats", cell: (i) => D.cells.k[i]},
      {label: "Measured", sort: "day", className: "nowrap wide", cell: (i) => `${day(D.cells.d[i])}<div class="sub">price ${day(D.runs.price_day[D.cells.x[i]]) || "undated"}</div>`},
      {label: "Flags", sort: "flags", cell: flagTags},
    ],
  });
  const foot = document.createElement("div");
  foot.className = "row";
  foot.innerHTML = `${cells.length > shown.length ? `<button type="button" class="more" data-more="best">Show all ${cells.length}</button>` : ""}<button type="button" class="act" data-csv="best">Save as CSV</button>${command(bestCommand())}`;
  view.replaceChildren(grid, foot);
}
const bestCommand = () => `tokensweep best --model ${D.models[modelIndex()].name} --phase ${S.phase} --tokens ${S.n} --min-tps ${Number(S.min) || 0}${S.vendor ? ` --vendor ${S.vendor}` : ""}`;

function bestCsv() {
  const cells = sortedCells(candidates().filter(meets)), names = ["vendor", "server", "place", "spot", "usd_per_hour", "model", "phase", "n_tokens", "tok_per_s", "half_width_pct", "n_samples", "usd_per_mtok", "steal_pct", "measured", "price_read", "how", "flags"];
  const line = (values) => values.map((v) => /[",\n]/.test(v ?? "") ? `"${String(v).replaceAll('"', '""')}"` : v ?? "").join(",");
  return [names.join(","), ...cells.map((i) => { const x = D.cells.x[i]; return line([D.runs.vendor[x], D.runs.server[x], D.runs.place[x], Boolean(D.runs.spot[x]), D.runs.usd[x], D.models[D.cells.m[i]].name, S.phase, S.n, D.cells.v[i], D.cells.h[i], D.cells.k[i], usdPerMtok(i), D.cells.st[i], day(D.cells.d[i]), day(D.runs.price_day[x]), D.cells.how[i], flagsOf(i).join(" ")]); })].join("\n") + "\n";
}

// ---- pareto ---------------------------------------------------------------------------------------------------

function viewPareto() {
  const all = candidates(), priced = all.filter((i) => priceOf(i) != null), edge = new Set(frontier(priced.filter(meets))), view = $("pareto-view");
  $("pareto-lead").innerHTML = priced.length ? `Each mark is a server; the line joins the <b>${edge.size}</b> that no other one beats in both price and speed. Faint marks miss the wanted speed. Select one to open it.` : "";
  if (!priced.length) { view.replaceChildren(emptyBox("Nothing with a known price passes the filters.")); return; }
  const box = document.createElement("figure"), chart = document.createElement("div");
  box.append(vendorLegend([...new Set(priced.map((i) => D.runs.vendor[D.cells.x[i]]))].sort()), chart);
  view.replaceChildren(box);
  paretoChart(chart, priced, edge, openServer);
  const rows = [...edge].sort((a, b) => priceOf(a) - priceOf(b)), id = (i) => D.servers[D.serverOfRun[D.cells.x[i]]].id;
  view.append(table({caption: "The frontier", rows: rows.slice(0, SHOWN.frontier), key: id, columns: [
    {label: "Server", cell: (i) => open(id(i), esc(id(i)))}, {label: "USD/h", className: "num", cell: (i) => fmtUsd(priceOf(i))}, {label: "tok/s", className: "num", cell: (i) => fmt(D.cells.v[i])},
    {label: "USD per 1M", className: "num", cell: (i) => fmtUsd(usdPerMtok(i))}, {label: "Runs on", className: "wide", cell: (i) => hwTag(i) + " " + esc(hwOf(D.servers[D.serverOfRun[D.cells.x[i]]]))}, {label: "Flags", cell: flagTags},
  ]}));
  if (rows.length > SHOWN.frontier) view.insertAdjacentHTML("beforeend", `<div class="row"><button type="button" class="more" data-more="frontier">Show all ${rows.length}</button></div>`);
}

// ---- coverage -------------------------------------------------------------------------------------------------

const OUTCOMES = ["measured", "gated", "infeasible", "timed_out", "not_reached", "failed"];
function coverOf(s) {
  const out = D.models.map(() => null);
  for (const i of D.byServer[s]) {
    const m = D.cells.m[i], cell = out[m] ??= {n: 0, measured: 0, reasons: new Map(), detail: "", bad: 0};
    cell.n++;
    if (measured(i)) cell.measured++;
    else { const r = D.cells.reason[i]; cell.reasons.set(r, (cell.reasons.get(r) || 0) + 1); cell.detail ||= D.cells.detail[i] || ""; if (["failed", "not_reached"].includes(D.cells.outcome[i])) cell.bad++; else cell.good = (cell.good || 0) + 1; }
  }
  return out;
}
const mainReason = (cell) => [...cell.reasons].sort((a, b) => b[1] - a[1])[0]?.[0];

function viewCoverage() {
  const view = $("coverage-view"), servers = D.servers.map((s, k) => k).filter((k) => serverPasses(D.servers[k]) && (!S.place || D.servers[k].runs.some((x) => D.runs.place[x] === S.place)) && (!S.hw || (S.hw === "gpu") === D.servers[k].nGpus > 0));
  view.replaceChildren(vendorSummary(servers));
  if (!servers.length) { view.append(emptyBox("No server passes the filters.")); return; }
  let rows = servers.map((k) => ({k, cells: coverOf(k)}));
  if (S.cover) rows = rows.filter((r) => r.cells.some((c) => c && c.measured < c.n && [...c.reasons.keys()].includes(S.cover)));
  const shown = rows.slice(0, SHOWN.cover), reasons = new Map();
  for (const k of servers) for (const i of D.byServer[k]) if (!measured(i)) reasons.set(D.cells.reason[i], (reasons.get(D.cells.reason[i]) || 0) + 1);
  const row = document.createElement("div");
  row.className = "row";
  row.innerHTML = `<label class="soft row">Show <select data-cover><option value="">every server</option>${[...reasons].sort((a, b) => b[1] - a[1]).map(([r, n]) => `<option value="${esc(r)}"${S.cover === r ? " selected" : ""}>missing: ${esc(reasonText(r))} (${n} cells)</option>`).join("")}</select></label>${S.cover ? `<span class="soft">${rows.length} servers</span>` : ""}`;
  view.append(row, table({
    caption: "Measured cells of planned ones, by server and model; select one for the reasons.", className: "cover", rows: shown, key: (r) => D.servers[r.k].id,
    columns: [{label: "Server", className: "name", cell: (r) => `${open(D.servers[r.k].id)}<div class="sub">${esc(D.servers[r.k].vendor)}</div>`},
      ...D.models.map((m, j) => ({m, j})).filter(({j}) => shown.some((r) => r.cells[j])).map(({m, j}) => ({label: `${esc(m.label)}<div class="sub">${fmtBytes(m.bytes)}</div>`, cell: (r) => coverCell(r.cells[j], D.servers[r.k].id)}))],
  }));
  if (rows.length > SHOWN.cover) { const more = document.createElement("div"); more.className = "row"; more.innerHTML = `<button type="button" class="more" data-more="cover">Show all ${rows.length} servers</button>`; view.append(more); }
}

function coverCell(cell, id) {
  if (!cell) return '<button type="button" class="cell none" disabled>not planned</button>';
  const share = 100 * cell.measured / cell.n, reason = mainReason(cell);
  const kind = share === 100 ? "all" : share > 0 ? "some" : cell.bad > (cell.good || 0) ? "failed" : "none", mark = {all: "✓", some: "◐", failed: "✗", none: "–"}[kind];
  const why = [...cell.reasons].map(([r, n]) => `${n}× ${reasonText(r)}`).join(", ") + (cell.detail ? `. ${cell.detail}` : "");
  return `<button type="button" class="cell ${kind}" style="--p:${share}%" data-open="${esc(id)}" title="${esc(share === 100 ? "all measured" : why)}">${mark} ${share === 100 ? cell.n : share > 0 ? `${cell.measured}/${cell.n}` : ""} ${share === 100 ? "" : esc(reasonText(reason))}</button>`;
}

function vendorSummary(servers) {
  const by = new Map();
  for (const k of servers) {
    const v = D.servers[k].vendor, sum = by.get(v) || by.set(v, {v, servers: 0, some: 0, n: 0, o: {}}).get(v);
    sum.servers++;
    let any = false;
    for (const i of D.byServer[k]) { const o = D.cells.outcome[i]; sum.o[o] = (sum.o[o] || 0) + 1; sum.n++; any ||= o === "measured"; }
    sum.some += any;
  }
  const box = document.createElement("div");
  const legendHtml = OUTCOMES.map((o) => `<span><i class="o-${o}"></i>${o.replace("_", " ")}</span>`).join("");
  box.append(table({caption: "Per vendor: servers tried, servers with a measurement, and how their cells ended.", rows: [...by.values()].sort((a, b) => b.n - a.n), columns: [
    {label: "Vendor", className: "name", cell: (r) => esc(r.v)}, {label: "Servers", className: "num", cell: (r) => r.servers}, {label: "With a measurement", className: "num", cell: (r) => `${r.some} <span class="soft">(${Math.round(100 * r.some / r.servers)} %)</span>`},
    {label: "Cells", className: "num", cell: (r) => r.n.toLocaleString("en-US")}, {label: "Measured", className: "num", cell: (r) => `${((100 * (r.o.measured || 0)) / r.n).toFixed(1)} %`},
    {label: "How they ended", className: "wide", cell: (r) => `<div class="stack" role="img" aria-label="${OUTCOMES.map((o) => `${o} ${r.o[o] || 0}`).join(", ")}">${OUTCOMES.filter((o) => r.o[o]).map((o) => `<i class="o-${o}" style="width:${100 * r.o[o] / r.n}%" title="${o.replace("_", " ")}: ${r.o[o]}"></i>`).join("")}</div>`},
  ]}));
  box.insertAdjacentHTML("beforeend", `<div class="legend">${legendHtml}</div>`);
  return box;
}

// Both phases beside each other; the boxes stand before the charts are measured to fit them.
function curves(two, series, what) {
  const boxes = [["pp", "Prompt processing"], ["tg", "Text generation"]].map(([task, title]) => { const box = document.createElement("div"); two.append(box); return [box, task, title]; });
  for (const [box, task, title] of boxes) curveChart(box, series, task, `${title}: ${what}`);
}
// A name is written once where it would repeat from row to row.
const once = (rows, name) => (row, k) => k && name(rows[k - 1]) === name(row) ? "" : `<b class="nowrap">${esc(name(row))}</b>`;

// ---- one server -----------------------------------------------------------------------------------------------

function viewServer() {
  const view = $("server-view"), heading = $("server-h");
  if (!S.server) { heading.textContent = "One server"; view.replaceChildren(emptyBox("Select a server above to see its curves over length, every cell with all its trust marks, and why cells are missing.")); return; }
  const k = D.serverByName.get(S.server), s = D.servers[k], x = s.run, r = D.runs, cells = D.byServer[k], hows = [...new Set(cells.filter(measured).map((i) => D.cells.how[i]))];
  heading.textContent = s.id;
  const facts = [["Price", r.usd[x] == null ? "unknown" : `${fmtUsd(r.usd[x])} USD/h`], ["Price read", day(r.price_day[x])], ["Place", r.place[x]], ["CPU", s.cpu], ["CPUs", s.cpus], ["Memory", fmtBytes(s.memory)], ["GPU", s.nGpus ? hwOf(s) : "none"], ["VRAM", s.nGpus ? fmtBytes(s.vram) : ""], ["Kernel", r.kernel[x]], ["Run", `${r.outcome[x]}: ${r.reason[x] || ""}`], ["Run cost", r.cost[x] == null ? "" : `${fmtUsd(r.cost[x])} USD`], ["GPU throttled", r.throttled[x] == null ? "" : `${r.throttled[x]} % of busy time`], ["Measured", day(r.day[x])], ["How", hows.length === 1 ? hows[0].split("|").filter((p) => p && p !== "?").join(" · ") : ""], ["Sweep", r.sweep_id[x]]];
  const head = document.createElement("div");
  head.innerHTML = `<dl class="facts">${facts.filter(([, v]) => v !== "" && v != null).map(([n, v]) => `<div><dt>${n}</dt><dd>${esc(v)}</dd></div>`).join("")}</dl><div class="row"><label class="row act">${pick(s.id)} Compare it</label>${command(`tokensweep explain ${s.name}`)}</div>`;
  const two = document.createElement("div");
  two.className = "two";
  view.replaceChildren(head, two);
  const series = D.models.map((m, j) => ({label: m.label, cells: cells.filter((i) => D.cells.m[i] === j)})).filter((one) => one.cells.some(measured));
  curves(two, series, "median, with the span of the repeats");
  view.append(table({caption: "Every cell with what there is to judge it by.", rows: cells, columns: [
    {label: "Model", cell: once(cells, (i) => D.models[D.cells.m[i]].label)}, {label: "Cell", className: "nowrap", cell: (i) => TASKS[D.cells.t[i]] + D.cells.n[i]},
    {label: "tok/s", className: "num", cell: (i) => measured(i) ? `<b>${fmt(D.cells.v[i])}</b>` : D.cells.v[i] != null ? `<span class="soft">(${fmt(D.cells.v[i])})</span>` : ""},
    {label: "±", className: "num", cell: (i) => D.cells.h[i] == null ? "" : `${fmt(D.cells.h[i])} %`}, {label: "Flags or reason", cell: (i) => measured(i) ? flagTags(i) : whyNot(i)}, {label: "Slowest–fastest", className: "num wide", cell: (i) => D.cells.lo[i] == null ? "" : `${fmt(D.cells.lo[i])}–${fmt(D.cells.hi[i])}`},
    {label: "n", className: "num", title: "Repeats", cell: (i) => D.cells.k[i] || ""}, {label: "1st", className: "num wide", title: "First repeat over the median of the others", cell: (i) => D.cells.fr[i] == null ? "" : D.cells.fr[i].toFixed(2)},
    {label: "Steal", className: "num wide", cell: (i) => D.cells.st[i] == null ? "" : `${D.cells.st[i]} %`}, {label: "Download", className: "wide", title: "A download ran during the repeats", cell: (i) => D.cells.dl[i] == null ? "" : D.cells.dl[i] ? "ran" : "no"},
    {label: "Peak", className: "num wide", title: "Share of what the hardware can do", cell: (i) => D.cells.pk[i] == null ? "" : `${D.cells.pk[i]} %`}, {label: "USD per 1M", className: "num", cell: (i) => measured(i) ? fmtUsd(usdPerMtok(i)) : ""},
    ...(hows.length > 1 ? [{label: "How", className: "wide", cell: (i) => `<span class="sub nowrap">${measured(i) ? esc((D.cells.how[i] || "").split("|").filter((p) => p && p !== "?").join(" · ")) : ""}</span>`}] : []), {label: "Measured", className: "nowrap wide", cell: (i) => measured(i) ? day(D.cells.d[i]) : ""},
  ]}));
}
function whyNot(i) {
  const bad = ["failed", "not_reached", "timed_out"].includes(D.cells.outcome[i]), c = D.cells;
  const more = [c.ph[i] != null ? `at most ${fmt(c.ph[i])} tok/s predicted` : "", c.g[i] ? `gate ${fmt(c.g[i])}` : "", c.detail[i] || ""].filter(Boolean).join(", ");
  return `<span class="tag ${bad ? "bad" : ""}">${esc(c.outcome[i].replace("_", " "))}: ${esc(reasonText(c.reason[i]))}</span> <span class="sub">${esc(more)}</span>`;
}

// ---- compare --------------------------------------------------------------------------------------------------

function viewCompare() {
  const view = $("compare-view"), ids = compared();
  drawDrawer(ids);
  if (ids.length < 2) { view.replaceChildren(emptyBox(`Tick two to six servers to lay them side by side${ids.length ? `; <b>${esc(ids[0])}</b> is the first` : ""}. Servers become the series, the model above stays.`)); return; }
  const m = modelIndex(), of = (id) => D.byServer[D.serverByName.get(id)], two = document.createElement("div");
  two.className = "two";
  view.replaceChildren(two);
  const series = ids.map((id) => ({label: id, cells: of(id).filter((i) => D.cells.m[i] === m)}));
  curves(two, series, `${D.models[m].label}, first against the others`);
  const byCell = new Map();
  ids.forEach((id, j) => { for (const i of of(id)) { if (!measured(i)) continue; const c = D.cells, key = `${c.m[i]}|${c.t[i]}|${c.n[i]}`; (byCell.get(key) || byCell.set(key, []).get(key))[j] = i; } });
  const rows = [...byCell.values()].filter((row) => row[0] != null && row.filter((i) => i != null).length > 1);
  const ratio = (row, j) => row[j] == null || row[0] == null ? null : D.cells.v[row[j]] / D.cells.v[row[0]];
  const means = ids.map((_, j) => { const logs = rows.map((row) => ratio(row, j)).filter(Boolean).map(Math.log); return logs.length ? Math.exp(logs.reduce((a, b) => a + b, 0) / logs.length) : null; });
  view.append(table({caption: "Median tokens/s, ± half the 95 % interval, and the ratio to the first server. ≈: the intervals meet, the difference may be noise. ↓: another one here is as fast for no more money.", rows, columns: [
    {label: "Model", cell: once(rows, (row) => D.models[D.cells.m[row[0]]].label)}, {label: "Cell", cell: (row) => TASKS[D.cells.t[row[0]]] + D.cells.n[row[0]]},
    ...ids.map((id, j) => ({label: `${esc(id)}<div class="sub">${means[j] == null ? "" : `${j ? means[j].toFixed(2) + "× overall" : "base"} · `}${fmtUsd(D.runs.usd[D.servers[D.serverByName.get(id)].run])} USD/h</div>`, className: "num", cell: (row) => comparedCell(row, j)})),
  ]}));
  view.insertAdjacentHTML("beforeend", `<div class="row">${command(`tokensweep compare ${ids.join(" ")}`)}</div>`);
}
function comparedCell(row, j) {
  const i = row[j];
  if (i == null) return '<span class="soft">not measured</span>';
  const span = (k) => { const h = D.cells.h[k]; const mean = D.cells.v[k] * D.cells.mr[k]; return h == null ? null : [mean * (1 - h / 100), mean * (1 + h / 100)]; }, a = span(i), b = span(row[0]);
  const noise = j && a && b && a[0] <= b[1] && b[0] <= a[1] ? " ≈" : "";
  const beaten = row.some((o, k) => k !== j && o != null && priceOf(o) != null && priceOf(i) != null && priceOf(o) <= priceOf(i) && D.cells.v[o] >= D.cells.v[i] && (priceOf(o) < priceOf(i) || D.cells.v[o] > D.cells.v[i]));
  return `<b>${fmt(D.cells.v[i])}</b>${D.cells.h[i] == null ? "" : ` <span class="soft">± ${fmt(D.cells.h[i])} %</span>`}${j ? ` ${(D.cells.v[i] / D.cells.v[row[0]]).toFixed(2)}×` : ""}${noise}${beaten ? " ↓" : ""}${suspicious(i) ? ` <span class="tag flag" title="${esc(flagsOf(i).map((f) => FLAG_TEXT[f]).join("; "))}">!</span>` : ""}`;
}
function drawDrawer(ids) {
  const box = $("drawer");
  box.hidden = ids.length === 0;
  box.innerHTML = `<b>Compare</b>${ids.map((id) => `<span class="chip">${esc(id)}<button type="button" data-drop="${esc(id)}" aria-label="Take ${esc(id)} out">×</button></span>`).join("")}<span class="end row"><button type="button" class="primary" data-goto="compare"${ids.length < 2 ? " disabled" : ""}>${ids.length < 2 ? "Pick one more" : `Compare ${ids.length}`}</button><button type="button" data-drop="">Clear</button></span>`;
}

// ---- cost and proof -------------------------------------------------------------------------------------------

function viewCost() {
  const view = $("cost-view"), total = (name, rows) => rows.reduce((sum, row) => sum + (Number(row[name]) || 0), 0);
  const nOpen = total("n_open", D.teardown), nGone = total("n_proven_gone", D.teardown), nAll = total("n_resources", D.teardown);
  const proof = !nAll ? '<p class="note">No run here recorded the resources that it created; imported results do not.</p>' : nOpen ? `<div class="proof bad" role="note"><p><b>${nOpen} of ${nAll} resources were not proven gone</b> when their run was landed. The reaper may have proven it since: <code>tokensweep leaks</code> asks the vendors now.</p></div>` : `<div class="proof good" role="note"><p><b>Nothing was left behind.</b> All ${nGone} resources were deleted and proven gone by the vendor's own listing.</p></div>`;
  view.innerHTML = `<p class="lead"><b>${fmtUsd(total("spent_usd", D.spend)) || 0} USD</b> for ${total("n_cells_measured", D.spend).toLocaleString("en-US")} measured cells on ${total("n_runs", D.spend).toLocaleString("en-US")} server runs, ${fmt(total("billed_h", D.spend))} billed hours.</p>${proof}`;
  const num = (name, show = fmt) => ({label: name, className: "num", show});
  const grid = (caption, rows, columns) => view.append(table({caption, rows, columns}));
  grid("What each sweep cost, by vendor.", D.spend, [
    {label: "Sweep", cell: (r) => esc(r.sweep_id)}, {label: "Vendor", cell: (r) => esc(r.vendor)}, {label: "Began", className: "nowrap wide", cell: (r) => esc((r.begun_at || "").slice(0, 10))}, {label: "Servers", className: "num", cell: (r) => r.n_servers}, {label: "With a measurement", className: "num wide", cell: (r) => r.n_servers_measured},
    {label: "Failed runs", className: "num", cell: (r) => `${r.n_runs_failed}${r.main_failure ? ` <span class="soft">${esc(reasonText(r.main_failure))}</span>` : ""}`}, {label: "Cells", className: "num", cell: (r) => fmt(r.n_cells_measured)}, {label: "Hours", className: "num", cell: (r) => fmt(r.billed_h)},
    {label: "USD", className: "num", cell: (r) => fmtUsd(r.spent_usd)}, {label: "USD per cell", className: "num", cell: (r) => fmtUsd(r.usd_per_measured_cell)},
  ]);
  if (D.teardown.length) grid("Resources created, and the proof that they are gone.", D.teardown, [
    {label: "Sweep", cell: (r) => esc(r.sweep_id)}, {label: "Vendor", cell: (r) => esc(r.vendor)}, {label: "Created", className: "num", cell: (r) => r.n_resources}, {label: "Proven gone", className: "num", cell: (r) => r.n_proven_gone},
    {label: "Open", className: "num", cell: (r) => r.n_open ? `<span class="tag bad">${r.n_open}</span>` : '<span class="tag good">0</span>'}, {label: "Median teardown", className: "num wide", cell: (r) => r.median_teardown_s == null ? "" : `${fmt(r.median_teardown_s)} s`}, {label: "Last proof", className: "nowrap wide", cell: (r) => esc((r.last_gone_at || "").slice(0, 16).replace("T", " "))},
  ]);
  if (D.leaks.length) grid("Not proven gone at landing.", D.leaks.slice(0, 50), [
    {label: "Vendor", cell: (r) => esc(r.vendor)}, {label: "Kind", cell: (r) => esc(r.kind)}, {label: "Name", cell: (r) => `<code>${esc(r.name)}</code>`}, {label: "State", cell: (r) => esc(r.state)}, {label: "Open for", className: "num", cell: (r) => r.open_s == null ? "" : `${fmt(r.open_s / 3600)} h`}, {label: "USD so far", className: "num", cell: (r) => fmtUsd(r.usd_so_far)},
  ]);
  if (D.gates.length) grid("What the gates spared at least: time and money that was not spent on cells too slow to be useful.", D.gates, [
    {label: "Sweep", cell: (r) => esc(r.sweep_id)}, {label: "Reason", cell: (r) => esc(reasonText(r.reason))}, {label: "Cells", className: "num", cell: (r) => fmt(r.n_cells)}, {label: "Hours spared", className: "num", cell: (r) => fmt(r.spared_h)}, {label: "USD spared", className: "num", cell: (r) => fmtUsd(r.spared_usd)}, {label: "Near misses", className: "num", title: "The optimistic prediction reached 80 % of the gate", cell: (r) => fmt(r.n_near)},
  ]);
  if (D.problems.length) grid("Files of the lake that were left out.", D.problems, [{label: "Kind", cell: (r) => esc(r.kind)}, {label: "File", cell: (r) => `<code>${esc(r.path)}</code>`}, {label: "What is wrong", cell: (r) => esc(r.detail)}]);
}
