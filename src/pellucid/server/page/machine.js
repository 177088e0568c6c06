// The machine beneath the engine, and the load that the server puts on itself.

import { call } from "./api.js";

const $ = (id) => document.getElementById(id);
const gib = (bytes) => (bytes >= 1 << 30 ? `${(bytes / 2 ** 30).toFixed(1)} GiB` : `${Math.round(bytes / 2 ** 20)} MiB`);

export function showMachine({ cpu_percent, num_cores, memory_bytes, memory_total, processes, gpu }) {
  const told = [
    `machine: CPU ${cpu_percent.toFixed(0)} % of ${num_cores} cores, memory ${gib(memory_bytes)} of ${gib(memory_total)}`,
    ...processes.map((one) => {
      const name = one.name === "frontend" ? "front end" : `engine (${one.name})`;
      return `${name}: CPU ${one.cpu_percent.toFixed(0)} %, memory ${gib(one.memory_bytes)}`;
    }),
  ];
  if (gpu) {
    told.push(`GPU ${gpu.busy_percent.toFixed(0)} %, memory ${gib(gpu.memory_bytes)} of ${gib(gpu.memory_total)}`);
  }
  $("machine").textContent = told.join(" · ");
}

/** Every client is in one of these numbers: nobody is lost. */
export function showLoad({ clients, answered, refused, failed, why, is_running, seconds, completion_tokens }) {
  const parts = [`${clients} clients: ${answered} answered`];
  const rest = clients - answered - refused - failed;
  if (is_running || rest) parts.push(`${rest} ${is_running ? "open" : "ended with the load"}`);
  if (refused) parts.push(`${refused} refused`);
  if (failed) parts.push(`${failed} failed`);
  if (!is_running) parts.push(`${completion_tokens} tokens in ${seconds.toFixed(1)} s`);
  $("load-status").textContent = parts.join(", ") + (why ? ` (${why})` : "");
}

async function load(clients, complain) {
  const ending = new AbortController();
  const end = () => ending.abort();
  const buttons = document.querySelectorAll("button.load");
  for (const button of buttons) button.disabled = true;
  $("end-load").hidden = false;
  $("end-load").addEventListener("click", end);
  try {
    const model = $("model").value || null; // nobody knows yet: the server's first one
    const body = { clients, model };
    showLoad(await (await call("xray/load", { body, signal: ending.signal })).json());
  } catch (error) {
    if (error.name !== "AbortError") complain(error);
  }
  for (const button of buttons) button.disabled = false;
  $("end-load").removeEventListener("click", end);
  $("end-load").hidden = true;
}

export function startLoad(complain) {
  for (const button of document.querySelectorAll("button.load")) {
    button.addEventListener("click", () => load(Number(button.dataset.clients), complain));
  }
}
