/*
 * The clients: each connects, asks, and reads to the end of the answer. It is as
 * cheap as it can be, since it runs on the cores that are measured.
 *
 *   client PORT CLIENTS MILLISECONDS RATE COUNT PATH [RARE]
 *
 * RATE 0 is a closed loop: each client begins again when its answer has ended.
 * Otherwise connections start on a schedule, RATE in a second, whatever becomes of
 * those before; at most CLIENTS are open, and who has to wait for that is late.
 * A connection's time runs from when it was to start, so a stall counts for
 * all that it holds up. COUNT ends it after so many connections, 0 does not. One
 * request in 20 is for RARE; which ones, is the same in every run.
 *
 * An answer is right if it is a 200 of the length that it says. If it is "ok
 * NUMBER", the number tells who has served it.
 *
 * It prints a line for each figure, name and value:
 *
 *   us N                        how long it took
 *   answered, bytes N           right answers, and what they held
 *   in_time N                   those that were there before MILLISECONDS were over
 *   refused, reset, empty, wrong, timeout N
 *   served NUMBER N             answers of this worker
 *   bucket INDEX N              answers that took so long: see bucket below
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MAXCLIENTS = 4096, MAXSERVERS = 2048, HEAD = 1024, WORD = 24, ASK = 512, PATIENCE = 5000000 /* us */ };

static struct client {
	int fd;
	int asked;
	int64_t since;          /* when it was to start */
	const char *ask;
	size_t have;            /* of head, without what is of the body */
	int in_body;
	long long length, body; /* as the answer says, and so far */
	char head[HEAD + 1], word[WORD + 1];
} clients[MAXCLIENTS];

static struct client *idle[MAXCLIENTS];
static int nidle, open_now;
static struct sockaddr_in to;
static int ep;

static char usual[ASK], rare[ASK];
static uint32_t draw;

enum { REFUSED, RESET, EMPTY, WRONG, TIMEOUT, CLASSES };
static const char *const class[CLASSES] = {"refused", "reset", "empty", "wrong", "timeout"};
static unsigned long answered, in_time, failed[CLASSES];
static unsigned long long bytes;

/* What ends the load: its time, or its number of connections. */
static int64_t end;
static unsigned long limit, begun;

static struct {
	long number;
	unsigned long n;
} servers[MAXSERVERS];
static int nservers;

/*
 * 128 buckets for each power of two of microseconds, so that one is less than 1 %
 * wide; up to 256 us each number has its own. histogram_linux.go knows this, too.
 */
enum { BITS = 7, BUCKETS = 32 << BITS };
static unsigned long buckets[BUCKETS];

static int bucket(int64_t us)
{
	uint32_t v = us < 0 ? 0 : us > UINT32_MAX ? UINT32_MAX : us;
	if (v < 2 << BITS)
		return v;
	int shift = 31 - __builtin_clz(v) - BITS;
	return (shift << BITS) + (v >> shift);
}

static int64_t now(void) /* us */
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static void die(const char *what)
{
	fprintf(stderr, "client: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void finish(struct client *c)
{
	close(c->fd);
	c->fd = -1;
	idle[nidle++] = c;
	open_now--;
}

static void fail(struct client *c, int why)
{
	failed[why]++;
	finish(c);
}

static int why(int err) { return err == ECONNREFUSED ? REFUSED : RESET; }

/*
 * Asks. On the loopback the handshake is done when connect returns, unless the
 * backlog is full: then epoll tells when it is.
 */
static void ask(struct client *c, int ctl)
{
	ssize_t len = strlen(c->ask), n = send(c->fd, c->ask, len, MSG_NOSIGNAL);
	if (n != len && (n >= 0 || errno != EAGAIN)) {
		fail(c, n < 0 ? why(errno) : RESET);
		return;
	}
	c->asked = n == len;
	struct epoll_event e = {.events = c->asked ? EPOLLIN : EPOLLOUT, .data.ptr = c};
	if (epoll_ctl(ep, ctl, c->fd, &e))
		die("epoll_ctl");
}

static const char *question(void)
{
	draw = draw * 1664525 + 1013904223; /* Numerical Recipes' generator: the high bits are good */
	return rare[0] && (draw >> 16) % 20 == 0 ? rare : usual;
}

static void begin(int64_t since)
{
	struct client *c = idle[--nidle];
	open_now++;
	c->since = since;
	c->ask = question();
	c->have = c->in_body = c->length = c->body = 0;
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (c->fd < 0)
		die("socket");
	if (connect(c->fd, (const struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS)
		fail(c, why(errno));
	else
		ask(c, EPOLL_CTL_ADD);
}

static void count(long number)
{
	int i = 0;
	while (i < nservers && servers[i].number != number)
		i++;
	if (i == MAXSERVERS)
		return;
	if (i == nservers)
		servers[nservers++].number = number;
	servers[i].n++;
}

static void body(struct client *c, const char *b, size_t n)
{
	if (c->body < WORD) {
		size_t room = WORD - c->body, more = n < room ? n : room;
		memcpy(c->word + c->body, b, more);
		c->word[c->body + more] = 0;
	}
	c->body += n;
}

/* The head has ended at end, or not yet; what is behind it is of the body. */
static void head(struct client *c)
{
	c->head[c->have] = 0;
	char *end = strstr(c->head, "\r\n\r\n");
	if (!end)
		return;
	end[2] = 0;
	char *length = strcasestr(c->head, "\r\nContent-Length:");
	c->length = length && !strncmp(c->head, "HTTP/1.1 200 ", 13) ? atoll(length + 17) : -1;
	c->in_body = 1;
	body(c, end + 4, c->head + c->have - end - 4);
}

static void ended(struct client *c, int64_t t)
{
	if (c->have == 0) {
		fail(c, EMPTY);
		return;
	}
	if (!c->in_body || c->body != c->length) {
		fail(c, WRONG);
		return;
	}
	answered++;
	in_time += t < end;
	bytes += c->body;
	buckets[bucket(t - c->since)]++;
	if (!strncmp(c->word, "ok ", 3))
		count(atol(c->word + 3));
	finish(c);
}

/* Reads what there is; t is when it was there. */
static void more(struct client *c, int64_t t)
{
	static char sink[256 << 10];
	char *in = c->in_body ? sink : c->head + c->have;
	size_t room = c->in_body ? sizeof sink : HEAD - c->have;
	ssize_t n = room ? recv(c->fd, in, room, 0) : 0;
	if (n < 0 && errno == EAGAIN)
		return;
	if (n < 0) {
		fail(c, why(errno));
	} else if (n == 0) {
		ended(c, t);
	} else if (c->in_body) {
		body(c, sink, n);
	} else {
		c->have += n;
		head(c);
	}
}

static int over(int64_t t) { return t >= end || (limit && begun == limit); }

static void closed_loop(void)
{
	while (nidle > 0 && !over(now())) {
		begun++;
		begin(now());
	}
}

/* Starts all that are due, and sets the timer for the next unless it has to wait for one to end. */
static void open_loop(int64_t start, double rate, int timer)
{
	struct itimerspec alarm = {0};
	int64_t next;
	while ((next = start + begun * 1e6 / rate), nidle > 0 && !over(next)) {
		if (next > now()) {
			alarm.it_value.tv_sec = next / 1000000;
			alarm.it_value.tv_nsec = next % 1000000 * 1000;
			break;
		}
		begun++;
		begin(next);
	}
	if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &alarm, 0)) /* all 0 stops it */
		die("timerfd_settime");
}

static void load(double rate)
{
	struct epoll_event ev[64];
	int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	struct epoll_event ticks = {.events = EPOLLIN};
	if (timer < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, timer, &ticks))
		die("timerfd");
	int64_t start = now(), heard = start;
	end += start;
	for (;;) {
		if (rate > 0)
			open_loop(start, rate, timer);
		else
			closed_loop();
		if (open_now == 0 && over(rate > 0 ? start + (int64_t)(begun * 1e6 / rate) : now()))
			break;
		int n = epoll_wait(ep, ev, 64, 100);
		int64_t t = now();
		if (n > 0)
			heard = t;
		else if (open_now > 0 && t - heard > PATIENCE)
			break;
		for (int i = 0; i < n; i++) {
			struct client *c = ev[i].data.ptr;
			if (!c)
				continue; /* the timer: open_loop sets it anew */
			if (c->asked)
				more(c, t);
			else
				ask(c, EPOLL_CTL_MOD);
		}
	}
	failed[TIMEOUT] += open_now;
	printf("us %lld\n", (long long)(now() - start));
}

static void request(char *b, const char *path)
{
	if (snprintf(b, ASK, "GET %s HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n", path) >= ASK) {
		fprintf(stderr, "client: the path is too long\n");
		exit(2);
	}
}

int main(int argc, char **argv)
{
	int n = argc == 7 || argc == 8 ? atoi(argv[2]) : 0;
	if (n < 1 || n > MAXCLIENTS) {
		fprintf(stderr, "usage: client PORT CLIENTS MILLISECONDS RATE COUNT PATH [RARE]\n");
		return 2;
	}
	to = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	end = atoll(argv[3]) * 1000;
	limit = strtoul(argv[5], 0, 10);
	request(usual, argv[6]);
	if (argc == 8)
		request(rare, argv[7]);
	while (nidle < n)
		idle[nidle] = &clients[nidle], nidle++;
	ep = epoll_create1(EPOLL_CLOEXEC);
	if (ep < 0)
		die("epoll_create1");
	load(strtod(argv[4], 0));
	printf("answered %lu\nbytes %llu\nin_time %lu\n", answered, bytes, in_time);
	for (int i = 0; i < CLASSES; i++)
		printf("%s %lu\n", class[i], failed[i]);
	for (int i = 0; i < nservers; i++)
		printf("served %ld %lu\n", servers[i].number, servers[i].n);
	for (int i = 0; i < BUCKETS; i++)
		if (buckets[i])
			printf("bucket %d %lu\n", i, buckets[i]);
	return 0;
}
