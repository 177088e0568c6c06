// The X-ray: an engine's stream while the page is seen, or a recording, and what they show.

import { call, events } from "./api.js";
import { blockAt, drawBlocks, nextBlock, tellBlock } from "./blocks.js";
import { drawLanes, drawSteps } from "./draw.js";
import { LiveHistory, RecordedHistory } from "./history.js";
import { showLoad, showMachine, startLoad } from "./machine.js";
import { Player } from "./player.js";
import { percentiles } from "./state.js";
import { chosenLane, closeTimeline, drawStrip, openTimeline } from "./timeline.js";
import { showTransport, startTransport } from "./transport.js";

const RETRY_MS = 2000;
const CALM_MS = 1000; // between two pictures where motion is not wanted
const ARROWS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"];
const $ = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const player = new Player(show, complain);

let following = null; // AbortController
let isConnected = false;
let drawn = 0;
let pointed = null; // block
let active = null; // number of the lane that the keys have reached

/** Leaves what is there alone if it is the same: screen readers speak up at each change. */
function put(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

function complain(error) {
  $("engine").textContent = error.message;
}

/** See `Player` for the reasons; what a person does is a jump. */
function show(why = "jump") {
  if (!player.history) return;
  if (why === "news" && player.mode !== "live") return showTransport(player);
  if (why !== "jump" && calm.matches && performance.now() - drawn < CALM_MS) return;
  drawn = performance.now();
  const { state } = player;
  const { held, shared, cached } = state.blockCounts();
  const { totals } = state;
  const { leftOut = 0 } = player.history;
  const asked = totals.found + totals.prefilled;
  const texts = {
    "n-rate": state.rate().toFixed(1),
    "n-running": state.count("running"),
    "n-queued": state.count("queued", "preempted"),
    "n-finished": totals.finished,
    "n-tokens": totals.generated,
    "n-ttft": percentiles(state.ttft),
    "n-itl": percentiles(state.itl),
    "n-hits": asked ? `${Math.round((100 * totals.found) / asked)} %` : "–",
    "n-preempted": totals.preempted,
    "n-drafts": totals.drafted ? `; ${totals.accepted} of ${totals.drafted} guessed tokens right` : "",
    "n-left-out": leftOut ? `; ${leftOut} steps left out, which this browser was too slow for` : "",
    "n-used": held,
    "n-shared": shared,
    "n-cached": cached,
    "n-blocks": state.engine.num_kv_blocks,
  };
  for (const [id, text] of Object.entries(texts)) put(id, String(text));
  showTransport(player);
  if ($("xray").clientWidth) draw(state); // on a phone the other tab may be open
}

function draw(state) {
  drawSteps($("steps"), state);
  const chosen = chosenLane();
  drawLanes($("lanes"), state, chosen?.id);
  if (chosen) drawStrip(player.mode === "live" ? null : state.now);
  const marked = chosen ? state.blocksOf(chosen.number) : new Set();
  const pictured = drawBlocks($("blocks"), state, { marked, pointed });
  put("n-pictured", pictured < state.engine.num_kv_blocks ? `; the first ${pictured}:` : "");
  const hint = "Point at a block, or use the arrow keys, to see what it holds.";
  put("block", pointed === null ? hint : tellBlock(state, pointed));
}

function describe(engine, ...more) {
  const seats = engine.max_num_seqs && `at most ${engine.max_num_seqs} requests at once`;
  const ranks = engine.tensor_parallel_size > 1 && `${engine.tensor_parallel_size} ranks`;
  const numbers = [engine.kernels, engine.dtype, ranks, `${engine.block_size} tokens a block`];
  const facts = [...numbers, seats, ...more];
  $("engine").textContent = engine.is_loaded
    ? facts.filter(Boolean).join(" · ")
    : "The model is not loaded; ask it something.";
}

/** Follow the chosen model until another one is chosen. */
export async function follow() {
  following?.abort();
  const { signal } = (following = new AbortController());
  const path = `xray/events?model=${encodeURIComponent($("model").value)}`;
  while (!signal.aborted && !document.hidden) {
    try {
      const response = await call(path, { signal });
      isConnected = true;
      for await (const message of events(response)) {
        if (message.engine) {
          describe(message.engine);
          player.open(new LiveHistory(message.engine), { isLive: true });
        }
        player.read(message);
        if (message.machine) showMachine(message.machine);
        if (message.load) showLoad(message.load);
      }
    } catch (error) {
      if (signal.aborted) return;
      $("engine").textContent = `Not connected: ${error.message}`;
      if (error.status === 401) return; // until there is another key
    }
    isConnected = false;
    await new Promise((done) => setTimeout(done, RETRY_MS));
  }
}

/** Show the recording behind `pellucid xray`. */
export async function openRecording() {
  try {
    const recorded = await (await call("xray/recording")).json();
    const when = new Date(1e3 * recorded.unix_time).toLocaleString();
    const cut = recorded.num_cut
      ? `cut off: the last ${recorded.num_cut} bytes are no whole step, and are left out`
      : "";
    $("recorded").textContent = [recorded.engine.model, `recorded ${when}`, cut].filter(Boolean).join(" · ");
    describe(recorded.engine, `pellucid ${recorded.pellucid}`);
    const history = new RecordedHistory(recorded);
    player.open(history, { isLive: false });
    await player.seek(player.first);
  } catch (error) {
    complain(error);
  }
}

async function save() {
  try {
    const model = $("model").value;
    const query = model ? `?model=${encodeURIComponent(model)}` : "";
    const file = await (await call(`xray/export${query}`)).blob();
    const link = document.createElement("a");
    Object.assign(link, { href: URL.createObjectURL(file), download: "pellucid-trace.json" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  } catch (error) {
    complain(error);
  }
}

function choose(item) {
  const lane = item && player.state.lanes.get(Number(item.dataset.number));
  if (!lane) return;
  openTimeline(lane, show);
  show();
}

function onLaneKey(event) {
  const items = [...$("lanes").children];
  const at = items.findIndex((item) => item.id === active);
  const ways = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 };
  if (event.key === "Enter" && items[at]) choose(items[at]);
  else if (event.key in ways && items.length) {
    event.preventDefault();
    reach(items[Math.min(Math.max(ways[event.key], 0), items.length - 1)]);
  }
}

/** The lane that Enter would open. */
function reach(item) {
  for (const other of $("lanes").querySelectorAll(".reached")) other.classList.remove("reached");
  active = item.id;
  item.classList.add("reached");
  item.scrollIntoView({ block: "nearest" });
  $("lanes").setAttribute("aria-activedescendant", item.id);
}

function startLanes() {
  $("lanes").addEventListener("click", (event) => choose(event.target.closest("li")));
  $("lanes").addEventListener("keydown", onLaneKey);
  $("lanes").addEventListener("scroll", () => show()); // those out of sight are not drawn
  const close = () => {
    closeTimeline();
    $("lanes").focus();
    show();
  };
  $("close-request").addEventListener("click", close);
  for (const id of ["lanes", "request"]) {
    $(id).addEventListener("keydown", (event) => event.key === "Escape" && chosenLane() && close());
  }
}

function startBlocks() {
  const point = (block) => {
    pointed = block;
    show();
  };
  for (const kind of ["pointermove", "pointerdown"]) {
    $("blocks").addEventListener(kind, (event) => {
      if (player.state) point(blockAt($("blocks"), player.state, event));
    });
  }
  $("blocks").addEventListener("pointerleave", () => point(null));
  $("blocks").addEventListener("blur", () => point(null));
  $("blocks").addEventListener("keydown", (event) => {
    if (!ARROWS.includes(event.key) || !player.state) return;
    event.preventDefault();
    point(nextBlock($("blocks"), player.state, pointed, event.key));
  });
}

export function startXray() {
  startTransport(player);
  startLanes();
  startBlocks();
  startLoad(complain);
  $("export").addEventListener("click", save);
  addEventListener("resize", () => show());
  if (document.body.dataset.source === "recording") return;
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) {
      if (!isConnected) follow();
    } else if (player.mode !== "paused") { // what somebody has stopped at stays as it is
      following?.abort();
      isConnected = false;
    }
  });
}
