// How the whole fares: rate, latency, what waits, the model, and recent scores against the threshold.
import { byId } from "./dom.js";
import { number } from "./words.js";

const EVERY_MS = 2000, PATIENCE_MS = 5000, SVG = "http://www.w3.org/2000/svg", WIDTH = 600, HEIGHT = 72;
const notice = byId("notice");
let quietSince = null, isReached = true;

export function showNotice(text) {
  if (notice.textContent !== text) notice.textContent = text;
  notice.hidden = !text;
}

function mark(parent, name, className, attributes) {
  const node = document.createElementNS(SVG, name);
  node.setAttribute("class", className);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
  parent.append(node);
}

function drawScores({ scores, threshold }) {
  if (!scores.length) return;
  const svg = byId("scores"), highest = Math.max(...scores), over = scores.filter((score) => score > threshold).length;
  const top = Math.max(highest, threshold) * 1.1 || 1, height = (score) => HEIGHT * (1 - Math.max(score, 0) / top);
  const parts = document.createDocumentFragment();
  scores.forEach((score, place) => {
    const x = (place + 0.5) * WIDTH / scores.length;
    mark(parts, "line", score > threshold ? "stem over" : "stem", { x1: x, x2: x, y1: HEIGHT, y2: Math.min(height(score), HEIGHT - 1) });
  });
  mark(parts, "line", "line", { x1: 0, x2: WIDTH, y1: height(threshold), y2: height(threshold) });
  svg.replaceChildren(parts);
  const text = `The last ${scores.length} scores looked at, highest ${number(highest)}; ${over} above the threshold of ${number(threshold)}`;
  svg.setAttribute("aria-label", text);
  byId("scores-note").textContent = `${text} (dashed). A score of 2 is what one honest trip in a hundred reaches.`;
}

function show(pulse) {
  byId("rate").textContent = pulse.scores_per_second === null ? "–" : number(pulse.scores_per_second, 0);
  byId("lag").textContent = pulse.lag === null ? "unknown" : number(pulse.lag, 0);
  const { p50, p99 } = pulse.latency_ms || {};
  byId("latency").textContent = pulse.latency_ms ? `${number(p50, 0)} ms, p99 ${number(p99, 0)} ms` : "–";
  if (pulse.bundle_id) byId("model").textContent = pulse.bundle_id;
  drawScores(pulse);
  const isStuck = pulse.lag > 0 && !pulse.scores_per_second;
  quietSince = isStuck ? quietSince ?? Date.now() : null;
  if (!pulse.is_broker_up) showNotice("The broker does not answer. Trips are refused until it is back.");
  else if (isStuck && Date.now() - quietSince >= PATIENCE_MS) {
    const trips = pulse.lag === 1 ? "1 trip waits" : `${number(pulse.lag, 0)} trips wait`;
    showNotice(`${trips} and none is scored. Is a worker running?`);
  } else showNotice("");
}

async function look() {
  try {
    const answer = await fetch("pulse");
    isReached = true;
    if (answer.ok) show(await answer.json());
    else if (answer.status === 401) showNotice("");
    else if (answer.status === 403) showNotice("This key may not read alerts. Another one opens the page.");
  } catch {
    if (!isReached) showNotice("The API does not answer. This page goes on by itself once it is back.");
    isReached = false;
  }
  setTimeout(look, EVERY_MS);
}

export { look as watch };
