// The map of KV blocks, and what each of them is: under the pointer, or by the arrow keys.

import { clear, colour, variable } from "./draw.js";

const MAX_HEIGHT = 200;

/** The largest square cells that show all blocks that were ever used, and some more. */
function layBlocks(canvas, state) {
  const used = 2 ** Math.ceil(Math.log2(Math.max(1.2 * state.highest, 511) + 1));
  const count = Math.min(state.engine.num_kv_blocks, used);
  const width = canvas.clientWidth;
  let cell = 14;
  const rows = (size) => Math.ceil(count / Math.floor(width / size));
  while (cell > 3 && rows(cell) * cell > MAX_HEIGHT) cell--;
  return { count, cell, columns: Math.max(1, Math.floor(width / cell)), height: rows(cell) * cell };
}

/**
 * Returns how many blocks are in the picture: the first ones of the pool.
 * `marked` is a set of blocks, `pointed` one block or null.
 */
export function drawBlocks(canvas, state, { marked, pointed }) {
  const { count, cell, columns, height } = layBlocks(canvas, state);
  if (canvas.style.height !== `${height + 2}px`) canvas.style.height = `${height + 2}px`;
  const { context } = clear(canvas);
  const side = cell - (cell > 4 ? 1 : 0.5);
  const [free, cached, shared, text] = ["free", "cached", "shared", "text"].map(variable);
  for (let block = 0; block < count; block++) {
    const x = (block % columns) * cell;
    const y = Math.floor(block / columns) * cell;
    const holders = state.holders.get(block);
    context.globalAlpha = marked.size && !marked.has(block) ? 0.25 : 1;
    context.fillStyle = holders ? colour(holders[0]) : state.named.has(block) ? cached : free;
    context.fillRect(x, y, side, side);
    if (holders?.length > 1) {
      context.fillStyle = shared;
      const dot = Math.max(side * 0.4, 1);
      context.fillRect(x + (side - dot) / 2, y + (side - dot) / 2, dot, dot);
    }
    if (block === pointed) {
      context.globalAlpha = 1;
      context.strokeStyle = text;
      context.lineWidth = 2;
      context.strokeRect(x + 1, y + 1, side - 2, side - 2);
    }
  }
  context.globalAlpha = 1;
  return count;
}

/** The number of the block under the pointer, or null. */
export function blockAt(canvas, state, { offsetX, offsetY }) {
  const { count, cell, columns } = layBlocks(canvas, state);
  const block = Math.floor(offsetY / cell) * columns + Math.floor(offsetX / cell);
  return block < count && offsetX >= 0 && offsetX < columns * cell ? block : null;
}

/** Where an arrow key leads from a block. */
export function nextBlock(canvas, state, block, key) {
  const { count, columns } = layBlocks(canvas, state);
  const ways = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
  if (block === null) return 0;
  return Math.min(Math.max(block + ways[key], 0), count - 1);
}

function tokensAt(index, state, lane) {
  const size = state.engine.block_size;
  const from = index * size;
  const to = from + size - 1;
  const part = !lane?.prompt || to < lane.prompt ? "prompt" : from >= lane.prompt ? "answer" : "both";
  const whose = part === "both" ? "prompt and answer" : part;
  return lane ? `tokens ${from}–${to} (${whose})` : `tokens ${from}–${to}`;
}

/** What a block is, in words. */
export function tellBlock(state, block) {
  const holders = state.holders.get(block) ?? [];
  const isNamed = state.named.has(block);
  const told = [`block ${block}: reference count ${holders.length}`];
  const places = new Map(); // "tokens 0–15 (prompt)" -> requests
  for (const number of holders) {
    const lane = state.lanes.get(number);
    const index = lane?.table.indexOf(block) ?? -1;
    const place = index < 0 ? "" : tokensAt(index, state, lane);
    places.set(place, [...(places.get(place) ?? []), `#${number}`]);
  }
  for (const [place, numbers] of places) told.push(`${place} of ${numbers.join(", ")}`);
  const origin = state.origins.get(block);
  if (!holders.length && isNamed) {
    const place = origin ? tokensAt(origin.index, state, state.lanes.get(origin.number)) : "a prefix";
    told.push(`free, still holds ${place}${origin ? ` of #${origin.number}` : ""}`);
  } else if (!holders.length) {
    told.push("free");
  }
  told.push(isNamed ? "named: can be found by its prefix" : "no name: cannot be found by others");
  return told.join("; ");
}
