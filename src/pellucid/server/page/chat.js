// The playground: a conversation, kept in this browser, and the requests that continue it.

import { call, events, getKey } from "./api.js";
import { asCurl, asPython } from "./code.js";
import { element, render } from "./markdown.js";
import { tokenView } from "./tokens.js";

const STORE = "pellucid.chat";
const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const ALTERNATIVES = 5;
const $ = (id) => document.getElementById(id);

const messages = load(); // {role, content, stats?, error?, tokens?}
let editing = null; // index of the message that the composer replaces
let running = null; // AbortController of the answer under way

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORE)) ?? {};
    for (const name of ["system", ...NUMBERS]) $(name).value = kept.settings?.[name] ?? "";
    $("logprobs").checked = Boolean(kept.settings?.logprobs);
    return Array.isArray(kept.messages) ? kept.messages : [];
  } catch {
    return []; // kept by something else
  }
}

function save() {
  const settings = { logprobs: $("logprobs").checked };
  for (const name of ["system", ...NUMBERS]) settings[name] = $(name).value;
  const lean = messages.map(({ tokens, ...message }) => message);
  try {
    localStorage.setItem(STORE, JSON.stringify({ settings, messages: lean }));
  } catch {
    $("status").textContent = "This browser keeps no more: the conversation ends with the tab.";
  }
}

/** The body that asks for an answer to `history`. */
function request(history) {
  const system = $("system").value.trim();
  const body = {
    model: $("model").value,
    messages: [
      ...(system ? [{ role: "system", content: system }] : []),
      ...history.map(({ role, content }) => ({ role, content })),
    ],
    stream: true,
    stream_options: { include_usage: true },
  };
  for (const name of NUMBERS) if ($(name).value !== "") body[name] = Number($(name).value);
  if ($("logprobs").checked) Object.assign(body, { logprobs: true, top_logprobs: ALTERNATIVES });
  return body;
}

async function answer() {
  const body = request(messages);
  const message = { role: "assistant", content: "", tokens: [] };
  messages.push(message);
  running = new AbortController();
  show();
  const watch = { sent: performance.now(), first: null, last: null, usage: null };
  const item = $("messages").lastElementChild;
  try {
    const response = await call("v1/chat/completions", { body, signal: running.signal });
    for await (const event of events(response)) {
      watch.usage = event.usage ?? watch.usage;
      take(event.choices?.[0], message, watch, item);
    }
  } catch (error) {
    if (error.name !== "AbortError") message.error = error.message;
    else message.stopped = true;
  }
  message.stats = stats(watch, message);
  running = null;
  save();
  show();
}

function take(choice, message, watch, item) {
  const text = choice?.delta?.content;
  message.tokens.push(...(choice?.logprobs?.content ?? []));
  if (!text) return;
  watch.last = performance.now();
  watch.first ??= watch.last;
  message.content += text;
  if (!item.dataset.due) {
    item.dataset.due = "1"; // at most once a frame
    requestAnimationFrame(() => {
      delete item.dataset.due;
      if (running) showAnswer(message, item);
    });
  }
}

function stats(watch, message) {
  if (watch.first === null) return "";
  const count = watch.usage?.completion_tokens;
  const parts = [`first token after ${Math.round(watch.first - watch.sent)} ms`];
  if (count > 1 && watch.last > watch.first) {
    parts.push(`${((count - 1) / ((watch.last - watch.first) / 1e3)).toFixed(1)} tokens/s`);
  }
  if (count) parts.push(`${count} tokens`);
  const cached = watch.usage?.prompt_tokens_details?.cached_tokens;
  if (cached) parts.push(`${cached} of ${watch.usage.prompt_tokens} prompt tokens cached`);
  if (message.stopped) parts.push("stopped");
  return parts.join(" · ");
}

// ---- what is seen

function show() {
  const list = $("messages");
  list.replaceChildren(...messages.map(item));
  if (!messages.length) {
    list.append(element("li", { className: "hint" }, "Say something, and watch the engine think."));
  }
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
  $("editing").hidden = editing === null;
  list.scrollTop = list.scrollHeight;
}

function item(message, index) {
  const node = element("li", { className: message.role });
  const content = element("div", { className: "content" });
  const tools = element("div", { className: "tools" });
  node.append(content, tools);
  if (message.role === "user") {
    content.textContent = message.content;
    tools.append(button("Edit", () => edit(index)));
  } else {
    render(message.content, content);
    if (message.error) content.append(element("p", { className: "error" }, message.error));
    if (message.stats) tools.append(element("span", { className: "stats" }, message.stats));
    if (message.tokens?.length) tools.append(tokensButton(message, content));
    if (index === messages.length - 1 && !running) tools.append(button("Again", again));
  }
  return node;
}

function showAnswer(message, item) {
  const list = $("messages");
  const follows = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
  render(message.content, item.firstElementChild);
  if (follows) list.scrollTop = list.scrollHeight;
}

function button(name, action) {
  const node = element("button", { type: "button" }, name);
  node.addEventListener("click", () => action(node));
  return node;
}

function tokensButton(message, content) {
  const toggle = button("Tokens", () => {
    const on = toggle.getAttribute("aria-pressed") !== "true";
    toggle.setAttribute("aria-pressed", on);
    if (on) content.replaceChildren(tokenView(message.tokens));
    else render(message.content, content);
  });
  toggle.setAttribute("aria-pressed", false);
  return toggle;
}

// ---- what is done

function edit(index) {
  if (running) return;
  editing = index;
  $("input").value = messages[index].content;
  $("editing").hidden = false;
  $("input").focus();
}

function again() {
  messages.pop();
  answer();
}

function send() {
  const text = $("input").value.trim();
  if (!text || running) return;
  if (editing !== null) messages.length = editing;
  if (messages.at(-1)?.role === "user") messages.pop(); // it got no answer
  if (messages.at(-1)?.error) messages.splice(-2); // nor did this one
  editing = null;
  messages.push({ role: "user", content: text });
  $("input").value = "";
  save();
  answer();
}

function code(kind) {
  const draft = $("input").value.trim();
  const history = messages.filter((message) => message.content);
  const body = request(draft ? [...history, { role: "user", content: draft }] : history);
  const write = kind === "as-curl" ? asCurl : asPython;
  $("code-text").textContent = write(body, Boolean(getKey()));
  for (const id of ["as-curl", "as-python"]) $(id).setAttribute("aria-pressed", id === kind);
}

export function startChat() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("input").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  $("settings").addEventListener("change", save);
  $("settings").querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  $("stop").addEventListener("click", () => running?.abort());
  $("cancel-edit").addEventListener("click", () => {
    editing = null;
    $("input").value = "";
    show();
  });
  $("new").addEventListener("click", () => {
    running?.abort();
    messages.length = 0;
    editing = null;
    save();
    show();
  });
  $("code").addEventListener("click", () => {
    code("as-curl");
    $("code-dialog").showModal();
  });
  $("as-curl").addEventListener("click", () => code("as-curl"));
  $("as-python").addEventListener("click", () => code("as-python"));
  $("copy").addEventListener("click", () => navigator.clipboard?.writeText($("code-text").textContent));
  $("close-code").addEventListener("click", () => $("code-dialog").close());
  show();
}
