/* What the load generator and the bare server share: time, base64, HMAC, buffers. */
#ifndef COMMON_H
#define COMMON_H

#define OPENSSL_SUPPRESS_DEPRECATED /* SHA256_CTX: its state can be copied at no cost */
#include <openssl/sha.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NS 1000000000ull /* nanoseconds in a second */

static inline void die(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(2);
}

/* ---- time */

static inline uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NS + t.tv_nsec;
}

#define TIMESTAMP_LENGTH 24 /* 2026-01-01T00:00:00.000Z */

/* The time now as text; the whole seconds are formatted once a second.  `ms`: since 1970. */
static inline const char *timestamp_now(uint64_t *ms)
{
	static char text[40];
	static time_t second = -1;
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	if (t.tv_sec != second) {
		struct tm utc;
		second = t.tv_sec;
		gmtime_r(&second, &utc);
		strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S.000Z", &utc);
	}
	int rest = t.tv_nsec / 1000000;
	text[20] = '0' + rest / 100;
	text[21] = '0' + rest / 10 % 10;
	text[22] = '0' + rest % 10;
	*ms = (uint64_t)t.tv_sec * 1000 + rest;
	return text;
}

/* ---- base64 */

static const char BASE64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* Room needed in `out`: (length + 2) / 3 * 4. */
static inline size_t base64_encode(char *out, const unsigned char *in, size_t length)
{
	char *o = out;
	for (; length >= 3; in += 3, length -= 3) {
		*o++ = BASE64[in[0] >> 2];
		*o++ = BASE64[(in[0] & 3) << 4 | in[1] >> 4];
		*o++ = BASE64[(in[1] & 15) << 2 | in[2] >> 6];
		*o++ = BASE64[in[2] & 63];
	}
	if (length) {
		*o++ = BASE64[in[0] >> 2];
		*o++ = BASE64[(in[0] & 3) << 4 | (length > 1 ? in[1] >> 4 : 0)];
		*o++ = length > 1 ? BASE64[(in[1] & 15) << 2] : '=';
		*o++ = '=';
	}
	return o - out;
}

/* Whole groups of four up to the first that is not base64.  Room in `out`: length / 4 * 3. */
static inline size_t base64_decode(unsigned char *out, const char *in, size_t length)
{
	static signed char value[256];
	if (!value['B']) {
		memset(value, -1, sizeof value);
		for (int i = 0; i < 64; i++)
			value[(unsigned char)BASE64[i]] = i;
	}
	unsigned char *o = out;
	for (; length >= 4; in += 4, length -= 4) {
		int a = value[(unsigned char)in[0]], b = value[(unsigned char)in[1]];
		int c = value[(unsigned char)in[2]], d = value[(unsigned char)in[3]];
		if ((a | b) < 0)
			break;
		*o++ = a << 2 | b >> 4;
		if (c < 0)
			break;
		*o++ = b << 4 | c >> 2;
		if (d < 0)
			break;
		*o++ = c << 6 | d;
	}
	return o - out;
}

/* ---- HMAC-SHA256: both pads are hashed once, and their states copied for each message */

static SHA256_CTX hmac_inner, hmac_outer;

static inline void hmac_init(const char *key)
{
	unsigned char block[64] = {0}, pad[64];
	size_t length = strlen(key);
	if (length > sizeof block)
		SHA256((const unsigned char *)key, length, block);
	else
		memcpy(block, key, length);
	for (int i = 0; i < 64; i++)
		pad[i] = block[i] ^ 0x36;
	SHA256_Init(&hmac_inner);
	SHA256_Update(&hmac_inner, pad, sizeof pad);
	for (int i = 0; i < 64; i++)
		pad[i] = block[i] ^ 0x5c;
	SHA256_Init(&hmac_outer);
	SHA256_Update(&hmac_outer, pad, sizeof pad);
}

static inline void hmac_hex(char out[64], const char *message, size_t length)
{
	unsigned char digest[32];
	SHA256_CTX state = hmac_inner;
	SHA256_Update(&state, message, length);
	SHA256_Final(digest, &state);
	state = hmac_outer;
	SHA256_Update(&state, digest, sizeof digest);
	SHA256_Final(digest, &state);
	for (int i = 0; i < 32; i++) {
		out[2 * i] = "0123456789abcdef"[digest[i] >> 4];
		out[2 * i + 1] = "0123456789abcdef"[digest[i] & 15];
	}
}

/* ---- buffers: the data is p[start..end) */

struct buffer { char *p; size_t start, end, size; };

static inline size_t buffer_length(const struct buffer *b)
{
	return b->end - b->start;
}

/* Where `want` more bytes may be written; whoever writes moves `end`. */
static inline char *buffer_room(struct buffer *b, size_t want)
{
	if (b->start == b->end)
		b->start = b->end = 0;
	if (b->end + want > b->size && b->start) {
		memmove(b->p, b->p + b->start, b->end - b->start);
		b->end -= b->start;
		b->start = 0;
	}
	if (b->end + want > b->size) {
		b->size = b->size ? b->size : 2048;
		while (b->end + want > b->size)
			b->size *= 2;
		if (!(b->p = realloc(b->p, b->size)))
			die("out of memory");
	}
	return b->p + b->end;
}

static inline void put(struct buffer *b, const char *data, size_t length)
{
	if (!length)
		return;
	memcpy(buffer_room(b, length), data, length);
	b->end += length;
}

static inline void put_text(struct buffer *b, const char *text)
{
	put(b, text, strlen(text));
}

static inline void put_number(struct buffer *b, uint64_t value)
{
	char digits[24], *end = digits + sizeof digits, *p = end;
	do
		*--p = '0' + value % 10;
	while (value /= 10);
	put(b, p, end - p);
}

#endif
