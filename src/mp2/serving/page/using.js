// Using a task: its list, its fields, its answers, its card.

import { allTasks, download, getJson, postJson, remove } from "/page/api.js";
import { bars, heat, make, marked, percent } from "/page/draw.js";
import { say } from "/page/words.js";

const at = (id) => document.getElementById(id);
const state = { card: null, answers: [] };
const KEPT = 20;

async function list(wanted) {
  const names = await allTasks();
  const current = wanted ?? at("task").value;
  at("task").replaceChildren(...names.map((name) => Object.assign(make("option", name), { value: name })));
  if (names.includes(current)) at("task").value = current;
  at("no-tasks").hidden = names.length > 0;
  for (const id of ["try-form", "card", "download"]) at(id).hidden = !names.length;
  if (names.length) await choose();
}

async function choose() {
  state.answers = [];
  state.card = null;
  at("card").hidden = at("try-form").hidden = true;
  state.card = await getJson(`/v1/tasks/${encodeURIComponent(at("task").value)}`);
  at("card").hidden = at("try-form").hidden = false;
  drawFields();
  drawAnswers();
  drawCard();
}

function drawFields() {
  const task = state.card.task, inputs = task.fields.map(({ column }) => field(column, column, 2));
  if (task.family === "choice") inputs.push(field("options", say("options"), 4));
  at("fields").replaceChildren(...inputs);
}

function field(name, label, rows) {
  const box = make("label", label), area = make("textarea");
  Object.assign(area, { name, rows, required: true });
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); at("try-form").requestSubmit(); }
  });
  box.append(area);
  return box;
}

async function answer() {
  const task = state.card.task, row = {};
  for (const area of at("fields").querySelectorAll("textarea")) row[area.name] = area.value;
  if (task.family === "choice") {
    const options = row.options.split("\n").map((option) => option.trim()).filter(Boolean);
    delete row.options;
    if (Array.isArray(task.options)) task.options.forEach((column, index) => { row[column] = options[index] ?? ""; });
    else row[task.options] = options;
  }
  const reply = await postJson(`/v1/tasks/${encodeURIComponent(state.card.name)}/predict`, { inputs: [row] });
  state.answers.unshift({ row, found: reply.predictions[0] });
  state.answers.length = Math.min(state.answers.length, KEPT);
  drawAnswers();
}

function drawAnswers() {
  const fields = state.card.task.fields;
  at("answers").replaceChildren(...state.answers.map(({ row, found }) => {
    const box = make("div", undefined, "answer");
    for (const { field: name, column } of fields) {
      box.append(name === "context" && "answer" in found ? marked(row[column], found.span) : make("p", row[column]));
    }
    if (found.scores) {
      const scores = Object.entries(found.scores);
      box.append(bars(scores.map(([label, share]) => [label, share, percent(share)]), scores.findIndex(([label]) => label === found.label)));
    } else {
      const line = make("p");
      line.append(make("strong", found.answer || say("noAnswer")), ` ${percent(found.probability)}`);
      box.append(line);
    }
    return box;
  }));
}

function drawCard() {
  const card = state.card, names = say("facts"), held = card.held_back;
  const metric = (value) => (value === null || value === undefined ? null : percent(value));
  const facts = [
    [names.family, say("family")[card.task.family]],
    [names.labels, card.task.labels.join("，") || null],
    [names.method, card.method],
    [names.shots, card.shots ? say("rows", card.shots) : null],
    [names.dev, metric(card.dev)],
    [names.held, held ? say("ofRows", metric(held.value), held.count) : null],
    [names.tuned, card.tuned_parameters?.toLocaleString() ?? null],
    [names.seconds, card.seconds ?? null],
    [names.bytes, `${Math.ceil(card.bytes / 1024)} KiB`],
  ].filter(([, value]) => value !== null);
  at("facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", name), make("dd", value)]));
  at("routing").hidden = !card.router;
  if (!card.router) return;
  at("heat").replaceChildren(heat(card.router.weights));
  at("similar").replaceChildren(bars(card.router.resembles.map((item) => [item.task, Math.max(0, item.similarity), item.similarity.toFixed(2)]), 0));
}

export function setUpUsing(attempt) {
  const name = () => encodeURIComponent(at("task").value);
  at("task").addEventListener("change", () => attempt(at("task"), choose));
  at("try-form").addEventListener("submit", (event) => { event.preventDefault(); attempt(at("answer"), answer); });
  at("download").addEventListener("click", () => attempt(at("download"), () => download(`/v1/tasks/${name()}/adapter.zip`, `${at("task").value}.zip`)));
  at("delete").addEventListener("click", () => {
    if (at("task").value && confirm(say("confirmDelete", at("task").value))) {
      attempt(at("delete"), async () => { await remove(`/v1/tasks/${name()}`); await list(); });
    }
  });
  return {
    open: (wanted) => list(wanted),
    redraw() {
      if (!state.card) return;
      drawAnswers();
      drawCard();
      const options = at("fields").querySelector("textarea[name=options]");
      if (options) options.previousSibling.textContent = say("options");
    },
  };
}
