// A subset of Markdown, made of DOM nodes. What a model writes is never parsed as HTML, and links
// and images stay the text they are: nothing here can load, run or lead anywhere.
// Every pattern takes time linear in the line that it reads.

import { copyButton, element } from "./dom.js";
import { inline, listMarker, tableRows } from "./markdown_lines.js";

const MAX_DEPTH = 8; // of lists and quotes in each other; what is deeper stays as it is written

const sources = new WeakMap(); // what each rendered node was made of

/** Make `target` hold `text`; nodes of blocks that are as before stay, with what is selected in them. */
export function render(text, target) {
  const wanted = blocks(text.replaceAll("\r\n", "\n").split("\n"), 0);
  let same = 0;
  const old = [...target.childNodes];
  while (same < wanted.length && old[same] && sources.get(old[same]) === wanted[same].source) same++;
  for (const node of old.slice(same)) node.remove();
  for (const { source, build } of wanted.slice(same)) {
    const node = build();
    sources.set(node, source);
    target.append(node);
  }
}

const READERS = [fence, heading, rule, quote, table, list]; // the first that knows a line takes it

/** [{source, build}]: cut first, built only where something has changed. */
function blocks(lines, depth) {
  const found = [];
  let start = 0; // of the paragraph under way
  const paragraph = (end) => {
    const text = lines.slice(start, end).join("\n").trim();
    if (text) found.push({ source: text, build: () => element("p", {}, ...inline(text)) });
  };
  for (let i = 0; i < lines.length; ) {
    const block = lines[i].trim() && READERS.reduce((got, read) => got ?? read(lines, i, depth), null);
    if (!block && lines[i].trim()) {
      i++;
      continue;
    }
    paragraph(i);
    if (block) found.push({ source: lines.slice(i, block.end).join("\n"), build: block.build });
    start = i = block ? block.end : i + 1;
  }
  paragraph(lines.length);
  return found;
}

const build = (lines, depth) => blocks(lines, depth).map((block) => block.build());

function fence(lines, i) {
  const opening = /^\s*(`{3,}|~{3,})([^`]*)$/.exec(lines[i]);
  if (!opening) return null;
  const [, marks, name] = opening;
  const closes = (line) => {
    const bare = line.trim();
    return bare.length >= marks.length && bare === marks[0].repeat(bare.length);
  };
  let end = i + 1;
  while (end < lines.length && !closes(lines[end])) end++;
  const text = lines.slice(i + 1, end).join("\n");
  return { end: end + 1, build: () => codeBlock(text, name.trim()) };
}

function codeBlock(text, name) {
  const pre = scrolling("pre", "Code", element("code", {}, text));
  const head = element("div", { className: "code-head" }, element("bdi", {}, name.slice(0, 30)));
  head.append(copyButton(() => text, pre));
  return element("div", { className: "code-block" }, head, pre);
}

/** What may be wider than its place, and is scrolled by keyboard, too. */
function scrolling(name, label, child) {
  const node = element(name, { tabIndex: 0, className: "scrolling", role: "region" }, child);
  node.ariaLabel = label;
  return node;
}

function heading(lines, i) {
  const found = /^ {0,3}(#{1,6})\s+(.*)/.exec(lines[i]);
  if (!found) return null;
  const level = Math.min(3 + found[1].length, 6); // the page itself has the first three
  return { end: i + 1, build: () => element(`h${level}`, {}, ...inline(found[2])) };
}

function rule(lines, i) {
  const marks = lines[i].replaceAll(/\s/g, "");
  const is = marks.length >= 3 && "-*_".includes(marks[0]) && marks === marks[0].repeat(marks.length);
  return is ? { end: i + 1, build: () => element("hr") } : null;
}

function quote(lines, i, depth) {
  let end = i;
  while (end < lines.length && /^ {0,3}>/.test(lines[end])) end++;
  if (end === i || depth >= MAX_DEPTH) return null;
  const inner = lines.slice(i, end).map((line) => line.replace(/^ {0,3}> ?/, ""));
  return { end, build: () => element("blockquote", {}, ...build(inner, depth + 1)) };
}

function table(lines, i) {
  const rows = tableRows(lines, i);
  if (!rows) return null;
  const row = (cells, name) =>
    element("tr", {}, ...cells.map((cell) => element(name, {}, ...inline(cell))));
  return {
    end: i + rows.length + 1, // with the line under the head
    build: () => {
      const [head, ...rest] = rows;
      const body = element("tbody", {}, ...rest.map((cells) => row(cells, "td")));
      const whole = element("table", {}, element("thead", {}, row(head, "th")), body);
      return scrolling("div", "Table", whole);
    },
  };
}

function list(lines, i, depth) {
  const first = listMarker(lines[i]);
  if (!first || depth >= MAX_DEPTH) return null;
  const items = [];
  let end = i;
  let blank = false;
  for (let at = i; at < lines.length; at++) {
    const line = lines[at];
    const marker = listMarker(line);
    const indent = line.length - line.trimStart().length;
    if (line.trim() === "") {
      blank = true;
      items.at(-1).push("");
      continue;
    }
    if (marker && indent < first.indent + 2) {
      if (marker.ordered !== first.ordered || rule(lines, at)) break;
      items.push([marker.text]);
    } else if (indent > first.indent || (!blank && !marker && indent === 0 && isText(line))) {
      items.at(-1).push(line.slice(Math.min(indent, first.content)));
    } else {
      break;
    }
    blank = false;
    end = at + 1;
  }
  return { end, build: () => listOf(items, first, depth) };
}

const isText = (line) => !/^(#{1,6}\s|\s*(```|~~~)|>|\|)/.test(line);

function listOf(items, first, depth) {
  const node = element(first.ordered ? "ol" : "ul");
  if (first.ordered) node.start = first.number;
  for (const item of items) {
    const inner = build(item, depth + 1);
    if (inner[0]?.tagName === "P") inner.splice(0, 1, ...inner[0].childNodes);
    node.append(element("li", {}, ...inner));
  }
  return node;
}
