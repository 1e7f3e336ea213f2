'use strict'
const { WebSocketServer } = require('ws')
const answer = require('./answer.js')

const server = new WebSocketServer({ port: Number(process.env.PORT), host: process.env.HOST })
server.on('connection', (socket, req) => {
  const is = answer(req.url)
  socket.on('message', (data) => {
    socket.send(JSON.stringify({ ...is, said: data.toString() }))
  })
})
