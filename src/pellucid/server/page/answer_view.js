// An answer as it is seen. `update()` shows what has been added, and leaves what a person opened.

import { summary } from "./answer.js";
import { button, copyButton, element, oneLine } from "./dom.js";
import { render } from "./markdown.js";
import { tokenView } from "./tokens.js";

/** One of an answer's choices. */
class ChoiceView {
  #reasoning = element("div", { className: "content", dir: "auto" });
  #thoughts = element("details", { className: "reasoning", hidden: true });
  #content = element("div", { className: "content", dir: "auto" });
  #calls = element("div");
  #tokens = button("Tokens", () => this.#turn(), { hidden: true });
  #pick;

  constructor(choice, pick) {
    this.choice = choice;
    this.#thoughts.append(element("summary", {}, "Thoughts"), this.#reasoning);
    this.#thoughts.open = !choice.content; // they are still being thought
    this.#tokens.ariaPressed = "false";
    this.#pick = button("Continue with this", pick);
    const copying = copyButton(() => choice.content, this.#content);
    this.tools = element("div", { className: "tools" }, this.#tokens, copying, this.#pick);
    this.node = element("div", { className: "choice" }, this.#thoughts, this.#content, this.#calls);
  }

  /** `place` is where the buttons belong. */
  update(isPicked, isOver, place) {
    const { content, reasoning, calls, tokens } = this.choice;
    this.#thoughts.hidden = !reasoning;
    if (reasoning) render(reasoning, this.#reasoning);
    if (this.#tokens.ariaPressed !== "true") render(content, this.#content);
    this.#content.hidden = !content && (calls.length > 0 || isOver);
    this.#calls.replaceChildren(...calls.map(callNode));
    this.#tokens.hidden = !isOver || !tokens?.length;
    const isApart = place === this.node;
    this.#pick.hidden = !isApart;
    if (this.tools.parentNode !== place) place[isApart ? "append" : "prepend"](this.tools);
    this.#pick.ariaPressed = String(isPicked);
  }

  #turn() {
    const isOn = this.#tokens.ariaPressed !== "true";
    this.#tokens.ariaPressed = String(isOn);
    this.#content.hidden = false;
    if (isOn) this.#content.replaceChildren(tokenView(this.choice.tokens));
    else render(this.choice.content, this.#content);
  }
}

function callNode({ name, arguments: given }) {
  let shown = given;
  try {
    shown = JSON.stringify(JSON.parse(given), null, 2);
  } catch {
    // not all of it is there, or it is no JSON
  }
  const title = element("p", {}, "Calls ", element("code", {}, name));
  return element("div", { className: "call" }, title, element("pre", { tabIndex: 0 }, shown));
}

export class AnswerView {
  #choices = [];
  #box = element("div", { className: "choices" });
  #error = element("p", { className: "error", hidden: true });
  #tools = element("div", { className: "tools" });
  #stats = element("span", { className: "stats" });
  #results = null;
  #actions;

  /** `actions`: again(), changed(), and answerCalls(results) where results are taken. */
  constructor(answer, name, actions) {
    this.answer = answer;
    this.#actions = actions;
    this.node = element("article", { className: "assistant" });
    this.node.ariaLabel = name;
    const title = element("p", { className: "model" }, `${name.replace("Answer", "").trim()} `);
    title.append(element("bdi", {}, oneLine(answer.model)));
    const again = button("Again", actions.again, { className: "when-idle" });
    this.#tools.append(again, this.#stats);
    this.node.append(title, this.#box, this.#error, this.#tools);
  }

  update(isOver) {
    const { choices, picked, error = "" } = this.answer;
    choices.forEach((choice, i) => {
      this.#choices[i] ??= this.#added(choice, i);
      const place = choices.length > 1 ? this.#choices[i].node : this.#tools;
      this.#choices[i].update(i === picked, isOver, place);
    });
    this.#error.textContent = error;
    this.#error.hidden = !error;
    this.#stats.textContent = isOver ? this.#summary() : "";
    if (isOver && !this.#results && this.#actions.answerCalls) this.#askForResults();
  }

  #summary() {
    const isSilent = this.answer.choices.some((one) => one.finish && !one.content && !one.calls.length);
    return [isSilent && "nothing was said", summary(this.answer)].filter(Boolean).join(" · ");
  }

  #added(choice, i) {
    const view = new ChoiceView(choice, () => {
      this.answer.picked = i;
      this.update(true);
      this.#actions.changed();
    });
    this.#box.append(view.node);
    return view;
  }

  /** A person answers for the functions that the model called. */
  #askForResults() {
    const calls = this.answer.choices[this.answer.picked]?.calls ?? [];
    if (!calls.length) return;
    const inputs = calls.map(() => element("textarea", { rows: 2, required: true }));
    const labels = calls.map(({ name }, i) =>
      element("label", {}, "Result of ", element("code", {}, oneLine(name)), inputs[i]),
    );
    this.#results = element("form", { className: "results when-idle" }, ...labels);
    this.#results.append(element("button", {}, "Send results"));
    this.#results.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#actions.answerCalls(calls.map(({ id, name }, i) => ({ id, name, text: inputs[i].value })));
    });
    this.node.append(this.#results);
  }
}
