/*
 * The yardstick: the least that a master can do that hands each connection to
 * the worker that has been free the longest. One epoll loop, accept4, sendmsg
 * with SCM_RIGHTS, one read of many acks, close. It speaks rrd's frames
 * (docs/protocol.md) to the same minworker, so only the masters differ. It
 * survives nothing: a worker that dies or rejects ends it.
 *
 *   refmaster WORKERS WINDOW MINWORKER
 *
 * prints "ready ADDRESS" when all workers are, and at SIGTERM what it has done.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FRAME = 64, MAXFRAMES = 16, MAXMESSAGE = FRAME + 4096 };
enum { HANDOFF = 2, LISTENING = 3, READY = 16, ACK = 17, LISTEN = 20 };
enum { MAXWORKERS = 1024, MAXWINDOW = 1024, MAXFD = 65536, QUEUE = 4096, ACCEPTS = 64 };

static struct worker {
	int ch;
	int n; /* handoffs in the batch */
	unsigned char frames[MAXFRAMES * FRAME];
	int fds[MAXFRAMES];
} workers[MAXWORKERS];

static int nworkers, nready;
static int owner[MAXFD]; /* by descriptor, in flight: its worker and one; its number is its seq */

/* What each worker may still take, longest free first: a worker is in it once for each answer that it may owe. */
static int *tickets;
static unsigned long ntickets, tfirst, tlast;

static int queue[QUEUE]; /* accepted, oldest first */
static unsigned qfirst, qlast;
static unsigned long handed;
static volatile sig_atomic_t over;

static void onterm(int sig)
{
	(void)sig;
	over = 1;
}

static void die(const char *what)
{
	fprintf(stderr, "refmaster: %s: %s\n", what, strerror(errno));
	exit(1); /* the workers see the end of their channels and go */
}

static void wrong(const char *what)
{
	fprintf(stderr, "refmaster: %s\n", what);
	exit(1);
}

static void frame(unsigned char *b, uint8_t type, uint64_t seq, uint32_t listener)
{
	memset(b, 0, FRAME);
	memcpy(b, "RRD\1", 4);
	b[4] = type;
	memcpy(b + 8, &seq, 8); /* little-endian machines only */
	memcpy(b + 16, &listener, 4);
}

static void flush(struct worker *w)
{
	if (w->n == 0)
		return;
	union {
		char b[CMSG_SPACE(sizeof(int) * MAXFRAMES)];
		struct cmsghdr align;
	} u;
	struct iovec iov = {w->frames, w->n * FRAME};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.b, .msg_controllen = CMSG_SPACE(sizeof(int) * w->n)};
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);
	h->cmsg_level = SOL_SOCKET;
	h->cmsg_type = SCM_RIGHTS;
	h->cmsg_len = CMSG_LEN(sizeof(int) * w->n);
	memcpy(CMSG_DATA(h), w->fds, sizeof(int) * w->n);
	if (sendmsg(w->ch, &m, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		die("sendmsg");
	handed += w->n;
	w->n = 0;
}

/* The oldest connection to the worker free the longest, until one or the other is missing; then a message to each. */
static void dispatch(void)
{
	static int dirty[QUEUE]; /* workers with a batch; one whose batch was full may be in it again */
	int ndirty = 0;
	while (qfirst != qlast && tfirst != tlast) {
		int i = tickets[tfirst++ % ntickets], fd = queue[qfirst++ % QUEUE];
		struct worker *w = &workers[i];
		if (w->n == 0)
			dirty[ndirty++] = i;
		owner[fd] = i + 1;
		frame(w->frames + w->n * FRAME, HANDOFF, fd, 1);
		w->fds[w->n++] = fd;
		if (w->n == MAXFRAMES)
			flush(w);
	}
	for (int k = 0; k < ndirty; k++)
		flush(&workers[dirty[k]]);
}

static void acked(int i, uint64_t fd)
{
	if (fd >= MAXFD || owner[fd] != i + 1)
		wrong("an ACK of what is not in flight");
	owner[fd] = 0;
	close(fd);
	tickets[tlast++ % ntickets] = i;
}

/* The worker may accept: it has no say in which address. */
static void listening(struct worker *w, uint64_t seq)
{
	unsigned char b[FRAME];
	frame(b, LISTENING, seq, 1);
	if (send(w->ch, b, sizeof b, MSG_NOSIGNAL) < 0)
		die("send");
}

/* All that a worker has said. */
static void answers(int i)
{
	struct worker *w = &workers[i];
	unsigned char in[MAXMESSAGE];
	ssize_t n;
	while ((n = recv(w->ch, in, sizeof in, MSG_DONTWAIT)) > 0) {
		for (ssize_t o = 0; o + FRAME <= n; o += FRAME) {
			uint64_t seq;
			memcpy(&seq, in + o + 8, 8);
			switch (in[o + 4]) {
			case ACK:
				acked(i, seq);
				break;
			case LISTEN:
				listening(w, seq);
				o = n; /* the rest is the address */
				break;
			case READY:
				nready++;
				break;
			default:
				wrong("a worker says what a minworker does not");
			}
		}
	}
	if (n == 0 || errno != EAGAIN)
		wrong("a worker is gone");
}

static void accepting(int ln)
{
	for (int k = 0; k < ACCEPTS && qlast - qfirst < QUEUE; k++) {
		int fd = accept4(ln, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0) {
			if (errno == EAGAIN)
				return;
			if (errno == ECONNABORTED)
				continue;
			die("accept");
		}
		if (fd >= MAXFD)
			wrong("too many connections");
		queue[qlast++ % QUEUE] = fd;
	}
}

static void spawn(struct worker *w, char *program)
{
	int pair[2];
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair))
		die("socketpair");
	pid_t pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0) {
		char num[16];
		int fd = dup(pair[1]); /* one that stays open */
		snprintf(num, sizeof num, "%d", fd);
		if (fd < 0 || setenv("RRD_CHANNEL_FD", num, 1))
			_exit(127);
		execl(program, program, "127.0.0.1:0", (char *)0);
		perror(program);
		_exit(127);
	}
	close(pair[1]);
	w->ch = pair[0];
}

static void watch(int ep, int fd, uint32_t what)
{
	struct epoll_event e = {.events = EPOLLIN, .data.u32 = what};
	if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e))
		die("epoll_ctl");
}

static int listener(void)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int ln = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (ln < 0 || bind(ln, (struct sockaddr *)&a, sizeof a) || listen(ln, QUEUE))
		die("listen");
	return ln;
}

static int number(const char *s, int most)
{
	char *end;
	long n = strtol(s, &end, 10);
	if (*end || n < 1 || n > most)
		wrong("usage: refmaster WORKERS WINDOW MINWORKER");
	return n;
}

int main(int argc, char **argv)
{
	if (argc != 4)
		wrong("usage: refmaster WORKERS WINDOW MINWORKER");
	nworkers = number(argv[1], MAXWORKERS);
	int window = number(argv[2], MAXWINDOW);
	ntickets = (unsigned long)nworkers * window;
	tickets = malloc(ntickets * sizeof *tickets);
	int ep = epoll_create1(EPOLL_CLOEXEC), ln = listener();
	if (!tickets || ep < 0)
		die("start");
	struct sigaction term = {.sa_handler = onterm}; /* without SA_RESTART: it ends a wait */
	sigaction(SIGTERM, &term, 0);
	sigaction(SIGINT, &term, 0);
	for (int i = 0; i < nworkers; i++) {
		spawn(&workers[i], argv[3]);
		watch(ep, workers[i].ch, i);
	}
	while (tlast < ntickets)
		tickets[tlast] = tlast % nworkers, tlast++;
	struct epoll_event ev[256];
	int told = 0;
	while (!over) {
		int n = epoll_wait(ep, ev, 256, -1), ready = 0;
		for (int i = 0; i < n; i++) {
			if (ev[i].data.u32 == MAXWORKERS)
				ready = 1;
			else
				answers(ev[i].data.u32);
		}
		if (ready)
			accepting(ln);
		dispatch();
		if (nready == nworkers && !told) {
			struct sockaddr_in a;
			socklen_t len = sizeof a;
			getsockname(ln, (struct sockaddr *)&a, &len);
			printf("ready 127.0.0.1:%d\n", ntohs(a.sin_port));
			fflush(stdout);
			watch(ep, ln, MAXWORKERS);
			told = 1;
		}
	}
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	double us = (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e6 + u.ru_utime.tv_usec + u.ru_stime.tv_usec;
	printf("connections %lu, cpu %.2f us each\n", handed, us / (handed ? handed : 1));
	for (int i = 0; i < nworkers; i++)
		close(workers[i].ch); /* for a worker the end */
	while (wait(0) > 0)
		;
	return 0;
}
