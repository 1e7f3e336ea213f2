'use strict'
// What people have who use Node's cluster: rrd takes the place of the first half.
const cluster = require('node:cluster')
const http = require('node:http')
const os = require('node:os')
const answer = require('./answer.js')

if (cluster.isPrimary) {
  for (let i = 0; i < os.cpus().length; i++) cluster.fork()
  cluster.on('exit', () => cluster.fork())
} else {
  http.createServer((req, res) => {
    res.end(JSON.stringify(answer(req.url)))
  }).listen(process.env.PORT, process.env.HOST)
}
