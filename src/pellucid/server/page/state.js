// The engine's state, put together from its events by the rules in `engine/events.py`.

const KEEP_STEPS = 1024;
const SAMPLES = 256; // of TTFT and ITL
export const KEEP_SECONDS = 15; // of lanes
export const SNAPSHOT = 18; // where a step's array has its snapshot
const DRAFT = 19; // ... and the seconds spent on guessing

export const noTotals = () => ({ finished: 0, generated: 0, found: 0, prefilled: 0, preempted: 0, drafted: 0, accepted: 0 });

/** Sums that no snapshot has; as `Totals` in `observe/xray.py`. */
export function addTotals(totals, row) {
  const [shares = [], , admitted = [], , finished = [], preempted = []] = row.slice(8, 14);
  for (const [, , tokens, prefill, generated, , , , drafts = 0] of shares) {
    totals.generated += generated;
    if (prefill) totals.prefilled += tokens;
    totals.drafted += drafts;
    if (drafts) totals.accepted += Math.max(0, generated - 1);
  }
  for (const [, found, isReturn] of admitted) if (!isReturn) totals.found += found;
  totals.finished += finished.length;
  totals.preempted += preempted.length;
}

export class State {
  constructor(engine, totals) {
    this.engine = engine;
    this.totals = { ...totals };
    this.lanes = new Map(); // number -> lane, ended ones too for a while
    this.holders = new Map(); // block -> numbers of lanes; none is empty
    this.named = new Set(); // blocks whose prefix can be found
    this.origins = new Map(); // block -> {number, index}: who computed it, and where in its table
    this.pool = { used: 0, free: engine.num_kv_blocks, named: 0 };
    this.highest = 0; // block that was ever used
    this.steps = [];
    this.ttft = [];
    this.itl = [];
    this.step = null; // number of the last one
    this.now = 0;
  }

  apply(row) {
    const [number, time, idle, schedule, forward, sample, update, pool] = row;
    const [shares = [], queued = [], admitted = [], first = []] = row.slice(8, 12);
    const [finished = [], preempted = [], , , forgotten = [], named = []] = row.slice(12, 18);
    const draft = row[DRAFT] ?? 0;
    const end = time + schedule + draft + forward + sample + update;
    if (row[SNAPSHOT]) this.#settle(row[SNAPSHOT], time);
    for (const event of queued) this.#enter(event);
    for (const [request] of preempted) this.#preempt(request, time);
    for (const [request, found, isReturn] of admitted) {
      const lane = this.#lane(request);
      Object.assign(lane, { phase: "running", computed: found, found });
      if (!isReturn) lane.cached = found;
    }
    const times = { number, time, end, idle, schedule, draft, forward, sample, update };
    if (shares.length) this.#serve(times, shares);
    for (const request of first) {
      const lane = this.#lane(request);
      lane.first = end;
      if (lane.queued !== null) this.#sample(this.ttft, end - lane.queued);
    }
    for (const block of forgotten) this.named.delete(block);
    for (const block of named) this.named.add(block);
    for (const [request, reason, when] of finished) this.#end(request, reason, when);
    this.pool = { used: pool[0], free: pool[1], named: pool[2] };
    addTotals(this.totals, row);
    this.step = number;
    this.tick(end);
  }

  /** The time that is shown; who has ended long before is forgotten. */
  tick(now) {
    this.now = now;
    for (const [number, lane] of this.lanes) {
      if (lane.end !== null && lane.end < now - KEEP_SECONDS) this.lanes.delete(number);
    }
  }

  #settle([requests, named], time) {
    const alive = new Map(requests.map((live) => [live[0][0], live]));
    for (const [number, lane] of this.lanes) {
      // Another engine numbers anew; whoever is gone died with the one before.
      if (lane.end === null && alive.get(number)?.[0][1] !== lane.id) this.#end(number, "abort", time);
    }
    this.holders.clear();
    this.named = new Set(named);
    for (const [queued, isRunning, tokens, computed, preemptions, , blocks = []] of requests) {
      const known = this.lanes.get(queued[0]);
      const lane = known?.id === queued[1] ? known : this.#enter(queued);
      lane.phase = isRunning ? "running" : preemptions ? "preempted" : "queued";
      lane.table = [];
      Object.assign(lane, { tokens, computed, preemptions });
      this.#hold(lane, blocks);
    }
    for (const block of named) this.highest = Math.max(this.highest, block);
  }

  #enter([number, id, queued, prompt]) {
    const lane = { number, id, queued, prompt, tokens: prompt, phase: "queued", reason: "" };
    // `found`, tokens of the prefix cache, is of the last admission; `cached` of the first one, and
    // not known of a request that was there before somebody looked.
    Object.assign(lane, { computed: 0, found: 0, cached: null, preemptions: 0, table: [] });
    Object.assign(lane, { parts: [], preempted: [], first: null, last: null, end: null });
    this.lanes.set(number, lane);
    return lane;
  }

  /** Events may name a request that none has introduced only if their file was tampered with. */
  #lane(number) {
    return this.lanes.get(number) ?? this.#enter([number, `#${number}`, this.now, 0]);
  }

  #preempt(number, time) {
    const lane = this.#lane(number);
    lane.preempted.push(time);
    this.#free(lane);
    Object.assign(lane, { phase: "preempted", computed: 0, preemptions: lane.preemptions + 1 });
  }

  #serve(step, shares) {
    step.generated = 0;
    step.parts = shares.map(([request, start, tokens, prefill, generated, , blocks = [], , drafts]) => {
      const lane = this.#lane(request);
      lane.computed = start + (drafts ? generated : tokens); // what follows a wrong guess is void
      lane.tokens += generated;
      this.#hold(lane, blocks);
      const before = lane.parts.at(-1);
      if (before?.prefill === prefill && before.to > step.time - 0.002) before.to = step.end;
      else lane.parts.push({ from: step.time, to: step.end, prefill });
      while (lane.parts[0].to < step.end - KEEP_SECONDS) lane.parts.shift();
      if (generated) {
        if (lane.last !== null) this.#sample(this.itl, (step.end - lane.last) / generated);
        lane.last = step.end;
        step.generated += generated;
      }
      return { request, prefill, tokens };
    });
    this.steps.push(step);
    if (this.steps.length > KEEP_STEPS) this.steps.shift();
  }

  #hold(lane, blocks) {
    const numFound = Math.floor(lane.found / this.engine.block_size);
    for (const block of blocks) {
      const index = lane.table.push(block) - 1;
      const holders = this.holders.get(block);
      if (holders) holders.push(lane.number);
      else this.holders.set(block, [lane.number]);
      if (index >= numFound && !holders) this.origins.set(block, { number: lane.number, index });
      this.highest = Math.max(this.highest, block);
    }
  }

  #free(lane) {
    for (const block of lane.table) {
      const left = this.holders.get(block)?.filter((number) => number !== lane.number) ?? [];
      if (left.length) this.holders.set(block, left);
      else this.holders.delete(block);
    }
    lane.table = [];
  }

  #end(number, reason, time) {
    const lane = this.#lane(number);
    this.#free(lane);
    Object.assign(lane, { end: time, phase: "finished", reason });
  }

  #sample(list, value) {
    list.push(value);
    if (list.length > SAMPLES) list.shift();
  }

  // ---- what is shown

  /** Requests in a phase. */
  count(...phases) {
    return [...this.lanes.values()].filter((lane) => phases.includes(lane.phase)).length;
  }

  /** Tokens per second over the last two seconds. */
  rate() {
    const recent = this.steps.filter((step) => step.end > this.now - 2);
    return recent.reduce((sum, step) => sum + step.generated, 0) / 2;
  }

  blockCounts() {
    const shared = [...this.holders.values()].filter((numbers) => numbers.length > 1).length;
    const cached = [...this.named].filter((block) => !this.holders.has(block)).length;
    return { held: this.holders.size, shared, cached };
  }

  /** A request's blocks: its table, or what is left in the cache of one that has ended. */
  blocksOf(number) {
    const lane = this.lanes.get(number);
    if (lane && lane.end === null) return new Set(lane.table);
    const left = [...this.named].filter((block) => this.origins.get(block)?.number === number);
    return new Set(left);
  }
}

/** "median / 95th percentile" in milliseconds. */
export function percentiles(samples) {
  if (!samples.length) return "–";
  const sorted = [...samples].sort((a, b) => a - b);
  const at = (share) => 1e3 * sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  return [0.5, 0.95].map((share) => at(share).toFixed(at(share) < 10 ? 1 : 0)).join(" / ");
}
