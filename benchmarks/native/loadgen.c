/* Drives a gateway over loopback, and says what that cost the gateway.  See docs/benchmarks.md.
 *
 * One thread, epoll.  It signs each message afresh, answers pings, and checks each reply.
 *
 *   gcc -O2 -Wall -Wextra -o loadgen loadgen.c -lcrypto
 */
#define _GNU_SOURCE
#include "common.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ_CHUNK (256 * 1024)
#define OUT_LIMIT (64u << 20)  /* bytes that wait for the kernel to take them, of a connection */
#define MAX_EVENTS 512
#define MAX_SECONDS 900        /* longest run */
#define TURN_NS 20000000ull    /* longest wait for events */
#define SPIN_NS 60000ull       /* shorter waits of the open loop are spent looking at sockets */
#define TOKEN_SIZE 96          /* 256 bits as URL-safe text take 43 */

static const char USAGE[] =
"usage: loadgen --port P --secret S --salt S [options]\n"
"\n"
"  --mode messages|idle|handshakes   what to do (messages)\n"
"      messages:   N connections, then message traffic\n"
"      idle:       hold N connections, and only answer pings\n"
"      handshakes: connect, shake hands, answer the first ping, close; again and again\n"
"\n"
"  --port P          the server's port, on 127.0.0.1\n"
"  --conns N         connections; of handshakes: how many at once (100)\n"
"  --sources K       client addresses 127.1.0.1 ... to spread them over (1)\n"
"  --burst N         connection attempts under way at once (64)\n"
"  --windows N       how often to measure (1)\n"
"  --duration S      seconds measured, each time (1)\n"
"  --warmup S        seconds of the same before that (0.5)\n"
"  --outstanding P   closed loop: messages under way on each connection (1)\n"
"  --rate R          open loop instead: R messages a second in all; latency\n"
"                    counts from the planned time of sending\n"
"  --payload B       add B bytes of text to each message (0)\n"
"  --tokens          handshakes: signed, then with a session token and no ping\n"
"  --first N         idle: connect so many, look at the server's memory, then the rest (0)\n"
"  --secret S        key of the HMAC-SHA256\n"
"  --salt S          last field of the signed text\n"
"  --server-pid P    the process whose CPU time and memory to report\n"
"  --setup-timeout S give up if not all are connected by then (60)\n"
"  --help            this text\n"
"\n"
"Prints one line of JSON a window, or {\"error\": why}.  Exit status: 0 done, 1 not done,\n"
"2 bad usage.  What goes wrong in traffic is counted.  No run lasts more than 900 s.\n";

enum mode { MESSAGES, IDLE, HANDSHAKES };
enum state { CLOSED, CONNECTING, GREETING, READY };

static const char *const MODES[] = { "messages", "idle", "handshakes" };
static const char BOT[] = "LOA.i";
static const char COMMAND[] = "# echo ";

static struct {
	enum mode mode;
	int port, conns, sources, burst, windows, outstanding, first, pid;
	double duration, warmup, rate, setup_timeout;
	size_t payload;
	bool tokens;
	const char *secret, *salt;
} opt = {
	.conns = 100, .sources = 1, .burst = 64, .windows = 1, .outstanding = 1,
	.duration = 1, .warmup = 0.5, .setup_timeout = 60,
};

struct conn {
	int fd, id;
	enum state state;
	bool wants_out, dirty, greeted, finished;
	uint64_t number;             /* of its next message */
	uint32_t in_flight;
	uint64_t *planned;           /* when each was to be sent, by number; 0: none */
	size_t searched;             /* bytes of `in` known to hold no newline */
	struct buffer in, out;
	char signed_head[128];       /* the signed text up to the timestamp */
	char token[TOKEN_SIZE];      /* of its last session, if it has one */
};

/* What happened in a window. */
static struct {
	uint64_t handshakes, sent, received, pings, bytes_in, bytes_out;
	uint64_t e_connect, e_closed, e_protocol, e_mismatch, e_unexpected, e_overflow, e_token;
} seen;

static int epoll_fd, ready, pending;
static uint32_t ring_mask;           /* of conn.planned */
static bool sending;
static struct conn *conns;

/* The payload in base64, made once: all of it, and all but its first byte. */
static struct {
	char first, *said, *answer;
	size_t length, answer_length;
} payload;

static void fail(const char *why)
{
	printf("{\"error\":\"%s: %d of %d connected, %llu refused, %llu closed\"}\n", why, ready,
	       opt.conns, (unsigned long long)seen.e_connect, (unsigned long long)seen.e_closed);
	exit(1);
}

/* ---- latency histogram: 64 steps for each power of two, error under 1.6 % */

#define STEPS 64
static uint64_t histogram[64 * STEPS], latencies, longest;

static void latency_seen(uint64_t ns)
{
	unsigned shift = ns < STEPS ? 0 : 63 - __builtin_clzll(ns) - 6;
	histogram[ns < STEPS ? ns : (shift + 1) * STEPS + ((ns >> shift) - STEPS)]++;
	latencies++;
	if (ns > longest)
		longest = ns;
}

static double latency_us(double share)
{
	uint64_t want = (uint64_t)(share * latencies), count = 0;
	for (unsigned i = 0; i < 64 * STEPS; i++) {
		count += histogram[i];
		if (count > want) {
			unsigned shift = i < STEPS ? 0 : i / STEPS - 1;
			uint64_t low = i < STEPS ? i : (uint64_t)(STEPS + i % STEPS) << shift;
			return (low + ((1ull << shift) - 1) / 2.0) / 1000;
		}
	}
	return longest / 1000.0;
}

/* ---- connections */

static void watch(struct conn *c, int op, bool out)
{
	struct epoll_event event = { .events = EPOLLIN | (out ? EPOLLOUT : 0), .data.ptr = c };
	c->wants_out = out;
	epoll_ctl(epoll_fd, op, c->fd, &event);
}

static void drop(struct conn *c)
{
	if (c->state == CLOSED)
		return;
	if (c->state == READY)
		ready--;
	else
		pending--;
	close(c->fd);
	c->state = CLOSED;
	c->in.start = c->in.end = c->out.start = c->out.end = c->searched = 0;
	c->in_flight = 0;
	c->greeted = c->finished = false;
}

static void flush(struct conn *c)
{
	while (buffer_length(&c->out)) {
		ssize_t n = send(c->fd, c->out.p + c->out.start, buffer_length(&c->out), MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0) {
			seen.e_closed++;
			drop(c);
			return;
		}
		c->out.start += n;
		seen.bytes_out += n;
	}
	bool left = buffer_length(&c->out) > 0;
	if (left != c->wants_out)
		watch(c, EPOLL_CTL_MOD, left);
}

static void start_connect(struct conn *c)
{
	int one = 1, place = c->id % opt.sources;
	struct sockaddr_in source = {
		.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(0x7f010001u + (place / 250) * 256 + place % 250),
	};
	struct sockaddr_in server = {
		.sin_family = AF_INET,
		.sin_port = htons(opt.port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		die("socket: %s (raise ulimit -n?)", strerror(errno));
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
	if (opt.sources > 1 && bind(c->fd, (struct sockaddr *)&source, sizeof source))
		die("bind: %s", strerror(errno));
	c->state = CONNECTING;
	pending++;
	if (connect(c->fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS) {
		seen.e_connect++;
		drop(c);
		return;
	}
	watch(c, EPOLL_CTL_ADD, true);
}

/* ---- frames of a phone */

static void put_auth(struct conn *c, uint64_t ms)
{
	char text[256], signature[64], head[320];
	int length = snprintf(text, sizeof text, "%s%llu|%s", c->signed_head,
	                      (unsigned long long)ms, opt.salt);
	hmac_hex(signature, text, length);
	length = snprintf(head, sizeof head,
		"\"auth\":{\"clientType\":\"MessengerBotR\",\"botName\":\"%s\","
		"\"deviceUUID\":\"dev-%06d\",\"deviceID\":\"dev-%06d\","
		"\"macAddress\":\"02:00:00:00:00:01\",\"ipAddress\":\"192.168.0.2\","
		"\"timestamp\":%llu,\"version\":\"3.3.3\",\"signature\":\"",
		BOT, c->id, c->id, (unsigned long long)ms);
	put(&c->out, head, length);
	put(&c->out, signature, sizeof signature);
	put_text(&c->out, "\"}");
}

static void put_handshake(struct conn *c)
{
	char text[320];
	uint64_t ms;
	const char *now = timestamp_now(&ms);
	int length = snprintf(text, sizeof text,
		"{\"event\":\"handshake\",\"data\":{\"clientType\":\"MessengerBotR\","
		"\"botName\":\"%s\",\"version\":\"3.3.3\",\"deviceID\":\"dev-%06d\","
		"\"deviceIP\":\"192.168.0.2\",\"deviceInfo\":\"loadgen\",\"timestamp\":\"%s\","
		"\"timezone\":\"Asia/Seoul\",\"message_positions\":[0,0]", BOT, c->id, now);
	put(&c->out, text, length);
	if (opt.tokens) {
		put_text(&c->out, ",\"capabilities\":[\"session\"],");
		if (c->token[0]) {
			put_text(&c->out, "\"session_token\":\"");
			put_text(&c->out, c->token);
			put_text(&c->out, "\"");
		} else {
			put_auth(c, ms);
		}
	}
	put_text(&c->out, "}}\n");
}

/* The text of a message up to its payload, in base64: "# echo hello-<number>", and before a
 * payload spaces up to whole groups of base64, so that the payload's own can be copied behind it.
 * `answered`: what comes back of it.  The command is 7 bytes, so that the first byte of the payload
 * fills up the last group. */
static size_t put_said(char *out, uint64_t number, bool answered)
{
	char text[64];
	int length = snprintf(text, sizeof text, "%shello-%llu", COMMAND, (unsigned long long)number);
	if (payload.length) {
		do
			text[length++] = ' ';
		while (length % 3);
		if (answered)
			text[length++] = payload.first;
	}
	int skipped = answered ? strlen(COMMAND) : 0;
	return base64_encode(out, (unsigned char *)text + skipped, length - skipped);
}

static void put_message(struct conn *c, uint64_t planned)
{
	uint64_t ms, *slot = &c->planned[c->number & ring_mask];
	/* The answer of a whole ring ago is missing, or nobody reads. */
	if (*slot || buffer_length(&c->out) > OUT_LIMIT) {
		seen.e_overflow++;
		return;
	}
	const char *now = timestamp_now(&ms);
	char said[128];
	size_t length = put_said(said, c->number, false);
	struct buffer *o = &c->out;
	buffer_room(o, 1400 + payload.length);
	put_text(o, "{\"event\":\"message\",\"data\":{\"room\":\"\xeb\xb0\xa9\",\"channel_id\":\"");
	put_number(o, 1000 + c->id);
	put_text(o, "\",\"message_type\":\"text\",\"content_encoding\":\"base64\","
	            "\"message_positions\":[0,");
	put_number(o, length + payload.length);
	put_text(o, "],\"timestamp\":\"");
	put_text(o, now);
	put_text(o, "\",\"timezone\":\"Asia/Seoul\",\"sender\":\"u\",\"is_group_chat\":true,"
	            "\"log_id\":\"");
	put_number(o, c->number);
	put_text(o, "\",\"user_hash\":\"h\",\"is_mention\":false,\"bot_name\":\"");
	put_text(o, BOT);
	put_text(o, "\",\"client_type\":\"MessengerBotR\",");
	put_auth(c, ms);
	put_text(o, "}}");
	put(o, said, length);
	put(o, payload.said, payload.length);
	put_text(o, "\n");
	*slot = planned;
	c->number++;
	c->in_flight++;
	seen.sent++;
}

/* ---- frames of the server */

/* Where the value of a key begins, or NULL.  `key` comes with its quotes. */
static const char *value_of(const char *line, size_t length, const char *key)
{
	const char *end = line + length, *p = memmem(line, length, key, strlen(key));
	if (!p)
		return NULL;
	for (p += strlen(key); p < end && (*p == ' ' || *p == ':'); p++)
		;
	return p < end ? p : NULL;
}

static void ping_received(struct conn *c, const char *line, size_t length)
{
	const char *end = line + length, *p = value_of(line, length, "\"server_timestamp\""), *q;
	q = p && *p == '"' ? memchr(p + 1, '"', end - p - 1) : NULL;
	if (!q) {
		seen.e_protocol++;
		return;
	}
	uint64_t ms;
	timestamp_now(&ms);
	struct buffer *o = &c->out;
	put_text(o, "{\"event\":\"pong\",\"data\":{\"bot_name\":\"");
	put_text(o, BOT);
	put_text(o, "\",\"server_timestamp\":");
	put(o, p, q + 1 - p);
	put_text(o, ",\"message_positions\":[0,0],");
	put_auth(c, ms);
	put_text(o, "}}\n");
	seen.pings++;
	if (opt.mode == HANDSHAKES && c->greeted)
		c->finished = true;
}

static void greeting_received(struct conn *c, const char *line, size_t length)
{
	if (c->greeted)
		return;
	c->greeted = true;
	c->state = READY;
	pending--;
	ready++;
	if (!opt.tokens)
		return;
	const char *resumed = value_of(line, length, "\"resumed\"");
	const char *p = value_of(line, length, "\"session_token\"");
	const char *end = p && *p == '"' ? memchr(p + 1, '"', line + length - p - 1) : NULL;
	if (!end || end - p - 1 >= TOKEN_SIZE || !resumed || (*resumed == 't') != (c->token[0] != 0)) {
		seen.e_token++;
		c->token[0] = 0;
	} else {
		memcpy(c->token, p + 1, end - p - 1);
		c->token[end - p - 1] = 0;
	}
	if (opt.mode == HANDSHAKES)
		c->finished = true;
}

static void reply_received(struct conn *c, const char *line, size_t length, uint64_t now)
{
	const char *brace = memrchr(line, '}', length), *tail = brace ? brace + 1 : line + length;
	size_t tail_length = line + length - tail, start = tail_length < 64 ? tail_length : 64;
	unsigned char text[64];
	size_t n = base64_decode(text, tail, start), i = 6;
	if (n < 7 || memcmp(text, "hello-", 6)) {
		seen.e_mismatch++;
		return;
	}
	uint64_t number = 0;
	for (; i < n && text[i] >= '0' && text[i] <= '9'; i++)
		number = number * 10 + (text[i] - '0');
	char want[128];
	size_t want_length = put_said(want, number, true);
	if (tail_length != want_length + payload.answer_length || memcmp(tail, want, want_length)
	    || memcmp(tail + want_length, payload.answer, payload.answer_length)) {
		seen.e_mismatch++;
		return;
	}
	uint64_t *slot = &c->planned[number & ring_mask];
	if (!*slot || number >= c->number) {
		seen.e_unexpected++;
		return;
	}
	latency_seen(now > *slot ? now - *slot : 0);
	*slot = 0;
	c->in_flight--;
	seen.received++;
	if (sending && !opt.rate)
		put_message(c, now);
}

static void line_received(struct conn *c, const char *line, size_t length, uint64_t now)
{
	const char *p = value_of(line, length, "\"event\"");
	size_t left = p ? line + length - p : 0;
#define IS(name) (left >= sizeof(name) + 1 && !memcmp(p, "\"" name "\"", sizeof(name) + 1))
	if (IS("messageResponse") && opt.mode == MESSAGES)
		reply_received(c, line, length, now);
	else if (IS("ping"))
		ping_received(c, line, length);
	else if (IS("handshakeComplete"))
		greeting_received(c, line, length);
	else
		seen.e_protocol++;
#undef IS
}

/* Gives how many bytes whole lines took. */
static size_t take_lines(struct conn *c, const char *p, size_t length, size_t searched, uint64_t now)
{
	size_t done = 0;
	const char *newline;
	while ((newline = memchr(p + done + searched, '\n', length - done - searched))) {
		line_received(c, p + done, newline - (p + done), now);
		done = newline + 1 - p;
		searched = 0;
	}
	return done;
}

static void readable(struct conn *c)
{
	static char chunk[READ_CHUNK];
	ssize_t n;
	do {
		n = recv(c->fd, chunk, sizeof chunk, 0);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			break;
		if (n <= 0) {
			if (c->state == READY || n == 0)
				seen.e_closed++;
			else
				seen.e_connect++;
			drop(c);
			return;
		}
		seen.bytes_in += n;
		uint64_t now = now_ns();
		if (!buffer_length(&c->in)) {
			size_t used = take_lines(c, chunk, n, 0, now);
			put(&c->in, chunk + used, n - used);
		} else {
			put(&c->in, chunk, n);
			c->in.start += take_lines(c, c->in.p + c->in.start, buffer_length(&c->in),
			                          c->searched, now);
		}
		c->searched = buffer_length(&c->in);
	} while (n == (ssize_t)sizeof chunk);
	if (buffer_length(&c->out))
		flush(c);
	if (c->state == READY && c->finished && !buffer_length(&c->out)) {
		seen.handshakes++;
		drop(c);
	}
}

static void event_received(struct conn *c, uint32_t events)
{
	if (c->state == CONNECTING) {
		int error = 0;
		socklen_t length = sizeof error;
		getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length);
		if (error) {
			seen.e_connect++;
			drop(c);
		} else if (events & EPOLLOUT) {
			c->state = GREETING;
			put_handshake(c);
			flush(c);
		}
		return;
	}
	if (c->state != CLOSED && events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		readable(c);
	if (c->state != CLOSED && events & EPOLLOUT)
		flush(c);
}

static void turn(uint64_t wait_ns)
{
	static struct epoll_event events[MAX_EVENTS];
	struct timespec wait = { wait_ns / NS, wait_ns % NS };
	int n = epoll_pwait2(epoll_fd, events, MAX_EVENTS, &wait, NULL);
	for (int i = 0; i < n; i++)
		event_received(events[i].data.ptr, events[i].events);
}

/* ---- what was used */

struct usage { uint64_t cpu_ns, wait_ns; };

/* A task's time on a core, and its time of waiting for one, by the kernel's scheduler. */
static void add_schedstat(const char *path, struct usage *u)
{
	FILE *f = fopen(path, "r");
	unsigned long long cpu, wait;
	if (f && fscanf(f, "%llu %llu", &cpu, &wait) == 2) {
		u->cpu_ns += cpu;
		u->wait_ns += wait;
	}
	if (f)
		fclose(f);
}

static struct usage server_usage(void)
{
	struct usage u = {0};
	char path[320];
	snprintf(path, sizeof path, "/proc/%d/task", opt.pid);
	DIR *tasks = opt.pid ? opendir(path) : NULL;
	for (struct dirent *task; tasks && (task = readdir(tasks));)
		if (task->d_name[0] != '.') {
			snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", opt.pid, task->d_name);
			add_schedstat(path, &u);
		}
	if (tasks)
		closedir(tasks);
	return u;
}

static struct usage own_usage(void)
{
	struct usage u = {0};
	add_schedstat("/proc/self/schedstat", &u);
	return u;
}

static long server_kib(void)
{
	char path[64], line[256];
	long kib = 0;
	snprintf(path, sizeof path, "/proc/%d/status", opt.pid);
	FILE *f = opt.pid ? fopen(path, "r") : NULL;
	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "VmRSS: %ld", &kib) == 1)
			break;
	if (f)
		fclose(f);
	return kib;
}

/* ---- the three kinds of run */

static void connect_up_to(int count)
{
	uint64_t end = now_ns() + (uint64_t)(opt.setup_timeout * NS);
	int next = 0;
	while (next < count && conns[next].state != CLOSED)
		next++;
	while (ready < count) {
		while (next < count && pending < opt.burst)
			start_connect(&conns[next++]);
		if (next == count && !pending && ready < count)
			fail("not all could connect");
		if (now_ns() > end)
			fail("not all connected in time");
		turn(TURN_NS);
	}
}

static void answer_until(uint64_t end)
{
	for (uint64_t now; (now = now_ns()) < end;)
		turn(end - now < TURN_NS ? end - now : TURN_NS);
}

/* Messages of the open loop go round the connections. */
static void send_by_the_clock(uint64_t end)
{
	static int place;
	static uint64_t next;
	uint64_t step = (uint64_t)(NS / opt.rate);
	if (!next)
		next = now_ns();
	for (uint64_t now; (now = now_ns()) < end;) {
		int first = place, queued = 0;
		for (; next <= now && queued < opt.conns; next += step, queued++) {
			struct conn *c = &conns[place];
			place = (place + 1) % opt.conns;
			if (c->state == READY) {
				put_message(c, next);
				c->dirty = true;
			}
		}
		for (int i = 0; i < queued; i++) {
			struct conn *c = &conns[(first + i) % opt.conns];
			if (c->dirty && c->state == READY && !c->wants_out)
				flush(c);
			c->dirty = false;
		}
		now = now_ns();
		uint64_t wait = next > now ? next - now : 0;
		turn(wait <= SPIN_NS ? 0 : wait < TURN_NS ? wait - SPIN_NS : TURN_NS);
	}
}

static void shake_hands(uint64_t end)
{
	while (now_ns() < end) {
		for (int i = 0; i < opt.conns; i++)
			if (conns[i].state == CLOSED)
				start_connect(&conns[i]);
		turn(TURN_NS / 4);
	}
}

static void run(double seconds)
{
	uint64_t end = now_ns() + (uint64_t)(seconds * NS);
	if (opt.mode == HANDSHAKES)
		shake_hands(end);
	else if (opt.mode == MESSAGES && opt.rate)
		send_by_the_clock(end);
	else
		answer_until(end);
}

/* Let the last replies come; gives how many do not. */
static uint64_t wait_for_replies(void)
{
	uint64_t missing, give_up = now_ns() + 5 * NS;
	sending = false;
	do {
		missing = 0;
		for (int i = 0; i < opt.conns; i++)
			missing += conns[i].in_flight;
		if (missing)
			turn(TURN_NS / 4);
	} while (missing && now_ns() < give_up);
	return missing;
}

static void measure(bool last, double connect_s, double kib_a_phone)
{
	memset(&seen, 0, sizeof seen);
	memset(histogram, 0, sizeof histogram);
	latencies = longest = 0;
	struct usage server = server_usage(), own = own_usage();
	uint64_t start = now_ns();
	run(opt.duration);
	double ns = now_ns() - start;
	struct usage server_after = server_usage(), own_after = own_usage();
	uint64_t received = seen.received, sent = seen.sent, pings = seen.pings;
	uint64_t bytes_in = seen.bytes_in, bytes_out = seen.bytes_out;
	uint64_t done = opt.mode == IDLE ? pings : opt.mode == MESSAGES ? received : seen.handshakes;
	double p50 = latency_us(.5), p99 = latency_us(.99), worst = longest / 1000.0;
	uint64_t lost = last && opt.mode == MESSAGES ? wait_for_replies() : 0;
	printf("{\"mode\":\"%s\",\"seconds\":%.4f,\"done\":%llu,\"sent\":%llu,\"pings\":%llu,"
	       "\"bytes_in\":%llu,\"bytes_out\":%llu,\"p50_us\":%.1f,\"p99_us\":%.1f,"
	       "\"longest_us\":%.1f,\"connect_s\":%.4f,\"kib_a_phone\":%.2f,"
	       "\"server_us\":%.3f,\"server_busy\":%.4f,\"server_waited\":%.4f,"
	       "\"own_busy\":%.4f,\"own_waited\":%.4f,"
	       "\"errors\":{\"lost\":%llu,\"connect\":%llu,\"closed\":%llu,\"protocol\":%llu,"
	       "\"mismatch\":%llu,\"unexpected\":%llu,\"overflow\":%llu,\"token\":%llu}}\n",
	       MODES[opt.mode], ns / NS, (unsigned long long)done, (unsigned long long)sent,
	       (unsigned long long)pings, (unsigned long long)bytes_in,
	       (unsigned long long)bytes_out, p50, p99, worst, connect_s, kib_a_phone,
	       done ? (server_after.cpu_ns - server.cpu_ns) / 1000.0 / done : 0.0,
	       (server_after.cpu_ns - server.cpu_ns) / ns, (server_after.wait_ns - server.wait_ns) / ns,
	       (own_after.cpu_ns - own.cpu_ns) / ns, (own_after.wait_ns - own.wait_ns) / ns,
	       (unsigned long long)lost, (unsigned long long)seen.e_connect,
	       (unsigned long long)seen.e_closed, (unsigned long long)seen.e_protocol,
	       (unsigned long long)seen.e_mismatch, (unsigned long long)seen.e_unexpected,
	       (unsigned long long)seen.e_overflow, (unsigned long long)seen.e_token);
	fflush(stdout);
}

/* ---- start */

static int bad_usage(void)
{
	fputs(USAGE, stderr);
	return 2;
}

static void prepare(void)
{
	struct rlimit files;
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	hmac_init(opt.secret);
	unsigned char *text = malloc(opt.payload + 1);
	payload.said = malloc(opt.payload / 3 * 4 + 8);
	payload.answer = malloc(opt.payload / 3 * 4 + 8);
	if (!text || !payload.said || !payload.answer)
		die("out of memory");
	for (size_t i = 0; i < opt.payload; i++)
		text[i] = 'a' + i % 26;
	if (opt.payload) {
		payload.first = text[0];
		payload.length = base64_encode(payload.said, text, opt.payload);
		payload.answer_length = base64_encode(payload.answer, text + 1, opt.payload - 1);
	}
	free(text);
	uint32_t ring = 8;
	while (ring < (opt.rate ? 4096u : (uint32_t)opt.outstanding))
		ring *= 2;
	ring_mask = ring - 1;
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (!(conns = calloc(opt.conns, sizeof *conns)))
		die("out of memory");
	for (int i = 0; i < opt.conns; i++) {
		struct conn *c = &conns[i];
		c->id = i + 1;
		if (opt.mode == MESSAGES && !(c->planned = calloc(ring, sizeof *c->planned)))
			die("out of memory");
		snprintf(c->signed_head, sizeof c->signed_head,
		         "MessengerBotR|%s|dev-%06d|02:00:00:00:00:01|192.168.0.2|", BOT, c->id);
	}
}

int main(int argc, char **argv)
{
	enum { MODE = 1, PORT, CONNS, SOURCES, BURST, WINDOWS, DURATION, WARMUP, OUTSTANDING, RATE,
	       PAYLOAD, TOKENS, FIRST, SECRET, SALT, PID, SETUP, HELP };
	static const struct option longs[] = {
		{"mode", 1, 0, MODE}, {"port", 1, 0, PORT}, {"conns", 1, 0, CONNS},
		{"sources", 1, 0, SOURCES}, {"burst", 1, 0, BURST}, {"windows", 1, 0, WINDOWS},
		{"duration", 1, 0, DURATION}, {"warmup", 1, 0, WARMUP},
		{"outstanding", 1, 0, OUTSTANDING}, {"rate", 1, 0, RATE}, {"payload", 1, 0, PAYLOAD},
		{"tokens", 0, 0, TOKENS}, {"first", 1, 0, FIRST}, {"secret", 1, 0, SECRET},
		{"salt", 1, 0, SALT}, {"server-pid", 1, 0, PID}, {"setup-timeout", 1, 0, SETUP},
		{"help", 0, 0, HELP}, {0, 0, 0, 0},
	};
	for (int o; (o = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
		switch (o) {
		case MODE:
			for (opt.mode = MESSAGES; strcmp(optarg, MODES[opt.mode]); opt.mode++)
				if (opt.mode == HANDSHAKES)
					return bad_usage();
			break;
		case PORT: opt.port = atoi(optarg); break;
		case CONNS: opt.conns = atoi(optarg); break;
		case SOURCES: opt.sources = atoi(optarg); break;
		case BURST: opt.burst = atoi(optarg); break;
		case WINDOWS: opt.windows = atoi(optarg); break;
		case DURATION: opt.duration = atof(optarg); break;
		case WARMUP: opt.warmup = atof(optarg); break;
		case OUTSTANDING: opt.outstanding = atoi(optarg); break;
		case RATE: opt.rate = atof(optarg); break;
		case PAYLOAD: opt.payload = strtoul(optarg, NULL, 10); break;
		case TOKENS: opt.tokens = true; break;
		case FIRST: opt.first = atoi(optarg); break;
		case SECRET: opt.secret = optarg; break;
		case SALT: opt.salt = optarg; break;
		case PID: opt.pid = atoi(optarg); break;
		case SETUP: opt.setup_timeout = atof(optarg); break;
		case HELP: fputs(USAGE, stdout); return 0;
		default: return bad_usage();
		}
	}
	double longest_run = 2 * (opt.setup_timeout + opt.warmup) + opt.windows * opt.duration + 10;
	if (optind != argc || opt.port < 1 || opt.port > 65535 || !opt.secret || !opt.salt
	    || strlen(opt.salt) > 64 || opt.conns < 1 || opt.conns > 100000 || opt.sources < 1
	    || opt.sources > 10000 || opt.burst < 1 || opt.windows < 1 || opt.outstanding < 1
	    || opt.outstanding > 4096 || !(opt.duration > 0) || !(opt.warmup >= 0)
	    || !(opt.rate >= 0) || opt.payload > OUT_LIMIT / 2 || opt.first < 0
	    || opt.first >= opt.conns || !(opt.setup_timeout > 0) || !(longest_run <= MAX_SECONDS))
		return bad_usage();
	alarm((unsigned)longest_run);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prepare();

	uint64_t start = now_ns();
	double connect_s = 0, kib_a_phone = 0;
	if (opt.mode != HANDSHAKES) {
		long before = 0;
		if (opt.first) {
			connect_up_to(opt.first);
			answer_until(now_ns() + (uint64_t)(opt.warmup * NS));
			before = server_kib();
			start = now_ns();
		}
		connect_up_to(opt.conns);
		connect_s = (now_ns() - start) / (double)NS;
		sending = opt.mode == MESSAGES;
		if (sending && !opt.rate)
			for (int i = 0; i < opt.conns; i++) {
				for (int k = 0; k < opt.outstanding; k++)
					put_message(&conns[i], now_ns());
				flush(&conns[i]);
			}
		run(opt.warmup);
		if (opt.first)
			kib_a_phone = (server_kib() - before) / (double)(opt.conns - opt.first);
	} else {
		run(opt.warmup);
	}
	for (int i = 1; i <= opt.windows; i++)
		measure(i == opt.windows, connect_s, kib_a_phone);
	return 0;
}
