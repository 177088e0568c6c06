// An answer token by token: how probable each was, and what else could have come.

import { element } from "./dom.js";

const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(2)} %`;
const NAMES = { "\n": "⏎", "\t": "⇥", " ": "␣" };
const code = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
const visible = (token) =>
  token.replaceAll(/[\s\p{C}]/gu, (character) => NAMES[character] ?? code(character)) || "∅";
const STEPS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 };

/** Args: entries of `logprobs.content`, as the API gives them.
 *
 * The tokens are one stop of the Tab key; arrows go from one to the next.
 */
export function tokenView(entries) {
  const alternatives = element("div", { className: "alternatives", role: "status" });
  alternatives.append("Point at a token, tap it, or go there with Tab and the arrow keys.");
  const line = element("div", { className: "tokens", role: "listbox" });
  line.ariaLabel = "Tokens of the answer";
  const tokens = entries.map((entry, index) => {
    const token = tokenNode(entry, index);
    const choose = () => {
      line.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", false);
      token.ariaSelected = "true";
      alternatives.replaceChildren(table(entry));
    };
    for (const happening of ["pointerenter", "focus", "click"]) token.addEventListener(happening, choose);
    return token;
  });
  line.addEventListener("keydown", (event) => {
    const from = tokens.indexOf(document.activeElement);
    const ends = { Home: 0, End: tokens.length - 1 };
    const to = ends[event.key] ?? from + (STEPS[event.key] ?? NaN);
    if (Number.isNaN(to) || from < 0) return;
    event.preventDefault();
    tokens[from].tabIndex = -1;
    const next = tokens[Math.min(Math.max(to, 0), tokens.length - 1)];
    next.tabIndex = 0;
    next.focus();
  });
  line.append(...tokens);
  return element("div", {}, line, alternatives);
}

function tokenNode(entry, index) {
  const token = element("span", { className: "token", role: "option" }, entry.token);
  token.tabIndex = index === 0 ? 0 : -1;
  token.style.borderColor = `hsl(${Math.round(120 * Math.exp(entry.logprob))} 65% 50%)`;
  token.ariaLabel = `${visible(entry.token)}, ${percent(entry.logprob)}`;
  token.ariaSelected = "false";
  return token;
}

function table(entry) {
  const others = entry.top_logprobs.filter((other) => other.token !== entry.token);
  const all = [entry, ...others].sort((a, b) => b.logprob - a.logprob);
  const rows = all.map((other) => {
    const name = element(other === entry ? "strong" : "span", {}, visible(other.token));
    const bar = element("meter", { min: 0, max: 1, value: Math.exp(other.logprob) });
    bar.ariaLabel = "probability";
    return element(
      "tr", {}, element("td", {}, name), element("td", {}, percent(other.logprob)),
      element("td", {}, bar),
    );
  });
  return element("table", {}, ...rows);
}
