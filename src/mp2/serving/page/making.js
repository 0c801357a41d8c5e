// Making a task: examples, what was understood of them, tuning as it goes on, and its result.

import { follow, getJson, postJson, remove } from "/page/api.js";
import { bars, curve, make, percent, stageName } from "/page/draw.js";
import { say } from "/page/words.js";

const at = (id) => document.getElementById(id);
const state = { format: null, report: null, rows: [], job: null, records: [], end: null };

// The format of pasted text; a file says it by its name.
function formatOf(text) {
  const start = text.trimStart();
  if (start.startsWith("[")) return "json";
  if (start.startsWith("{")) return "jsonl";
  return start.split("\n", 1)[0].includes("\t") ? "tsv" : "csv";
}

// The text of a file; in another encoding every character that is not ASCII would be lost.
async function utf8(file) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new Error(say("notUtf8", file.name));
  }
}

function upload() {
  const content = at("examples").value;
  const body = { examples: { format: state.format ?? formatOf(content), content: content.endsWith("\n") ? content : `${content}\n` } };
  if (at("task-file").value && at("task-file").dataset.sent !== at("task-file").value) body.task_file = at("task-file").value;
  return body;
}

async function checkExamples(withTaskFile) {
  if (!withTaskFile) at("task-file").value = "";
  const body = upload();
  state.taskFile = body.task_file;
  state.report = await postJson("/v1/check", { ...body, name: at("name").value || "task" });
  drawReport();
  at("understood").hidden = false;
  if (state.report.method) at("method").value = state.report.method;
  at("adapt-form").hidden = !state.report.usable || state.report.problems.length > 0;
  if (!at("adapt-form").hidden) at("adapt-form").scrollIntoView({ block: "nearest", behavior: "smooth" });
}

function drawReport() {
  const report = state.report;
  if (!report) return;
  const kind = report.task ? say("kind", say("family")[report.task.family]) : "";
  at("understood-line").textContent = kind + (report.split ? say("line", report, report.split) : say("lineBad", report));
  const most = Math.max(...report.labels.map((label) => label.rows), 1);
  const named = report.labels.filter((label) => label.label);
  at("labels").replaceChildren(bars(named.map((label) => [label.label, label.rows / most, say("rowsOf", label.rows)])));
  at("warnings").replaceChildren(...report.warnings.map((item) => make("li", say(item.code, item.values) ?? item.message)));
  const problems = report.problems.map((item) => make("li", say("row", item.message.startsWith("row ") ? 0 : item.row) + item.message));
  if (report.more_problems) problems.push(make("li", say("moreProblems", report.more_problems)));
  at("problems").replaceChildren(...problems);
  at("calibrate-label").hidden = !report.task?.labels?.length;
  at("task-file-details").hidden = !report.task_file;
  if (report.task_file && !at("task-file").value) at("task-file").value = at("task-file").dataset.sent = report.task_file;
}

async function adapt(onDone) {
  const name = at("name").value;
  const body = { ...upload(), name, method: at("method").value };
  if (at("calibrate").checked && !at("calibrate-label").hidden) body.calibrate = true;
  if (state.taskFile) body.task_file = state.taskFile;
  let job;
  try {
    job = await postJson("/v1/tasks", body);
  } catch (error) {
    if (error.type !== "taken" || !confirm(say("replace", name))) throw error;
    job = await postJson("/v1/tasks", { ...body, replace: true });
  }
  state.texts = state.report.preview;  // of this job, whatever is checked next
  await see(job, onDone);
}

async function see(job, onDone) {
  Object.assign(state, { job, records: [], end: null });
  at("cancel").hidden = false;
  at("result").hidden = true;
  drawJob();
  try {
    await watch(job.id);
  } finally {
    at("cancel").hidden = true;
  }
  if (state.end?.status === "done") await onDone(job.name);
}

// Follow the events; when the stream breaks off before the end, look again.
async function watch(id) {
  while (!state.end) {
    try {
      state.records = [];
      await follow(`/v1/jobs/${id}/events`, (kind, data) => {
        if (kind === "status") state.job = { ...state.job, ...data };
        if (kind === "progress") state.records.push(data);
        if (kind === "end") state.end = data;
        drawJob();
      });
    } catch (error) {
      if (error.type) throw error;  // the server's own words; else the connection is gone for a while
    }
    if (!state.end) await new Promise((wake) => setTimeout(wake, 1000));
  }
}

function drawJob() {
  const { job, records, end } = state;
  if (!job) return;
  const last = records[records.length - 1];
  let line = job.status === "queued" ? say("queued", job.ahead) : say("running");
  if (last) line = say("tuning", last.stage < 0 ? say("start") : stageName(job.method, last.stage), percent(last.dev));
  if (end) line = end.status === "done" ? say("done", end.result.seconds.toFixed(1)) : end.status === "failed" ? say("failed") + end.error : say("cancelled");
  at("job-line").textContent = line;
  at("curve").hidden = !records.length;
  if (records.length) at("curve").replaceChildren(curve(records, job.method), make("figcaption", say("kept"), "hint"));
  at("result").hidden = end?.status !== "done";
  if (end?.status === "done") drawResult(end.result);
}

function drawResult(result) {
  const held = result.held_back, box = at("result");
  if (!held) {
    box.replaceChildren(make("p", say("noHeld")));
    return;
  }
  const score = make("p");
  score.append(make("span", percent(held.value), "score"), ` ${say("held", held.metric)}`);
  const parts = [score];
  if (held.low !== null) parts.push(make("p", say("interval", percent(held.low), percent(held.high), held.count), "hint"));
  const details = make("details");
  details.open = box.querySelector("details")?.open ?? false;
  details.append(make("summary", say("mistakes")), heldRows(held.rows, state.texts));
  box.replaceChildren(...parts, details);
}

// Answers on the rows that were held back, mistakes first; the texts are known only to who uploaded them.
function heldRows(rows, texts) {
  const table = make("table"), head = table.createTHead().insertRow();
  for (const name of [...(texts ? ["text"] : []), "expected", "got", "probability"]) head.append(make("th", say(name)));
  const body = table.createTBody();
  for (const row of [...rows].sort((a, b) => (a.expected === a.answer) - (b.expected === b.answer))) {
    const line = body.insertRow(), right = row.expected === row.answer;
    if (texts) line.append(make("td", texts[row.row - 1], "text"));
    line.insertCell().textContent = row.expected || say("noAnswer");
    line.append(make("td", `${right ? "✓" : "✗"} ${row.answer || say("noAnswer")}`, right ? "right" : "wrong"));
    line.insertCell().textContent = percent(row.probability);
  }
  const box = make("div", undefined, "scroll");
  box.append(table);
  return box;
}

// A job that was under way when the page was opened, or opened again.
async function rejoin(onDone) {
  const { jobs } = await getJson("/v1/jobs");
  const job = jobs.find(({ status }) => status === "queued" || status === "running");
  if (!job) return;
  at("name").value = job.name;
  at("adapt-form").hidden = false;
  state.texts = null;
  await see(job, onDone);
}

export function setUpMaking(attempt, about, onDone) {
  for (const method of about.methods) at("method").append(Object.assign(make("option", method.name), { value: method.name, title: method.about }));
  at("method").value = about.default_method;
  at("name").title = say("nameHint");
  getJson("/v1/samples").then((samples) => {
    for (const sample of samples) at("sample").append(Object.assign(make("option", sample.name), { value: sample.name }));
    at("sample").addEventListener("change", () => {
      const chosen = samples.find((sample) => sample.name === at("sample").value);
      if (chosen) take(chosen.content, chosen.format, chosen.name);
    });
  });
  at("examples").addEventListener("input", () => {
    state.format = null;
    at("understood").hidden = at("adapt-form").hidden = true;  // they are of what stood there before
  });
  at("file").addEventListener("change", () => attempt(null, async () => {
    const file = at("file").files[0];
    if (!file) return;
    const ending = file.name.toLowerCase().split(".").pop();
    const content = await utf8(file);
    take(content, ["csv", "tsv", "json", "jsonl"].includes(ending) ? ending : null, file.name.replace(/\.[^.]*$/, ""));
  }).finally(() => { at("file").value = ""; }));
  at("examples-form").addEventListener("submit", (event) => { event.preventDefault(); attempt(at("check"), () => checkExamples(false)); });
  at("recheck").addEventListener("click", () => attempt(at("recheck"), () => checkExamples(true)));
  at("adapt-form").addEventListener("submit", (event) => { event.preventDefault(); attempt(at("adapt"), () => adapt(onDone)); });
  at("cancel").addEventListener("click", () => attempt(at("cancel"), () => remove(`/v1/jobs/${state.job.id}`)));
  return {
    rejoin: () => rejoin(onDone),
    redraw() { drawReport(); drawJob(); },
  };
}

function take(content, format, name) {
  at("examples").value = content;
  state.format = format;
  const plain = name.toLowerCase().replace(/[^a-z0-9._-]+/g, "-").replace(/^[^a-z0-9]+/, "").slice(0, 64);
  if (plain && !at("name").value) at("name").value = plain;
  at("understood").hidden = at("adapt-form").hidden = true;
}
