"use strict";
// Everything shown comes from /api/events and the API itself. Texts are set as text, never as HTML.

const byId = (id) => document.getElementById(id);
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
};

// ---- The server ----

const KEY = "qmesh-api-key";
const OWNER = "qmesh-owner-key";
let status = null;

const headers = (more = {}) => {
  const key = sessionStorage.getItem(KEY);
  const owner = sessionStorage.getItem(OWNER);
  if (owner) more = { ...more, "x-qmesh-owner-key": owner };
  return key ? { ...more, authorization: `Bearer ${key}` } : more;
};

// The link that `serve --open` prints ends in the owner's key. It stays in this tab, and does not stay in the address.
const takeOwnerKey = () => {
  const key = new URLSearchParams(location.hash.slice(1)).get("owner");
  if (!key) return;
  sessionStorage.setItem(OWNER, key);
  history.replaceState(null, "", location.pathname);
};
addEventListener("hashchange", () => { takeOwnerKey(); if (status) showAsking(status); });

// Asks for the key once for everybody who waits for it.
let asking = null;
const askForKey = () => {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    dialog.addEventListener("close", () => {
      const key = byId("key").value.trim();
      if (key) sessionStorage.setItem(KEY, key);
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
};

const call = async (path, options = {}) => {
  for (;;) {
    const response = await fetch(path, { ...options, headers: headers(options.headers) });
    if (response.status !== 401) return response;
    sessionStorage.removeItem(KEY);
    await askForKey();
  }
};

// The events of a body: a server-sent event each, as {name, data}.
async function* sentEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split(/\r?\n\r?\n/);
    text = blocks.pop();
    for (const block of blocks) {
      let name = "";
      const data = [];
      for (const line of block.split(/\r?\n/)) {
        if (line.startsWith("event:")) name = line.slice(6).trim();
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      }
      if (data.length) yield { name, data: data.join("\n") };
    }
  }
}

const watch = async () => {
  let wait = 500;
  for (;;) {
    try {
      const response = await call("/api/events");
      if (!response.ok) throw new Error(await reason(response));
      banner("");
      connected = true;
      for await (const { name, data } of sentEvents(response.body)) {
        wait = 500;
        const value = JSON.parse(data);
        if (name === "") show(value);
        else happened(name, value);
      }
      banner("The server has closed the connection. Trying again …");
    } catch (error) {
      banner(`No connection to the server (${error.message}). Trying again …`);
    }
    setBadge("no connection", "bad");
    await new Promise((resolve) => setTimeout(resolve, wait));
    wait = Math.min(wait * 2, 8000);
  }
};

const reason = async (response) => {
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `${response.status} ${response.statusText}`;
};

const banner = (text) => {
  byId("banner").textContent = text;
  byId("banner").hidden = !text;
};

// ---- Words for numbers ----

const bytes = (count) => {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) { count /= 1000; unit += 1; }
  return `${count >= 100 || unit === 0 ? count.toFixed(0) : count.toPrecision(3)} ${units[unit]}`;
};
const milliseconds = (ms) => (ms >= 100 ? `${ms.toFixed(0)} ms` : ms >= 10 ? `${ms.toFixed(1)} ms` : `${ms.toFixed(2)} ms`);
const percent = (part) => `${Math.round(100 * part)} %`;
const rate = (perSecond) => (perSecond >= 100 ? perSecond.toFixed(0) : perSecond.toFixed(1));
const duration = (seconds) => {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
};
const clock = (date) => date.toLocaleTimeString([], { hour12: false });

// ---- The status ----

// Whether the next status is the first one of a connection.
let connected = false;

const show = (news) => {
  const before = status;
  status = news;
  if (connected) {
    connected = false;
    meetRun(before, news);
  }
  if (unsure.size) readSlots();
  follow(news);
  document.title = `${news.model} · qmesh`;
  byId("model").textContent = news.model;
  byId("uptime").textContent = `up ${duration(news.uptime_s)}${news.epoch ? `, plan ${news.epoch}` : ""}`;
  byId("text").textContent = news.text;
  setBadge(news.state, news.state === "ready" ? "good" : news.state === "failed" ? "bad" : "");
  showAsking(news);
  showPipeline(news);
  showTiles(news);
  showSnippet();
};

// Only what has changed is drawn anew: a button must not move from under a finger.
let asked = null;
const showAsking = (news) => {
  const mayDecide = sessionStorage.getItem(OWNER) !== null;
  byId("open-join").hidden = !news.open;
  const drawn = JSON.stringify([news.asking, mayDecide]);
  if (drawn === asked) return;
  asked = drawn;
  byId("asking").hidden = !news.asking?.length;
  byId("asking-key").hidden = mayDecide;
  byId("askers").replaceChildren(...(news.asking ?? []).map((one) => {
    const decision = (what, label, kind) => make("button", { type: "button", class: kind, "aria-label": `${label} ${one.name}, code ${one.code}`, onclick: () => decide(one, what) }, label);
    return make("li", {}, make("span", { class: "who" }, make("strong", {}, one.name), make("span", { class: "quiet" }, ` at ${one.address}`)),
      make("code", { class: "code" }, one.code),
      ...(one.namesake ? [make("span", { class: "warning" }, "another worker has this name")] : []),
      ...(mayDecide ? [make("span", { class: "buttons" }, decision("admit", "Admit", ""), decision("refuse", "Refuse", "plain"))] : []));
  }));
};

const decide = async (one, what) => {
  const response = await call(`/api/workers/${encodeURIComponent(one.code)}/${what}`, { method: "POST" });
  if (response.status === 403) {
    // The coordinator was started anew, with another key.
    sessionStorage.removeItem(OWNER);
    showAsking(status);
  }
  banner(response.ok ? "" : await reason(response));
};

const setBadge = (text, kind) => {
  byId("state").textContent = text;
  byId("state").className = `badge ${kind}`;
};

// A status has means over all steps of a plan; the difference of two of them says how it went in between.
const recents = new Map();
const follow = (news) => {
  for (const stage of news.stages) {
    const key = `${news.epoch} ${stage.stage} ${stage.worker}`;
    const known = recents.get(key) ?? { steps: 0, total: 0, times: [] };
    const total = stage.steps * stage.compute_ms;
    if (stage.steps > known.steps) {
      known.times.push((total - known.total) / (stage.steps - known.steps));
      if (known.times.length > 60) known.times.shift();
    }
    recents.set(key, { ...known, steps: stage.steps, total });
    stage.times = known.times;
  }
  for (const key of recents.keys()) if (!key.startsWith(`${news.epoch} `)) recents.delete(key);
};
const timeOf = (stage) => {
  const last = (stage.times ?? []).slice(-8);
  return last.length ? last.reduce((a, b) => a + b) / last.length : stage.compute_ms;
};

// The last minute of a stage's times, as a line.
const SVG = "http://www.w3.org/2000/svg";
const sparkline = (times) => {
  const [svg, line] = [document.createElementNS(SVG, "svg"), document.createElementNS(SVG, "polyline")];
  const most = Math.max(...times);
  svg.setAttribute("viewBox", "0 0 60 16");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "sparkline");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `compute time of the last steps: ${milliseconds(Math.min(...times))} to ${milliseconds(most)}`);
  line.setAttribute("points", times.map((time, at) => `${60 - times.length + at},${15 - 14 * time / most}`).join(" "));
  svg.append(line);
  return svg;
};

const showPipeline = (news) => {
  const stages = news.stages;
  const slowest = stages.length > 1 && stages.every((stage) => stage.steps > 0)
    ? stages.reduce((a, b) => (timeOf(b) > timeOf(a) ? b : a)) : null;
  const workers = new Map(news.workers.map((worker) => [worker.name, worker]));
  const parts = [make("li", { class: "stage end" }, make("h3", {}, "coordinator"), make("span", { class: "quiet" }, "tokens in, tokens out"))];
  stages.forEach((stage, index) => {
    const worker = workers.get(stage.worker);
    const before = index ? stages[index - 1] : null;
    parts.push(hop(before, worker));
    parts.push(stageBox(stage, worker, stage === slowest, slowest));
  });
  byId("pipeline").replaceChildren(...parts);
  byId("pipeline-note").textContent = note(stages, slowest);
  const standbys = news.workers.filter((worker) => worker.stage === null || worker.stage === undefined);
  byId("standbys").replaceChildren(...standbys.map((worker) => make("li", {}, make("strong", {}, worker.name),
    ` has no layers: ${worker.note ?? "it waits for a plan"} (${bytes(worker.memory_bytes)}, ${worker.threads} threads, ${milliseconds(worker.rtt_ms)} away)`)));
  byId("change").replaceChildren(...(news.change
    ? [make("p", {}, make("strong", {}, `Plan ${news.change.epoch} is on its way: `), news.change.text),
      ...news.change.stages.map((stage) => make("p", { class: "quiet" }, `${stage.worker}, layers ${stage.first_layer}–${stage.end_layer - 1}: ${loading(stage)}`))]
    : []));
};

const hop = (before, worker) => {
  const lines = [];
  if (before?.steps) lines.push(make("span", {}, `${milliseconds(before.hop_ms)} hop`));
  // Between workers it is their own link that counts, where they have said what it is like.
  const rtt = before?.link?.rtt_ms ?? worker?.rtt_ms;
  if (rtt !== undefined) lines.push(make("span", {}, `${milliseconds(rtt)} RTT`));
  if (before?.link?.passage === "relayed") lines.push(make("span", {}, "relayed"));
  return make("li", { class: "hop" }, ...lines);
};

const stageBox = (stage, worker, isSlowest, slowest) => {
  const rows = [["layers", `${stage.first_layer}–${stage.end_layer - 1}`]];
  if (stage.steps) {
    rows.push(["compute", `${milliseconds(timeOf(stage))} a step`]);
    if (stage.recent) rows.push(["p50 / p95", `${milliseconds(stage.recent.p50_ms)} / ${milliseconds(stage.recent.p95_ms)}`]);
    if (slowest && !isSlowest) rows.push(["waits", percent(1 - timeOf(stage) / timeOf(slowest))]);
  } else if (stage.phase !== "ready") {
    rows.push(["is", loading(stage)]);
  }
  rows.push(["weights", bytes(stage.weight_bytes)]);
  rows.push(["memory", `${bytes(stage.planned_bytes)}${worker ? ` of ${bytes(worker.memory_bytes)}` : ""}`]);
  rows.push(["KV cache", `${bytes(stage.kv_bytes_used)} of ${bytes(stage.kv_bytes)}`]);
  const list = make("dl", {});
  for (const [name, value] of rows) list.append(make("dt", {}, name), make("dd", {}, value));
  const loads = stage.phase !== "ready" && stage.bytes_total > 0;
  const share = loads ? stage.bytes_done / stage.bytes_total : worker ? stage.planned_bytes / worker.memory_bytes : 0;
  const curve = stage.times?.length > 1 ? [sparkline(stage.times)] : [];
  const fill = make("i");
  fill.style.width = `${(100 * Math.min(1, share)).toFixed(1)}%`;
  const label = loads ? "loaded" : "of the worker's memory";
  const meter = make("div", { class: "bar", role: "img", "aria-label": `${percent(Math.min(1, share))} ${label}` }, fill);
  const title = make("h3", {}, stage.worker);
  if (isSlowest) title.append(" ", make("span", { class: "badge" }, "bottleneck"));
  return make("li", { class: `stage ${isSlowest ? "slowest" : ""} ${stage.phase === "failed" ? "failed" : ""}` }, title, list, ...curve, meter);
};

const loading = (stage) => {
  const part = stage.bytes_total ? ` ${percent(stage.bytes_done / stage.bytes_total)}` : "";
  return `${{ asked: "asked", fetching: "fetching", loading: "loading", ready: "ready", failed: "failed" }[stage.phase]}${stage.phase === "ready" || stage.phase === "failed" ? "" : part}`;
};

const note = (stages, slowest) => {
  if (!stages.length) return "No plan yet.";
  if (!slowest) return "";
  const total = stages.reduce((sum, stage) => sum + timeOf(stage), 0);
  const bubble = 1 - total / (stages.length * timeOf(slowest));
  return `With every stage busy, ${slowest.worker} sets the pace; the others would wait ${percent(bubble * stages.length / (stages.length - 1))} of the time.`;
};

/** What of the drafts were a small model's, if there is one. */
const ofModel = (draft) => draft ? `; of ${draft.model}: ${draft.accepted_tokens} of ${draft.drafted_tokens}` : "";

const showTiles = (news) => {
  const expected = news.prediction;
  const last = rates.at(-1);
  const kv = news.kv_positions ? news.kv_positions_used / news.kv_positions : 0;
  const tiles = [
    ["generated", last ? `${rate(last.generated)} tok/s` : "–", expected ? `expected: ${rate(expected.tokens_per_s)} for one stream, ${rate(expected.streams_tokens_per_s)} for ${expected.streams}` : ""],
    ["prompts", last ? `${rate(last.prompt)} tok/s` : "–", ""],
    ["requests", `${news.running} running`, `${news.waiting} waiting`],
    ["KV promised", percent(kv), `${news.kv_positions_used} of ${news.kv_positions} positions`],
    ["prompt tokens", String(news.prompt_tokens), `${news.cached_tokens} of them were there already`],
    ["generated tokens", String(news.generated_tokens), news.drafted_tokens ? `${news.accepted_tokens} of ${news.drafted_tokens} drafts were right${ofModel(news.draft_model)}` : ""],
    ["weights sent", bytes(news.weight_bytes_sent), "by this coordinator"],
    ["context", String(news.context), "tokens of one conversation"],
  ];
  byId("tiles").replaceChildren(...tiles.map(([name, value, more]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value, make("small", {}, more)))));
};

// ---- What happens ----

const MINUTES = 5;
const rates = [];
const marks = [];
const requests = new Map();
// Each start of the server numbers its requests anew: rows are kept by the run that they are of, and their number.
let run = 0, began = 0;
const rowOf = (number) => `${run} ${number}`;
// Rows whose end came while slots were read, which may still show them.
const ended = new Set();
// Rows whose end may have come while nobody listened. A request that waits is in no slot yet.
const unsure = new Set();

// A connection begins: what ran before may have ended meanwhile, with its server or without.
const meetRun = (before, news) => {
  const now = Date.now() / 1000 - news.uptime_s;
  if (before && Math.abs(now - began) > 5) run += 1;
  began = now;
  for (const [row, request] of requests) if (!request.end && request.run !== run) requests.delete(row);
  doubt();
};

const doubt = () => {
  for (const [row, request] of requests) if (!request.end) unsure.add(row);
  readSlots();
};

// What runs already, and which rows have lost their request.
let reading = false;
const readSlots = async () => {
  if (reading) return;
  reading = true;
  ended.clear();
  const response = await call("/slots").catch(() => null);
  const slots = response?.ok ? await response.json().catch(() => null) : null;
  reading = false;
  if (!slots) return;
  for (const slot of slots.filter((slot) => slot.is_processing)) {
    const row = rowOf(slot.id_task);
    unsure.delete(row);
    if (!requests.has(row) && !ended.has(row)) addRequest(slot.id_task, { since: new Date(), prompt: slot.n_prompt_tokens, most: slot.params.n_predict });
  }
  if (status.waiting === 0) {
    for (const row of unsure) requests.delete(row);
    unsure.clear();
  }
  showRequests();
};

const addRequest = (number, request) => requests.set(rowOf(number), { ...request, number, run, end: null });

const happened = (name, event) => {
  if (name === "token_rates") {
    rates.push({ at: Date.now(), generated: event.generated_per_s, prompt: event.prompt_per_s });
    if (status) showTiles({ ...status, running: event.running, waiting: event.waiting });
    draw();
    return;
  }
  if (name === "load_progress") return;
  if (name === "lost") doubt();
  const text = inWords(name, event);
  if (name.startsWith("request_")) followRequest(name, event);
  if (!text) return;
  const isFault = name === "fault_seen" || name === "worker_asks" && event.namesake || name === "worker_left" || name === "worker_slow";
  if (!name.startsWith("request_")) marks.push({ at: Date.now(), text });
  const list = byId("events");
  if (list.firstElementChild?.className === "quiet") list.replaceChildren();
  list.prepend(make("li", isFault ? { class: "fault" } : {}, make("time", {}, clock(new Date())), text));
  while (list.childElementCount > 200) list.lastElementChild.remove();
  draw();
};

const inWords = (name, event) =>
  name === "lost" ? `${event.events} events were lost, as this page was too slow.` : event.sentence ?? "";

const followRequest = (name, event) => {
  if (name === "request_started") {
    addRequest(event.request, { since: new Date(), prompt: event.prompt_tokens, most: event.max_tokens, key: event.key });
  } else {
    const known = requests.get(rowOf(event.request));
    unsure.delete(rowOf(event.request));
    ended.add(rowOf(event.request));
    if (known) Object.assign(known, { end: event.end, until: new Date() });
  }
  while (requests.size > 50) requests.delete(requests.keys().next().value);
  showRequests();
};

const showRequests = () => {
  const rows = [...requests.values()].reverse().map((request) => {
    const number = request.number;
    const seconds = ((request.until ?? new Date()) - request.since) / 1000;
    const finished = request.end?.finished;
    const state = !request.end ? "running" : request.end === "cancelled" ? "cancelled" : finished ? "done" : "failed";
    const answer = finished ? `${finished.generated_tokens} tokens, ${rate(finished.generated_tokens / Math.max(seconds, 0.001))}/s` : `at most ${request.most}`;
    const cancel = request.end ? "" : make("button", { class: "plain", type: "button", "aria-label": `Cancel request ${number}`, onclick: () => cancelRequest(number) }, "Cancel");
    return make("tr", {}, make("td", {}, request.key ? `${number}, ${request.key}` : String(number)), make("td", {}, clock(request.since)), make("td", {}, String(request.prompt)),
      make("td", {}, answer), make("td", {}, `${state}, ${duration(seconds)}`), make("td", {}, cancel));
  });
  if (!rows.length) rows.push(make("tr", {}, make("td", { colspan: 6, class: "quiet" }, "None since this page was opened.")));
  byId("requests").replaceChildren(...rows);
};

const cancelRequest = async (number) => {
  const response = await call(`/api/requests/${number}/cancel`, { method: "POST" });
  if (!response.ok) banner(await reason(response));
};

// ---- The curve ----

const draw = () => {
  const canvas = byId("chart");
  const since = Date.now() - MINUTES * 60_000;
  for (const list of [rates, marks]) while (list.length && list[0].at < since - 5000) list.shift();
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = width * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name);
  const most = Math.max(10, ...rates.map((r) => Math.max(r.generated, Math.min(r.prompt, 4 * r.generated || r.prompt)))) * 1.1;
  const [left, bottom] = [44, 18];
  const x = (at) => left + (width - left) * (at - since) / (MINUTES * 60_000);
  const y = (value) => (height - bottom) * (1 - Math.min(value, most) / most) + 2;
  pen.font = "11px system-ui, sans-serif";
  pen.fillStyle = color("--quiet");
  pen.strokeStyle = color("--line");
  for (const part of [0, 0.5, 1]) {
    const value = most / 1.1 * part;
    pen.fillText(value.toFixed(0), 2, y(value) + 4);
    pen.beginPath(); pen.moveTo(left, y(value)); pen.lineTo(width, y(value)); pen.stroke();
  }
  for (let minute = 1; minute < MINUTES; minute += 1) {
    pen.fillText(`−${MINUTES - minute} min`, x(since + minute * 60_000) - 14, height - 4);
  }
  pen.fillStyle = color("--busy");
  for (const mark of marks) pen.fillRect(x(mark.at) - 1, 2, 2, height - bottom);
  for (const [field, name] of [["prompt", "--prompt"], ["generated", "--accent"]]) {
    pen.strokeStyle = color(name);
    pen.lineWidth = 1.6;
    pen.beginPath();
    rates.forEach((r, index) => (index ? pen.lineTo(x(r.at), y(r[field])) : pen.moveTo(x(r.at), y(r[field]))));
    pen.stroke();
  }
};

// ---- The chat ----

let messages = [];
let running = null;

const answerInto = async (article, conversation) => {
  const body = make("span"), thoughts = make("details", { hidden: "" }, make("summary", {}, "Thoughts"), make("span"));
  article.replaceChildren(thoughts, body);
  const started = performance.now();
  let first = 0, count = 0, text = "", thought = "";
  const response = await call("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    signal: running.signal,
    body: JSON.stringify({ model: status?.model, messages: conversation, stream: true, stream_options: { include_usage: true } }),
  });
  if (!response.ok) throw new Error(await reason(response));
  for await (const { data } of sentEvents(response.body)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    if (chunk.usage) count = chunk.usage.completion_tokens;
    const delta = chunk.choices?.[0]?.delta ?? {};
    if (delta.content || delta.reasoning_content) first ||= performance.now();
    text += delta.content ?? "";
    thought += delta.reasoning_content ?? "";
    const split = apart(text);
    body.textContent = split.answer;
    const all = thought + split.thought;
    thoughts.hidden = !all;
    thoughts.lastElementChild.textContent = all;
    byId("log").scrollTop = byId("log").scrollHeight;
  }
  const seconds = (performance.now() - (first || started)) / 1000;
  if (count) article.append(make("footer", {}, `${count} tokens, ${rate((count - 1) / Math.max(seconds, 0.001))} tok/s, first after ${milliseconds((first || performance.now()) - started)}`));
  return text;
};

// Thoughts that a model writes into its text are folded as well.
const apart = (text) => {
  const begins = text.indexOf("<think>");
  if (begins < 0) return { answer: text, thought: "" };
  const ends = text.indexOf("</think>", begins);
  if (ends < 0) return { answer: text.slice(0, begins), thought: text.slice(begins + 7) };
  return { answer: text.slice(0, begins) + text.slice(ends + 8).trimStart(), thought: text.slice(begins + 7, ends) };
};

const ask = async () => {
  const question = byId("message").value.trim();
  if (!question || running) return;
  byId("message").value = "";
  // An answer belongs to the conversation in which it was asked for, also where another one has begun since.
  const conversation = messages;
  conversation.push({ role: "user", content: question });
  const article = make("article", {}, "…");
  byId("log").append(make("article", { class: "user" }, question), article);
  byId("log").scrollTop = byId("log").scrollHeight;
  running = new AbortController();
  byId("stop").hidden = false;
  byId("send").disabled = true;
  try {
    conversation.push({ role: "assistant", content: await answerInto(article, conversation) });
  } catch (error) {
    const said = article.querySelector(":scope > span")?.textContent ?? "";
    if (said) conversation.push({ role: "assistant", content: said });
    else conversation.pop();
    article.append(make("footer", error.name === "AbortError" ? {} : { class: "error" }, error.name === "AbortError" ? "stopped" : error.message));
  }
  running = null;
  byId("stop").hidden = true;
  byId("send").disabled = false;
  byId("message").focus();
};

byId("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
byId("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
});
byId("stop").addEventListener("click", () => running?.abort());
byId("clear").addEventListener("click", () => {
  running?.abort();
  messages = [];
  byId("log").replaceChildren();
});

// ---- How to use it ----

let language = "curl";
const snippets = {
  curl: (url, model) => `curl -N ${url}/v1/chat/completions \\\n  -H 'content-type: application/json'${withKey(" \\\n  -H \"authorization: Bearer $API_KEY\"")} -d '{\n  "model": ${JSON.stringify(model)}, "stream": true,\n  "messages": [{"role": "user", "content": "Hello!"}]}'`,
  python: (url, model) => `from openai import OpenAI\n\nclient = OpenAI(base_url="${url}/v1", api_key="${withKey("…") || "none"}")\nfor chunk in client.chat.completions.create(\n        model=${JSON.stringify(model)}, stream=True,\n        messages=[{"role": "user", "content": "Hello!"}]):\n    print(chunk.choices[0].delta.content or "", end="")`,
  javascript: (url, model) => `import OpenAI from "openai";\n\nconst client = new OpenAI({ baseURL: "${url}/v1", apiKey: "${withKey("…") || "none"}" });\nconst stream = await client.chat.completions.create({\n  model: ${JSON.stringify(model)}, stream: true,\n  messages: [{ role: "user", content: "Hello!" }],\n});\nfor await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");`,
};
const withKey = (text) => (sessionStorage.getItem(KEY) ? text : "");
const showSnippet = () => { byId("snippet").textContent = snippets[language](location.origin, status?.model ?? "MODEL"); };

const tabs = [...document.querySelectorAll("[role=tab]")];
const choose = (tab) => {
  language = tab.id.slice(4);
  tabs.forEach((one) => {
    one.setAttribute("aria-selected", String(one === tab));
    one.tabIndex = one === tab ? 0 : -1;
  });
  showSnippet();
};
tabs.forEach((tab, index) => {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(index + step + tabs.length) % tabs.length];
    choose(next);
    next.focus();
  });
});

document.querySelectorAll("[data-copy]").forEach((button) => button.addEventListener("click", async () => {
  const source = byId(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
  } catch {
    // Without a secure origin the browser lets nobody copy: the text is selected instead.
    getSelection().selectAllChildren(source);
    button.textContent = "Selected: copy it";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}));

addEventListener("resize", draw);
setInterval(() => {
  draw();
  if ([...requests.values()].some((request) => !request.end)) showRequests();
}, 1000);
takeOwnerKey();
watch();
