'use strict'
const dgram = require('node:dgram')

const socket = dgram.createSocket('udp4')
socket.on('message', (text, from) => {
  socket.send(JSON.stringify({ pid: process.pid, said: text.toString(), from: from.port }), from.port, from.address)
})
socket.bind(Number(process.env.PORT), process.env.HOST)
