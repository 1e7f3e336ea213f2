'use strict'
const express = require('express')
const answer = require('./answer.js')

const app = express()
app.disable('x-powered-by')
app.get('/{*path}', (req, res) => {
  res.json(answer(req.originalUrl))
})
app.listen(Number(process.env.PORT), process.env.HOST, (error) => {
  if (error) throw error
})
