// An authorization server made with oidc-provider, and one Patient: node openid_provider.mjs
// Prints its port, and ends when its standard input does.
import { generateKeyPairSync, randomBytes } from "node:crypto";
import { createServer } from "node:http";

console.info = () => {}; // notices of features; the first line is the port
const { createLocalJWKSet, jwtVerify } = await import("jose");
const { Provider } = await import("oidc-provider");

const PATIENT = "maria";
const DATA = "patient/Patient.rs";
const server = createServer();
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const issuer = `http://127.0.0.1:${server.address().port}`;
const base = `${issuer}/fhir`;

function makeKey(algorithm) {
  const { privateKey } = algorithm.startsWith("R")
    ? generateKeyPairSync("rsa", { modulusLength: 2048 })
    : generateKeyPairSync("ec", { namedCurve: "P-384" });
  return { ...privateKey.export({ format: "jwk" }), alg: algorithm, use: "sig", kid: algorithm };
}

const keys = [makeKey("RS256"), makeKey("RS384"), makeKey("ES384")];
const publicKeys = createLocalJWKSet({
  keys: keys.map(({ kty, n, e, crv, x, y, alg, use, kid }) => ({ kty, n, e, crv, x, y, alg, use, kid })),
});
const algorithms = ["RS256", "RS384", "ES384"];

// A client of the name "jwt" gets access tokens that are JWTs for the FHIR server.
const getsJWTs = (client) => client?.clientName === "jwt";
const provider = new Provider(issuer, {
  jwks: { keys },
  cookies: { keys: ["only for tests"] },
  scopes: ["openid", "offline_access", "launch", "launch/patient", DATA, "system/Patient.rs"],
  claims: { openid: ["sub"], fhirUser: ["fhirUser"] },
  conformIdTokenClaims: false,
  extraParams: ["aud", "launch"],
  pkce: { required: () => true },
  rotateRefreshToken: true,
  responseTypes: ["code"],
  enabledJWA: {
    clientAuthSigningAlgValues: algorithms,
    idTokenSigningAlgValues: algorithms,
  },
  ttl: { AccessToken: 600, AuthorizationCode: 60, ClientCredentials: 600, Grant: 3600, IdToken: 600,
    Interaction: 600, RefreshToken: 3600, Session: 600 },
  findAccount: (_, sub) => ({
    accountId: sub,
    claims: () => ({ sub, fhirUser: `${base}/Patient/${sub}` }),
  }),
  extraTokenClaims: (_, token) => (token.accountId ? { patient: token.accountId } : undefined),
  features: {
    clientCredentials: { enabled: true },
    introspection: { enabled: true },
    registration: {
      enabled: true,
      // It differs in every encoding.
      secretFactory: () => `s3:cr/et+ %&=${randomBytes(24).toString("hex")}`,
    },
    resourceIndicators: {
      enabled: true,
      defaultResource: (_, client) => (getsJWTs(client) ? base : undefined),
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({
        scope: `launch launch/patient ${DATA}`,
        accessTokenFormat: "jwt",
        jwt: { sign: { alg: "RS384" } },
      }),
    },
    revocation: { enabled: true },
  },
});

// SMART's context is beside the access token; in a JWT it is there already.
provider.use(async (ctx, next) => {
  await next();
  if (ctx.oidc?.route === "token" && ctx.body?.access_token && ctx.oidc.account && !getsJWTs(ctx.oidc.client)) {
    ctx.body.patient = ctx.oidc.account.accountId;
  }
});

async function findScope(token) {
  const opaque = (await provider.AccessToken.find(token)) ?? (await provider.ClientCredentials.find(token));
  if (opaque) return opaque.scope;
  try {
    return (await jwtVerify(token, publicKeys, { issuer, audience: base })).payload.scope;
  } catch {
    return undefined;
  }
}

async function answerFHIR(request, response) {
  const send = (status, body) => {
    response.writeHead(status, { "Content-Type": "application/fhir+json" }).end(JSON.stringify(body));
  };
  const path = request.url.slice("/fhir".length);
  if (path === "/.well-known/smart-configuration") {
    send(200, {
      issuer,
      jwks_uri: `${issuer}/jwks`,
      authorization_endpoint: `${issuer}/auth`,
      token_endpoint: `${issuer}/token`,
      introspection_endpoint: `${issuer}/token/introspection`,
      introspection_endpoint_auth_methods_supported: ["client_secret_basic", "client_secret_post", "private_key_jwt"],
      registration_endpoint: `${issuer}/reg`,
      end_session_endpoint: `${issuer}/session/end`,
      revocation_endpoint: `${issuer}/token/revocation`,
      grant_types_supported: ["authorization_code", "client_credentials"],
      token_endpoint_auth_methods_supported: ["client_secret_basic", "client_secret_post", "private_key_jwt"],
      token_endpoint_auth_signing_alg_values_supported: ["RS384", "ES384"],
      code_challenge_methods_supported: ["S256"],
      capabilities: ["launch-ehr", "launch-standalone", "client-public", "client-confidential-symmetric",
        "client-confidential-asymmetric", "sso-openid-connect", "context-ehr-patient",
        "context-standalone-patient", "permission-patient", "permission-offline", "permission-v2"],
    });
    return;
  }
  const scope = await findScope(request.headers.authorization?.replace(/^Bearer /, "") ?? "");
  const outcome = { resourceType: "OperationOutcome", issue: [{ severity: "error", code: "forbidden" }] };
  if (scope === undefined) send(401, outcome);
  else if (!/\/Patient\.rs/.test(scope)) send(403, outcome);
  else if (path !== `/Patient/${PATIENT}`) send(404, outcome);
  else send(200, { resourceType: "Patient", id: PATIENT });
}

const callback = provider.callback();
server.on("request", (request, response) => {
  if (request.url.startsWith("/fhir/")) answerFHIR(request, response);
  else callback(request, response);
});
console.log(server.address().port);
process.stdin.resume().on("end", () => process.exit());
