// The bar that moves through the steps: buttons, a slider, and keys.

const $ = (id) => document.getElementById(id);
const OWN_KEYS = "input, textarea, select, [contenteditable], #lanes, #blocks, dialog";

export function startTransport(player) {
  $("play").addEventListener("click", () => toggle(player));
  $("back").addEventListener("click", () => player.step(-1));
  $("forward").addEventListener("click", () => player.step(1));
  $("live").addEventListener("click", () => player.follow());
  $("position").addEventListener("input", () => player.seek(Number($("position").value)));
  $("speed").addEventListener("change", () => {
    player.speed = Number($("speed").value);
  });
  document.addEventListener("keydown", (event) => onKey(player, event));
}

function toggle(player) {
  if (player.mode === "paused") player.play();
  else player.pause();
}

function onKey(player, event) {
  const { target, key } = event;
  const isReplay = document.body.dataset.source === "recording";
  const isHere = $("xray").contains(target) || (isReplay && target === document.body);
  if (!player.history || !isHere || event.ctrlKey || event.altKey || event.metaKey) return;
  const isSlider = target === $("position");
  if (target.closest(OWN_KEYS) && !isSlider) return;
  if (key === " " && target.closest("button, summary, a")) return; // presses it
  const actions = {
    " ": () => toggle(player),
    ArrowLeft: () => player.step(event.shiftKey ? -10 : -1),
    ArrowRight: () => player.step(event.shiftKey ? 10 : 1),
    Home: () => player.seek(player.first),
    End: () => player.seek(player.last),
  };
  if (!actions[key]) return;
  event.preventDefault();
  actions[key]();
}

export function showTransport(player) {
  const { mode, position, state, isLive } = player;
  const isThere = player.history.starts.length > 0;
  for (const id of ["play", "back", "forward", "position"]) $(id).disabled = !isThere;
  $("play").textContent = mode === "paused" ? "▶ Play" : "❚❚ Pause";
  $("live").hidden = !isLive || mode === "live";
  const slider = $("position");
  Object.assign(slider, { min: Math.min(player.first, player.last - 1), max: player.last });
  if (document.activeElement !== slider || Number(slider.value) !== position) slider.value = position;
  const when = isThere ? tellPosition(player) : "no steps yet";
  $("when").textContent = when;
  slider.setAttribute("aria-valuetext", when);
  document.body.dataset.mode = mode;
  if (isThere) $("when").dataset.step = state.step;
}

function tellPosition({ mode, isLive, state, history, lastTime }) {
  const step = `step ${state.step ?? "–"}`;
  if (mode === "live") return `${step}, live`;
  const begin = history.starts[0].time;
  if (isLive) return `${step}, ${Math.max(0, lastTime - state.now).toFixed(1)} s ago`;
  return `${step}, ${(state.now - begin).toFixed(2)} of ${(history.duration ?? 0).toFixed(1)} s`;
}
