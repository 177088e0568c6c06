// Conversations as this browser keeps them, and as files.
//
// A conversation: {id, title, changed, settings: [A, B], compare, turns}.
// A turn: {user} or, after calls, {results: [{id, name, text}]}; and {answers: [A, B or nothing]}.
// An answer: see answer.js. Recorded probabilities are not kept: they would fill the store at once.

import { oneLine } from "./dom.js";
import { settingsFrom } from "./settings.js";

const PREFIX = "pellucid.chat:";
const CURRENT = "pellucid.current";
const FORMAT = "pellucid.conversations.v1";

// ---- what a conversation may hold: all else is left out, or refused by its place

function wrong(path, wanted) {
  throw new Error(`${path} must be ${wanted}`);
}

const text = (value, path) => (typeof value === "string" ? value : wrong(path, "text"));
const number = (value, path) => (Number.isFinite(value) ? value : wrong(path, "a number"));
const flag = (value, path) => (typeof value === "boolean" ? value : wrong(path, "true or false"));
const list = (of) => (value, path) =>
  Array.isArray(value) ? value.map((one, i) => of(one, `${path}[${i}]`)) : wrong(path, "a list");
const maybe = (of) => Object.assign((value, path) => of(value, path), { isOptional: true });
const nullable = (of) => (value, path) => (value === null ? null : of(value, path));

function shape(fields) {
  return (value, path) => {
    if (typeof value !== "object" || value === null || Array.isArray(value)) wrong(path, "an object");
    const known = {};
    for (const [name, of] of Object.entries(fields)) {
      if (value[name] === undefined && of.isOptional) continue;
      known[name] = of(value[name], `${path}.${name}`);
    }
    return known;
  };
}

const stats = shape({
  first_ms: maybe(number),
  rate: maybe(number),
  tokens: maybe(number),
  prompt_tokens: maybe(number),
  cached: maybe(number),
});
const call = shape({ id: text, name: text, arguments: text });
const choice = shape({
  content: text,
  reasoning: text,
  calls: list(call),
  finish: nullable(text),
});
const answer = shape({
  model: text,
  choices: list(choice),
  picked: number,
  error: maybe(text),
  stopped: maybe(flag),
  stats: maybe(stats),
});
const turn = shape({
  user: maybe(text),
  results: maybe(list(shape({ id: text, name: text, text }))),
  answers: list(nullable(answer)),
});
const conversation = shape({
  id: text,
  title: text,
  changed: number,
  settings: list(settingsFrom),
  compare: flag,
  turns: list(turn),
});

/** `value` as a conversation; throws where it is none. */
function checked(value, path) {
  const known = conversation(value, path);
  known.title = oneLine(known.title);
  while (known.settings.length < 2) known.settings.push({});
  known.turns.forEach(({ user, results, answers }, i) => {
    if ((user === undefined) === !results) wrong(`${path}.turns[${i}]`, "either user or results");
    if (answers.length > 2) wrong(`${path}.turns[${i}].answers`, "at most two");
    for (const one of answers) if (one && !one.choices[one.picked]) one.picked = 0;
  });
  return known;
}

// ---- the browser's store

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A conversation without turns, set as `like` is. */
export function fresh(like) {
  const settings = like?.settings ?? [{}, {}];
  return { id: newId(), title: "", changed: 0, settings, compare: like?.compare ?? false, turns: [] };
}

/** False if the browser takes no more. */
export function save(kept) {
  try {
    localStorage.setItem(PREFIX + kept.id, JSON.stringify(conversation(kept, "conversation")));
    return true;
  } catch {
    return false;
  }
}

export function load(id) {
  try {
    return checked(JSON.parse(localStorage.getItem(PREFIX + id)), "conversation");
  } catch {
    return null; // none, or kept by something else
  }
}

export const remove = (id) => localStorage.removeItem(PREFIX + id);

/** All of them, the last changed first. */
export function all() {
  const ids = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  const found = ids.map((key) => load(key.slice(PREFIX.length))).filter(Boolean);
  return found.sort((a, b) => b.changed - a.changed);
}

/** The one that this tab had open last, or else this browser. */
export function current() {
  const id = sessionStorage.getItem(CURRENT) ?? localStorage.getItem(CURRENT);
  return load(id) ?? all()[0] ?? fresh();
}

export function setCurrent(id) {
  sessionStorage.setItem(CURRENT, id);
  try {
    localStorage.setItem(CURRENT, id);
  } catch {
    // full: the tab still knows
  }
}

// ---- files

export const exported = (conversations) =>
  JSON.stringify({ format: FORMAT, conversations: conversations.map(stored) }, null, 1);

const stored = (one) => conversation(one, "conversation");

/** Keep what a file holds, beside what there is. Returns how many; throws what is wrong with it. */
export function imported(content) {
  let file;
  try {
    file = JSON.parse(content);
  } catch {
    throw new Error("The file is not JSON.");
  }
  if (file?.format !== FORMAT) throw new Error(`The file is not an export: its format is not ${FORMAT}.`);
  const found = list(checked)(file.conversations, "conversations");
  const done = [];
  for (const one of found) {
    one.id = newId();
    if (!save(one)) {
      done.forEach(remove);
      throw new Error("This browser has no room for all of it: nothing was imported.");
    }
    done.push(one.id);
  }
  return found.length;
}
