// Nodes, made without any HTML.

export function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

export function button(name, action, properties = {}) {
  const node = element("button", { type: "button", ...properties }, name);
  node.addEventListener("click", () => action(node));
  return node;
}

/** A button that copies what `text()` is; without a clipboard it selects what `shown` holds. */
export function copyButton(text, shown) {
  return button("Copy", (node) => copy(text(), shown, node));
}

/** Browsers give a page no clipboard where it came over plain HTTP from another machine. */
export async function copy(text, shown, node) {
  let said = "Copied";
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    getSelection().selectAllChildren(shown);
    said = "Selected";
  }
  node.textContent = said;
  setTimeout(() => (node.textContent = "Copy"), 2000);
}

/** `text` fit for one line: no control or formatting characters, and an end. */
export function oneLine(text, most = 60) {
  const characters = [...text.slice(0, 2 * most).replaceAll(/[\p{C}\p{Z}]+/gu, " ").trim()];
  return characters.length > most ? `${characters.slice(0, most - 1).join("")}…` : characters.join("");
}

/** Save `text` as a file of the person's. */
export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
