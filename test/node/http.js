'use strict'
const http = require('node:http')
const answer = require('./answer.js')

const server = http.createServer((req, res) => {
  res.setHeader('Content-Type', 'application/json')
  res.end(JSON.stringify(answer(req.url)))
})
server.listen(process.env.PORT, process.env.HOST)
