// Pictures: bars, the curve of tuning, the router as a heat-map, an answer marked in its text.

import { say } from "/page/words.js";

export const percent = (value) => `${(100 * value).toFixed(1)} %`;

export function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

// rows: [name, share of the track in 0..1, text of the value]
export function bars(rows, best) {
  const box = make("div", undefined, "bars");
  rows.forEach(([name, share, value], index) => {
    const track = make("div", undefined, "track"), fill = make("div", undefined, "fill");
    fill.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
    track.setAttribute("aria-hidden", "true");
    track.append(fill);
    box.append(make("span", name, index === best ? "name best" : "name"), track, make("span", value, "value"));
  });
  return box;
}

const SVG = "http://www.w3.org/2000/svg";
function shape(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const HEIGHT = 300, LEFT = 48, RIGHT = 56, TOP = 50, BOTTOM = 30;
export const PHONE = 544;  // pixels, as in the style sheet
const NARROW = 360, WIDE = 720;  // narrow screens get a narrow picture, so that its text stays legible

// What a stage of a method tunes, where that is the paper's two stages, or vectors of label words in place of the second.
export function stageName(method, stage) {
  const two = /^mp2-(deep|shallow)-(gd|bb)(?!-transfer)/.test(method);
  const names = method === "mp2-deep-labels" ? say("labelStages") : two ? say("stages") : [];
  return names[stage] || say("stage", stage + 1);
}

// Scores and losses over the steps of all stages, one shaded field per stage.
export function curve(records, method) {
  const last = records[records.length - 1], narrow = innerWidth < PHONE, width = narrow ? NARROW : WIDE;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": say("curveText", percent(last.dev)) });
  const ends = [];  // step at which each stage ends, counted over all stages
  for (const record of records) if (record.stage >= 0) ends[record.stage] = record.step;
  const starts = [];
  let total = 0;
  ends.forEach((steps, stage) => { starts[stage] = total; total += steps ?? 0; });
  const place = (record) => (record.stage < 0 ? 0 : starts[record.stage] + record.step);
  const x = (step) => LEFT + (step / Math.max(1, total)) * (width - LEFT - RIGHT);
  const y = (share) => HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM);
  ends.forEach((steps, stage) => {
    const from = x(starts[stage]);
    svg.append(shape("rect", { x: from, y: TOP, width: x(starts[stage] + steps) - from, height: HEIGHT - TOP - BOTTOM, class: `stage${stage % 2}` }));
    const name = stageName(method, stage);
    svg.append(shape("text", { x: from + 4, y: HEIGHT - 10 }, narrow ? name.split(/[:：]/)[0] : name));
  });
  for (const share of [0, 0.5, 1]) {
    svg.append(shape("line", { x1: LEFT, x2: width - RIGHT, y1: y(share), y2: y(share), class: "axis" }));
    svg.append(shape("text", { x: LEFT - 6, y: y(share) + 4, "text-anchor": "end", class: "dev-text" }, `${100 * share}%`));
  }
  const losses = records.filter((record) => Number.isFinite(record.loss));
  const highest = Math.max(...losses.map((record) => record.loss), 1e-9);
  const line = (list, height) => list.map((record) => `${x(place(record))},${y(height(record))}`).join(" ");
  if (losses.length) {
    svg.append(shape("polyline", { points: line(losses, (record) => record.loss / highest), class: "loss" }));
    for (const share of [0, 1]) svg.append(shape("text", { x: width - RIGHT + 6, y: y(share) + 4, class: "loss-text" }, (share * highest).toFixed(2)));
    svg.append(shape("text", { x: LEFT, y: 38, class: "loss-text" }, `┄ ${say("lossAxis")}`));
  }
  svg.append(shape("polyline", { points: line(records, (record) => record.dev), class: "dev" }));
  for (const record of records) svg.append(shape("circle", { cx: x(place(record)), cy: y(record.dev), r: 3.5, class: "dev-dot" }));
  svg.append(shape("text", { x: LEFT, y: 18, class: "dev-text" }, `━ ${say("devAxis")}`));
  return svg;
}

// Router weights (L, K) as a table whose cells are shaded.
export function heat(weights) {
  const table = make("table"), head = table.createTHead().insertRow();
  head.append(make("th", ""));
  weights[0].forEach((_, index) => head.append(Object.assign(make("th", `${index + 1}`), { scope: "col" })));
  const body = table.createTBody(), highest = Math.max(...weights.flat(), 1e-9);
  weights.forEach((row, layer) => {
    const line = body.insertRow();
    line.append(Object.assign(make("th", say("layer", layer + 1)), { scope: "row" }));
    for (const weight of row) {
      const cell = line.insertCell(), strength = Math.max(0, weight) / highest;
      cell.textContent = weight.toFixed(2);
      cell.style.backgroundColor = `rgb(29 95 191 / ${(0.06 + 0.84 * strength).toFixed(3)})`;
      if (strength > 0.55) cell.style.color = "#fff";
    }
  });
  return table;
}

// A text with the answer marked in place; offsets count code points, as the server does.
export function marked(text, span) {
  const paragraph = make("p");
  if (!span) {
    paragraph.append(text);
    return paragraph;
  }
  const points = Array.from(text), part = (from, to) => points.slice(from, to).join("");
  paragraph.append(part(0, span.start), make("mark", part(span.start, span.end)), part(span.end));
  return paragraph;
}
