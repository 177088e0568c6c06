// Steps that can be gone back to: those of a live engine kept here, those of a recording fetched.
// Both are chunks {first, totals, steps}, of which the first step has a snapshot to begin with.

import { call } from "./api.js";
import { addTotals, KEEP_SECONDS, noTotals, SNAPSHOT, State } from "./state.js";

const KEEP_ROWS = 400_000; // of live steps: a row for each step, and for each request in it
const MIN_CHUNK_STEPS = 512; // snapshots that are closer begin no chunk of their own
const KEEP_CHUNKS = 6; // of a recording

/** The last minutes of an engine. Memory is bounded by `KEEP_ROWS`. */
export class LiveHistory {
  constructor(engine) {
    this.engine = engine;
    this.chunks = [];
    this.end = 0; // position after the last step
    this.rows = 0;
    this.totals = noTotals();
  }

  get starts() {
    return this.chunks;
  }

  /** Steps that the server left out between those which are here. */
  get leftOut() {
    return this.chunks.reduce((sum, chunk) => sum + chunk.leftOut, 0);
  }

  add({ first, steps = [], totals, left_out: leftOut = 0 }) {
    if (totals) this.totals = { ...totals };
    steps.forEach((row, i) => {
      let chunk = this.chunks.at(-1);
      const isNew = totals && i === 0;
      if (isNew || (row[SNAPSHOT] && chunk.steps.length >= MIN_CHUNK_STEPS)) {
        chunk = { first: first + i, time: row[1], totals: { ...this.totals }, steps: [], rows: 0 };
        chunk.leftOut = isNew ? leftOut : 0;
        this.chunks.push(chunk);
      }
      const rows = 1 + (row[8]?.length ?? 0);
      chunk.steps.push(row);
      chunk.rows += rows;
      this.rows += rows;
      addTotals(this.totals, row);
    });
    this.end = first + steps.length;
    while (this.rows > KEEP_ROWS && this.chunks.length > 1) this.rows -= this.chunks.shift().rows;
  }

  async chunk(nth) {
    return this.chunks[nth];
  }
}

/** A recording behind `pellucid xray`. */
export class RecordedHistory {
  constructor({ engine, starts, num_steps, begin, end }) {
    this.engine = engine;
    this.starts = starts;
    this.end = num_steps;
    this.duration = end - begin;
    this.kept = new Map(); // nth -> promise, the last used one at the end
  }

  chunk(nth) {
    const found = this.kept.get(nth) ?? fetchChunk(nth);
    found.catch(() => this.kept.delete(nth)); // another try may succeed
    this.kept.delete(nth);
    this.kept.set(nth, found);
    while (this.kept.size > KEEP_CHUNKS) this.kept.delete(this.kept.keys().next().value);
    return found;
  }
}

async function fetchChunk(nth) {
  return (await call(`xray/steps?chunk=${nth}`)).json();
}

/** Which chunk has the step at `position`. */
export function chunkOf(history, position) {
  let nth = history.starts.length - 1;
  while (nth > 0 && history.starts[nth].first > position) nth--;
  return nth;
}

/** The state after the step at `position`, with the seconds before it that lanes show. */
export async function stateAt(history, position) {
  const last = chunkOf(history, position);
  const { starts } = history;
  let nth = last;
  while (nth > 0 && starts[nth].time > starts[last].time - KEEP_SECONDS) nth--;
  const chunks = await Promise.all(
    Array.from({ length: last - nth + 1 }, (_, i) => history.chunk(nth + i)),
  );
  const state = new State(history.engine, chunks[0].totals);
  for (const { first, totals, steps } of chunks) {
    Object.assign(state.totals, totals);
    for (const row of steps.slice(0, position - first + 1)) state.apply(row);
  }
  return state;
}
