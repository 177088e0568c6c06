// The request that the page would send, for a terminal and for Python.

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function asCurl(body, hasKey) {
  const url = new URL("v1/chat/completions", document.baseURI);
  const key = hasKey ? '  -H "Authorization: Bearer $API_KEY" \\\n' : "";
  return (
    `curl -N ${url} \\\n  -H 'Content-Type: application/json' \\\n${key}` +
    `  -d ${shell(JSON.stringify(body))}`
  );
}

/** Fields that the client does not know go into `extra_body`. */
export function asPython(body, hasKey) {
  const { top_k, ...known } = body;
  const lines = Object.entries(known).map(([name, value]) => `    ${name}=${python(value)},\n`);
  if (top_k !== undefined) lines.push(`    extra_body={"top_k": ${top_k}},\n`);
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
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([k, v]) => `"${k}": ${python(v)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}
