// One answer: the request, what its stream brings, and how fast it came.
//
// {model, choices: [{content, reasoning, calls, tokens, finish}], picked, error?, stopped?, stats?}

import { call, events } from "./api.js";

export const newAnswer = (model) => ({ model, choices: [], picked: 0 });

/** Whether there is anything that a conversation can go on from. */
export const isUsable = (answer) => {
  const choice = answer?.choices[answer.picked];
  return Boolean(choice && (choice.content || choice.calls.length || choice.finish));
};

/** Ask for `answer`; `changed()` is called whenever it has grown. Returns the error, if it failed. */
export async function ask(body, answer, signal, changed) {
  const watch = { sent: performance.now(), first: null, last: null, usage: null };
  let failure = null;
  try {
    const response = await call("v1/chat/completions", { body, signal });
    for await (const event of events(response)) {
      watch.usage = event.usage ?? watch.usage;
      for (const choice of event.choices ?? []) take(choice, answer, watch);
      changed();
    }
    if (!answer.choices.length || answer.choices.some(({ finish }) => !finish)) {
      throw new Error("The connection ended before the answer did.");
    }
  } catch (error) {
    failure = signal.aborted ? null : error;
    if (signal.aborted) answer.stopped = true;
    else answer.error = error.message;
  }
  if (watch.first !== null || watch.usage) answer.stats = statsOf(watch);
  return failure;
}

function take({ index, delta, finish_reason: finish, logprobs }, answer, watch) {
  while (answer.choices.length <= index) {
    answer.choices.push({ content: "", reasoning: "", calls: [], tokens: [], finish: null });
  }
  const choice = answer.choices[index];
  const { content = "", reasoning = "", tool_calls: calls = [] } = delta ?? {};
  choice.content += content ?? "";
  choice.reasoning += reasoning ?? "";
  for (const call of calls) {
    const known = (choice.calls[call.index] ??= { id: "", name: "", arguments: "" });
    known.id = call.id ?? known.id;
    known.name = call.function?.name ?? known.name;
    known.arguments += call.function?.arguments ?? "";
  }
  choice.tokens.push(...(logprobs?.content ?? []));
  choice.finish = finish ?? choice.finish;
  if (content || reasoning || calls.length) {
    watch.last = performance.now();
    watch.first ??= watch.last;
  }
}

/** Tokens that make no text, as half a character, have no time that one could have seen. */
function statsOf({ sent, first, last, usage }) {
  const stats = first === null ? {} : { first_ms: first - sent };
  if (!usage) return stats;
  stats.tokens = usage.completion_tokens;
  stats.prompt_tokens = usage.prompt_tokens;
  stats.cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  if (stats.tokens > 1 && last > first) stats.rate = (stats.tokens - 1) / ((last - first) / 1e3);
  return stats;
}

/** What is said below an answer. */
export function summary({ stats, stopped, error, choices }) {
  const parts = [];
  if (stats) {
    if (stats.first_ms !== undefined) parts.push(`first token after ${Math.round(stats.first_ms)} ms`);
    if (stats.rate) parts.push(`${stats.rate.toFixed(1)} tokens/s`);
    if (stats.tokens) parts.push(stats.tokens === 1 ? "1 token" : `${stats.tokens} tokens`);
    if (stats.cached) parts.push(`${stats.cached} of ${stats.prompt_tokens} prompt tokens cached`);
  }
  if (stopped) parts.push("stopped");
  else if (!error && !choices.some(({ finish }) => finish)) parts.push("not finished");
  if (choices.some(({ finish }) => finish === "length")) parts.push("cut off: no more tokens were allowed");
  return parts.join(" · ");
}

/** The messages that an answer adds to the history. */
export function messageOf(answer) {
  const { content, calls } = answer.choices[answer.picked];
  if (!calls.length) return { role: "assistant", content };
  const made = calls.map(({ id, name, arguments: given }) => ({
    id, type: "function", function: { name, arguments: given },
  }));
  return { role: "assistant", content: content || null, tool_calls: made };
}
