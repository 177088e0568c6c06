// The playground: a conversation in one column or two, and the requests that continue it.

import { ask, newAnswer } from "./answer.js";
import { AnswerView } from "./answer_view.js";
import { showCode } from "./code.js";
import { startConversations, titleOf } from "./conversations.js";
import { button, element, oneLine } from "./dom.js";
import { SettingsForm } from "./settings.js";
import { current, fresh, remove, save, setCurrent } from "./store.js";
import { history, standing, unanswered } from "./turns.js";

const $ = (id) => document.getElementById(id);
const forms = ["a", "b"].map((letter) => new SettingsForm(letter, () => keep()));

let conversation = null;
let editing = null; // index of the turn that the composer replaces
let running = null; // {controller, done} of the answers under way
let asked = null; // promise that settles when the server has named its models, or refused to

const columns = () => (conversation.compare ? [0, 1] : [0]);

export function setModels(names) {
  for (const form of forms) form.models = names;
}

/** What is said before `models` has settled is sent then. */
export function waitFor(models) {
  asked = models;
}

function say(text) {
  $("status").textContent = text;
}

/** Keep the conversation and its settings in the browser; `done` is what is said about it. */
function keep(done = "") {
  conversation.settings = forms.map((form) => form.values);
  conversation.changed = Date.now();
  say(save(conversation) ? done : `${done} This browser keeps no more: what is new ends with the tab.`);
}

// ---- requests

/** The body that asks for an answer to `turns`. Throws an error with `param` and `column`. */
function request(turns, column) {
  const { system = "", model = "" } = forms[column].values;
  try {
    return {
      model: model || $("model").value,
      messages: [
        ...(system.trim() ? [{ role: "system", content: system }] : []),
        ...history(turns, column),
      ],
      ...forms[column].fields(),
      stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: true },
    };
  } catch (error) {
    throw Object.assign(error, { column });
  }
}

/** Say at the field at fault what is wrong with it; false if that is no field here. */
const complain = ({ param, message }, column) => Boolean(param) && forms[column].complain(param, message);

/** Answer the last of `turns`, which become the conversation; false if they cannot be sent. */
function answer(turns) {
  const turn = { ...turns.at(-1), answers: [] };
  turns = [...turns.slice(0, -1), turn];
  let bodies;
  try {
    bodies = columns().map((column) => request(turns, column));
  } catch (error) {
    if (!complain(error, error.column)) throw error;
    return false;
  }
  for (const form of forms) form.clear();
  turn.answers = bodies.map(({ model }) => newAnswer(model));
  conversation.turns = turns;
  editing = null;
  const controller = new AbortController();
  running = { controller };
  keep();
  show();
  running.done = run(bodies, turn.answers, controller.signal);
  return true;
}

async function run(bodies, answers, signal) {
  if ([$("send"), document.body].includes(document.activeElement)) $("stop").focus();
  say("Answering …");
  const views = [...$("messages").querySelectorAll(".assistant")].slice(-answers.length);
  const asked = answers.map((one, i) => ask(bodies[i], one, signal, () => grow(views[i])));
  const failures = await Promise.all(asked);
  running = null;
  const isAtStop = document.activeElement === $("stop");
  const ends = answers.map(({ error, stopped }) => error ?? (stopped ? "Stopped." : "Answered."));
  keep([...new Set(ends)].join(" "));
  showRunning();
  if (isAtStop) $("send").focus(); // it is where the other was
  for (const node of views) node.view.update(true);
  failures.forEach((error, column) => error && complain(error, column));
}

/** Show what has come, at most once a frame. */
function grow(node) {
  if (node.isDue) return;
  node.isDue = true;
  requestAnimationFrame(() => {
    node.isDue = false;
    if (!running) return;
    const list = $("messages");
    const follows = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
    node.view.update(false);
    if (follows) list.scrollTop = list.scrollHeight;
  });
}

/** End the answers under way; what has come of them is kept. */
async function halt() {
  running?.controller.abort();
  await running?.done;
}

// ---- what is seen

function show() {
  const list = $("messages");
  list.replaceChildren(...conversation.turns.flatMap(turnNodes));
  if (!conversation.turns.length) {
    list.append(element("li", { className: "hint" }, "Say something, and watch the engine think."));
  }
  $("title").textContent = titleOf(conversation);
  $("compare").ariaPressed = String(conversation.compare);
  $("chat").classList.toggle("compared", conversation.compare);
  $("editing").hidden = editing === null;
  showRunning();
  list.scrollTop = list.scrollHeight;
}

function showRunning() {
  $("chat").classList.toggle("running", Boolean(running));
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
}

function turnNodes(turn, index) {
  const said = turn.results?.map(({ name, text }) => `Result of ${name}: ${text}`).join("\n") ?? turn.user;
  const user = element("li", { className: "user" }, element("div", { dir: "auto" }, said));
  if (turn.user !== undefined) {
    const tools = element("div", { className: "tools when-idle" }, button("Edit", () => edit(index)));
    user.append(tools);
  }
  const isLast = index === conversation.turns.length - 1;
  const answers = turn.answers.map((one, column) => {
    if (!one) return "";
    const name = turn.answers.length > 1 ? `Answer ${"AB"[column]}` : "Answer";
    const view = new AnswerView(one, name, {
      again: () => again(index),
      changed: () => keep(),
      answerCalls: isLast && turn.answers.length === 1 && sendResults,
    });
    view.node.view = view;
    view.update(!running || !isLast);
    return view.node;
  });
  return [user, element("li", { className: "answers" }, ...answers)];
}

// ---- what is done

function edit(index) {
  if (running) return;
  editing = index;
  $("input").value = conversation.turns[index].user;
  $("editing").hidden = false;
  $("input").focus();
}

function cancelEdit() {
  editing = null;
  $("input").value = "";
  $("editing").hidden = true;
  $("input").focus();
}

function again(index) {
  if (!running) answer(conversation.turns.slice(0, index + 1));
}

const before = () => conversation.turns.slice(0, editing ?? undefined);

async function send() {
  await asked;
  const text = $("input").value.trim();
  if (!text || running) return;
  const turns = standing(before());
  conversation.title ||= turns.length ? "" : oneLine(text);
  if (answer([...turns, { user: text }])) $("input").value = "";
}

function sendResults(results) {
  if (!running) answer([...conversation.turns, { results }]);
}

async function open(another) {
  await halt();
  if (conversation && !conversation.turns.length && !conversation.title) remove(conversation.id);
  conversation = another;
  editing = null;
  forms.forEach((form, i) => (form.values = another.settings[i]));
  setCurrent(another.id);
  say("");
  show();
}

function code() {
  const draft = $("input").value.trim();
  const turns = draft ? [...standing(before()), { user: draft, answers: [] }] : unanswered(conversation.turns);
  try {
    showCode(columns().map((column) => request(turns, column)));
  } catch (error) {
    if (!complain(error, error.column)) throw error;
  }
}

function onKey(event) {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  } else if (event.key === "Escape" && running) {
    halt();
  } else if (event.key === "Escape" && editing !== null) {
    cancelEdit();
  }
}

export function startChat() {
  $("settings-a").append(forms[0].node);
  $("settings-b").append(forms[1].node);
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("input").addEventListener("keydown", onKey);
  $("stop").addEventListener("click", halt);
  $("cancel-edit").addEventListener("click", cancelEdit);
  $("new").addEventListener("click", async () => {
    await open(fresh(conversation));
    $("input").focus();
  });
  $("compare").addEventListener("click", async () => {
    await halt();
    conversation.compare = !conversation.compare;
    if (!Object.keys(forms[1].values).length) forms[1].values = forms[0].values;
    keep();
    show();
  });
  $("code").addEventListener("click", code);
  startConversations({
    opened: () => conversation,
    open,
    halt,
    renamed: (title) => {
      conversation.title = title;
      keep();
      $("title").textContent = titleOf(conversation);
    },
  });
  open(current());
}
