// The engine as the stream's messages tell it. Arrays come as `observe/xray.py` lays them out.

const KEEP_STEPS = 160;
const KEEP_SECONDS = 15; // of lanes
const SAMPLES = 256; // of TTFT and ITL

export class State {
  constructor(engine) {
    this.engine = engine;
    this.lanes = new Map(); // number -> lane, ended ones too for a while
    this.blocks = new Map(); // block -> {holders, named}; others are free and empty
    this.pool = { used: 0, free: engine.num_kv_blocks, named: 0 };
    this.highest = 0; // block that was ever used
    this.steps = [];
    this.ttft = [];
    this.itl = [];
    this.prompt = this.cached = 0; // tokens of admitted requests
    this.now = 0;
  }

  read({ now, window }) {
    this.now = now;
    if (window) {
      for (const row of window.requests ?? []) this.#request(row);
      for (const row of window.steps ?? []) this.#step(row);
      for (const [number, reason, time] of window.ended ?? []) this.#end(number, reason, time);
      for (const [block, holders, named] of window.blocks ?? []) {
        if (holders.length || named) this.blocks.set(block, { holders, named });
        else this.blocks.delete(block);
        this.highest = Math.max(this.highest, block);
      }
      if (window.pool) {
        const [used, free, named] = window.pool;
        this.pool = { used, free, named };
      }
    }
    for (const [number, lane] of this.lanes) {
      if (lane.end !== null && lane.end < now - KEEP_SECONDS) this.lanes.delete(number);
    }
  }

  #lane(number) {
    let lane = this.lanes.get(number);
    if (!lane) {
      lane = { number, phase: "queued", parts: [], end: null, reason: "", last: null, preempted: [] };
      Object.assign(lane, { id: "", queued: null, prompt: 0, tokens: 0, cached: 0, blocks: 0 });
      this.lanes.set(number, lane);
    }
    return lane;
  }

  #request(row) {
    const [number, id, phase, queued, prompt, , tokens, cached, preemptions, blocks, first] = row;
    if (this.lanes.get(number)?.id && this.lanes.get(number).id !== id) this.lanes.delete(number);
    const lane = this.#lane(number);
    if (preemptions > lane.preempted.length && lane.queued !== null) lane.preempted.push(this.now);
    if (phase !== "queued" && !lane.counted) {
      lane.counted = true;
      this.prompt += prompt;
      this.cached += cached;
    }
    if (first != null && !lane.first) this.#sample(this.ttft, first - queued);
    Object.assign(lane, { id, phase, queued, prompt, tokens, cached, preemptions, blocks, first });
  }

  #step(row) {
    const [number, time, idle, schedule, forward, sample, update, parts] = row;
    const end = time + schedule + forward + sample + update;
    const step = { number, time, end, idle, schedule, forward, sample, update, generated: 0 };
    step.parts = parts.map(([request, prefill, tokens, generated]) => {
      const lane = this.#lane(request);
      const before = lane.parts.at(-1);
      if (before && before.prefill === prefill && before.to > time - 0.002) before.to = end;
      else lane.parts.push({ from: time, to: end, prefill });
      while (lane.parts.length && lane.parts[0].to < this.now - KEEP_SECONDS) lane.parts.shift();
      if (generated) {
        if (lane.last !== null) this.#sample(this.itl, (end - lane.last) / generated);
        lane.last = end;
        step.generated += generated;
      }
      return { request, prefill, tokens };
    });
    this.steps.push(step);
    if (this.steps.length > KEEP_STEPS) this.steps.shift();
  }

  #end(number, reason, time) {
    const lane = this.#lane(number);
    if (lane.queued === null) lane.queued = lane.parts[0]?.from ?? time; // it came and went
    Object.assign(lane, { end: time, phase: "finished", reason });
  }

  #sample(list, value) {
    list.push(value);
    if (list.length > SAMPLES) list.shift();
  }

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
    const counts = { held: 0, shared: 0, cached: 0 };
    for (const { holders, named } of this.blocks.values()) {
      if (holders.length) counts.held++;
      if (holders.length > 1) counts.shared++;
      if (!holders.length && named) counts.cached++;
    }
    return counts;
  }
}

/** "median / 95th percentile" in milliseconds. */
export function percentiles(samples) {
  if (!samples.length) return "–";
  const sorted = [...samples].sort((a, b) => a - b);
  const at = (share) => 1e3 * sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  return [0.5, 0.95].map((share) => at(share).toFixed(at(share) < 10 ? 1 : 0)).join(" / ");
}
