// Send a trip and see what becomes of it.
import { add, byId } from "./dom.js";
import { number, reasons } from "./words.js";

const WAIT_SECONDS = 5;
const STRANGE = { trip_distance: 0.1, duration_minutes: 1, fare_amount: 180, tip_amount: 0, tolls_amount: 0, total_amount: 181.5 };
const form = byId("trip"), verdict = byId("verdict");

export function offerZones(zones) {
  const boroughs = new Map();
  for (const [id, [name, borough]] of Object.entries(zones)) {
    if (!boroughs.has(borough)) boroughs.set(borough, []);
    boroughs.get(borough).push([name, id]);
  }
  for (const select of form.querySelectorAll("select")) {
    for (const borough of [...boroughs.keys()].sort()) {
      const group = add(select, "optgroup");
      group.label = borough;
      for (const [name, id] of boroughs.get(borough).sort()) add(group, "option", name).value = id;
    }
  }
}

function showScore(score, took) {
  const line = add(verdict, "div", undefined, "what");
  if (score.is_flagged) add(line, "span", score.severity ?? "review", `badge ${score.severity ?? "review"}`);
  add(line, "strong", score.is_flagged ? "Flagged" : "Not flagged", score.is_flagged ? "down" : "up");
  add(verdict, "div", `score ${number(score.anomaly_score)}, threshold ${number(score.threshold)}, after ${number(took, 0)} ms`);
  if (!score.is_flagged) return;
  const why = add(verdict, "ul", undefined, "why");
  for (const words of reasons(score.reasons)) add(why, "li", words);
}

async function send(trip) {
  const started = performance.now();
  const answer = await fetch("transaction", {
    method: "POST",
    headers: { "Content-Type": "application/json", Prefer: `wait=${WAIT_SECONDS}` },
    body: JSON.stringify(trip),
  });
  const body = await answer.json();
  verdict.textContent = "";
  verdict.className = "";
  if (answer.status === 200) showScore(body, performance.now() - started);
  else if (answer.ok) verdict.textContent = `Taken, but no score within ${WAIT_SECONDS} seconds. Is a worker running?`;
  else verdict.textContent = `${body.title}: ${body.detail}`;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button"), trip = {};
  for (const [name, value] of new FormData(form)) if (value !== "") trip[name] = Number(value);
  button.disabled = true;
  verdict.textContent = "waiting for the score";
  try {
    await send(trip);
  } catch {
    verdict.textContent = "The API cannot be reached.";
  } finally {
    button.disabled = false;
  }
});
byId("strange").addEventListener("click", () => {
  for (const [name, value] of Object.entries(STRANGE)) form.elements[name].value = value;
});
