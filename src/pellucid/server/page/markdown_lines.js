// What Markdown knows within a line, or about one.

import { element } from "./dom.js";

/** Code, bold, italic and struck text; everything else is text. */
export function inline(text) {
  const nodes = [];
  let end = 0;
  const marked =
    /`([^`\n]+)`|\*\*(?![\s*])([^*\n]+)\*\*|\*(?![\s*])([^*\n]+)\*|~~(?![\s~])([^~\n]+)~~/g;
  for (const found of text.matchAll(marked)) {
    const [whole, code, bold, italic, struck] = found;
    if (/\s$/.test((italic ?? "").slice(-1))) continue; // 2 *3 * 4
    nodes.push(text.slice(end, found.index));
    if (code !== undefined) nodes.push(element("code", {}, code));
    else if (bold !== undefined) nodes.push(element("strong", {}, ...inline(bold)));
    else if (italic !== undefined) nodes.push(element("em", {}, ...inline(italic)));
    else nodes.push(element("del", {}, ...inline(struck)));
    end = found.index + whole.length;
  }
  nodes.push(text.slice(end));
  return nodes;
}

/** What a line that begins an item of a list says; null for another line. */
export function listMarker(line) {
  const found = /^( {0,40})(?:[-*+]|(\d{1,9})[.)])( +)(.*)/.exec(line);
  if (!found) return null;
  const [whole, indent, number, , text] = found;
  return {
    indent: indent.length,
    content: whole.length - text.length, // where the item's own lines are indented to
    ordered: number !== undefined,
    number: Number(number),
    text,
  };
}

/** The cells of the table that begins at `lines[i]`, head first; null where none does. */
export function tableRows(lines, i) {
  if (!lines[i].includes("|") || i + 1 >= lines.length) return null;
  const under = cells(lines[i + 1]);
  const head = cells(lines[i]);
  if (under.length !== head.length || !under.every((cell) => /^:?-+:?$/.test(cell))) return null;
  const rows = [head];
  for (let at = i + 2; at < lines.length && lines[at].includes("|"); at++) {
    const found = cells(lines[at]);
    rows.push(head.map((_, column) => found[column] ?? ""));
  }
  return rows;
}

function cells(line) {
  const bare = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  return bare.split("|").map((cell) => cell.trim());
}
