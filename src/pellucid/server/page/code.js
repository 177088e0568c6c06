// The request that the page would send, for a terminal and for Python.

import { getKey } from "./api.js";
import { copy, element } from "./dom.js";
import { isOurs } from "./fields.js";

const $ = (id) => document.getElementById(id);
const LANGUAGES = { curl: asCurl, Python: asPython };

/** Show one body, or those of two columns. */
export function showCode(bodies) {
  const chosen = { language: "curl", column: 0 };
  const update = () => {
    for (const node of $("code-choices").children) {
      node.ariaPressed = String(Object.values(chosen).includes(node.choice));
    }
    $("code-text").textContent = LANGUAGES[chosen.language](bodies[chosen.column], Boolean(getKey()));
  };
  const option = (name, kind, choice) => {
    const node = element("button", { type: "button", choice }, name);
    node.addEventListener("click", () => {
      chosen[kind] = choice;
      update();
    });
    return node;
  };
  const languages = Object.keys(LANGUAGES).map((name) => option(name, "language", name));
  const columns = bodies.map((_, column) => option("AB"[column], "column", column));
  $("code-choices").replaceChildren(...languages, ...(columns.length > 1 ? columns : []));
  $("copy").onclick = () => copy($("code-text").textContent, $("code-text"), $("copy"));
  $("close-code").onclick = () => $("code-dialog").close();
  update();
  $("code-dialog").showModal();
}

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function asCurl(body, hasKey) {
  const url = new URL("v1/chat/completions", document.baseURI);
  const key = hasKey ? '  -H "Authorization: Bearer $API_KEY" \\\n' : "";
  return (
    `curl -N ${url} \\\n  -H 'Content-Type: application/json' \\\n${key}` +
    `  -d ${shell(JSON.stringify(body))}`
  );
}

/** Fields that the client does not know go into `extra_body`. */
function asPython(body, hasKey) {
  const own = {};
  const lines = [];
  for (const [name, value] of Object.entries(body)) {
    if (isOurs(name)) own[name] = value;
    else lines.push(`    ${name}=${python(value)},\n`);
  }
  if (Object.keys(own).length) lines.push(`    extra_body=${python(own)},\n`);
  const key = hasKey ? 'os.environ["API_KEY"]' : '"none"';
  return (
    `${hasKey ? "import os\n\n" : ""}from openai import OpenAI\n\n` +
    `client = OpenAI(base_url=${JSON.stringify(new URL("v1", document.baseURI))}, api_key=${key})\n` +
    `stream = client.chat.completions.create(\n${lines.join("")})\n` +
    "for chunk in stream:\n    if chunk.choices:\n" +
    '        print(chunk.choices[0].delta.content or "", end="", flush=True)\n'
  );
}

function python(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([k, v]) => `${JSON.stringify(k)}: ${python(v)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}
