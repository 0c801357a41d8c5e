// The page: two halves, making a task and using one.

import { getJson, key } from "/page/api.js";
import { PHONE } from "/page/draw.js";
import { setUpMaking } from "/page/making.js";
import { setUpUsing } from "/page/using.js";
import { say, show, speak } from "/page/words.js";

const at = (id) => document.getElementById(id);

// Run something that may fail, with its button switched off; a failure is shown, not lost.
async function attempt(button, action) {
  at("message").hidden = true;
  if (button) button.disabled = true;
  try {
    return await action();
  } catch (error) {
    at("message").textContent = [say("problem", error.type), error.message].filter(Boolean).join("\n");
    at("message").hidden = false;
    at("message").scrollIntoView({ block: "nearest" });
    if (error.type === "unauthorised") at("key").focus();
    return undefined;
  } finally {
    if (button) button.disabled = false;
  }
}

async function begin() {
  show();
  const about = await getJson("/v1");
  at("key-label").hidden = !about.needs_key;
  at("key").value = key.get();
  const using = setUpUsing(attempt);
  const making = about.tune ? setUpMaking(attempt, about, using.open) : { redraw() {}, rejoin() {} };
  at("make").hidden = !about.tune;
  at("delete").hidden = !about.tune;
  at("language").addEventListener("click", () => { speak(); making.redraw(); using.redraw(); });
  matchMedia(`(width < ${PHONE}px)`).addEventListener("change", making.redraw);
  const open = async () => { await using.open(); await attempt(at("adapt"), making.rejoin); };
  at("key").addEventListener("change", () => { key.set(at("key").value); attempt(null, open); });
  if (!about.needs_key || key.get()) await open();
}

attempt(null, begin);
