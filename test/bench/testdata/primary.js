'use strict';
// Node's own primary under SCHED_RR:  node primary.js WORKERS PROGRAM
// It prints "ready ADDRESS" when all workers listen, and ends with them on TERM.
const cluster = require('node:cluster');

const [workers, exec] = process.argv.slice(2);
let listening = 0;
cluster.schedulingPolicy = cluster.SCHED_RR;
cluster.setupPrimary({ exec, args: [] });
cluster.on('listening', (worker, address) => {
	if (++listening === Number(workers)) console.log(`ready ${address.address}:${address.port}`);
});
for (let i = 0; i < Number(workers); i++) cluster.fork();
process.on('SIGTERM', () => cluster.disconnect(() => process.exit(0)));
