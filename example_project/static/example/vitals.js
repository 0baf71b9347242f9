// Vital signs, read by this page itself: through this site, which adds the access token.
(() => {
  "use strict";

  const card = document.getElementById("vitals");
  const status = card.querySelector("[role=status]");
  const list = card.querySelector("dl");
  // As Django writes the other dates of the page in US English.
  const months = ["Jan.", "Feb.", "March", "April", "May", "June", "July", "Aug.", "Sept.", "Oct.", "Nov.", "Dec."];

  // Observations that were wrong or never made are no results.
  const notResults = ["entered-in-error", "cancelled", "registered", "unknown"];
  // Issue types of a search that stopped early, which may come as a warning.
  const stopped = ["transient", "lock-error", "no-store", "exception", "timeout", "incomplete", "throttled", "too-costly"];

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

  const hasValue = ({ valueQuantity }) => Boolean(valueQuantity) && valueQuantity.value !== undefined;
  const numberOf = ({ valueQuantity }) => `${valueQuantity.comparator || ""}${valueQuantity.value}`;
  const unitOf = ({ valueQuantity }) => valueQuantity.unit || "";

  function valueOf(observation) {
    const components = observation.component || [];
    const parts = [observation, ...components].filter(hasValue);
    if (!parts.length) {
      return "";
    }
    const unit = unitOf(parts[0]);
    // "84 mmHg" would not say which half of a blood pressure is missing.
    const isWhole = components.every(hasValue) && parts.every((part) => [unit, ""].includes(unitOf(part)));
    const value = isWhole
      ? `${parts.map(numberOf).join("/")} ${unit}`.trim()
      : parts.map((part) => `${part === observation ? "" : labelOf(part.code)} ${numberOf(part)} ${unitOf(part)}`.trim()).join(", ");
    return observation.status === "final" ? value : `${value}, ${observation.status}`;
  }

  // A server may report with status 200 that the search failed: that is not an empty result.
  function readObservations(pages) {
    const resources = pages.flatMap((page) => page.entry || []).map((entry) => entry.resource);
    const observations = resources.filter((resource) => resource.resourceType === "Observation");
    const issues = resources.flatMap((resource) => resource.resourceType === "OperationOutcome" ? resource.issue || [] : []);
    const failed = issues.some(({ severity, code }) =>
      severity === "error" || severity === "fatal" || (severity !== "information" && stopped.includes(code)));
    const missing = !observations.length && pages.some((page) => page.total > 0);
    if (failed || missing || pages.some((page) => page.resourceType !== "Bundle")) {
      throw new Error("The search failed.");
    }
    return {
      observations: observations.filter((observation) => !notResults.includes(observation.status)),
      isWithheld: issues.some(({ code }) => code === "suppressed"),
    };
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
    const [patient, pages] = await Promise.all([
      client.patient.read(),
      // Without "flat", which would drop the total.
      client.request(`Observation?${search}`, { pageLimit: 4 }),
    ]);
    const latest = new Map();
    const { observations, isWithheld } = readObservations([].concat(pages));
    for (const observation of observations) {
      const label = labelOf(observation.code);
      if (!latest.has(label) && valueOf(observation)) {
        latest.set(label, observation);
      }
    }
    latest.forEach(add);
    const name = nameOf(patient);
    const withheld = `The EHR withholds vital signs of ${name}`;
    if (latest.size) {
      status.textContent = isWithheld ? `${withheld}. Latest of those it shows` : `Latest of ${name}`;
    } else {
      status.textContent = isWithheld ? `${withheld}.` : `The EHR has no vital signs of ${name}.`;
    }
  }

  card.hidden = false;
  show().catch(() => {
    status.textContent = "The vital signs could not be read. Reload the page to try again.";
  });
})();
