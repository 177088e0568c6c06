// What may be asked of an answer: the chat API's fields, as a person sets them in a form.

/** Texts as the form has them become values of the API; they throw what is wrong with a text. */
const KINDS = {
  text: (text) => text,
  number: (text) => {
    const number = Number(text);
    if (!Number.isFinite(number)) throw new Error("must be a number");
    // JSON would carry another integer than the one entered
    if (Number.isInteger(number) && !Number.isSafeInteger(number)) throw new Error("has too many digits");
    return number;
  },
  lines: (text) => text.split("\n").filter((line) => line !== "").map(unescaped),
  ids: (text) => text.split(/[\s,]+/).filter(Boolean).map(KINDS.number),
  json: (text) => {
    try {
      return JSON.parse(text);
    } catch (error) {
      throw new Error(`must be JSON: ${error.message}`);
    }
  },
  choice: (text) => text,
};
const ESCAPES = { n: "\n", t: "\t", "\\": "\\" };
const unescaped = (line) => line.replaceAll(/\\([nt\\])/g, (_, letter) => ESCAPES[letter]);

const LINES = "One a line. \\n is a line break.";
const number = (name, label, hint, more) => ({ name, label, hint, kind: "number", ...more });
const flag = (name, label, value = true, more) => ({ name, label, value, kind: "flag", ...more });
const area = (name, label, kind, hint, more) => ({ name, label, kind, hint, isArea: true, ...more });
const choice = (name, label, options, more) => ({ name, label, options, kind: "choice", ...more });
const OURS = { isOurs: true }; // not among the arguments of OpenAI's client

/** Groups of fields in the order of the form; what has a title is folded away at first. */
export const GROUPS = [
  {
    title: "",
    fields: [
      area("system", "System prompt", "text", ""),
      number("temperature", "Temperature", "1"),
      number("top_p", "Top-p", "1"),
      number("top_k", "Top-k", "off", OURS),
      number("min_p", "Min-p", "0", OURS),
      number("max_tokens", "Max tokens", "no limit"),
      number("seed", "Seed", "random"),
      flag("logprobs", "Record token probabilities"),
      number("top_logprobs", "Alternatives", "5"),
      choice("model", "Model", [["", "the one above"]], { only: "b" }),
    ],
  },
  {
    title: "Penalties and bias",
    fields: [
      number("presence_penalty", "Presence", "0"),
      number("frequency_penalty", "Frequency", "0"),
      number("repetition_penalty", "Repetition", "1", OURS),
      area("logit_bias", "Bias by token id", "json", '{"42": -100}'),
      area("bad_words", "Words not to say", "lines", LINES, OURS),
      area("allowed_token_ids", "Only these token ids", "ids", "1, 2, 3", OURS),
    ],
  },
  {
    title: "Length and ends",
    fields: [
      area("stop", "Stop strings", "lines", LINES),
      area("stop_token_ids", "Stop token ids", "ids", "1, 2, 3", OURS),
      number("min_tokens", "Min tokens", "0", OURS),
      number("n", "Answers", "1"),
      number("timeout", "Seconds at most", "the server's", OURS),
      flag("include_stop_str_in_output", "Show the stop string", true, OURS),
      flag("ignore_eos", "Go on after the model's end", true, OURS),
      flag("skip_special_tokens", "Show special tokens", false, OURS),
      flag("cache", "Never a cached answer", false, OURS),
    ],
  },
  {
    title: "Form of the answer",
    fields: [
      choice("form", "Must be", [
        ["", "anything"],
        ["json_object", "JSON"],
        ["json_schema", "JSON of a schema"],
        ["regex", "matched by an expression"],
        ["choice", "one of these lines"],
        ["grammar", "of a grammar"],
      ]),
      area("form_text", "Schema, expression, lines or grammar", "text", '{"type": "object", …}'),
    ],
  },
  {
    title: "Thinking and tools",
    fields: [
      choice("reasoning_effort", "Effort", [
        ["", "the model's"],
        ...["none", "minimal", "low", "medium", "high", "xhigh"].map((name) => [name, name]),
      ]),
      flag("include_reasoning", "Leave out the thoughts", false, OURS),
      area("chat_template_kwargs", "For the chat template", "json", '{"enable_thinking": false}', OURS),
      area("tools", "Tools", "json", '[{"type": "function", "function": {"name": …}}]'),
      choice("tool_choice", "Calls", [
        ["", "if it wants"],
        ["required", "at least one"],
        ["none", "none"],
      ]),
      flag("parallel_tool_calls", "One call at most", false),
    ],
  },
];

export const FIELDS = new Map(GROUPS.flatMap(({ fields }) => fields).map((field) => [field.name, field]));

const APART = new Set(["model", "system", "top_logprobs", "form", "form_text"]); // not fields as they stand

/** The request's fields that `values` ask for, by name; an empty one is left out.
 *
 * Throws errors whose `param` is the field at fault.
 */
export function requestFields(values) {
  const body = {};
  for (const field of FIELDS.values()) {
    const value = values[field.name];
    if (!value || APART.has(field.name)) continue;
    body[field.name] = field.kind === "flag" ? field.value : converted(field, value);
  }
  if (body.logprobs) {
    body.top_logprobs = values.top_logprobs ? converted(FIELDS.get("top_logprobs"), values.top_logprobs) : 5;
  }
  return { ...body, ...form(values) };
}

function converted({ name, kind }, text) {
  try {
    return KINDS[kind](text);
  } catch (error) {
    throw Object.assign(new Error(error.message), { param: name });
  }
}

function form({ form: kind, form_text: text = "" }) {
  if (!kind) return {};
  if (kind === "json_object") return { response_format: { type: kind } };
  const field = { name: "form_text", kind: { json_schema: "json", choice: "lines" }[kind] ?? "text" };
  const value = converted(field, text);
  if (kind !== "json_schema") return { structured_outputs: { [kind]: value } };
  return { response_format: { type: kind, json_schema: { name: "answer", schema: value } } };
}

/** The field of the form that an error's `param` means; undefined if none does. */
export function fieldOf(param) {
  const name = /^\w+/.exec(param ?? "")?.[0];
  if (name === "response_format" || name === "structured_outputs") return FIELDS.get("form_text");
  return FIELDS.get(name);
}

/** What OpenAI's client does not know by name. */
export const isOurs = (name) => name === "structured_outputs" || Boolean(FIELDS.get(name)?.isOurs);
