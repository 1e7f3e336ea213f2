'use strict'
// Listens, and is ready only when somebody opens the FIFO named by GATE.
const fs = require('node:fs')
const http = require('node:http')
const answer = require('./answer.js')

const server = http.createServer((req, res) => {
  res.end(JSON.stringify(answer(req.url)))
})
server.listen(process.env.PORT, process.env.HOST, () => {
  process.send('not yet')
  fs.open(process.env.GATE, 'r', () => process.send('ready'))
})
