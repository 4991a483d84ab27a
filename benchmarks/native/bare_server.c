/* The bare work of a message in C: what the machine can do at all.
 *
 * One thread, epoll.  It splits lines, reads their JSON, judges age and signature, decodes the
 * text, and answers "# echo".  It greets a handshake and pings right behind it, as domaeka does.
 *
 *   bare_server PORT SECRET SALT PING_INTERVAL
 *
 * It listens on 127.0.0.1 only, and ends with the process that started it.
 */
#define _GNU_SOURCE
#include "common.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <openssl/crypto.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define BACKLOG 4096
#define MAX_EVENTS 512
#define MAX_LINE (8u << 20)        /* bytes; a frame of 1 MB fits well */
#define MAX_DEPTH 16               /* of JSON inside JSON */
#define MAX_AGE_MS 300000          /* of a signature, either way: docs/protocol.md */
#define PING_STEP_NS (NS / 10)     /* how often it is looked who is to be pinged */

struct conn {
	int fd;
	bool wants_out;
	size_t searched;               /* bytes of `in` known to hold no newline */
	struct buffer in, out;
	uint64_t ping_due;             /* 0: not greeted yet */
	struct conn *next, **link;     /* in the list of all */
};

static int epoll_fd;
static const char *salt;
static uint64_t ping_interval;     /* ns */
static struct conn *all;

/* ---- JSON: checks the form of everything, keeps what a message needs.  Texts are kept as
 * they stand, escapes and all: they go back out in the same form, and no signed field that the
 * generator sends has one. */

struct slice { const char *p; size_t n; };

struct frame {
	struct slice event, room, channel_id, bot_name;
	struct slice client_type, auth_bot, uuid, mac, ip, timestamp, signature;
	bool has_auth;
};

enum place { TOP, DATA, AUTH, ELSEWHERE };

static bool is(struct slice s, const char *text)
{
	size_t n = strlen(text);
	return s.n == n && !memcmp(s.p, text, n);
}

static const char *skip_space(const char *p, const char *end)
{
	while (p < end && (*p == ' ' || *p == '\t' || *p == '\r'))
		p++;
	return p;
}

/* `p` is at the opening quote; gives what is behind the closing one, or NULL. */
static const char *read_text(const char *p, const char *end, struct slice *found)
{
	const char *start = ++p;
	for (; p < end && *p != '"'; p++) {
		if ((unsigned char)*p < 32)
			return NULL;
		if (*p == '\\')
			p++;
	}
	if (p >= end)
		return NULL;
	found->p = start;
	found->n = p - start;
	return p + 1;
}

static void keep(struct frame *f, enum place place, struct slice key, struct slice value)
{
	if (place == TOP) {
		if (is(key, "event")) f->event = value;
	} else if (place == DATA) {
		if (is(key, "room")) f->room = value;
		else if (is(key, "channel_id")) f->channel_id = value;
		else if (is(key, "bot_name") || is(key, "botName")) f->bot_name = value;
	} else if (place == AUTH) {
		if (is(key, "clientType")) f->client_type = value;
		else if (is(key, "botName")) f->auth_bot = value;
		else if (is(key, "deviceUUID")) f->uuid = value;
		else if (is(key, "macAddress")) f->mac = value;
		else if (is(key, "ipAddress")) f->ip = value;
		else if (is(key, "timestamp")) f->timestamp = value;
		else if (is(key, "signature")) f->signature = value;
	}
}

static const char *read_value(const char *p, const char *end, struct frame *f, enum place place,
                              int depth, struct slice *found);

static const char *read_object(const char *p, const char *end, struct frame *f, enum place place,
                               int depth)
{
	p = skip_space(p + 1, end);
	if (p < end && *p == '}')
		return p + 1;
	for (;;) {
		struct slice key, value = {0};
		p = skip_space(p, end);
		if (p >= end || *p != '"' || !(p = read_text(p, end, &key)))
			return NULL;
		p = skip_space(p, end);
		if (p >= end || *p != ':')
			return NULL;
		enum place inner = ELSEWHERE;
		if (place == TOP && is(key, "data"))
			inner = DATA;
		else if (place == DATA && is(key, "auth"))
			inner = AUTH;
		if (!(p = read_value(skip_space(p + 1, end), end, f, inner, depth - 1, &value)))
			return NULL;
		if (inner == AUTH)
			f->has_auth = true;
		keep(f, place, key, value);
		p = skip_space(p, end);
		if (p < end && *p == ',')
			p++;
		else
			return p < end && *p == '}' ? p + 1 : NULL;
	}
}

static const char *read_value(const char *p, const char *end, struct frame *f, enum place place,
                              int depth, struct slice *found)
{
	if (p >= end || depth == 0)
		return NULL;
	if (*p == '"')
		return read_text(p, end, found);
	if (*p == '{')
		return read_object(p, end, f, place, depth);
	if (*p == '[') {
		p = skip_space(p + 1, end);
		if (p < end && *p == ']')
			return p + 1;
		for (;;) {
			struct slice unused;
			p = read_value(skip_space(p, end), end, f, ELSEWHERE, depth - 1, &unused);
			if (!p)
				return NULL;
			p = skip_space(p, end);
			if (p < end && *p == ',')
				p++;
			else
				return p < end && *p == ']' ? p + 1 : NULL;
		}
	}
	static const char *const words[] = { "true", "false", "null" };
	for (int i = 0; i < 3; i++) {
		size_t n = strlen(words[i]);
		if ((size_t)(end - p) >= n && !memcmp(p, words[i], n))
			return p + n;
	}
	found->p = p;
	while (p < end && ((*p >= '0' && *p <= '9') || strchr("+-.eE", *p)))
		p++;
	found->n = p - found->p;
	return found->n ? p : NULL;
}

/* ---- a message */

static bool is_believed(const struct frame *f)
{
	char signed_text[512], want[64];
	size_t n = 0, salt_length = strlen(salt);
	struct slice fields[] = { f->client_type, f->auth_bot, f->uuid, f->mac, f->ip, f->timestamp };
	if (!f->has_auth)
		return false;
	for (int i = 0; i < 6; i++) {
		if (n + fields[i].n + 1 + salt_length > sizeof signed_text)
			return false;
		memcpy(signed_text + n, fields[i].p, fields[i].n);
		n += fields[i].n;
		signed_text[n++] = '|';
	}
	memcpy(signed_text + n, salt, salt_length);
	n += salt_length;
	uint64_t said = 0, now;
	for (size_t i = 0; i < f->timestamp.n; i++)
		said = said * 10 + (f->timestamp.p[i] - '0');
	timestamp_now(&now);
	int64_t age = (int64_t)(now - said);
	if (age > MAX_AGE_MS || age < -MAX_AGE_MS)
		return false;
	hmac_hex(want, signed_text, n);
	return f->signature.n == sizeof want && !CRYPTO_memcmp(want, f->signature.p, sizeof want);
}

static bool is_utf8(const unsigned char *s, size_t n)
{
	size_t i = 0;
	while (i < n) {
		uint64_t word;
		if (i + 8 <= n && (memcpy(&word, s + i, 8), !(word & 0x8080808080808080ull))) {
			i += 8;
			continue;
		}
		unsigned char c = s[i++];
		if (c < 0x80)
			continue;
		int more = c >= 0xf5 || c < 0xc2 ? -1 : c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
		if (more < 0 || i + more > n)
			return false;
		while (more--)
			if ((s[i++] & 0xc0) != 0x80)
				return false;
	}
	return true;
}

static void put_slice(struct buffer *o, struct slice s) { put(o, s.p, s.n); }

static void put_ping(struct conn *c, struct slice bot_name)
{
	uint64_t ms;
	struct buffer *o = &c->out;
	put_text(o, "{\"event\":\"ping\",\"data\":{\"bot_name\":\"");
	put_slice(o, bot_name);
	put_text(o, "\",\"server_timestamp\":\"");
	put(o, timestamp_now(&ms), TIMESTAMP_LENGTH);
	put_text(o, "\",\"message_positions\":[0,0]}}\n");
}

static void greet(struct conn *c, const struct frame *f)
{
	uint64_t ms;
	struct buffer *o = &c->out;
	put_text(o, "{\"event\":\"handshakeComplete\",\"data\":{\"success\":true,\"approved\":true,"
	            "\"message\":\"ok\",\"server_version\":\"1\",\"timestamp\":\"");
	put(o, timestamp_now(&ms), TIMESTAMP_LENGTH);
	put_text(o, "\",\"timezone\":\"Asia/Seoul\",\"message_positions\":[0,0]}}\n");
	put_ping(c, f->bot_name);
	c->ping_due = now_ns() + (uint64_t)(ping_interval * (rand() / (double)RAND_MAX));
}

static void echo(struct conn *c, const struct frame *f, const char *tail, size_t length)
{
	static const char COMMAND[] = "# echo";
	static unsigned char *text;
	static size_t size;
	if (size < length + 8 && !(text = realloc(text, size = 2 * length + 64)))
		die("out of memory");
	size_t n = base64_decode(text, tail, length);
	if (!is_utf8(text, n) || n < sizeof COMMAND - 1 || memcmp(text, COMMAND, sizeof COMMAND - 1))
		return;
	unsigned char *said = text + sizeof COMMAND - 1;
	n -= sizeof COMMAND - 1;
	for (; n && (*said == ' ' || *said == '\t'); said++)
		n--;
	while (n && (said[n - 1] == ' ' || said[n - 1] == '\n'))
		n--;
	uint64_t ms;
	size_t tail_length = (n + 2) / 3 * 4;
	struct buffer *o = &c->out;
	buffer_room(o, 512 + f->room.n + f->channel_id.n + f->bot_name.n + tail_length);
	put_text(o, "{\"event\":\"messageResponse\",\"data\":{\"room\":\"");
	put_slice(o, f->room);
	put_text(o, "\",\"channel_id\":\"");
	put_slice(o, f->channel_id);
	put_text(o, "\",\"bot_name\":\"");
	put_slice(o, f->bot_name);
	put_text(o, "\",\"message_type\":\"text\",\"content_encoding\":\"base64\","
	            "\"message_positions\":[0,");
	put_number(o, tail_length);
	put_text(o, "],\"timestamp\":\"");
	put(o, timestamp_now(&ms), TIMESTAMP_LENGTH);
	put_text(o, "\",\"timezone\":\"Asia/Seoul\"}}");
	o->end += base64_encode(buffer_room(o, tail_length + 1), said, n);
	put(o, "\n", 1);
}

static void line_received(struct conn *c, const char *p, size_t length)
{
	const char *brace = memrchr(p, '}', length);
	struct frame f = {0};
	if (!brace || *p != '{' || read_object(p, brace + 1, &f, TOP, MAX_DEPTH) != brace + 1)
		return;
	if (is(f.event, "handshake"))
		greet(c, &f);
	else if (is_believed(&f) && is(f.event, "message"))
		echo(c, &f, brace + 1, p + length - (brace + 1));
}

/* ---- connections */

static void flush(struct conn *c)
{
	while (buffer_length(&c->out)) {
		ssize_t n = send(c->fd, c->out.p + c->out.start, buffer_length(&c->out), MSG_NOSIGNAL);
		if (n < 0)
			break; /* full: EPOLLOUT comes; gone: reading says so */
		c->out.start += n;
	}
	bool left = buffer_length(&c->out) > 0;
	if (left != c->wants_out) {
		struct epoll_event event = { .events = EPOLLIN | (left ? EPOLLOUT : 0), .data.ptr = c };
		c->wants_out = left;
		epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
	}
}

static void close_conn(struct conn *c)
{
	close(c->fd);
	*c->link = c->next;
	if (c->next)
		c->next->link = c->link;
	free(c->in.p);
	free(c->out.p);
	free(c);
}

/* Gives how many bytes whole lines took. */
static size_t take_lines(struct conn *c, const char *p, size_t length, size_t searched)
{
	size_t done = 0;
	const char *newline;
	while ((newline = memchr(p + done + searched, '\n', length - done - searched))) {
		line_received(c, p + done, newline - (p + done));
		done = newline + 1 - p;
		searched = 0;
	}
	return done;
}

/* Gives whether the connection lives on. */
static bool read_conn(struct conn *c)
{
	static char chunk[256 * 1024];
	for (;;) {
		ssize_t n = recv(c->fd, chunk, sizeof chunk, 0);
		if (n < 0 && errno == EAGAIN)
			return true;
		if (n <= 0)
			return false;
		if (!buffer_length(&c->in)) {
			size_t used = take_lines(c, chunk, n, 0);
			put(&c->in, chunk + used, n - used);
		} else {
			put(&c->in, chunk, n);
			c->in.start += take_lines(c, c->in.p + c->in.start, buffer_length(&c->in), c->searched);
		}
		c->searched = buffer_length(&c->in);
		if (c->searched > MAX_LINE)
			return false;
		if (n < (ssize_t)sizeof chunk)
			return true;
	}
}

static void accept_some(int listener)
{
	int one = 1;
	for (int i = 0; i < 64; i++) {
		int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0)
			return;
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		struct conn *c = calloc(1, sizeof *c);
		if (!c)
			die("out of memory");
		c->fd = fd;
		c->next = all;
		c->link = &all;
		if (all)
			all->link = &c->next;
		all = c;
		struct epoll_event event = { .events = EPOLLIN, .data.ptr = c };
		epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
	}
}

static void ping_who_is_due(void)
{
	static uint64_t looked_at;
	static const struct slice bot_name = { "LOA.i", 5 };
	uint64_t now = now_ns();
	if (now - looked_at < PING_STEP_NS)
		return;
	looked_at = now;
	for (struct conn *c = all; c; c = c->next)
		if (c->ping_due && now >= c->ping_due) {
			c->ping_due += ping_interval;
			put_ping(c, bot_name);
			flush(c);
		}
}

int main(int argc, char **argv)
{
	if (argc != 5)
		die("usage: bare_server PORT SECRET SALT PING_INTERVAL");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	hmac_init(argv[2]);
	salt = argv[3];
	ping_interval = (uint64_t)(atof(argv[4]) * NS);
	if (ping_interval < PING_STEP_NS)
		die("PING_INTERVAL: a number of seconds, 0.1 or more");
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_port = htons(atoi(argv[1])),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, BACKLOG))
		die("port %s: %s", argv[1], strerror(errno));
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = NULL };
	epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
	for (;;) {
		static struct epoll_event events[MAX_EVENTS];
		int n = epoll_wait(epoll_fd, events, MAX_EVENTS, all ? (int)(PING_STEP_NS / 1000000) : -1);
		ping_who_is_due();
		for (int i = 0; i < n; i++) {
			struct conn *c = events[i].data.ptr;
			if (!c)
				accept_some(listener);
			else if (events[i].events & ~EPOLLOUT && !read_conn(c))
				close_conn(c);
			else if (buffer_length(&c->out))
				flush(c);
		}
	}
}
