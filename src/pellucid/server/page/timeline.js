// One request's time line, in a panel: what the server tells of it, and its blocks in the map.

import { call } from "./api.js";
import { clear, colour, variable } from "./draw.js";
import { element } from "./dom.js";

const AGAIN_MS = 2000; // while it is open
const $ = (id) => document.getElementById(id);
const WHY = {
  seats: "a free seat (max_num_seqs)",
  budget: "a share of the step's tokens",
  blocks: "free KV blocks",
  prefix: "a prefix that another request computed",
  grammar: "its grammar to be compiled",
  turn: "one before it that did not fit",
  step: "the step that was under way",
};

let chosen = null; // {number, id, queued}
let shown = null; // {answer, seconds, gaps}
let timer = null;
let redraw = () => {};

export const chosenLane = () => chosen;

/** `onChange` is called when there is more to draw. */
export function openTimeline(lane, onChange) {
  redraw = onChange;
  chosen = { number: lane.number, id: lane.id, queued: lane.queued };
  shown = null;
  $("request").hidden = false;
  $("request-title").textContent = `Request #${lane.number}`;
  $("request-title").style.borderColor = colour(lane.number);
  $("request-id").textContent = lane.id;
  $("request-summary").textContent = "…";
  $("request-events").replaceChildren();
  $("request-gaps").replaceChildren();
  clear($("request-strip"));
  $("request").scrollIntoView({ block: "nearest" });
  load();
}

export function closeTimeline() {
  clearTimeout(timer);
  chosen = null;
  $("request").hidden = true;
}

/** The engine's id is the response's id and twelve hexadecimal digits; a recording has no other. */
async function load() {
  clearTimeout(timer);
  const { id } = chosen;
  const isLive = document.body.dataset.source === "live";
  const name = isLive ? id.replace(/-[0-9a-f]{12}$/, "") : id;
  try {
    const found = await (await call(`v1/requests/${encodeURIComponent(name)}/timeline`)).json();
    if (chosen?.id !== id) return;
    const answer = found.answers.find((one) => one.id === id);
    show(answer, found.seconds);
    if (isLive && found.is_open) timer = setTimeout(load, AGAIN_MS);
  } catch (error) {
    if (chosen?.id === id) $("request-summary").textContent = error.message;
  }
}

const ms = (seconds) => (seconds < 1 ? `${(1e3 * seconds).toFixed(1)} ms` : `${seconds.toFixed(2)} s`);
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

function show(answer, seconds) {
  $("request-summary").textContent = answer.summary;
  const gaps = gapsOf(answer);
  $("request-events").replaceChildren(
    ...tell(answer, gaps).map(([at, what, isBad]) =>
      element("li", { className: isBad ? "preempted" : "" }, element("b", {}, `+${at.toFixed(3)} s`), what),
    ),
  );
  $("request-gaps").replaceChildren(
    element("summary", {}, `${plural(answer.output_tokens, "token")}, and the gaps between them`),
    element("p", {}, gaps.map(({ gap }) => ms(gap)).join(" · ") || "none"),
  );
  shown = { answer, seconds, gaps };
  redraw();
}

/** From each step that gave tokens to the next one, until the tokens were there. */
function gapsOf(answer) {
  const ends = answer.steps.filter((step) => step.generated).map((step) => step.at + step.seconds);
  return ends.slice(1).map((end, i) => ({ at: ends[i], gap: end - ends[i] }));
}

/** [seconds, words, whether it is bad] of all that happened; decode steps in a row are one. */
function tell(answer, gaps) {
  const told = [[answer.queued_at ?? 0, "queued"]];
  let isAdmitted = false;
  let run = null; // decode steps in a row
  for (const step of answer.steps) {
    const isServed = step.doing === "prefill" || step.doing === "decode";
    if (step.doing !== "decode" || step.preempted) run = null;
    if (step.preempted) told.push([step.at, "preempted: gave up its blocks", true]);
    if (!isServed) {
      told.push([step.at, `waits ${ms(step.seconds)} for ${WHY[step.why] ?? step.why}`]);
      continue;
    }
    const found = step.cached_tokens ?? 0;
    if (!isAdmitted || found) {
      const again = isAdmitted ? "admitted again" : "admitted";
      told.push([step.at, `${again}, ${plural(found, "token")} from the prefix cache`]);
      isAdmitted = true;
    }
    if (step.doing === "prefill") {
      const blocks = step.blocks ? `, ${plural(step.blocks, "new block")}` : "";
      told.push([step.at, `prefill of ${plural(step.tokens, "token")} in ${ms(step.seconds)}${blocks}`]);
      continue;
    }
    if (!run) told.push((run = [step.at, "", false]));
    run.tokens = (run.tokens ?? 0) + (step.generated ?? 0);
    run.to = step.at + step.seconds;
    const own = gaps.filter(({ at }) => at >= run[0] - 1e-6 && at < run.to).map(({ gap }) => gap);
    const longest = own.length ? `, longest gap ${ms(Math.max(...own))}` : "";
    run[1] = `decode: ${plural(run.tokens, "token")} in ${ms(run.to - run[0])}${longest}`;
  }
  if (answer.first_token_at != null) told.push([answer.first_token_at, "first token"]);
  if (answer.finished_at != null) told.push([answer.finished_at, `finished: ${answer.finish_reason}`]);
  return told.sort((a, b) => a[0] - b[0]);
}

/** Above what it did over its whole time, below the gaps between its tokens; a line at
 * `now`, which is null for a live engine. */
export function drawStrip(now) {
  if (!shown) return;
  const { answer, seconds, gaps } = shown;
  const { context, width, height } = clear($("request-strip"));
  const split = 16;
  const x = (at) => (width * at) / Math.max(seconds, 1e-6);
  for (const { at, seconds: spent, doing, preempted } of answer.steps) {
    const isWaiting = doing === "queue" || doing === "stalled";
    context.fillStyle = isWaiting ? variable("cached") : colour(chosen.number, doing === "prefill");
    const [top, tall] = isWaiting ? [split / 2 - 1, 2] : [2, split - 4];
    context.fillRect(x(at), top, Math.max(x(spent), 0.5), tall);
    if (preempted) {
      context.fillStyle = variable("warn");
      context.fillRect(x(at) - 1, 0, 3, split);
    }
  }
  const longest = Math.max(...gaps.map(({ gap }) => gap), 1e-4);
  context.fillStyle = variable("forward");
  for (const { at, gap } of gaps) {
    const size = (gap / longest) * (height - split - 16); // room for the words above
    context.fillRect(x(at), height - size, Math.max(x(gap) - 0.5, 0.5), size);
  }
  if (now !== null) {
    context.fillStyle = variable("text");
    context.fillRect(x(now - chosen.queued + (answer.queued_at ?? 0)), 0, 1.5, height);
  }
  if (!gaps.length) return;
  context.fillStyle = variable("soft");
  context.font = "11px system-ui, sans-serif";
  context.fillText(`gaps, at most ${ms(longest)}`, 4, split + 12);
}
