// Vital signs, read by this page itself: through this site, which adds the access token.
(() => {
  "use strict";

  const card = document.getElementById("vitals");
  const status = card.querySelector("[role=status]");
  const list = card.querySelector("dl");
  // From Django's JavaScriptCatalog, if the page has it; in English otherwise.
  const gettext = window.gettext || ((text) => text);
  const about = (text, name) => text.replace("%s", () => name);
  const language = document.documentElement.lang || "en";

  // Observations that were wrong or never made are no results.
  const notResults = ["entered-in-error", "cancelled", "registered", "unknown"];
  // Results that may still change, or that have changed.
  const statusTexts = {
    preliminary: gettext("preliminary"),
    amended: gettext("amended"),
    corrected: gettext("corrected"),
  };
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
    return concept.text || coding.display || coding.code || gettext("Measurement");
  }

  // Halves of a blood pressure, which is written 120/80 in whatever order they come.
  const halves = ["8480-6", "8462-4"];
  const isHalf = (half) => ({ code = {} }) =>
    (code.coding || []).some((coding) => coding.system === "http://loinc.org" && coding.code === half);

  const hasNumber = ({ valueQuantity }) => Boolean(valueQuantity) && valueQuantity.value !== undefined;
  const unitOf = ({ valueQuantity }) => valueQuantity.unit || "";

  // In the page's language, with as many digits as the number has: 36.85 is never rounded.
  function numberOf({ valueQuantity: { comparator, value } }) {
    const [plain, decimals = ""] = String(value).match(/^-?\d+(?:\.(\d{1,20}))?$/) || [];
    const digits = decimals.length;
    const written = plain
      ? Number(plain).toLocaleString(language, {
        minimumFractionDigits: digits,
        maximumFractionDigits: digits,
        useGrouping: false,
      })
      : value;
    return `${comparator || ""}${written}`;
  }

  // Also why there is none: otherwise, an older value would be shown as the latest.
  function partOf(part) {
    if (hasNumber(part)) {
      return `${numberOf(part)} ${unitOf(part)}`.trim();
    }
    if (part.dataAbsentReason) {
      return `(${labelOf(part.dataAbsentReason)})`;
    }
    const [, value] = Object.entries(part).find(([name, value]) => name.startsWith("value") && value) || [];
    return typeof value === "string" ? value : value ? value.text || gettext("(not shown here)") : "";
  }

  function valueOf(observation) {
    const components = observation.component || [];
    const [high, low] = halves.map((half) => components.find(isHalf(half)));
    const isPressure = components.length === 2 && high && low && [high, low].every(hasNumber)
      && [unitOf(high), ""].includes(unitOf(low)) && !partOf(observation);
    const value = isPressure
      ? `${numberOf(high)}/${numberOf(low)} ${unitOf(high)}`.trim()
      : [
        partOf(observation),
        ...components.filter(partOf).map((part) => `${labelOf(part.code)} ${partOf(part)}`),
      ].filter(Boolean).join(", ");
    return observation.status === "final" || !value ? value : `${value}, ${statusTexts[observation.status] || observation.status}`;
  }

  // A month or a year is no day, and the day is the one where it was measured.
  function dateOf({ effectiveDateTime = "" }) {
    const [, year, month, day] = effectiveDateTime.match(/^(\d{4})(?:-(\d\d))?(?:-(\d\d))?/) || [];
    if (!month) {
      return year || "";
    }
    const parts = { year: "numeric", month: "long", ...(day && { day: "numeric" }), timeZone: "UTC" };
    return new Date(Date.UTC(year, month - 1, day || 1)).toLocaleDateString(language, parts);
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
    when.textContent = dateOf(observation);
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
    if (latest.size) {
      status.textContent = isWithheld
        ? about(gettext("The EHR withholds vital signs of %s. Latest of those it shows:"), name)
        : about(gettext("Latest of %s"), name);
    } else {
      status.textContent = isWithheld
        ? about(gettext("The EHR withholds vital signs of %s."), name)
        : about(gettext("The EHR has no vital signs of %s."), name);
    }
  }

  card.hidden = false;
  show().catch(() => {
    status.textContent = gettext("The vital signs could not be read. Reload the page to try again.");
  });
})();
