// An OpenID provider for tests: node server.mjs PORT SECRET SECONDS [KEY CERTIFICATE], with HTTPS if it has a key. Gives tokens that are good for SECONDS to clients with SECRET, and
// refuses others. Writes a line for each request: "token" or "refused", and the time in milliseconds.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { OAuth2Server } from 'oauth2-mock-server';

const [port, secret, seconds, key, certificate] = process.argv.slice(2);
const server = new OAuth2Server(key, certificate);
// Brokers keep the key, so a server that starts again has the same one.
if (existsSync('key.json')) {
  await server.issuer.keys.add(JSON.parse(readFileSync('key.json', 'utf8')));
} else {
  await server.issuer.keys.generate('RS256');
  writeFileSync('key.json', JSON.stringify(server.issuer.keys.toJSON(true)[0]));
}

const isRight = (request) => {
  const [, basic] = (request.headers.authorization ?? '').split(' ');
  return Buffer.from(basic ?? '', 'base64').toString() === `relay:${secret}`;
};

server.service.on('beforeTokenSigning', (token) => {
  token.payload.sub = 'relay';
  token.payload.exp = Math.floor(Date.now() / 1000) + Number(seconds);
});
server.service.on('beforeResponse', (response, request) => {
  if (isRight(request)) {
    console.log(`token ${Date.now()}`);
    return;
  }
  console.log(`refused ${Date.now()}`);
  response.statusCode = 401;
  response.body = { error: 'invalid_client' };
});
await server.start(Number(port), '127.0.0.1');
console.log(`started ${Date.now()}`);
