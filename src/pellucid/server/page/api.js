// The way to the server. The key stays in this tab and is sent with every request.

const KEY = "pellucid.key";

export const getKey = () => sessionStorage.getItem(KEY) ?? "";

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** The response to a request that was accepted; otherwise throws the server's own words.
 *
 * The error has the `status` and, where one is at fault, the field's path as `param`.
 */
export async function call(path, { body, signal } = {}) {
  const headers = {};
  if (getKey()) headers.Authorization = `Bearer ${getKey()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {
    method: body === undefined ? "GET" : "POST",
    headers,
    signal,
    body: body === undefined ? undefined : JSON.stringify(body),
  }).catch((error) => {
    throw signal?.aborted ? error : new Error("The server cannot be reached.");
  });
  if (response.ok) return response;
  let problem = { message: `${response.status} ${response.statusText}` };
  try {
    problem = (await response.json()).error;
  } catch {
    // not from pellucid: a proxy's page
  }
  throw failed(problem, response.status);
}

const failed = ({ message, param }, status) =>
  Object.assign(new Error(message), { status, param: param ?? null });

/** The JSON of each server-sent event. Ends at [DONE]; throws what an error event says. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        if (!part.startsWith("data: ")) continue;
        const data = part.slice(6);
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw failed(event.error);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
