// The page's start: the key, the models, and which half a narrow screen shows.

import { call, getKey, setKey } from "./api.js";
import { setModels, startChat, waitFor } from "./chat.js";
import { follow, openRecording, startXray } from "./xray.js";

const $ = (id) => document.getElementById(id);

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

async function connect() {
  try {
    const { data } = await (await call("v1/models")).json();
    const chosen = $("model").value;
    $("model").replaceChildren(...data.map(({ id }) => new Option(id, id, false, id === chosen)));
    setModels(data.map(({ id }) => id));
    notice("");
  } catch (error) {
    $("model").replaceChildren();
    notice(error.message);
    if (error.status === 401) $("key").focus();
    return;
  }
  follow();
}

function tab(name) {
  document.body.dataset.tab = name;
  for (const other of ["chat", "xray"]) {
    $(`tab-${other}`).setAttribute("aria-pressed", other === name);
  }
}

$("key").value = getKey();
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey($("key").value.trim());
  waitFor(connect());
});
$("model").addEventListener("change", follow);
$("tab-chat").addEventListener("click", () => tab("chat"));
$("tab-xray").addEventListener("click", () => tab("xray"));
startXray();
if (document.body.dataset.source === "recording") {
  tab("xray");
  openRecording();
} else {
  startChat();
  waitFor(connect());
}
