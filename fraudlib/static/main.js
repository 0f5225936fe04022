// Follows the alerts; asks for a key first where one is needed, since an event stream cannot send one.
import { take } from "./alerts.js";
import { byId } from "./dom.js";
import { watch } from "./pulse.js";
import { offerZones } from "./trip.js";
import { loadZones } from "./words.js";

const RETRY_MS = 3000, RECENT = 20;
const connection = byId("connection"), signin = byId("signin"), problem = byId("signin-problem");

function state(text, className) {
  if (connection.textContent !== text) connection.textContent = text;
  connection.className = className;
}

function follow() {
  const source = new EventSource(`alerts?recent=${RECENT}`);
  source.onopen = () => state("live", "up");
  source.onerror = () => {
    state("lost, trying again", "down");
    if (source.readyState === EventSource.CLOSED) setTimeout(start, RETRY_MS);
  };
  source.addEventListener("alert", take);
}

async function start() {
  try {
    const session = await (await fetch("session")).json();
    if (!session.is_needed || session.client) return follow();
    state("an API key is needed", "down");
    if (!signin.open) signin.showModal();
  } catch {
    state("lost, trying again", "down");
    setTimeout(start, RETRY_MS);
  }
}

signin.addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = byId("key");
  try {
    const answer = await fetch("session", { method: "POST", headers: { Authorization: `Bearer ${field.value.trim()}` } });
    problem.textContent = answer.ok ? "" : (await answer.json()).detail;
  } catch {
    problem.textContent = "The API cannot be reached.";
  }
  if (problem.textContent) return;
  field.value = "";
  signin.close();
  start();
});

watch();
try {
  offerZones(await loadZones());
} catch { /* zones go by their numbers */ }
start();
