'use strict'
// A server that does what its URL says, in the worker that was asked.
//
// CERT makes it an https server, MAX_CONNECTIONS bounds it.
const cluster = require('node:cluster')
const child = require('node:child_process')
const fs = require('node:fs')
const http = require('node:http')
const https = require('node:https')
const inspector = require('node:inspector')
const net = require('node:net')
const answer = require('./answer.js')

const servers = {} // opened by /listen, by their names

// numbers are the values of /listen that are none as text.
const numbers = new Set(['port', 'fd', 'backlog'])
const flags = new Set(['ipv6Only', 'exclusive', 'readableAll', 'writableAll'])

function listen (query, done) {
  const options = {}
  for (const [key, value] of query) {
    if (key === 'id' || key === 'name') continue
    options[key] = numbers.has(key) ? Number(value) : flags.has(key) ? true : value
  }
  const server = net.createServer((c) => {
    c.on('error', () => {})
    c.end(`${process.pid}\n`)
  })
  server.on('error', (error) => done({ error: error.code, errno: error.errno }))
  server.listen(options, () => {
    servers[query.get('name')] = server
    done({ address: server.address() })
  })
}

const acts = {
  '/listen': listen,
  '/close': (query, done) => servers[query.get('name')].close(() => done({})),
  '/slow': (query, done) => setTimeout(() => done({}), Number(query.get('ms'))),
  '/busy': (query, done) => { for (const end = Date.now() + Number(query.get('ms')); Date.now() < end;) ; done({}) },
  '/env': (query, done) => done({
    env: process.env, id: cluster.isWorker ? cluster.worker.id : 0, connected: process.connected === true
  }),
  '/inspect': (query, done) => done({ url: inspector.url() }),
  '/keys': (query, done) => done({ keys: server.getTicketKeys().toString('hex') }),
  '/count': (query, done) => server.getConnections((error, count) => done({ error: error && error.code, count })),
  // A child that is a program of its own, and one that has a channel with this one.
  '/spawn': (query, done) => {
    const script = 'JSON.stringify({env:process.env,worker:require("cluster").isWorker,fds:require("fs").readdirSync("/proc/self/fd").map(n=>{try{return n+" "+require("fs").readlinkSync("/proc/self/fd/"+n)}catch{return""}})})'
    child.execFile(process.execPath, ['-p', script], (error, out) => done(error ? { error: error.message } : JSON.parse(out)))
  },
  '/fork': (query, done) => {
    const forked = child.fork(__filename, ['child'])
    forked.once('message', (m) => { forked.disconnect(); done(m) })
  },
  // Messages for whoever started this process.
  '/send': (query, done) => { process.send({ text: 'x'.repeat(Number(query.get('bytes'))) }); done({}) },
  '/sendsocket': (query, done, req) => process.send('take it', req.socket),
  // All that ends a worker.
  '/disconnect': (query, done) => { done({}); cluster.worker.disconnect() },
  '/kill': (query, done) => done({}, () => cluster.worker.kill()),
  '/hangup': (query, done) => done({}, () => process.disconnect()),
  '/throw': (query, done) => done({}, () => { throw new Error('on purpose') }),
  '/exit': (query, done) => done({}, () => process.exit(Number(query.get('code')))),
  '/block': () => { for (;;) ; }
}

if (process.argv[2] === 'child') {
  process.send({ env: process.env, worker: cluster.isWorker })
} else {
  const cert = process.env.CERT && fs.readFileSync(process.env.CERT)
  const handler = (req, res) => {
    const url = new URL(req.url, 'http://lab')
    const is = answer(req.url)
    const done = (more, then) => {
      res.on('finish', then || (() => {}))
      res.end(JSON.stringify({ ...is, ...more }))
    }
    const act = acts[url.pathname]
    if (act) act(url.searchParams, done, req)
    else done({})
  }
  var server = cert ? https.createServer({ cert, key: cert }, handler) : http.createServer(handler) // eslint-disable-line no-var
  server.keepAliveTimeout = 0 // tests keep a connection to each worker
  if (process.env.MAX_CONNECTIONS) server.maxConnections = Number(process.env.MAX_CONNECTIONS)
  server.on('error', (error) => {
    console.error(`lab: ${error.code} ${error.errno}`)
    process.exit(9)
  })
  server.listen(process.env.SOCKET || { port: Number(process.env.PORT), host: process.env.HOST })
}
