// The dialog that lists the conversations of this browser.

import { button, download, element, oneLine } from "./dom.js";
import { all, exported, fresh, imported, load, remove, save } from "./store.js";

const MAX_FILE_BYTES = 20e6; // browsers keep less than that
const $ = (id) => document.getElementById(id);

let chat = null;

/** `playground` has: opened() (the conversation that is open), open(conversation), halt(), renamed(title). */
export function startConversations(playground) {
  chat = playground;
  const dialog = $("conversations-dialog");
  $("conversations").addEventListener("click", () => {
    say();
    list();
    dialog.showModal();
  });
  $("conversations-close").addEventListener("click", () => dialog.close());
  $("conversations-export").addEventListener("click", () => download("conversations.json", exported(all())));
  $("conversations-import").addEventListener("change", async ({ target }) => {
    for (const file of target.files) await take(file);
    target.value = ""; // the same file may be chosen again
  });
}

// ---- what is seen

function say(...nodes) {
  $("conversations-status").replaceChildren(...nodes);
}

function list() {
  const found = all();
  $("conversations-list").replaceChildren(...found.map(row));
  $("conversations-export").disabled = !found.length;
  if (!found.length) $("conversations-list").append(element("li", {}, "None is kept yet."));
}

function row(one) {
  const title = button(titleOf(one), () => choose(one.id), { className: "title", dir: "auto" });
  title.autofocus = one.id === chat.opened().id;
  if (title.autofocus) title.setAttribute("aria-current", "true");
  const item = element("li", {}, title, element("small", {}, facts(one)));
  const renaming = button("Rename", () => askForTitle(one, item));
  const deleting = button("Delete", () => discard(one));
  for (const node of [renaming, deleting]) node.ariaLabel = `${node.textContent} ${titleOf(one)}`;
  item.append(renaming, deleting);
  return item;
}

/** A form in the place of the row. */
function askForTitle(one, item) {
  const input = element("input", { value: one.title, maxLength: 60 });
  input.ariaLabel = "New title";
  const form = element("form", {}, input, element("button", {}, "Save"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    rename(one, oneLine(input.value));
  });
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.preventDefault(); // it would close the dialog
    list();
  });
  item.replaceChildren(form);
  input.select();
}

// ---- what is done

async function choose(id) {
  await chat.open(load(id) ?? fresh());
  $("conversations-dialog").close();
}

function rename(one, title) {
  if (one.id === chat.opened().id) chat.renamed(title);
  else save({ ...one, title });
  list();
  say("Renamed.");
}

async function discard(one) {
  const isOpen = one.id === chat.opened().id;
  if (isOpen) await chat.halt();
  const kept = load(one.id);
  remove(one.id);
  if (isOpen) await chat.open(all()[0] ?? fresh(kept));
  list();
  const undo = button("Undo", () => {
    const isKept = save(kept);
    list();
    say(isKept ? "It is back." : "There is no room for it any more.");
  });
  say(`“${titleOf(one)}” is deleted. `, undo);
  undo.focus();
}

async function take(file) {
  try {
    if (file.size > MAX_FILE_BYTES) throw new Error("The file is too large: at most 20 MB are taken.");
    const count = imported(await file.text());
    list();
    say(count === 1 ? "One conversation came in." : `${count} conversations came in.`);
  } catch (error) {
    say(oneLine(error.message, 200));
  }
}

// ---- words

export const titleOf = ({ title, turns }) => title || oneLine(turns[0]?.user ?? "") || "New conversation";

function facts({ turns, changed }) {
  const when = changed ? new Date(changed).toLocaleString(undefined, { dateStyle: "short", timeStyle: "short" }) : "";
  return `${turns.length} ${turns.length === 1 ? "turn" : "turns"} · ${when}`;
}
