// The form of one column's settings.

import { element } from "./dom.js";
import { FIELDS, fieldOf, GROUPS, requestFields } from "./fields.js";

export class SettingsForm {
  #model = ""; // what is to be chosen as soon as it is served

  /** `changed()` is called after a person changed something. */
  constructor(letter, changed) {
    this.letter = letter;
    this.inputs = new Map();
    this.node = element("form", { className: "fields", noValidate: true });
    this.node.ariaLabel = `Settings ${letter.toUpperCase()}`;
    for (const { title, fields } of GROUPS) {
      const shown = fields.filter(({ only }) => !only || only === letter);
      const grid = element("div", { className: "grid" }, ...shown.map((field) => this.#labelled(field)));
      if (title) this.node.append(element("details", {}, element("summary", {}, title), grid));
      else this.node.append(grid);
    }
    this.node.addEventListener("submit", (event) => event.preventDefault());
    this.node.addEventListener("input", (event) => this.#clear(event.target));
    this.node.addEventListener("change", changed);
  }

  #labelled(field) {
    const input = inputOf(field);
    input.id = `${this.letter}-${field.name}`;
    this.inputs.set(field.name, input);
    const problem = element("p", { id: `${input.id}-problem`, className: "error", hidden: true });
    const isFlag = field.kind === "flag";
    const label = element("label", {}, ...(isFlag ? [input, ` ${field.label}`] : [field.label, input]));
    return element("div", { className: isFlag ? "check" : field.isArea ? "wide" : "" }, label, problem);
  }

  /** Offer the models of these names. */
  set models(names) {
    const input = this.inputs.get("model");
    if (!input) return;
    this.#model = input.value || this.#model;
    input.replaceChildren(input[0], ...names.map((name) => new Option(name, name)));
    input.value = names.includes(this.#model) ? this.#model : "";
  }

  get values() {
    const values = {};
    for (const [name, input] of this.inputs) {
      const value = input.type === "checkbox" ? input.checked : input.value;
      if (value) values[name] = value;
    }
    return values;
  }

  set values(values) {
    this.#model = values.model ?? "";
    for (const [name, input] of this.inputs) {
      this.#clear(input);
      if (input.type === "checkbox") input.checked = Boolean(values[name]);
      else input.value = values[name] ?? "";
      if (input.selectedIndex === -1) input.value = ""; // a model that is not served
    }
    for (const group of this.node.querySelectorAll("details")) {
      group.open = [...group.querySelectorAll("input, textarea, select")].some(
        (input) => (input.type === "checkbox" ? input.checked : input.value),
      );
    }
  }

  /** The request's fields. Throws an error with `param` if a field cannot be sent. */
  fields() {
    for (const [name, input] of this.inputs) {
      if (input.validity.badInput) {
        throw Object.assign(new Error("must be a number"), { param: name });
      }
    }
    return requestFields(this.values);
  }

  /** Say `message` at the field that `param` means; false if that is none of the form's. */
  complain(param, message) {
    const input = this.inputs.get(fieldOf(param)?.name);
    if (!input) return false;
    for (let node = input; (node = node.parentElement?.closest("details")); ) node.open = true;
    const problem = problemOf(input);
    problem.textContent = message;
    problem.hidden = false;
    input.setAttribute("aria-invalid", true);
    input.setAttribute("aria-describedby", problem.id);
    input.focus();
    return true;
  }

  #clear(input) {
    if (!input.hasAttribute("aria-invalid")) return;
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-describedby");
    problemOf(input).hidden = true;
  }

  clear() {
    for (const input of this.inputs.values()) this.#clear(input);
  }
}

const problemOf = (input) => document.getElementById(`${input.id}-problem`);

function inputOf({ kind, hint = "", isArea, options }) {
  if (isArea) return element("textarea", { rows: 2, placeholder: hint, spellcheck: false });
  if (kind === "flag") return element("input", { type: "checkbox" });
  if (kind === "number") return element("input", { type: "number", step: "any", placeholder: hint });
  return element("select", {}, ...options.map(([value, label]) => new Option(label, value)));
}

/** Only what a form has, of what was kept or imported. */
export function settingsFrom(kept) {
  const values = {};
  for (const { name, kind } of FIELDS.values()) {
    const value = kept?.[name];
    if (typeof value === (kind === "flag" ? "boolean" : "string")) values[name] = value;
  }
  return values;
}
