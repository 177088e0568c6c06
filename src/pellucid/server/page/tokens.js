// An answer token by token: how probable each was, and what else could have come.

import { element } from "./markdown.js";

const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(2)} %`;
const visible = (token) => token.replaceAll("\n", "⏎").replaceAll(" ", "␣") || "∅";

/** Args: entries of `logprobs.content`, as the API gives them. */
export function tokenView(entries) {
  const alternatives = element("div", { className: "alternatives" });
  alternatives.setAttribute("role", "status");
  alternatives.append("Point at a token, or go there with Tab.");
  const line = element("div", { className: "tokens" });
  for (const entry of entries) {
    const token = element("span", { className: "token", tabIndex: 0 }, entry.token);
    const probability = Math.exp(entry.logprob);
    token.dataset.logprob = entry.logprob;
    token.style.borderColor = `hsl(${Math.round(120 * probability)} 65% 50%)`;
    token.setAttribute("aria-label", `${visible(entry.token)}, ${percent(entry.logprob)}`);
    for (const happening of ["pointerenter", "focus"]) {
      token.addEventListener(happening, () => alternatives.replaceChildren(table(entry)));
    }
    line.append(token);
  }
  return element("div", {}, line, alternatives);
}

function table(entry) {
  const others = entry.top_logprobs.filter((other) => other.token !== entry.token);
  const all = [entry, ...others].sort((a, b) => b.logprob - a.logprob);
  const rows = all.map((other) => {
    const name = element(other === entry ? "strong" : "span", {}, visible(other.token));
    const bar = element("meter", { min: 0, max: 1, value: Math.exp(other.logprob) });
    return element(
      "tr", {}, element("td", {}, name), element("td", {}, percent(other.logprob)),
      element("td", {}, bar),
    );
  });
  return element("table", {}, ...rows);
}
