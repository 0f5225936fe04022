// An analyst's verdict on an alert. It can be corrected: the topic keeps every one, and the last one counts.
import { add } from "./dom.js";

const KEY = "fraudlib-verdicts", REMEMBERED = 500;
const SAID = { fraud: "confirmed as fraud", honest: "dismissed as honest" };

function given() {
  try {
    return new Map(JSON.parse(localStorage.getItem(KEY) || "[]"));
  } catch {
    return new Map();
  }
}

function remember(id, verdict) {
  const verdicts = given();
  verdicts.delete(id);
  verdicts.set(id, verdict);
  try {
    localStorage.setItem(KEY, JSON.stringify([...verdicts].slice(-REMEMBERED)));
  } catch { /* a browser that keeps nothing still sends */ }
}

async function send(id, verdict) {
  const answer = await fetch("labels", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ transaction_id: id, verdict }),
  });
  if (!answer.ok) throw new Error((await answer.json()).detail);
}

export function addVerdict(parent, id, amount) {
  const box = add(parent, "div", undefined, "act");
  const buttons = { fraud: button(box, "Confirm fraud", amount), honest: button(box, "Dismiss", amount) };
  const said = add(box, "span");
  said.setAttribute("role", "status");
  const show = (verdict) => {
    for (const [name, node] of Object.entries(buttons)) node.setAttribute("aria-pressed", String(name === verdict));
    said.className = "quiet";
    said.textContent = verdict ? `${SAID[verdict]}; the other button corrects it` : "";
  };
  const before = given().get(id);
  if (before) show(before);
  for (const [verdict, node] of Object.entries(buttons)) {
    node.addEventListener("click", async (event) => {
      for (const one of Object.values(buttons)) one.disabled = true;
      try {
        await send(id, verdict);
        remember(id, verdict);
        show(verdict);
      } catch (error) {
        said.className = "down";
        said.textContent = `not kept: ${error instanceof TypeError ? "the API cannot be reached" : error.message}`;
      }
      for (const one of Object.values(buttons)) one.disabled = false;
      // A click by keyboard keeps its place in the list; one by pointer lets the list go on.
      if (event.detail === 0) node.focus(); else node.blur();
    });
  }
}

function button(parent, text, amount) {
  const node = add(parent, "button", text, "plain small");
  node.type = "button";
  node.setAttribute("aria-label", `${text}: ${amount}`);
  node.setAttribute("aria-pressed", "false");
  return node;
}
