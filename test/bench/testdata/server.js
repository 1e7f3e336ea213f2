'use strict';
// A Node program that knows nothing of clusters. It answers as goworker does: client.c counts by the number.
const answer = `ok ${process.pid}`;
require('node:http').createServer((request, response) => {
	response.sendDate = false;
	response.writeHead(200, { 'Content-Length': answer.length, 'Connection': 'close' });
	response.end(answer);
}).listen(0, '127.0.0.1');
