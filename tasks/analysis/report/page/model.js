"use strict";
// The data as the page works with it, and the state that the address holds.
const TASKS = ["pp", "tg"];
const FLAG_TEXT = {
  few_repeats: "fewer than 3 repeats", wide_interval: "interval wider than ±10 %", slow_first_repeat: "first repeat 20 % slower than the others",
  steal: "more than 1 % of the CPU time was stolen", throttled: "the GPU slowed itself down", download_active: "a download ran beside it",
  cpu_on_gpu_server: "ran on the CPU although the GPU has room", above_roofline: "faster than the hardware can be",
  twin_disagreement: "another run within a week differs by more than 10 %", drift: "differs by more than 10 % from the measurement before",
  cpu_fallback: "ran on the CPU: the server's GPU could not be used", gpu_memory_unused: "the GPU's memory does not show the model",
  anchor_drift: "the server's own speed moved by more than 5 % within the run", burst: "fast only while credits last",
  price_unknown: "no price is known", price_old: "the price was read more than 90 days before", random_weights: "random weights: the speed is real, the text is not",
};
const REASON_TEXT = {
  predicted_too_slow: "predicted too slow", measured_too_slow: "too slow", shorter_cell_too_slow: "shorter one too slow", smaller_model_too_slow: "smaller model too slow",
  download_too_slow: "download too slow", money: "money cap", cell_timeout: "time out", load_timeout: "load time out", memory: "does not fit the memory", vram: "does not fit the VRAM",
  disk: "does not fit the disk", download_dead: "download dead", download_failed: "download failed", checksum: "wrong checksum", bench_failed: "llama-bench failed",
  bench_killed: "llama-bench killed", out_of_memory: "out of memory", no_working_build: "no build works", disk_full: "disk full", server_failed: "server failed",
  deadline: "deadline", cancelled: "cancelled", server_lost: "server lost", smallest_failed: "smallest failed", not_gguf: "no GGUF",
};
const reasonText = (r) => REASON_TEXT[r] || String(r || "").replaceAll("_", " ");
const D = {};

async function readData() {
  const bytes = Uint8Array.from(atob(document.getElementById("data").textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const raw = JSON.parse(await new Response(stream).text());
  const open = (column, n) => !column ? new Array(n).fill(null) : Array.isArray(column) ? column : column.i.map((i) => i < 0 ? null : column.of[i]);
  const columns = (packed, n) => Object.fromEntries(Object.entries(packed).map(([name, column]) => [name, open(column, n)]));
  const nRuns = raw.runs.server.length, nCells = raw.cells.x.length;
  Object.assign(D, raw, {runs: columns(raw.runs, nRuns), cells: columns(raw.cells, nCells), nRuns, nCells});
  D.models = raw.models.model.map((name, i) => ({
    name, weights: raw.models.weights[i], bytes: raw.models.bytes[i], params: raw.models.params[i], quant: raw.models.quant[i],
    label: name + (raw.models.weights[i] === "real" ? "" : ` (${raw.models.weights[i]})`),
  }));
  D.modelLabel = new Map(D.models.map((m, i) => [m.label, i]));
  indexServers();
  indexCells();
}

// A server is a vendor's type; its newest run says what it is and costs.
function indexServers() {
  const r = D.runs, byName = new Map();
  D.serverOfRun = new Int32Array(D.nRuns);
  D.servers = [];
  for (let x = 0; x < D.nRuns; x++) {
    const id = `${r.vendor[x]}/${r.server[x]}`;
    if (!byName.has(id)) { byName.set(id, D.servers.length); D.servers.push({id, vendor: r.vendor[x], name: r.server[x], runs: [], run: x}); }
    const s = byName.get(id);
    D.serverOfRun[x] = s;
    D.servers[s].runs.push(x);
    if (r.day[x] >= r.day[D.servers[s].run]) D.servers[s].run = x;
  }
  D.serverByName = byName;
  for (const s of D.servers) {
    const x = s.run;
    Object.assign(s, {nGpus: r.n_gpus[x] || 0, gpu: r.gpu_model[x], cpu: r.cpu_model[x], cpus: r.n_cpus[x], memory: r.memory[x], vram: r.vram[x], arch: r.arch[x]});
    s.text = [s.id, s.gpu, s.cpu, s.arch, ...s.runs.map((y) => r.place[y])].filter(Boolean).join(" ").toLowerCase();
  }
}

function indexCells() {
  const c = D.cells;
  D.byCell = new Map();
  D.byServer = D.servers.map(() => []);
  D.lengths = D.models.map(() => [new Set(), new Set()]);
  for (let i = 0; i < D.nCells; i++) {
    const key = `${c.m[i]}|${c.t[i]}|${c.n[i]}`;
    if (!D.byCell.has(key)) D.byCell.set(key, []);
    D.byCell.get(key).push(i);
    D.byServer[D.serverOfRun[c.x[i]]].push(i);
    D.lengths[c.m[i]][c.t[i]].add(c.n[i]);
  }
  const best = D.models.map((_, m) => [0, 1].map((t) => [...D.lengths[m][t]].sort((a, b) => a - b)));
  D.lengths = best;
}

// An unknown backend that was asked to offload layers, on a server with a GPU, counts as that GPU.
const onGpu = (i) => { const how = D.cells.how[i] || ""; return D.servers[D.serverOfRun[D.cells.x[i]]].nGpus > 0 && /^(CUDA|ROCm|Vulkan|SYCL|\?)/.test(how) && /ngl -?[1-9]/.test(how) || /^(CUDA|ROCm|Vulkan|SYCL)/.test(how) && !/ngl 0/.test(how); };
const flagsOf = (i) => D.flags.filter((_, bit) => D.cells.f[i] & (1 << bit));
const suspicious = (i) => flagsOf(i).some((f) => f !== "random_weights");
const priceOf = (i) => D.runs.usd[D.cells.x[i]];
const usdPerMtok = (i) => priceOf(i) != null && D.cells.v[i] ? priceOf(i) / (D.cells.v[i] * 3600) * 1e6 : null;
const measured = (i) => D.cells.outcome[i] === "measured";

// ---- state, kept in the address -------------------------------------------------------------------------------

const START = {model: "", phase: "tg", n: "128", min: "", max: "", vendor: "", place: "", hw: "", buy: "", q: "", trusted: "", sort: "usd", dir: "1", server: "", cmp: "", cover: "", at: ""};
const S = {...START};

function readAddress() {
  const given = new URLSearchParams(location.hash.replace(/^#/, "").includes("=") ? location.hash.slice(1) : "");
  Object.assign(S, START);
  for (const [name, value] of given) if (name in START) S[name] = value;
  if (!/=/.test(location.hash) && location.hash.length > 1) S.at = location.hash.slice(1);
  settle();
}

// What the address asks for may not exist in this file: the nearest that does is taken.
function settle() {
  const most = (pick) => { const count = new Map(); for (let i = 0; i < D.nCells; i++) if (measured(i)) { const k = pick(i); count.set(k, (count.get(k) || 0) + 1); } return [...count].sort((a, b) => b[1] - a[1])[0]?.[0]; };
  if (!D.modelLabel.has(S.model)) S.model = D.models[D.defaultModel ??= most((i) => D.cells.m[i]) ?? 0].label;
  if (!TASKS.includes(S.phase)) S.phase = "tg";
  const lengths = D.lengths[modelIndex()][taskIndex()];
  if (!lengths.length) S.phase = S.phase === "tg" ? "pp" : "tg";
  const there = D.lengths[modelIndex()][taskIndex()], wanted = Number(S.n) || 128;
  if (!there.includes(wanted)) S.n = String(there.reduce((a, b) => Math.abs(Math.log(b / wanted)) < Math.abs(Math.log(a / wanted)) ? b : a));
  S.cmp = compared().join(",");
  if (!D.serverByName.has(S.server)) S.server = "";
}

const modelIndex = () => D.modelLabel.get(S.model) ?? 0;
const taskIndex = () => TASKS.indexOf(S.phase);
const compared = () => [...new Set(S.cmp.split(",").filter((id) => D.serverByName.has(id)))].slice(0, 6);

function writeAddress(push) {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(S)) if (value !== "" && value !== START[name] && name !== "at") given.set(name, value);
  if (S.at) given.set("at", S.at);
  const hash = "#" + given.toString();
  if (hash === location.hash) return;
  history[push ? "pushState" : "replaceState"](null, "", hash);
}

// Servers that pass everything but the speed.
function serverPasses(s) {
  if (S.vendor && s.vendor !== S.vendor) return false;
  return S.q.toLowerCase().split(/\s+/).every((word) => s.text.includes(word));
}
function cellPasses(i) {
  const x = D.cells.x[i];
  if (!serverPasses(D.servers[D.serverOfRun[x]])) return false;
  if (S.place && D.runs.place[x] !== S.place) return false;
  if (S.hw && (S.hw === "gpu") !== onGpu(i)) return false;
  if (S.buy && (S.buy === "spot") !== Boolean(D.runs.spot[x])) return false;
  if (S.max && !(D.runs.usd[x] != null && D.runs.usd[x] <= Number(S.max))) return false;
  return !(S.trusted && suspicious(i));
}
function candidates() {
  return (D.byCell.get(`${modelIndex()}|${taskIndex()}|${S.n}`) || []).filter((i) => measured(i) && cellPasses(i));
}
const meets = (i) => D.cells.v[i] >= (Number(S.min) || 0);

// No other is faster for the same money, or cheaper at the same speed.
function frontier(cells) {
  const sorted = cells.filter((i) => priceOf(i) != null).sort((a, b) => priceOf(a) - priceOf(b) || D.cells.v[b] - D.cells.v[a]);
  let fastest = -1;
  return sorted.filter((i) => D.cells.v[i] > fastest && ((fastest = D.cells.v[i]), true));
}
