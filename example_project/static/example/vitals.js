// Vital signs, read by this page itself: through this site, which adds the access token.
(() => {
  "use strict";

  const card = document.getElementById("vitals");
  const status = card.querySelector("[role=status]");
  const list = card.querySelector("dl");
  // As Django writes the other dates of the page in US English.
  const months = ["Jan.", "Feb.", "March", "April", "May", "June", "July", "Aug.", "Sept.", "Oct.", "Nov.", "Dec."];

  const client = FHIR.client({
    serverUrl: new URL(card.dataset.fhir, location.href).href,
    tokenResponse: { patient: card.dataset.patient },
  });

  function nameOf(patient) {
    const name = (patient.name || [])[0] || {};
    return name.text || [...(name.given || []), name.family].filter(Boolean).join(" ");
  }

  function labelOf(concept = {}) {
    const coding = (concept.coding || [])[0] || {};
    return concept.text || coding.display || coding.code || "Measurement";
  }

  function valueOf(observation) {
    const quantities = [
      observation.valueQuantity,
      ...(observation.component || []).map((part) => part.valueQuantity),
    ].filter(Boolean);
    if (!quantities.length) {
      return "";
    }
    const values = quantities.map((quantity) => quantity.value).join("/");
    return `${values} ${quantities[0].unit || ""}`.trim();
  }

  function add(observation) {
    const tile = document.createElement("div");
    const term = document.createElement("dt");
    term.textContent = labelOf(observation.code);
    const detail = document.createElement("dd");
    const number = document.createElement("span");
    number.className = "number words";
    number.textContent = valueOf(observation);
    const when = document.createElement("span");
    when.className = "quiet";
    const date = new Date(observation.effectiveDateTime || NaN);
    when.textContent = Number.isNaN(date.getTime()) ? "" : `${months[date.getUTCMonth()]} ${date.getUTCDate()}, ${date.getUTCFullYear()}`;
    detail.append(number, when);
    tile.append(term, detail);
    list.append(tile);
  }

  async function show() {
    const search = new URLSearchParams({
      patient: client.patient.id,
      category: "vital-signs",
      _sort: "-date",
      _count: "25",
    });
    const [patient, observations] = await Promise.all([
      client.patient.read(),
      client.request(`Observation?${search}`, { flat: true, pageLimit: 4 }),
    ]);
    const latest = new Map();
    for (const observation of observations) {
      const label = labelOf(observation.code);
      if (!latest.has(label) && valueOf(observation)) {
        latest.set(label, observation);
      }
    }
    latest.forEach(add);
    status.textContent = latest.size
      ? `Latest of ${nameOf(patient)}`
      : `The EHR has no vital signs of ${nameOf(patient)}.`;
  }

  card.hidden = false;
  show().catch(() => {
    status.textContent = "The vital signs could not be read. Reload the page to try again.";
  });
})();
