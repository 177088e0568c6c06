// The three pictures of the X-ray, drawn by hand on canvases.

import { element } from "./dom.js";

const PARTS = ["idle", "schedule", "forward", "sample", "update"];
const LANE_SECONDS = 12;
const MAX_LANES = 48;
const RANKS = { running: 0, preempted: 1, queued: 2, finished: 3 };

/** Neighbouring numbers get colours far apart. */
export function colour(number, pale = false) {
  const hue = Math.round((number * 137.508 + 200) % 360);
  return pale ? `hsl(${hue} 55% 60% / 0.5)` : `hsl(${hue} 60% 55%)`;
}

function variable(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** A cleared context in CSS pixels. */
function clear(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

export function drawSteps(canvas, state) {
  const { context, width, height } = clear(canvas);
  const column = 6;
  const steps = state.steps.slice(-Math.floor(width / column));
  if (!steps.length) return;
  const split = Math.round(height * 0.58);
  const tall = (step) => step.parts.reduce((sum, part) => sum + Math.sqrt(part.tokens), 0);
  const busy = (step) => PARTS.reduce((sum, part) => sum + (part === "idle" ? 0 : step[part]), 0);
  const most = Math.max(...steps.map(tall), 4);
  const longest = Math.max(...steps.map(busy), 1e-4);
  const shades = Object.fromEntries(PARTS.map((part) => [part, variable(part)]));
  steps.forEach((step, i) => {
    const x = width - (steps.length - i) * column;
    let y = split - 2;
    for (const part of step.parts) {
      const size = (Math.sqrt(part.tokens) / most) * (split - 20);
      context.fillStyle = colour(part.request, part.prefill);
      context.fillRect(x, y - size, column - 1, Math.max(size - 0.5, 0.5));
      y -= size;
    }
    y = height;
    for (const part of [...PARTS.slice(1), "idle"]) {
      const room = y - split - 2; // idle time may be long: it gets what is left
      const size = Math.min((step[part] / longest) * (height - split - 14), room);
      context.fillStyle = shades[part];
      context.fillRect(x, y - size, column - 1, size);
      y -= size;
    }
  });
  context.fillStyle = variable("soft");
  context.font = "11px system-ui, sans-serif";
  context.fillText(`${(1e3 * longest).toFixed(1)} ms`, 4, split + 12);
  const tokens = Math.max(...steps.map((step) => step.parts.reduce((n, p) => n + p.tokens, 0)));
  context.fillText(`at most ${tokens} tokens`, 4, 12);
}

/** One line for each request: first who runs, then who waits, then who has ended; newest first. */
export function drawLanes(list, state) {
  const known = new Map([...list.children].map((item) => [Number(item.dataset.number), item]));
  const lanes = [...state.lanes.values()]
    .filter((lane) => lane.queued !== null)
    .sort((a, b) => RANKS[a.phase] - RANKS[b.phase] || b.number - a.number)
    .slice(0, MAX_LANES);
  const items = lanes.map((lane) => known.get(lane.number) ?? laneItem(lane.number));
  const same = items.length === list.children.length && items.every((it, i) => it === list.children[i]);
  if (!same) list.replaceChildren(...items);
  lanes.forEach((lane, i) => drawLane(items[i], lane, state.now));
}

function laneItem(number) {
  const item = element("li", {}, element("span", {}, `#${number}`), element("span"));
  item.append(element("canvas"), element("span", { className: "facts" }));
  item.dataset.number = number;
  item.firstChild.style.borderColor = colour(number);
  return item;
}

function drawLane(item, lane, now) {
  const [, phase, canvas, facts] = item.children;
  item.title = lane.id;
  item.dataset.phase = lane.phase;
  phase.textContent = lane.reason || lane.phase;
  phase.className = lane.phase;
  const cached = lane.cached ? ` (${lane.cached} cached)` : "";
  facts.textContent = `${lane.prompt}${cached} + ${lane.tokens - lane.prompt} tok`;
  const { context, width, height } = clear(canvas);
  const x = (time) => width * (1 - (now - time) / LANE_SECONDS);
  const bar = (from, to, top, tall) => {
    const left = Math.max(x(from), 0);
    context.fillRect(left, top, Math.max(x(to) - left, 1), tall);
  };
  if (x(lane.end ?? now) < 0) return;
  context.fillStyle = variable("cached");
  bar(lane.queued, lane.end ?? now, height / 2 - 1, 2);
  for (const part of lane.parts) {
    if (x(part.to) < 0) continue;
    context.fillStyle = colour(lane.number, part.prefill);
    bar(part.from, part.to, 2, height - 4);
  }
  context.fillStyle = variable("warn");
  for (const time of lane.preempted) if (x(time) > 0) context.fillRect(x(time) - 1, 0, 3, height);
}

/** The largest square cells that show all blocks that were ever used, and some more. */
function layBlocks(canvas, state) {
  const used = 2 ** Math.ceil(Math.log2(Math.max(1.2 * state.highest, 511) + 1));
  const count = Math.min(state.engine.num_kv_blocks, used);
  const width = canvas.clientWidth;
  let cell = 14;
  const rows = (size) => Math.ceil(count / Math.floor(width / size));
  while (cell > 3 && rows(cell) * cell > 200) cell--;
  return { count, cell, columns: Math.max(1, Math.floor(width / cell)), height: rows(cell) * cell };
}

/** Returns how many blocks are in the picture: the first ones of the pool. */
export function drawBlocks(canvas, state) {
  const { count, cell, columns, height } = layBlocks(canvas, state);
  if (canvas.style.height !== `${height + 2}px`) canvas.style.height = `${height + 2}px`;
  const { context } = clear(canvas);
  const gap = cell > 4 ? 1 : 0.5;
  const side = cell - gap;
  const [free, cached, shared] = ["free", "cached", "shared"].map(variable);
  for (let block = 0; block < count; block++) {
    const x = (block % columns) * cell;
    const y = Math.floor(block / columns) * cell;
    const known = state.blocks.get(block);
    const held = known?.holders.length;
    context.fillStyle = held ? colour(known.holders[0]) : known?.named ? cached : free;
    context.fillRect(x, y, side, side);
    if (held > 1) {
      context.fillStyle = shared;
      const dot = Math.max(side * 0.4, 1);
      context.fillRect(x + (side - dot) / 2, y + (side - dot) / 2, dot, dot);
    }
  }
  return count;
}

/** What the block under the pointer is. */
export function blockAt(canvas, state, { offsetX, offsetY }) {
  const { count, cell, columns } = layBlocks(canvas, state);
  const block = Math.floor(offsetY / cell) * columns + Math.floor(offsetX / cell);
  if (block >= count || offsetX >= columns * cell) return "";
  const known = state.blocks.get(block);
  if (known?.holders.length) {
    const names = known.holders.map((number) => `#${number}`).join(", ");
    return `block ${block}: held by ${names}${known.named ? ", can be shared" : ""}`;
  }
  return `block ${block}: ${known?.named ? "free, holds a prefix" : "free"}`;
}
