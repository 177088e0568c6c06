// What a conversation's turns mean to the model. A turn: see store.js.

import { isUsable, messageOf } from "./answer.js";

/** The messages of `turns` as `column` had them. Where it has no answer, the first column's counts. */
export function history(turns, column) {
  return turns.flatMap((turn, i) => {
    const said = turn.results
      ? turn.results.map(({ id, text }) => ({ role: "tool", tool_call_id: id, content: text }))
      : [{ role: "user", content: turn.user }];
    if (!turn.answers.length && i === turns.length - 1) return said;
    const answer = turn.answers[column] ?? turn.answers[0];
    return isUsable(answer) ? [...said, messageOf(answer)] : [];
  });
}

/** The turns that another may follow: those at the end that got no answer are dropped. */
export function standing(turns) {
  const count = turns.findLastIndex(({ answers }) => answers.some(isUsable)) + 1;
  return turns.slice(0, count);
}

/** `turns` as they were before the last answer. */
export const unanswered = (turns) => [...turns.slice(0, -1), ...turns.slice(-1).map((turn) => ({ ...turn, answers: [] }))];
