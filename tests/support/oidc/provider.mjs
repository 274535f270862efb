// A certified OpenID Connect provider on loopback, for the tests: node provider.mjs PORT REDIRECT_URI.
//
// It logs in whomever PUT /account named last, without asking: {"sub": …, "email": …, "groups": […]}; with
// {"refuses": true} it refuses. It prints a line once it listens, and ends with its
// standard input.
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import Provider from 'oidc-provider';

const [port, redirectUri] = process.argv.slice(2);
const accounts = new Map();
let current = null;

const jwk = (kid, alg, type, options) => ({
  ...generateKeyPairSync(type, options).privateKey.export({ format: 'jwk' }), kid, alg, use: 'sig',
});
const client = {
  redirect_uris: [redirectUri], response_types: ['code'], grant_types: ['authorization_code'],
};
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [
    { ...client, client_id: 'gateway', client_secret: 'a secret with + and % and :' },
    {
      ...client, client_id: 'public', token_endpoint_auth_method: 'none', id_token_signed_response_alg: 'ES256',
    },
  ],
  jwks: {
    keys: [
      jwk('rsa-1', 'RS256', 'rsa', { modulusLength: 2048 }),
      jwk('ec-1', 'ES256', 'ec', { namedCurve: 'P-256' }),
    ],
  },
  scopes: ['openid', 'email', 'profile', 'groups'],
  claims: { openid: ['sub'], email: ['email', 'email_verified'], groups: ['groups'] },
  cookies: { keys: [randomBytes(16).toString('hex')] },
  features: { devInteractions: { enabled: false } },
  pkce: { required: () => true },
  ttl: { AccessToken: 300, AuthorizationCode: 60, Grant: 300, IdToken: 300, Interaction: 300, Session: 300 },
  interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ ...accounts.get(id), sub: id }) }),
});

async function interact(request, response) {
  const { prompt, params, grantId } = await provider.interactionDetails(request, response);
  if (current === null || current.refuses) {
    return provider.interactionFinished(request, response, { error: 'access_denied' });
  }
  if (prompt.name === 'login') {
    return provider.interactionFinished(request, response, { login: { accountId: current.sub } });
  }
  const grant = grantId
    ? await provider.Grant.find(grantId)
    : new provider.Grant({ accountId: current.sub, clientId: params.client_id });
  grant.addOIDCScope(params.scope);
  return provider.interactionFinished(request, response, { consent: { grantId: await grant.save() } });
}

async function named(request, response) {
  let text = '';
  for await (const piece of request) text += piece;
  current = JSON.parse(text);
  accounts.set(current.sub, current);
  response.writeHead(204).end();
}

const callback = provider.callback();
createServer((request, response) => {
  const answering = request.url.startsWith('/interaction/') ? interact : request.url === '/account' ? named : callback;
  Promise.resolve(answering(request, response)).catch((error) => {
    process.stderr.write(`${error.stack}\n`);
    if (!response.headersSent) response.writeHead(500).end();
  });
}).listen(Number(port), '127.0.0.1', () => process.stdout.write('listening\n'));

process.stdin.resume().on('end', () => process.exit(0));
