// A small subset of Markdown, made of DOM nodes. What a model writes is never parsed as HTML, and
// links stay the text they are: nothing here can load, run or lead anywhere.

export function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

/** Replace what `target` holds by `text`. */
export function render(text, target) {
  target.replaceChildren(...blocks(text.split("\n")));
}

function blocks(lines) {
  const nodes = [];
  let paragraph = [];
  const flush = () => {
    const text = paragraph.join("\n").trim();
    if (text) nodes.push(element("p", {}, ...inline(text)));
    paragraph = [];
  };
  for (let i = 0; i < lines.length; i++) {
    const line = lines[i];
    const heading = /^(#{1,6})\s+(.*)/.exec(line);
    if (/^\s*```/.test(line)) {
      flush();
      const code = [];
      while (++i < lines.length && !/^\s*```\s*$/.test(lines[i])) code.push(lines[i]);
      nodes.push(element("pre", { tabIndex: 0 }, element("code", {}, code.join("\n"))));
    } else if (heading) {
      flush();
      nodes.push(element(heading[1].length < 3 ? "h4" : "h5", {}, ...inline(heading[2])));
    } else if (bullet(line)) {
      flush();
      const list = element(bullet(line).ordered ? "ol" : "ul");
      if (bullet(line).ordered) list.start = bullet(line).number;
      const { ordered } = bullet(line);
      for (; bullet(lines[i])?.ordered === ordered; i++) {
        list.append(element("li", {}, ...inline(bullet(lines[i]).text)));
      }
      i--;
      nodes.push(list);
    } else if (line.trim() === "") {
      flush();
    } else {
      paragraph.push(line);
    }
  }
  flush();
  return nodes;
}

function bullet(line) {
  const found = /^\s*(?:[-*+]|(\d{1,9})[.)])\s+(.*)/.exec(line ?? "");
  if (!found) return null;
  return { ordered: found[1] !== undefined, number: Number(found[1]), text: found[2] };
}

/** Inline code and bold; everything else is text. */
function inline(text) {
  const nodes = [];
  let end = 0;
  for (const found of text.matchAll(/`([^`\n]+)`|\*\*([^*\n]+)\*\*/g)) {
    nodes.push(text.slice(end, found.index));
    nodes.push(found[1] !== undefined ? element("code", {}, found[1]) : element("strong", {}, found[2]));
    end = found.index + found[0].length;
  }
  nodes.push(text.slice(end));
  return nodes;
}
