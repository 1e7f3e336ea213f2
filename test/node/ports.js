'use strict';

// Tries ports out as programs do, and serves if each try ends as alone: ports of UDP in
// every notation, and listening again where it has just closed. FREE is a port that was
// free.

const dgram = require('node:dgram');
const http = require('node:http');
const net = require('node:net');

const free = Number(process.env.FREE);

function bound(...where) {
  return new Promise((resolve, reject) => {
    const s = dgram.createSocket('udp4');
    s.on('error', reject);
    s.bind(...where, () => {
      const { port } = s.address();
      s.close(() => resolve(port));
    });
  });
}

function listens(options) {
  return new Promise((resolve, reject) => {
    const s = net.createServer();
    s.on('error', reject);
    s.listen(options, () => {
      const { port } = s.address();
      s.close(() => resolve(port));
    });
  });
}

function equal(got, want, what) {
  if (got !== want) throw new Error(`${what}: port ${got}, want ${want}`);
}

// reused binds a second socket to the port of the first, which both allow.
function reused() {
  const options = { type: 'udp4', reuseAddr: true };
  return new Promise((resolve, reject) => {
    const [a, b] = [dgram.createSocket(options), dgram.createSocket(options)];
    for (const s of [a, b]) s.on('error', reject);
    a.bind(0, () => {
      b.bind(a.address().port, () => {
        equal(b.address().port, a.address().port, 'reused');
        a.close();
        b.close(resolve);
      });
    });
  });
}

async function main() {
  for (const none of [[], [{}], [null], [undefined, '127.0.0.1'], [''], ['0'], ['none'], [{ port: false }]]) {
    if (!(await bound(...none) > 0)) throw new Error(`no port for ${JSON.stringify(none)}`);
  }
  for (const port of [free, `${free}`, `0x${free.toString(16)}`, free + 0.5, ` ${free}\n`, { port: `${free}` }]) {
    equal(await bound(port), free, JSON.stringify(port));
  }
  await reused();
  // The port that was just found to be free, as get-port and the like do.
  const found = await listens({ port: 0 });
  for (const host of [undefined, '0.0.0.0', '127.0.0.1', '::', '::1', undefined]) {
    equal(await listens({ port: found, host }), found, `again on ${host}`);
  }
  // One that is meant, everywhere and then where it is meant, as vite does.
  for (const host of ['0.0.0.0', '::', '127.0.0.1']) equal(await listens({ port: `${free}`, host }), free, host);
  http.createServer((req, res) => res.end(JSON.stringify({ pid: process.pid, uri: req.url }))).listen(free, process.env.HOST);
}

main().catch((err) => {
  console.log(`ports: ${err.stack}`);
  process.exit(1);
});
