'use strict'
// What every program here answers: who it is, and what it was asked.

const born = Date.now()
let connections = 0

// answer counts a connection: clients of the tests ask once on each.
module.exports = function answer (uri) {
  return { pid: process.pid, born, connection: ++connections, uri }
}
