// Two pictures of the X-ray, drawn by hand on canvases: the steps, and the requests' lanes.

import { element } from "./dom.js";

const PARTS = ["idle", "schedule", "draft", "forward", "sample", "update"];
const LANE_SECONDS = 12;
const MAX_LANES = 192;
const RANKS = { running: 0, preempted: 1, queued: 2, finished: 3 };

/** Neighbouring numbers get colours far apart. */
export function colour(number, pale = false) {
  const hue = Math.round((number * 137.508 + 200) % 360);
  return pale ? `hsl(${hue} 55% 60% / 0.5)` : `hsl(${hue} 60% 55%)`;
}

export function variable(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** A cleared context in CSS pixels. */
export function clear(canvas) {
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
export function drawLanes(list, state, chosen) {
  const known = new Map([...list.children].map((item) => [item.dataset.id, item]));
  const lanes = [...state.lanes.values()]
    .sort((a, b) => RANKS[a.phase] - RANKS[b.phase] || b.number - a.number)
    .slice(0, MAX_LANES);
  const items = lanes.map((lane) => known.get(lane.id) ?? laneItem(lane));
  const same = items.length === list.children.length && items.every((it, i) => it === list.children[i]);
  // A click ends where it began only if nothing moves meanwhile.
  if (!same && !list.matches(":active")) list.replaceChildren(...items);
  lanes.forEach((lane, i) => tellLane(items[i], lane, lane.id === chosen));
  const tall = items[0]?.offsetHeight || 1;
  const top = Math.floor(list.scrollTop / tall);
  const bottom = top + Math.ceil(list.clientHeight / tall) + 1;
  for (let i = top; i < Math.min(bottom, lanes.length); i++) drawLane(items[i], lanes[i], state.now);
}

function laneItem({ number, id }) {
  const item = element("li", {}, element("span", {}, `#${number}`), element("span"));
  item.append(element("canvas"), element("span", { className: "facts" }));
  Object.assign(item.dataset, { number, id });
  Object.assign(item, { id: `lane-${number}`, title: id, role: "option" });
  item.firstChild.style.borderColor = colour(number);
  return item;
}

function tellLane(item, lane, isChosen) {
  const [, phase, , facts] = item.children;
  item.setAttribute("aria-selected", isChosen);
  item.dataset.phase = lane.phase;
  phase.textContent = lane.reason || lane.phase;
  phase.className = lane.phase;
  const cached = lane.cached ? ` (${lane.cached} cached)` : "";
  facts.textContent = `${lane.prompt}${cached} + ${lane.tokens - lane.prompt} tok`;
}

function drawLane(item, lane, now) {
  const canvas = item.children[2];
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
