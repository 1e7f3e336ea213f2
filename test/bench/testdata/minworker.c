/*
 * A minimal worker of rrd's native protocol (docs/protocol.md) for measuring
 * the master: epoll, one answer for each connection, nothing else. It acks all
 * handoffs of a message in one message before it reads a byte.
 *
 *   rrd --policy rr --listen 127.0.0.1:8080 -- minworker 127.0.0.1:8080
 *
 * Without a master it listens by itself, on a free port of 127.0.0.1 whatever the
 * address, and prints "ready ADDRESS": so it serves behind a proxy.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { FRAME = 64, MAXFRAMES = 16, MAXMESSAGE = FRAME + 4096 };
enum { HELLO = 1, HANDOFF = 2, LISTENING = 3, DRAIN = 4, PING = 5, READY = 16, ACK = 17, REJECT = 18, LISTEN = 20, DRAINED = 22, PONG = 23, TOUCHED = 25 };

/* "ok PID", as goworker says. */
static char answer[128];
static size_t answer_len;

static void compose(void)
{
	char word[32];
	int n = snprintf(word, sizeof word, "ok %d", (int)getpid());
	answer_len = snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", n, word);
}

static void frame(unsigned char *b, uint8_t type, uint64_t seq, uint32_t arg)
{
	memset(b, 0, FRAME);
	memcpy(b, "RRD\1", 4);
	b[4] = type;
	memcpy(b + 8, &seq, 8); /* little-endian machines only */
	memcpy(b + 20, &arg, 4);
}

static void say(int ch, const void *b, size_t n)
{
	if (send(ch, b, n, MSG_NOSIGNAL) != (ssize_t)n)
		exit(1);
}

static void add(int ep, int fd)
{
	struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
	if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e))
		exit(1);
}

/*
 * With rescue the master wants to know which connections were begun with. As in the Go
 * library that goes with the next acks, or alone: after 5 ms, and at once if the last
 * connection is as long ago.
 */
enum { MAXFD = 65536, TOUCHED_MS = 5 };
static int touches;
static uint64_t seqs[MAXFD];
static uint64_t took_ms; /* when the last connection came */
static int sparse;
static unsigned char told[MAXFRAMES * FRAME];
static size_t ntold;

static uint64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000ull + t.tv_nsec / 1000000;
}

static void tell(int ch)
{
	say(ch, told, ntold);
	ntold = 0;
}

static void touched(int ch, int fd)
{
	frame(told + ntold, TOUCHED, seqs[fd], 0);
	if ((ntold += FRAME) == sizeof told)
		tell(ch);
}

/* One message from the master; returns 0 when there is none. */
static int message(int ch, int ep)
{
	static unsigned char in[MAXMESSAGE], out[MAXFRAMES * FRAME];
	union {
		char b[CMSG_SPACE(sizeof(int) * MAXFRAMES)];
		struct cmsghdr align;
	} u;
	struct iovec iov = {in, sizeof in};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.b, .msg_controllen = sizeof u.b};
	ssize_t n = recvmsg(ch, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n <= 0)
		exit(0); /* the master is gone */
	int fds[MAXFRAMES], nfds = 0, used = 0;
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);
	if (h && h->cmsg_type == SCM_RIGHTS) {
		nfds = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(fds, CMSG_DATA(h), nfds * sizeof(int));
	}
	size_t o = 0;
	for (ssize_t i = 0; i + FRAME <= n; i += FRAME) {
		uint64_t seq;
		uint32_t err;
		memcpy(&seq, in + i + 8, 8);
		memcpy(&err, in + i + 20, 4);
		switch (in[i + 4]) {
		case HANDOFF:
			if (touches) {
				uint64_t now = now_ms();
				sparse = now - took_ms >= TOUCHED_MS;
				took_ms = now;
			}
			if (used < nfds) {
				if (fds[used] >= MAXFD)
					exit(1);
				seqs[fds[used]] = seq;
				add(ep, fds[used++]);
				frame(out + o, ACK, seq, 0);
			} else {
				frame(out + o, REJECT, seq, 3);
			}
			o += FRAME;
			break;
		case HELLO:
			touches = in[i + 6] & 1;
			break;
		case LISTENING:
			if (err) {
				fprintf(stderr, "minworker: %s\n", strerror(err));
				exit(1);
			}
			frame(out + o, READY, 0, 0);
			out[o + 6] = touches; /* READY's flag: TOUCHED will be said */
			o += FRAME;
			i = n;
			break;
		case PING:
			frame(out + o, PONG, seq, 0);
			o += FRAME;
			break;
		case DRAIN:
			frame(out + o, DRAINED, 0, 0);
			o += FRAME;
			break;
		}
	}
	if (o && o + ntold <= sizeof out) {
		memcpy(out + o, told, ntold);
		o += ntold;
		ntold = 0;
	}
	if (o)
		say(ch, out, o);
	return 1;
}

static void accepting(int ln, int ep)
{
	int fd;
	while ((fd = accept4(ln, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
		add(ep, fd);
	if (errno != EAGAIN && errno != ECONNABORTED)
		exit(1);
}

static void serve(int ep, int fd)
{
	char buf[4096];
	ssize_t r = read(fd, buf, sizeof buf);
	if (r < 0 && errno == EAGAIN)
		return;
	if (r > 0 && write(fd, answer, answer_len) < 0)
		;
	/*
	 * The master may have its copy yet: then close alone sends no FIN, and
	 * does not take the descriptor out of epoll.
	 */
	epoll_ctl(ep, EPOLL_CTL_DEL, fd, 0);
	shutdown(fd, SHUT_RDWR);
	close(fd);
}

/* Asks the master for the address. */
static int channel(const char *num, const char *address)
{
	int ch = atoi(num);
	unsigned char b[FRAME + 256];
	uint32_t len = 4 + strlen(address);
	fcntl(ch, F_SETFL, O_NONBLOCK);
	frame(b, LISTEN, 1, 0);
	memcpy(b + 24, &len, 4);
	memcpy(b + FRAME, "tcp", 4);
	strncpy((char *)b + FRAME + 4, address, 200);
	say(ch, b, FRAME + len);
	return ch;
}

static int listener(void)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof a;
	int ln = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (ln < 0 || bind(ln, (struct sockaddr *)&a, len) || listen(ln, 4096) || getsockname(ln, (struct sockaddr *)&a, &len)) {
		perror("minworker: listen");
		exit(1);
	}
	printf("ready 127.0.0.1:%d\n", ntohs(a.sin_port));
	fflush(stdout);
	return ln;
}

int main(int argc, char **argv)
{
	const char *num = getenv("RRD_CHANNEL_FD");
	if (argc != 2) {
		fprintf(stderr, "usage: [rrd --] minworker ADDRESS\n");
		return 2;
	}
	compose();
	int ep = epoll_create1(EPOLL_CLOEXEC), ch = num ? channel(num, argv[1]) : -1, ln = num ? -1 : listener();
	add(ep, num ? ch : ln);
	struct epoll_event ev[64];
	for (;;) {
		int n = epoll_wait(ep, ev, 64, ntold ? TOUCHED_MS : -1);
		if (n == 0)
			tell(ch);
		for (int i = 0; i < n; i++) {
			int fd = ev[i].data.fd;
			if (fd == ch) {
				while (message(ch, ep))
					;
			} else if (fd == ln) {
				accepting(ln, ep);
			} else {
				if (touches)
					touched(ch, fd);
				serve(ep, fd);
			}
		}
		if (ntold && sparse)
			tell(ch);
	}
}
