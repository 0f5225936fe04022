// What the fields of a trip are called, and a reason as people read it.
const WORDS = {
  fare_amount: ["fare", "USD"], trip_distance: ["distance", "miles"], duration_minutes: ["duration", "minutes"],
  tip_amount: ["tip", "USD"], tolls_amount: ["tolls", "USD"], total_amount: ["total", "USD"], extra: ["extra", "USD"],
  mta_tax: ["MTA tax", "USD"], improvement_surcharge: ["improvement surcharge", "USD"],
  congestion_surcharge: ["congestion surcharge", "USD"], airport_fee: ["airport fee", "USD"],
  cbd_congestion_fee: ["congestion zone fee", "USD"], ehail_fee: ["e-hail fee", "USD"],
  rate_code_id: ["rate code", ""], payment_type: ["payment", ""], passenger_count: ["passengers", ""],
  pickup_location_id: ["pickup zone", ""], dropoff_location_id: ["drop-off zone", ""], trip_type: ["trip type", ""],
  vendor_id: ["vendor", ""], pickup_datetime: ["pickup time", ""], dropoff_datetime: ["drop-off time", ""],
};
// Codes as the TLC's data dictionary explains them.
const CODES = {
  rate_code_id: { 1: "standard", 2: "JFK", 3: "Newark", 4: "Nassau or Westchester", 5: "negotiated", 6: "group ride" },
  payment_type: { 0: "flex fare", 1: "card", 2: "cash", 3: "no charge", 4: "dispute", 5: "unknown", 6: "voided" },
  trip_type: { 1: "street hail", 2: "dispatch" },
};
let zones = {};

export async function loadZones() {
  zones = await (await fetch("static/zones.json")).json();
  return zones;
}

export function zone(id) {
  if (id === undefined || id === null) return "unknown zone";
  return zones[id] ? zones[id][0] : `zone ${id}`;
}

export function number(value, decimals = 2) {
  return typeof value === "number"
    ? value.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals })
    : "unknown";
}

function shown(field, value) {
  if (typeof value !== "number") return "missing";
  if (field.endsWith("location_id")) return zone(value);
  if (CODES[field]) return CODES[field][value] ?? String(value);
  return WORDS[field]?.[1] === "" ? String(value) : number(value);
}

// "fare 48.20 USD, expected 14.10"
export function reasonInWords({ field, observed, expected }) {
  const [name, unit] = WORDS[field] || [field.replaceAll("_", " "), ""];
  const seen = `${name} ${shown(field, observed)}${unit && typeof observed === "number" ? ` ${unit}` : ""}`;
  return typeof expected === "number" ? `${seen}, expected ${shown(field, expected)}` : seen;
}

export function reasons(list) {
  return list?.length ? list.map(reasonInWords) : ["no single field stands out"];
}

// A trip's field under any of the names that a client may send it by.
export function field(trip, ...names) {
  for (const name of names) if (trip[name] !== undefined && trip[name] !== null) return trip[name];
  return undefined;
}

export function minutes(trip) {
  const given = field(trip, "duration_minutes");
  if (typeof given === "number") return given;
  const ends = ["pickup", "dropoff"].map((end) => Date.parse(
    field(trip, `${end}_datetime`, `lpep_${end}_datetime`, `tpep_${end}_datetime`)));
  const length = (ends[1] - ends[0]) / 60000;
  return Number.isFinite(length) ? length : undefined;
}
