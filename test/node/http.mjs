import http from 'node:http'
import { once } from 'node:events'
import answer from './answer.js'

const server = http.createServer((req, res) => {
  res.setHeader('Content-Type', 'application/json')
  res.end(JSON.stringify(answer(req.url)))
})
server.listen({ port: Number(process.env.PORT), host: process.env.HOST })
await once(server, 'listening')
