/*
 * A closed loop of clients for measuring the master: each connects, asks, reads
 * to the end of the answer and begins again. It is as cheap as it can be, since
 * it runs on the cores that are measured. Nothing is said of a single
 * connection: test/load is for that.
 *
 *   client PORT CLIENTS MILLISECONDS
 *
 * prints "ANSWERED FAILED MICROSECONDS".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAXCLIENTS = 4096, PATIENCE = 5 /* s */ };

static const char ask[] = "GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

static struct client {
	int fd;
	size_t have;
	char in[256];
} clients[MAXCLIENTS];

static unsigned long answered, failed;

static int64_t now(void) /* us */
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

/* On the loopback the handshake is done when connect returns, unless the backlog is full: then it waits. */
static int begin(int ep, struct client *c, const struct sockaddr_in *to)
{
	struct timeval patience = {.tv_sec = PATIENCE};
	c->have = 0;
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->fd < 0) {
		perror("client: socket");
		exit(1);
	}
	struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
	if (setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) ||
	    connect(c->fd, (const struct sockaddr *)to, sizeof *to) ||
	    send(c->fd, ask, sizeof ask - 1, MSG_NOSIGNAL) != sizeof ask - 1 ||
	    epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e)) {
		close(c->fd);
		c->fd = -1;
		failed++;
		return 0;
	}
	return 1;
}

/* Reads what there is; returns 1 when the connection has ended. */
static int more(struct client *c)
{
	ssize_t n = recv(c->fd, c->in + c->have, sizeof c->in - c->have, MSG_DONTWAIT);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n > 0 && (c->have += n) < sizeof c->in)
		return 0;
	if (n == 0 && c->have == sizeof answer - 1 && !memcmp(c->in, answer, c->have))
		answered++;
	else
		failed++;
	close(c->fd);
	c->fd = -1;
	return 1;
}

int main(int argc, char **argv)
{
	int n = argc == 4 ? atoi(argv[2]) : 0;
	if (n < 1 || n > MAXCLIENTS) {
		fprintf(stderr, "usage: client PORT CLIENTS MILLISECONDS\n");
		return 2;
	}
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int ep = epoll_create1(EPOLL_CLOEXEC), open = 0;
	int64_t start = now(), end = start + atoll(argv[3]) * 1000, heard = start;
	for (int i = 0; i < n; i++)
		open += begin(ep, &clients[i], &to);
	struct epoll_event ev[64];
	while (open > 0) {
		int k = epoll_wait(ep, ev, 64, 100);
		int64_t t = now();
		if (k > 0)
			heard = t;
		else if (t - heard > PATIENCE * 1000000LL)
			break;
		for (int i = 0; i < k; i++) {
			struct client *c = ev[i].data.ptr;
			if (!more(c))
				continue;
			open--;
			while (t < end && !begin(ep, c, &to))
				t = now();
			open += c->fd >= 0;
		}
	}
	printf("%lu %lu %lld\n", answered, failed + open, (long long)(now() - start));
	return 0;
}
