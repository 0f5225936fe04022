// The list of alerts: a bounded number of them, drawn a few times a second however many come.
import { add, byId } from "./dom.js";
import { addVerdict } from "./labels.js";
import { field, minutes, number, reasons, zone } from "./words.js";

const SHOWN = 100, DRAW_MS = 250, TELL_MS = 10000, MINUTE_MS = 60000, REMEMBERED = 1000;
const list = byId("alerts"), held = byId("held"), pause = byId("pause");
const seen = new Set(), times = [];
let waiting = [], dropped = 0, untold = 0, isPaused = false, isPointed = false;

function item(alert) {
  const trip = alert.transaction || {}, node = document.createElement("li");
  const severity = alert.severity === "block" ? "block" : "review";
  node.className = `${severity} fresh`;
  const line = add(node, "div", undefined, "what");
  add(line, "span", severity, `badge ${severity}`);
  const paid = field(trip, "total_amount") ?? field(trip, "fare_amount"), length = minutes(trip);
  const amount = typeof paid === "number" ? `${number(paid)} USD` : "unknown amount";
  add(line, "strong", amount);
  const miles = field(trip, "trip_distance");
  if (typeof miles === "number") add(line, "span", `${number(miles)} miles`);
  if (length !== undefined) add(line, "span", `${number(length, 1)} minutes`);
  const when = add(line, "time", new Date(alert.scored_at).toLocaleTimeString());
  when.dateTime = alert.scored_at;
  const from = field(trip, "pickup_location_id", "PULocationID"), to = field(trip, "dropoff_location_id", "DOLocationID");
  if (from !== undefined || to !== undefined) add(node, "p", `${zone(from)} to ${zone(to)}`, "where");
  const why = add(node, "ul", undefined, "why");
  for (const words of reasons(alert.reasons)) add(why, "li", words);
  add(node, "p", `score ${number(alert.anomaly_score)}, threshold ${number(alert.threshold)} · ${alert.transaction_id}`,
    "score quiet");
  addVerdict(node, alert.transaction_id, amount);
  addRecord(node, trip);
  return node;
}

function addRecord(parent, trip) {
  const details = add(parent, "details");
  add(details, "summary", "The whole record");
  details.addEventListener("toggle", () => {
    const terms = add(details, "dl");
    for (const [name, value] of Object.entries(trip)) {
      const pair = add(terms, "div");
      add(pair, "dt", name);
      add(pair, "dd", typeof value === "object" ? JSON.stringify(value) : String(value));
    }
  }, { once: true });
}

function isHeld() {
  return isPaused || isPointed || list.contains(document.activeElement);
}

function showHeld() {
  const count = waiting.length + dropped;
  held.hidden = count === 0;
  if (count) held.textContent = `Show ${count.toLocaleString("en-US")} new, held while ${isPaused ? "paused" : "you read"}`;
}

function show() {
  const fresh = document.createDocumentFragment();
  for (const alert of waiting.toReversed()) fresh.append(item(alert));
  list.prepend(fresh);
  while (list.children.length > SHOWN) list.lastChild.remove();
  waiting = [];
  dropped = 0;
  byId("empty").hidden = list.children.length > 0;
}

function draw() {
  if (waiting.length && !isHeld()) show();
  showHeld();
  while (times.length && times[0] < Date.now() - MINUTE_MS) times.shift();
  byId("minute").textContent = times.length.toLocaleString("en-US");
}

// A screen reader hears how many came, not each of them.
function tell() {
  if (untold) byId("told").textContent = `${untold} new alert${untold === 1 ? "" : "s"}`;
  untold = 0;
}

export function take(event) {
  let alert;
  try {
    alert = JSON.parse(event.data);
  } catch {
    return;
  }
  // A broker in memory counts its places anew after a restart, so the place alone does not tell two alerts apart.
  const key = `${event.lastEventId} ${alert.transaction_id}`;
  if (seen.has(key)) return;
  seen.add(key);
  if (seen.size > REMEMBERED) seen.delete(seen.values().next().value);
  if (Date.now() - Date.parse(alert.scored_at) < MINUTE_MS) times.push(Date.now());
  untold += 1;
  waiting.push(alert);
  if (waiting.length > SHOWN) {
    dropped += 1;
    waiting.shift();
  }
}

pause.addEventListener("click", () => {
  isPaused = !isPaused;
  pause.setAttribute("aria-pressed", String(isPaused));
});
held.addEventListener("click", () => {
  show();
  showHeld();
  list.firstElementChild?.scrollIntoView({ block: "nearest" });
});
list.addEventListener("pointerenter", (event) => { isPointed = event.pointerType === "mouse"; });
list.addEventListener("pointerleave", () => { isPointed = false; });
byId("only-block").addEventListener("change", (event) => list.classList.toggle("only-block", event.target.checked));
setInterval(draw, DRAW_MS);
setInterval(tell, TELL_MS);
