"use strict";
// Starts the page, and turns what a person does into state.
const SECTIONS = ["best", "pareto", "coverage", "server", "compare", "cost", "methods"];
let spoken = 0;
function announce(text) { clearTimeout(spoken); spoken = setTimeout(() => { $("live").textContent = text; }, 400); }

function change(values, {push = false} = {}) {
  Object.assign(S, values);
  settle();
  writeAddress(push);
  fillForm();
  drawAll();
}

const drawn = {};
function drawOnce(name, depends, view) {
  const key = depends.map((d) => S[d]).join("|") + "|" + document.documentElement.clientWidth;
  if (drawn[name] === key) return;
  drawn[name] = key;
  view();
}
const FILTERS = ["model", "phase", "n", "min", "max", "vendor", "place", "hw", "buy", "q", "trusted"];
function drawAll() {
  drawOnce("best", [...FILTERS, "sort", "dir", "cmp"], viewBest);
  drawOnce("pareto", FILTERS, viewPareto);
  drawOnce("coverage", ["vendor", "place", "hw", "q", "cover"], viewCoverage);
  drawOnce("server", ["server", "cmp"], viewServer);
  drawOnce("compare", ["cmp", "model"], viewCompare);
  drawOnce("cost", [], viewCost);
}
const redraw = (name) => { delete drawn[name]; drawAll(); };

function fillForm() {
  const form = $("slo"), options = (select, pairs) => {
    const key = JSON.stringify(pairs);
    if (select.dataset.key !== key) { select.dataset.key = key; select.innerHTML = pairs.map(([v, label]) => `<option value="${esc(v)}">${esc(label)}</option>`).join(""); }
  };
  options(form.model, D.models.map((m) => [m.label, m.label]));
  options(form.n, D.lengths[modelIndex()][taskIndex()].map((n) => [n, n]));
  options(form.vendor, [["", "every vendor"], ...vendorNames().map((v) => [v, v])]);
  const places = [...new Set(D.runs.place.filter((p, x) => p && (!S.vendor || D.runs.vendor[x] === S.vendor)))].sort();
  options(form.place, [["", "every place"], ...places.map((p) => [p, p])]);
  for (const name of ["model", "phase", "n", "min", "max", "vendor", "place", "hw", "buy", "q"]) if (form[name].value !== S[name] && document.activeElement !== form[name]) form[name].value = S[name];
  form.trusted.checked = S.trusted === "1";
}

function openServer(id) { change({server: id, at: "server"}, {push: true}); goTo("server"); $("server-h").tabIndex = -1; $("server-h").focus({preventScroll: true}); }
function goTo(name) { document.getElementById(name)?.scrollIntoView({block: "start"}); }
function toggle(id) { const ids = compared(); change({cmp: (ids.includes(id) ? ids.filter((o) => o !== id) : [...ids, id].slice(-6)).join(",")}); }

function onClick(event) {
  const hit = (name) => event.target.closest(`[data-${name}]`)?.dataset[name];
  const link = event.target.closest("nav a");
  if (link) { event.preventDefault(); S.at = link.hash.slice(1); writeAddress(true); goTo(S.at); return; }
  const id = hit("open"), more = hit("more"), text = hit("copy"), drop = hit("drop");
  if (id) openServer(id);
  else if (more) { SHOWN[more] = Infinity; redraw({cover: "coverage", frontier: "pareto"}[more] || more); }
  else if (hit("csv")) save("tokensweep-best.csv", bestCsv());
  else if (text != null) copy(text, event.target.closest("button"));
  else if (drop != null) change({cmp: drop ? compared().filter((o) => o !== drop).join(",") : ""});
  else if (hit("goto")) goTo(hit("goto"));
}

function onChange(event) {
  const node = event.target;
  if (node.dataset.compare) { const id = node.dataset.compare; toggle(id); document.querySelector(`[data-compare="${CSS.escape(id)}"]`)?.focus(); return; }
  if ("cover" in node.dataset) { change({cover: node.value}); document.querySelector("[data-cover]")?.focus(); return; }
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT|TEXTAREA/.test(event.target.tagName) && event.target.type !== "checkbox") { if (event.key === "Escape") event.target.blur(); return; }
  const row = event.target.closest?.("tr[data-key]");
  if (event.key === "/") { event.preventDefault(); $("slo").q.focus(); }
  else if (event.key === "t") theme();
  else if (event.key === "c" && row) { const key = row.dataset.key; toggle(key); document.querySelector(`tr[data-key="${CSS.escape(key)}"] button.link`)?.focus(); }
  else if (/^[1-7]$/.test(event.key)) { S.at = SECTIONS[event.key - 1]; writeAddress(true); goTo(S.at); }
}

function theme() {
  const root = document.documentElement, dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("tokensweep-theme", root.dataset.theme); } catch { /* a page from disk may have no storage */ }
}

async function copy(text, button) {
  try { await navigator.clipboard.writeText(text); } catch { const area = Object.assign(document.createElement("textarea"), {value: text}); document.body.append(area); area.select(); document.execCommand("copy"); area.remove(); }
  const was = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = was; }, 1200);
}
function save(name, text) {
  const link = Object.assign(document.createElement("a"), {href: URL.createObjectURL(new Blob([text], {type: "text/csv"})), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function watchSections() {
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const observer = new IntersectionObserver((entries) => {
    for (const e of entries) if (e.isIntersecting) { for (const a of links.values()) a.removeAttribute("aria-current"); links.get(e.target.id)?.setAttribute("aria-current", "true"); }
  }, {rootMargin: "-20% 0px -70% 0px"});
  for (const name of SECTIONS) observer.observe(document.getElementById(name));
}

function about() {
  const days = D.cells.d.filter((d, i) => d != null && measured(i)), [from, to] = days.length ? [day(d3.min(days)), day(d3.max(days))] : ["nothing yet"], span = to && to !== from ? `${from} to ${to}` : from;
  const nMeasured = D.cells.outcome.filter((o) => o === "measured").length;
  $("about").textContent = `${D.servers.length.toLocaleString("en-US")} servers of ${vendorNames().length} vendor${vendorNames().length === 1 ? "" : "s"} · ${nMeasured.toLocaleString("en-US")} of ${D.nCells.toLocaleString("en-US")} cells measured · ${span}${D.sweep ? ` · sweep ${D.sweep}` : ""}`;
  $("foot").textContent = `Written ${D.generated.replace("T", " ").slice(0, 16)} UTC from ${D.nCells.toLocaleString("en-US")} cells. This file needs no network.`;
  $("flag-list").innerHTML = D.flags.map((f) => `<dt>${esc(f.replaceAll("_", " "))}</dt><dd>${esc(FLAG_TEXT[f])}</dd>`).join("");
}

async function start() {
  try {
    await readData();
  } catch (error) {
    $("about").textContent = "The data inside this file cannot be read.";
    $("best-view").replaceChildren(emptyBox(`${esc(error)}. A browser of 2023 or newer is needed, and the whole file.`));
    throw error;
  }
  about();
  readAddress();
  fillForm();
  drawAll();
  watchSections();
  if (S.at) goTo(S.at);
  const form = $("slo");
  let typing = 0;
  form.addEventListener("input", (e) => {
    const node = e.target, value = node.type === "checkbox" ? (node.checked ? "1" : "") : node.value;
    clearTimeout(typing);
    const go = () => change({[node.name]: value, ...(node.name === "vendor" ? {place: ""} : {})});
    if (["number", "search"].includes(node.type)) typing = setTimeout(go, 180); else go();
  });
  form.addEventListener("submit", (e) => e.preventDefault());
  form.addEventListener("reset", (e) => { e.preventDefault(); change({...START, cmp: S.cmp, server: S.server, model: ""}); });
  document.addEventListener("click", onClick);
  document.addEventListener("change", onChange);
  document.addEventListener("keydown", onKey);
  $("theme").addEventListener("click", theme);
  $("share").addEventListener("click", (e) => copy(location.href, e.currentTarget));
  addEventListener("popstate", () => { readAddress(); fillForm(); drawAll(); if (S.at) goTo(S.at); });
  let resizing = 0;
  addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(drawAll, 150); });
  addEventListener("beforeprint", () => { SHOWN.best = Math.max(SHOWN.best, 100); redraw("best"); });
  document.documentElement.dataset.readyAt = performance.now().toFixed(1);
  document.documentElement.dataset.ready = "1";
}

try { const kept = localStorage.getItem("tokensweep-theme"); if (kept) document.documentElement.dataset.theme = kept; } catch { /* no storage */ }
// The frame is painted before the data are unpacked.
requestAnimationFrame(() => setTimeout(start));
