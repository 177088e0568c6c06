// The X-ray: follows an engine's stream while the page is seen, and shows its state.

import { call, events } from "./api.js";
import { blockAt, drawBlocks, drawLanes, drawSteps } from "./draw.js";
import { percentiles, State } from "./state.js";

const RETRY_MS = 2000;
const CALM_MS = 1000; // between two pictures where motion is not wanted
const $ = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

let state = null;
let following = null; // AbortController
let paused = false;
let drawn = 0;

function show() {
  if (!state || paused) return;
  if (calm.matches && performance.now() - drawn < CALM_MS) return;
  drawn = performance.now();
  const { held, shared, cached } = state.blockCounts();
  const texts = {
    "n-rate": state.rate().toFixed(1),
    "n-running": state.count("running"),
    "n-queued": state.count("queued", "preempted"),
    "n-ttft": percentiles(state.ttft),
    "n-itl": percentiles(state.itl),
    "n-hits": state.prompt ? `${Math.round((100 * state.cached) / state.prompt)} %` : "–",
    "n-used": held,
    "n-shared": shared,
    "n-cached": cached,
    "n-blocks": state.engine.num_kv_blocks,
  };
  for (const [id, text] of Object.entries(texts)) $(id).textContent = text;
  if (!$("xray").clientWidth) return; // on a phone the other tab is open
  drawSteps($("steps"), state);
  drawLanes($("lanes"), state);
  const pictured = drawBlocks($("blocks"), state);
  $("n-pictured").textContent = pictured < state.engine.num_kv_blocks ? `; the first ${pictured}:` : "";
}

function meet(engine) {
  const facts = [engine.kernels, engine.dtype, `${engine.block_size} tokens a block`];
  $("engine").textContent = engine.is_loaded
    ? facts.filter(Boolean).join(" · ")
    : "The model is not loaded; ask it something.";
  state = new State(engine);
}

/** Follow the chosen model until another one is chosen. */
export async function follow() {
  following?.abort();
  const { signal } = (following = new AbortController());
  const path = `xray/events?model=${encodeURIComponent($("model").value)}`;
  while (!signal.aborted && !document.hidden) {
    try {
      for await (const message of events(await call(path, { signal }))) {
        if (message.engine) meet(message.engine);
        state.read(message);
        show();
      }
    } catch (error) {
      if (signal.aborted) return;
      $("engine").textContent = `Not connected: ${error.message}`;
      if (error.status === 401) return; // until there is another key
    }
    await new Promise((done) => setTimeout(done, RETRY_MS));
  }
}

async function load(clients) {
  const ending = new AbortController();
  const end = () => ending.abort();
  const buttons = document.querySelectorAll("button.load");
  for (const button of buttons) button.disabled = true;
  $("end-load").hidden = false;
  $("end-load").addEventListener("click", end);
  try {
    const body = { clients, model: $("model").value };
    await call("xray/load", { body, signal: ending.signal });
  } catch (error) {
    if (error.name !== "AbortError") $("engine").textContent = error.message;
  }
  for (const button of buttons) button.disabled = false;
  $("end-load").removeEventListener("click", end);
  $("end-load").hidden = true;
}

export function startXray() {
  for (const button of document.querySelectorAll("button.load")) {
    button.addEventListener("click", () => load(Number(button.dataset.clients)));
  }
  $("pause").addEventListener("click", () => {
    paused = !paused;
    $("pause").setAttribute("aria-pressed", paused);
    $("pause").textContent = paused ? "Resume" : "Pause";
    show();
  });
  $("blocks").addEventListener("pointermove", (event) => {
    if (state) $("block").textContent = blockAt($("blocks"), state, event);
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) following?.abort();
    else follow();
  });
  addEventListener("resize", show);
}
