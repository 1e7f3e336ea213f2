'use strict';
// A Node program that knows nothing of clusters. Its answer is what client.c expects.
require('node:http').createServer((request, response) => {
	response.sendDate = false;
	response.writeHead(200, { 'Content-Length': 2, 'Connection': 'close' });
	response.end('ok');
}).listen(0, '127.0.0.1');
