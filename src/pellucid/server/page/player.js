// Where in the steps the picture stands: with a live engine, paused, or playing what is kept.

import { chunkOf, stateAt } from "./history.js";
import { noTotals, State } from "./state.js";

const TICK_MS = 50;
const MAX_IDLE = 1; // seconds of nothing that are played; longer ones are cut short

export class Player {
  #wanted = null; // position of a seek to come
  #seeking = null; // promise of the seeks under way
  failed = false; // the last of them did
  #ticking = false;
  #timer = null;
  #ticked = 0;

  /** `onChange(why)` is called when there is something else to show: after "news" of a live
   * engine, while it is "played", or because of a "jump". */
  constructor(onChange, onError) {
    this.onChange = onChange;
    this.onError = onError;
    this.speed = 1;
  }

  /** Begin with what `history` has; a live one is followed. */
  open(history, { isLive }) {
    this.#stopTimer();
    this.history = history;
    this.isLive = isLive;
    this.mode = isLive ? "live" : "paused";
    this.position = -1;
    this.state = new State(history.engine, noTotals());
    this.#wanted = null;
  }

  get first() {
    return this.history.starts[0]?.first ?? 0;
  }

  get last() {
    return Math.max(this.history.end - 1, this.first);
  }

  /** A live engine's message. */
  read({ now, part }) {
    this.lastTime = now;
    if (part) {
      this.history.add(part);
      if (this.mode === "live") {
        if (part.totals) Object.assign(this.state.totals, part.totals);
        for (const row of part.steps ?? []) this.state.apply(row);
        this.position = this.history.end - 1;
      }
    }
    if (this.mode === "live") this.state.tick(now);
    this.onChange("news");
  }

  pause() {
    this.#stopTimer();
    this.mode = "paused";
    this.onChange("jump");
  }

  play() {
    if (this.position >= this.last) {
      if (this.isLive) return this.follow();
      this.#wanted = this.first; // once more from the beginning
    }
    this.mode = "playing";
    this.#ticked = performance.now();
    this.#timer ??= setInterval(() => this.#tick(), TICK_MS);
    return this.#seek();
  }

  /** Back to the live engine. */
  async follow() {
    this.#stopTimer();
    this.#wanted = this.last;
    await this.#seek();
    if (this.failed) return;
    const isBehind = this.history.starts.length && this.position < this.last;
    if (isBehind) return this.follow(); // more has come meanwhile
    this.mode = "live";
    this.onChange("jump");
  }

  async seek(position) {
    this.#stopTimer();
    this.mode = "paused";
    this.#wanted = position;
    await this.#seek();
  }

  step(by) {
    return this.seek((this.#wanted ?? this.position) + by);
  }

  /** Go where it is wanted last, however often that changes on the way. */
  #seek() {
    this.#seeking ??= this.#seekAll().finally(() => {
      this.#seeking = null;
    });
    return this.#seeking;
  }

  async #seekAll() {
    this.failed = false;
    while (this.#wanted !== null && this.history.starts.length) {
      const { history } = this;
      const wanted = Math.min(Math.max(this.#wanted, this.first), this.last);
      this.#wanted = null;
      try {
        const state = await stateAt(history, wanted);
        if (history !== this.history) continue;
        this.state = state;
        this.position = wanted;
        this.onChange("jump");
      } catch (error) {
        this.#fail(error);
      }
    }
  }

  #fail(error) {
    this.failed = true;
    this.pause();
    this.onError(error);
  }

  async #tick() {
    if (this.#ticking || this.#seeking) return;
    this.#ticking = true;
    try {
      const passed = ((performance.now() - this.#ticked) / 1e3) * this.speed;
      this.#ticked = performance.now();
      if (this.position < this.first) {
        this.#wanted = this.first; // where it stood is not kept any more
        await this.#seek();
      }
      await this.#advance(this.state.now + passed);
    } catch (error) {
      this.#fail(error);
    } finally {
      this.#ticking = false;
    }
  }

  /** Apply all steps that had ended by `clock`. */
  async #advance(clock) {
    const { history, state } = this;
    const isCurrent = () => this.mode === "playing" && state === this.state;
    while (isCurrent() && this.position < this.last) {
      const chunk = await history.chunk(chunkOf(history, this.position + 1));
      if (!isCurrent()) return;
      const row = chunk.steps[this.position + 1 - chunk.first];
      const end = row ? row[1] + row[3] + row[4] + row[5] + row[6] : 0;
      if (row && row[1] - state.now > MAX_IDLE) clock = Math.max(clock, row[1] - MAX_IDLE);
      if (end > clock) break;
      if (row) state.apply(row);
      this.position++;
    }
    if (!isCurrent()) return;
    state.tick(clock);
    if (this.position < this.last) this.onChange("played");
    else if (this.isLive) await this.follow();
    else this.pause();
  }

  #stopTimer() {
    clearInterval(this.#timer);
    this.#timer = null;
  }
}
