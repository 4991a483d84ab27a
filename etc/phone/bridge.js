/*
 * The bridge between a chat app on this phone and a domaeka server, for the MessengerBotR app.
 *
 * Fill in BOT_CONFIG, or let the server do it: domaeka phone-script.  The wire is described in
 * docs/protocol.md.  The app's engine is Rhino: ECMAScript 5, and Java's classes.
 */

var BOT_CONFIG = {
    BOT_NAME: "bot",
    SECRET_KEY: "",
    BOT_SPECIFIC_SALT: "",
    // The lowest priority is the preferred server.  pin: SHA-256 of its certificate, in hex;
    // without it, the certificate is checked as usual.
    SERVER_LIST: [
        { host: "192.168.0.2", port: 9000, priority: 1, name: "first", tls: false, pin: "" }
    ],
    // Hosts to which an unsigned notice may lead.
    TRUSTED_HOSTS: [],
    // The folder for files on their way to the chat app.
    MEDIA_TEMP_DIR: "/storage/emulated/0/Android/data/com.xfl.msgbot/files/domaeka",
    // Milliseconds between the start of the script and the first connection.
    INITIALIZATION_DELAY: 0
};

var domaekaBridge = (function () {
    "use strict";

    // ------------------------------------------------------------------ numbers
    // Times are in milliseconds.

    var VERSION = "domaeka-1.0.0";
    var CLIENT_TYPE = "MessengerBotR";
    var CAPABILITIES = ["session", "ack", "deflate", "gzip", "probe", "delivery"];
    var ERRORS = ["BAD_FRAME", "FRAME_TOO_LARGE", "BAD_HANDSHAKE", "AUTH_FAILED", "AUTH_REQUIRED",
        "NOT_APPROVED", "RATE_LIMITED", "BANNED", "SERVER_FULL", "SHUTTING_DOWN",
        "MESSAGE_TOO_LONG", "TAKEN_OVER", "INTERNAL"];
    var TICK = 1000;
    var CONNECT_TIMEOUT = 8000;
    var GREETING_TIMEOUT = 10000;
    var MESSAGE_TTL = 30000;
    var WRITTEN_TTL = 15000;              // more time for a message that was written
    var MAX_MESSAGES = 2000;
    var MAX_QUEUE_CHARS = 8388608;
    var MAX_TEXT_CHARS = 65000;
    var MAX_NAME_CHARS = 1000;
    var ACK_TIMEOUT = 15000;
    var MAX_ACK_TIMEOUT = 120000;
    var LEAST_SPEED = 8.192;              // bytes per millisecond: a long message has more time
    var PING_INTERVAL = 30000;
    var FIRST_PING = 75000;
    var SILENT_INTERVALS = 2.5;           // without probes
    var PROBE_AFTER = 22500;              // silence, at most
    var PROBE_TIMEOUT = 15000;
    var BASE_DELAY = 2000;
    var MAX_UNREACHABLE_DELAY = 4500;     // so that a path that is back is used within 5 s
    var MAX_REFUSED_DELAY = 60000;
    var SETTLED = 30000;                  // a connection that lasts so long ends a row of tries
    var BARRED = 300000;
    var MAX_AWAY = 3600000;
    var RETURN_AFTER = 300000;            // to the preferred server; half of it is random
    var RETURN_TRIAL = 20000;
    var MOVE_TRIAL = 600000;
    var SETTLE = 5000;                    // chat waits for the answers of the server before
    var LEAVE = 40000;
    var TAKEN_OVER_PAUSE = 30000;         // to twice that
    var MAX_TAKEN_OVER = 2;
    var TAKEN_OVER_MEMORY = 600000;
    var ERROR_VALID = 5000;               // an error explains the end that follows within
    var STOP_PATIENCE = 2000;             // for acknowledgements, when the script ends
    var MAX_SERVERS = 32;
    var MAX_HEADER_CHARS = 65536;
    var MAX_NESTING = 64;
    var MAX_BAD_FRAMES = 100;
    var MAX_PENDING_BYTES = 65536;        // of chat, on the way to the socket
    var GZIP_FROM = 10240;
    var MAX_KEPT = 200;                   // replies to rooms that cannot be answered yet
    var MAX_KEPT_CHARS = 1048576;
    var MAX_RESULTS = 500;
    var RESULT_MEMORY = 60000;
    var MAX_MEDIA_JOBS = 50;
    var MAX_MEDIA_PIECES = 100;
    var MAX_DOWNLOAD_BYTES = 52428800;
    var MAX_REDIRECTS = 5;
    var DOWNLOAD_TIMEOUT = 15000;
    var MEDIA_SETTLE = 1200;
    var MAX_MEDIA_WAIT = 60000;
    var MEDIA_KEEP = 60000;               // the chat app may still be reading
    var MEDIA_MAX_AGE = 604800000;
    var MEDIA_PREFIX = "domaeka_";
    var CHAT_APP = "com.kakao.talk";
    var NOT_SENT = "files could not be sent";

    var android = Packages.android;
    var System = java.lang.System;
    var AtomicLong = java.util.concurrent.atomic.AtomicLong;
    var AtomicBoolean = java.util.concurrent.atomic.AtomicBoolean;
    var LinkedBlockingQueue = java.util.concurrent.LinkedBlockingQueue;
    var MILLISECONDS = java.util.concurrent.TimeUnit.MILLISECONDS;

    var config = BOT_CONFIG;
    var botName = text(config.BOT_NAME) || "";
    var secretKey = text(config.SECRET_KEY) || "";
    var salt = text(config.BOT_SPECIFIC_SALT) || "";
    var maxLineChars = Math.max(2097152, Math.min(33554432,
        Math.floor(java.lang.Runtime.getRuntime().maxMemory() / 16)));

    // ------------------------------------------------------------------ small things

    function now() { return System.nanoTime() / 1000000; }

    // Java's strings are objects on some threads, and JavaScript's on others.
    function text(value) {
        return value === null || value === undefined ? null : String(value);
    }

    // Java's true is an object on some threads.  null: not said.
    function yesOrNo(value) {
        var said = String(value);
        return said === "true" ? true : said === "false" ? false : null;
    }

    function isText(value) { return typeof value === "string"; }

    function isCount(value) {
        return typeof value === "number" && value >= 0 && value < 9007199254740992
            && Math.floor(value) === value;
    }

    function isSeconds(value) { return typeof value === "number" && isFinite(value); }

    function clamp(value, least, most) { return Math.max(least, Math.min(most, value)); }

    function utf8(string) { return new java.lang.String(string).getBytes("UTF-8"); }

    function fromUtf8(bytes) { return String(new java.lang.String(bytes, "UTF-8")); }

    function latin1(bytes, from, count) {
        return String(new java.lang.String(bytes, from, count, "ISO-8859-1"));
    }

    function bytesOfLatin1(string) { return new java.lang.String(string).getBytes("ISO-8859-1"); }

    function newBytes(count) {
        return java.lang.reflect.Array.newInstance(java.lang.Byte.TYPE, count);
    }

    function base64(bytes) { return String(android.util.Base64.encodeToString(bytes, 2)); }

    function fromBase64(string) { return android.util.Base64.decode(string, 0); }

    function hex(bytes) {
        var digits = "0123456789abcdef", out = "", i, value;
        for (i = 0; i < bytes.length; i++) {
            value = bytes[i] & 255;
            out += digits.charAt(value >> 4) + digits.charAt(value & 15);
        }
        return out;
    }

    function randomHex(count) {
        var bytes = newBytes(count);
        new java.security.SecureRandom().nextBytes(bytes);
        return hex(bytes);
    }

    // Control characters are no part of a chat, but for tabs and line ends.
    function clean(string) {
        return string.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]/g, "");
    }

    function cleanName(string) {
        return string.replace(/[\u0000-\u001f\u007f-\u009f]/g, "").substring(0, MAX_NAME_CHARS);
    }

    function isTooLong(string) {
        return string.length > MAX_TEXT_CHARS && (string.length > 2 * MAX_TEXT_CHARS
            || new java.lang.String(string).codePointCount(0, string.length) > MAX_TEXT_CHARS);
    }

    // ------------------------------------------------------------------ the log
    // No key, no salt, no chat.

    var lastLogged = {};

    function log(level, message) {
        var line = "[domaeka] " + message;
        if (secretKey) { line = line.split(secretKey).join("***"); }
        if (salt) { line = line.split(salt).join("***"); }
        try { Log[level](line); } catch (e) { /* the app has another one, or none */ }
    }

    function info(message) { log("i", message); }

    // At most every 10 s of a kind: a server may cause as many as it likes.  Returns true if said.
    function complain(kind, message, level, pause) {
        var last = lastLogged[kind];
        if (last !== undefined && now() - last < (pause || 10000)) { return false; }
        lastLogged[kind] = now();
        log(level || "e", message);
        return true;
    }

    function describe(error) {
        var e = error;
        if (e && e.javaException) { e = e.javaException; }
        return String(e && e.message || e).replace(/\s+/g, " ").substring(0, 200);
    }

    // ------------------------------------------------------------------ threads

    // An error on a thread of ours must never reach the app.
    function spawn(name, body, crashed) {
        var thread = new java.lang.Thread(new java.lang.Runnable({ run: body }), "domaeka " + name);
        thread.setDaemon(true);
        thread.setUncaughtExceptionHandler(new java.lang.Thread.UncaughtExceptionHandler({
            uncaughtException: function (dead, error) {
                log("e", "thread " + name + " failed: " + text(error.getClass().getName()));
                if (crashed) { crashed(); }
            }
        }));
        thread.start();
        return thread;
    }

    // All that happens comes to the engine's thread through the inbox; only that thread touches
    // the state below.
    var inbox = new LinkedBlockingQueue(4096);
    var inboxChars = new AtomicLong(0);
    var stopping = new AtomicBoolean(false);
    var over = new AtomicBoolean(false);

    function post(event) {
        while (!over.get()) {
            if (inbox.offer(event, 500, MILLISECONDS)) { return true; }
        }
        return false;
    }

    // ------------------------------------------------------------------ who we are

    function firstOf() {
        for (var i = 0; i < arguments.length; i++) {
            try {
                var value = text(arguments[i]());
                if (value) { return value; }
            } catch (e) { /* the next one */ }
        }
        return "unknown";
    }

    function appContext() {
        try { return App.getContext(); } catch (e) { /* the old interface */ }
        try { return Api.getContext(); } catch (e2) { /* neither */ }
        return android.app.ActivityThread.currentApplication();
    }

    var deviceId = firstOf(
        function () { return Device.getAndroidId(); },
        function () {
            return android.provider.Settings.Secure.getString(
                appContext().getContentResolver(), "android_id");
        }
    ).replace(/\|/g, "").substring(0, 128);

    var deviceInfo = firstOf(function () {
        var build = android.os.Build;
        return build.BRAND + " " + build.MODEL + " (Android " + build.VERSION.RELEASE + ", API "
            + build.VERSION.SDK_INT + ")";
    });

    // ------------------------------------------------------------------ signatures

    var lastSigned = 0, lastSigner = null;

    // No two connections sign in the same millisecond: that would look like a replay.
    function signingTime(signer) {
        var time = Date.now();
        if (lastSigned - time > 5000) { lastSigned = time - 1; }  // the clock was set back
        if (signer !== lastSigner) {
            time = Math.max(time, lastSigned + 1);
            lastSigner = signer;
        }
        lastSigned = Math.max(time, lastSigned);
        return lastSigned;
    }

    function sign(message) {
        var mac = javax.crypto.Mac.getInstance("HmacSHA256");
        mac.init(new javax.crypto.spec.SecretKeySpec(utf8(secretKey), "HmacSHA256"));
        return hex(mac.doFinal(utf8(message + "|" + salt)));
    }

    function auth(conn) {
        var time = signingTime(conn), ip = conn.localAddress;
        return {
            clientType: CLIENT_TYPE, botName: botName, deviceUUID: deviceId, deviceID: deviceId,
            macAddress: "unknown", ipAddress: ip, timestamp: time, version: VERSION,
            signature: sign([CLIENT_TYPE, botName, deviceId, "unknown", ip, time].join("|"))
        };
    }

    function sameText(one, other) {
        return !!java.security.MessageDigest.isEqual(utf8(one), utf8(other));
    }

    // ------------------------------------------------------------------ frames

    function frame(event, data) { return JSON.stringify({ event: event, data: data }) + "\n"; }

    function handshake(conn) {
        var data = {
            clientType: CLIENT_TYPE, botName: botName, version: VERSION, deviceID: deviceId,
            deviceIP: conn.localAddress, deviceInfo: deviceInfo,
            timestamp: new Date().toISOString(), timezone: "Asia/Seoul", message_positions: [0, 0],
            capabilities: CAPABILITIES, uptime: (bootTime() - appStartedAt()) / 1000, auth: auth(conn)
        };
        if (session.token !== null && (session.endsAt === null || now() < session.endsAt)) {
            data.session_token = session.token;
        }
        return frame("handshake", data);
    }

    function gzipped(bytes) {
        var out = new java.io.ByteArrayOutputStream();
        var zip = new java.util.zip.GZIPOutputStream(out);
        zip.write(bytes, 0, bytes.length);
        zip.close();
        return out.toByteArray();
    }

    function gunzipped(bytes, most) {
        var zip = new java.util.zip.GZIPInputStream(new java.io.ByteArrayInputStream(bytes));
        var out = new java.io.ByteArrayOutputStream(), buffer = newBytes(8192), count;
        while ((count = zip.read(buffer, 0, 8192)) >= 0) {
            if (out.size() + count > most) { throw new Error("inflates to too much"); }
            out.write(buffer, 0, count);
        }
        return out.toByteArray();
    }

    function chatLine(conn, entry) {
        var raw = utf8(entry.text), tail = base64(raw), packed;
        var data = {
            room: entry.room, channel_id: entry.channelId, message_type: "text",
            content_encoding: "base64", message_positions: [0, tail.length],
            timestamp: new Date().toISOString(), timezone: "Asia/Seoul", sender: entry.sender,
            is_group_chat: entry.isGroup, log_id: entry.logId, user_hash: entry.userHash,
            is_mention: entry.isMention, bot_name: botName, client_type: CLIENT_TYPE,
            auth: auth(conn)
        };
        if (conn.granted.ack) { data.client_id = entry.id; }
        if (conn.granted.gzip && !conn.granted.deflate && raw.length > GZIP_FROM) {
            packed = base64(gzipped(raw));
            if (packed.length < 0.9 * tail.length) {
                tail = packed;
                data.content_encoding = "gzip+base64";
                data.content_length = raw.length;
                data.message_positions = [0, tail.length];
            }
        }
        return JSON.stringify({ event: "message", data: data }) + tail + "\n";
    }

    // A parser that recurses must not be given what is nested deeply.
    function isDeep(header) {
        var depth = 0, quoted = false, i, c;
        if (header.split(/[\[{]/).length <= MAX_NESTING) { return false; }
        for (i = 0; i < header.length; i++) {
            c = header.charAt(i);
            if (quoted) {
                if (c === "\\") { i++; } else if (c === '"') { quoted = false; }
            } else if (c === '"') {
                quoted = true;
            } else if (c === "{" || c === "[") {
                if (++depth > MAX_NESTING) { return true; }
            } else if (c === "}" || c === "]") {
                depth--;
            }
        }
        return false;
    }

    // ------------------------------------------------------------------ a connection
    // Two threads each: one connects and reads, one writes.

    var connections = 0;

    function connect(server) {
        var conn = {
            number: ++connections, server: server, raw: null, socket: null, localAddress: "unknown",
            closed: new AtomicBoolean(false), out: new LinkedBlockingQueue(8192),
            pendingBytes: new AtomicLong(0), wantsRoom: new AtomicBoolean(false),
            heardAt: new AtomicLong(Math.floor(now())),
            permits: new java.util.concurrent.Semaphore(Math.ceil(maxLineChars / 1024)),
            partial: new java.lang.StringBuilder(), inflater: null, sawGreeting: false, badFrames: 0,
            // The engine's:
            startedAt: now(), connectedAt: null, greetedAt: null, granted: {}, numbers: null,
            maxFrameBytes: Infinity, interval: PING_INTERVAL, timeout: FIRST_PING, probedAt: null,
            sending: false, toAck: null, unanswered: null, answeredAt: 0, longest: 0,
            error: null, errorAt: 0, closeAt: null, lost: false, epoch: null
        };
        spawn("line " + conn.number, function () { runConnection(conn); });
        return conn;
    }

    function runConnection(conn) {
        var why = "closed by the server";
        try {
            openSocket(conn);
            if (!post({ kind: "connected", conn: conn })) { return; }
            spawn("writer " + conn.number, function () { runWriter(conn); });
            read(conn);
        } catch (e) {
            why = describe(e);
        } finally {
            abort(conn);
            post({ kind: "lost", conn: conn, why: why });
        }
    }

    function openSocket(conn) {
        var server = conn.server;
        var raw = conn.raw = new java.net.Socket();
        raw.setTcpNoDelay(true);
        raw.setKeepAlive(true);
        raw.connect(new java.net.InetSocketAddress(server.host, server.port), CONNECT_TIMEOUT);
        conn.localAddress = String(raw.getLocalAddress().getHostAddress()).replace(/[|%].*/, "");
        conn.socket = server.tls ? secured(raw, server) : raw;
        if (conn.closed.get()) { raw.close(); }
    }

    function secured(raw, server) {
        var context, factory, socket, parameters, certificate, found;
        if (server.pin) {
            context = javax.net.ssl.SSLContext.getInstance("TLS");
            context.init(null, [trustForPin()], null);
            factory = context.getSocketFactory();
        } else {
            factory = javax.net.ssl.SSLSocketFactory.getDefault();
        }
        raw.setSoTimeout(CONNECT_TIMEOUT);
        socket = factory.createSocket(raw, server.host, server.port, true);
        socket.setEnabledProtocols(modern(socket.getSupportedProtocols()));
        if (!server.pin) {
            parameters = socket.getSSLParameters();
            parameters.setEndpointIdentificationAlgorithm("HTTPS");
            socket.setSSLParameters(parameters);
        }
        socket.startHandshake();
        if (server.pin) {
            certificate = socket.getSession().getPeerCertificates()[0];
            found = hex(java.security.MessageDigest.getInstance("SHA-256")
                .digest(certificate.getEncoded()));
            if (found !== server.pin) { throw new Error("the certificate is not the pinned one"); }
        }
        raw.setSoTimeout(0);
        return socket;
    }

    // Whatever certificate is shown: its hash is compared before anything is sent.
    function trustForPin() {
        return new javax.net.ssl.X509TrustManager({
            checkClientTrusted: function () { throw new Error("no server"); },
            checkServerTrusted: function () { return undefined; },
            getAcceptedIssuers: function () {
                return java.lang.reflect.Array.newInstance(
                    java.security.cert.X509Certificate, 0);
            }
        });
    }

    function modern(protocols) {
        var list = [], i, name;
        for (i = 0; i < protocols.length; i++) {
            name = String(protocols[i]);
            if (name === "TLSv1.2" || name === "TLSv1.3") { list.push(name); }
        }
        return list;
    }

    function abort(conn) {
        conn.closed.set(true);
        conn.out.offer({ close: true });
        try { if (conn.raw !== null) { conn.raw.close(); } } catch (e) { /* it is closed */ }
    }

    // Send what is written, then close.
    function finish(conn) {
        conn.sending = false;
        conn.out.offer({ close: true });
        if (conn.closeAt === null) { conn.closeAt = now() + 1000; }
    }

    function write(conn, line) {
        if (conn.closed.get()) { return; }
        if (conn.pendingBytes.addAndGet(line.length) > maxLineChars
                || !conn.out.offer({ line: line })) {
            conn.why = "the server does not read";
            abort(conn);
        }
    }

    function runWriter(conn) {
        var out, deflater = null, buffer = null, item, lines, next;
        try {
            out = conn.socket.getOutputStream();
            for (;;) {
                item = conn.out.take();
                if (item.deflate) {
                    deflater = new java.util.zip.Deflater(6, true);
                    buffer = newBytes(8192);
                    continue;
                }
                lines = "";
                while (item && item.line) {
                    lines += item.line;
                    next = lines.length < MAX_PENDING_BYTES ? conn.out.peek() : null;
                    item = next && next.line ? conn.out.poll() : null;
                }
                if (lines) {
                    writeBytes(out, utf8(lines), deflater, buffer);
                    conn.pendingBytes.addAndGet(-lines.length);
                    if (conn.wantsRoom.getAndSet(false)) { post({ kind: "drained", conn: conn }); }
                } else if (item.close) {
                    if (conn.server.tls) {
                        conn.socket.close();
                    } else {
                        conn.raw.shutdownOutput();
                    }
                    return;
                }
            }
        } catch (e) {
            abort(conn);  // the reader says so
        } finally {
            if (deflater !== null) { deflater.end(); }
        }
    }

    function writeBytes(out, bytes, deflater, buffer) {
        var count;
        if (deflater === null) {
            out.write(bytes, 0, bytes.length);
        } else {
            deflater.setInput(bytes, 0, bytes.length);
            do {
                count = deflater.deflate(buffer, 0, buffer.length, 2);  // SYNC_FLUSH
                out.write(buffer, 0, count);
            } while (count === buffer.length);
        }
        out.flush();
    }

    function read(conn) {
        var input = conn.socket.getInputStream(), buffer = newBytes(16384), count;
        try {
            while ((count = input.read(buffer, 0, 16384)) >= 0) {
                conn.heardAt.set(Math.floor(now()));
                if (conn.inflater === null) {
                    cut(conn, latin1(buffer, 0, count), buffer);
                } else {
                    inflate(conn, buffer, 0, count);
                }
            }
        } finally {
            if (conn.inflater !== null) { conn.inflater.end(); }
        }
    }

    function inflate(conn, bytes, from, count) {
        var inflater = conn.inflater, out = newBytes(16384), size;
        inflater.setInput(bytes, from, count);
        for (;;) {
            size = inflater.inflate(out, 0, 16384);
            if (size > 0) {
                cut(conn, latin1(out, 0, size), null);
            } else if (inflater.needsInput()) {
                return;
            } else {
                throw new Error("the compressed stream is broken");
            }
        }
    }

    // Cut a piece of the stream into lines.  bytes: what it was made of, before compression.
    function cut(conn, piece, bytes) {
        var from = 0, end, line;
        while ((end = piece.indexOf("\n", from)) >= 0) {
            line = piece.substring(from, end);
            if (conn.partial.length() > 0) {
                conn.partial.append(line);
                line = String(conn.partial.toString());
                conn.partial = new java.lang.StringBuilder();
            }
            from = end + 1;
            if (line.slice(-1) === "\r") { line = line.slice(0, -1); }
            if (line) { lineReceived(conn, line); }
            if (bytes !== null && conn.inflater !== null) {
                // The compressed stream begins right behind the greeting.
                inflate(conn, bytes, from, piece.length - from);
                return;
            }
        }
        if (from < piece.length) {
            conn.partial.append(from > 0 ? piece.substring(from) : piece);
            if (conn.partial.length() > maxLineChars) { throw new Error("a line is too long"); }
        }
    }

    function lineReceived(conn, line) {
        var end = line.lastIndexOf("}") + 1, message = null, units;
        if (end > 0 && end <= MAX_HEADER_CHARS) {
            try {
                var header = fromUtf8(bytesOfLatin1(line.substring(0, end)));
                if (!isDeep(header)) { message = JSON.parse(header); }
            } catch (e) {
                message = null;
            }
        }
        if (message === null || typeof message !== "object" || !isText(message.event)) {
            if (!conn.sawGreeting) { throw new Error("this is no server for phones"); }
            badFrame(conn);
            return;
        }
        if (message.data === null || typeof message.data !== "object") { message.data = {}; }
        if (message.event === "handshakeComplete") {
            if (conn.sawGreeting) { return; }
            conn.sawGreeting = true;
            if (lists(message.data.capabilities, "deflate")) {
                conn.inflater = new java.util.zip.Inflater(true);
            }
        }
        units = Math.min(1 + Math.floor(line.length / 1024), Math.ceil(maxLineChars / 1024));
        while (!conn.permits.tryAcquire(units, 500, MILLISECONDS)) {
            if (conn.closed.get()) { return; }
        }
        post({
            kind: "frame", conn: conn, units: units, event: message.event, data: message.data,
            tail: line.substring(end)
        });
    }

    function badFrame(conn) {
        complain("bad frame", "dropped a frame that cannot be read");
        if (++conn.badFrames >= MAX_BAD_FRAMES) { throw new Error("too many bad frames"); }
    }

    function lists(list, name) { return Array.isArray(list) && list.indexOf(name) >= 0; }

    // ------------------------------------------------------------------ the queue

    var queue = {
        waiting: [], unacknowledged: [], chars: 0, count: 0, awayUntil: -Infinity,
        gone: 0               // expired, and not yet said in the log
    };
    var idPrefix = randomHex(8);

    function queueLength() { return queue.waiting.length + queue.unacknowledged.length; }

    function enqueue(chat) {
        if (queueLength() >= MAX_MESSAGES || queue.chars + chat.text.length > MAX_QUEUE_CHARS) {
            complain("queue", "the queue is full: messages are dropped");
            return;
        }
        chat.id = idPrefix + "-" + (++queue.count);
        chat.expiresAt = Math.max(now(), queue.awayUntil) + MESSAGE_TTL;
        chat.written = false;
        queue.chars += chat.text.length;
        queue.waiting.push(chat);
    }

    function acknowledged(conn, id) {
        var list = queue.unacknowledged, i;
        for (i = 0; i < list.length; i++) {
            if (list[i].id === id) {
                queue.chars -= list[i].text.length;
                list.splice(i, 1);
                break;
            }
        }
        conn.answeredAt = now();
        if (id === conn.unanswered) {
            conn.unanswered = null;
            if (now() - conn.greetedAt >= SETTLED) { session.ackTimeout = ACK_TIMEOUT; }
        }
    }

    function sendAgain() {
        queue.waiting = queue.unacknowledged.concat(queue.waiting);
        queue.unacknowledged = [];
    }

    function suspendExpiry(until) {
        queue.awayUntil = until;
        queue.waiting.concat(queue.unacknowledged).forEach(function (entry) {
            entry.expiresAt = Math.max(entry.expiresAt, until + MESSAGE_TTL);
        });
    }

    function expire() {
        var time = now();
        function lives(entry) {
            if (entry.expiresAt > time) { return true; }
            queue.chars -= entry.text.length;
            queue.gone++;
            return false;
        }
        queue.waiting = queue.waiting.filter(lives);
        queue.unacknowledged = queue.unacknowledged.filter(lives);
        if (queue.gone > 0 && complain(
                "expired", queue.gone + " messages waited too long and were dropped", "w")) {
            queue.gone = 0;
        }
    }

    function sendChats(conn) {
        var entry, line;
        while (queue.waiting.length > 0) {
            if (conn.pendingBytes.get() >= MAX_PENDING_BYTES) {
                conn.wantsRoom.set(true);
                if (conn.pendingBytes.get() >= MAX_PENDING_BYTES) { return; }
            }
            entry = queue.waiting.shift();
            line = chatLine(conn, entry);
            if (line.length * 3 > conn.maxFrameBytes && utf8(line).length > conn.maxFrameBytes) {
                queue.chars -= entry.text.length;
                complain("too long", "a message is too long for this server", "w");
                continue;
            }
            write(conn, line);
            if (!conn.granted.ack) {
                queue.chars -= entry.text.length;
                continue;
            }
            if (!entry.written) {
                entry.written = true;
                entry.expiresAt += WRITTEN_TTL;
            }
            queue.unacknowledged.push(entry);
            if (conn.unanswered === null) {
                conn.answeredAt = now();
                conn.longest = 0;
            }
            conn.longest = Math.max(conn.longest, line.length);
            conn.unanswered = entry.id;
        }
    }

    // ------------------------------------------------------------------ what outlives connections

    var session = { token: null, lifetime: 0, endsAt: null, ackTimeout: ACK_TIMEOUT, epochs: [] };

    // The last message number of a numbering; each server has its own.
    function numbersOf(epoch) {
        var list = session.epochs, i, found = { epoch: epoch, last: -1 };
        for (i = 0; i < list.length; i++) {
            if (list[i].epoch === epoch) { found = list.splice(i, 1)[0]; break; }
        }
        list.push(found);
        if (list.length > 16) { list.shift(); }
        return found;
    }

    // ------------------------------------------------------------------ pauses and servers

    function Backoff(longest) {
        this.longest = longest;
        this.tries = 0;
        this.connectedAt = null;
    }
    Backoff.prototype.next = function () {
        var limit = Math.min(this.longest, BASE_DELAY * Math.pow(2, Math.min(this.tries, 32)));
        return this.tries++ < 2 ? limit / 2 * (1 + Math.random()) : limit * Math.random();
    };
    Backoff.prototype.isSettled = function () {
        return this.connectedAt !== null && now() - this.connectedAt >= SETTLED;
    };
    Backoff.prototype.connected = function () { this.connectedAt = now(); };
    Backoff.prototype.lost = function () {
        if (this.isSettled()) { this.tries = 0; }
        this.connectedAt = null;
    };

    function nameOf(server) {
        return server.host + ":" + server.port + (server.tls ? " (TLS)" : "");
    }

    // The servers in order of preference, and the pauses between tries.
    function Route(servers) {
        this.servers = servers;
        this.index = 0;
        this.backoff = new Backoff(MAX_UNREACHABLE_DELAY);
        this.refusals = new Backoff(MAX_REFUSED_DELAY);
        this.notBefore = {};
        this.goAt = null;
    }
    Route.prototype.server = function () { return this.servers[this.index]; };
    Route.prototype.freeAt = function (server) {
        var at = this.notBefore[nameOf(server)];
        return at === undefined ? -Infinity : at;
    };
    Route.prototype.parallel = function (server) {
        var route = new Route([server]);
        route.backoff.tries = this.backoff.tries;
        route.refusals.tries = this.refusals.tries;
        return route;
    };
    Route.prototype.add = function (other) {
        var names = this.servers.map(nameOf), key;
        this.servers = this.servers.concat(other.servers.filter(function (server) {
            return names.indexOf(nameOf(server)) < 0;
        })).slice(0, MAX_SERVERS);
        for (key in other.notBefore) {
            if (this.notBefore[key] === undefined) { this.notBefore[key] = other.notBefore[key]; }
        }
    };
    Route.prototype.failed = function () { this.index = (this.index + 1) % this.servers.length; };
    Route.prototype.greeted = function () {
        delete this.notBefore[nameOf(this.server())];
        this.backoff.connected();
        this.refusals.connected();
    };
    Route.prototype.lost = function () {
        this.index = 0;
        this.backoff.lost();
        this.refusals.lost();
    };
    Route.prototype.leaveAlone = function (server, pause) {
        var name = nameOf(server);
        this.notBefore[name] = Math.max(this.freeAt(server), now() + pause);
    };
    Route.prototype.stayAway = function (pause) {
        var until = now() + clamp(pause, 0, MAX_AWAY);
        this.notBefore[nameOf(this.server())] = until;
        return until;
    };
    Route.prototype.moved = function (server, at) {
        var name = nameOf(server);
        this.servers = [server].concat(this.servers.filter(function (other) {
            return nameOf(other) !== name;
        })).slice(0, MAX_SERVERS);
        this.index = 0;
        this.goAt = at;
    };
    // Choose the server anew.  Returns the time of the next try.
    Route.prototype.next = function () {
        var at = now() + this.backoff.next(), count = this.servers.length, best, i, index, free;
        if (this.goAt !== null) {
            at = Math.max(at, this.goAt);
            this.goAt = null;
            return at;
        }
        for (i = 0; i < count; i++) {
            index = (this.index + i) % count;
            free = Math.max(at, this.freeAt(this.servers[index]));
            if (best === undefined || free < best.at) { best = { index: index, at: free }; }
        }
        this.index = best.index;
        return best.at;
    };

    function readServer(given) {
        var port = given ? Number(given.port) : 0;
        var host = given && text(given.host) || "";
        if (!/^[0-9A-Za-z._:\-]{1,253}$/.test(host) || !isCount(port) || port < 1 || port > 65535) {
            return null;
        }
        return {
            host: host, port: port, tls: given.tls === true,
            pin: (text(given.pin) || "").replace(/[^0-9A-Fa-f]/g, "").toLowerCase()
        };
    }

    function configuredServers() {
        var list = Array.isArray(config.SERVER_LIST) ? config.SERVER_LIST : [];
        list = list.filter(function (given) { return readServer(given) !== null; });
        list.sort(function (one, other) { return (one.priority || 0) - (other.priority || 0); });
        return list.map(readServer);
    }

    // ------------------------------------------------------------------ the engine

    var link = { route: null, conn: null, dueAt: null };  // the one in use
    var next = null;                                      // tried in parallel
    var retiring = null;                                  // replaced; may still send answers
    var nextUntil = 0, settleAt = 0, retireAt = 0, holding = false, holdUntil = null;
    var move = null, returnAt = 0, tickAt = 0;
    var takenOver = 0, resting = false;

    function isGreeted(one) {
        return one !== null && one.conn !== null && one.conn.greetedAt !== null;
    }

    function schedule(one) { one.dueAt = one.route.next(); }

    function runEngine() {
        var event, wait, left;
        while (!stopping.get() && (link.route !== null || start())) {
            wait = clamp(nextDeadline() - now(), 0, TICK);
            event = inbox.poll(Math.ceil(wait), MILLISECONDS);
            // Not all: a flood must not keep the watchdog from its look.
            for (left = 100; event; left--) {
                handleSafely(event);
                event = left > 0 ? inbox.poll() : null;
            }
            if (now() - tickAt >= TICK) { guarded("tick", tick); }
            guarded("connect", connectDue);
            flush();
        }
        if (link.route !== null) { guarded("stop", finishEngine); }
        engineEnded();
    }

    // After an error that JavaScript cannot catch, such as a lack of memory.
    function restartEngine() {
        if (over.get()) { return; }
        java.lang.Thread.sleep(TICK);
        spawn("engine", runEngine, restartEngine);
    }

    function nextDeadline() {
        var at = tickAt + TICK;
        [link, next, retiring].forEach(function (one) {
            if (one !== null && one.conn === null && one.dueAt !== null) {
                at = Math.min(at, one.dueAt);
            }
        });
        // A move waits for the end of a trial, and for a connection from which to move.
        return move !== null && next === null && link.conn !== null ? Math.min(at, move.at) : at;
    }

    function guarded(name, step) {
        try { step(); } catch (e) { complain(name, name + " failed: " + describe(e)); }
    }

    function handleSafely(event) {
        guarded(event.kind, function () { handle(event); });
        if (event.units) { event.conn.permits.release(event.units); }
    }

    function handle(event) {
        var conn = event.conn;
        if (event.kind === "chat") {
            inboxChars.addAndGet(-event.chat.text.length);
            if (!resting) { enqueue(event.chat); }
            roomSpoke(event.chat.room, event.replier);
        } else if (event.kind === "media") {
            report(event.result, event.ok, event.reason);
        } else if (event.kind === "connected") {
            conn.connectedAt = now();
            write(conn, handshake(conn));
        } else if (event.kind === "lost") {
            connectionLost(conn, event.why);
        } else if (event.kind === "frame" && !conn.lost) {
            frameReceived(conn, event.event, event.data, event.tail);
        }
    }

    function linkOf(conn) {
        if (link.conn === conn) { return link; }
        if (next !== null && next.conn === conn) { return next; }
        return retiring !== null && retiring.conn === conn ? retiring : null;
    }

    function connectDue() {
        [link, next].forEach(function (one) {
            if (one !== null && one.conn === null && one.dueAt !== null && now() >= one.dueAt) {
                one.dueAt = null;
                one.conn = connect(one.route.server());
            }
        });
        if (move !== null && now() >= move.at) { checkMoves(); }
    }

    // Write what the last events have left to be written.
    function flush() {
        [link, next, retiring].forEach(function (one) {
            if (!isGreeted(one)) { return; }
            var conn = one.conn;
            if (conn.toAck !== null) {
                write(conn, frame("ack", { message_id: conn.toAck }));
                conn.toAck = null;
            }
            if (conn.granted.delivery) { sendResults(conn); }
            if (conn.sending && one === link && !holding) {
                guarded("chat", function () { sendChats(conn); });
            }
        });
    }

    function frameReceived(conn, event, data, tail) {
        var one = linkOf(conn);
        if (one === null) { return; }
        if (event === "handshakeComplete") {
            greeted(one, conn, data);
        } else if (event === "error") {
            errorReceived(conn, data);
        } else if (conn.greetedAt === null) {
            complain("early", "a frame came ahead of the greeting");
        } else if (event === "ping") {
            pingReceived(conn, data);
        } else if (event === "messageResponse" || event === "scheduleMessage"
                || event === "broadcastMessage") {
            replyReceived(conn, data, tail);
        } else if (event === "ack") {
            if (conn.granted.ack && isText(data.client_id)) { acknowledged(conn, data.client_id); }
        } else if (event === "serverShutdown") {
            if (one === link) { shutdownReceived(one, data); }
        } else if (event === "serverMigration") {
            if (one === link) { migrationReceived(data); }
        }
        // Others are of another version, or a probe that has come back: that it came is enough.
    }

    function greeted(one, conn, data) {
        var server = nameOf(conn.server);
        if (conn.greetedAt !== null) { return; }
        if (data.success === false) {
            log("e", server + " refuses this phone");
            one.route.leaveAlone(one.route.server(), BARRED * (0.5 + Math.random() / 2));
            abort(conn);
            return;
        }
        conn.greetedAt = now();
        CAPABILITIES.forEach(function (name) {
            conn.granted[name] = lists(data.capabilities, name);
        });
        if (isCount(data.max_frame_bytes) && data.max_frame_bytes > 0) {
            conn.maxFrameBytes = data.max_frame_bytes;
        }
        if (isSeconds(data.ping_interval)) {
            conn.interval = clamp(data.ping_interval, 1, 3600) * 1000;
        }
        conn.timeout = Math.max(conn.interval * SILENT_INTERVALS, FIRST_PING);
        sendResultsAgain();
        if (isText(data.session_token) && data.session_token.length <= 1024) {
            session.token = data.session_token;
            session.lifetime = isSeconds(data.session_expires_in)
                ? data.session_expires_in * 1000 : 0;
            session.endsAt = null;
        }
        conn.epoch = isText(data.epoch) ? data.epoch.substring(0, 256) : null;
        if (conn.granted.ack) { conn.numbers = numbersOf(conn.epoch); }
        if (conn.granted.deflate) { conn.out.offer({ deflate: true }); }
        info("connected to " + server + (data.resumed === true ? ", session resumed" : "")
            + (data.approved === false ? "; this phone is not approved yet" : ""));
        one.route.greeted();
        queue.awayUntil = -Infinity;
        holdUntil = null;
        if (one === next) { replace(); } else if (one === link) { conn.sending = true; }
    }

    function pingReceived(conn, data) {
        var runtime = java.lang.Runtime.getRuntime(), total, used;
        conn.timeout = conn.interval * SILENT_INTERVALS;
        if (data.server_timestamp === undefined) { return; }
        total = runtime.maxMemory() / 1048576;
        used = (runtime.totalMemory() - runtime.freeMemory()) / 1048576;
        write(conn, frame("pong", {
            bot_name: botName, server_timestamp: data.server_timestamp,
            monitoring: {
                total_memory: Math.round(total * 10) / 10, memory_usage: Math.round(used * 10) / 10,
                memory_percent: Math.round(used / total * 1000) / 10,
                message_queue_size: queueLength(), active_rooms: roomCount
            },
            auth: auth(conn)
        }));
    }

    function errorReceived(conn, data) {
        var code = ERRORS.indexOf(data.code) >= 0 ? data.code : "an unknown error";
        conn.error = code;
        conn.errorAt = now();
        conn.unanswered = null;  // it may answer any message, instead of an acknowledgement
        complain("error " + code, nameOf(conn.server) + " says: " + code);
    }

    function closeCode(conn) {
        return conn.error !== null && now() - conn.errorAt <= ERROR_VALID ? conn.error : null;
    }

    function connectionLost(conn, why) {
        var one = linkOf(conn), code = closeCode(conn), server;
        if (conn.lost) { return; }
        conn.lost = true;
        if (one === null) { return; }
        server = one.route.server();
        why = "disconnected from " + nameOf(conn.server) + ": " + (code || conn.why || why);
        if (conn.greetedAt !== null) { info(why); } else { complain("try", why, "i", 60000); }
        one.conn = null;
        if (conn.greetedAt !== null) {
            one.route.lost();
        } else {
            one.route.failed();
        }
        if (code !== null || (conn.greetedAt === null && conn.connectedAt !== null
                && conn.why !== "handshake timeout")) {
            one.route.leaveAlone(server, one.route.refusals.next());
        }
        if (one === retiring) {
            retired();
        } else if (one === link) {
            if (session.token !== null && session.endsAt === null) {
                session.endsAt = now() + session.lifetime;
            }
            if (!holding) { sendAgain(); }
            currentLost(conn, server, code);
        } else {
            schedule(one);
        }
    }

    // What follows the loss of the link in use.
    function currentLost(conn, server, code) {
        if (conn.greetedAt !== null && now() - conn.greetedAt >= TAKEN_OVER_MEMORY) {
            takenOver = 0;
        }
        if (next !== null) {
            makeCurrent();
            return;
        }
        if (code === "TAKEN_OVER") {
            takenOver++;
            if (takenOver > MAX_TAKEN_OVER) {
                resting = true;
                queue.waiting = [];
                queue.chars = 0;
                log("e", "another phone has this bot name and device: stopped until a restart");
                return;
            }
            link.dueAt = now() + TAKEN_OVER_PAUSE * (1 + Math.random());
            log("w", "another connection of this phone took over; back in "
                + Math.round((link.dueAt - now()) / 1000) + " s");
            return;
        }
        if (move !== null) {
            link.route.moved(move.server, move.at);
            move = null;
        } else if (code === "BANNED" || code === "NOT_APPROVED" || code === "AUTH_FAILED") {
            link.route.leaveAlone(server, BARRED * (0.5 + Math.random() / 2));
        }
        schedule(link);
    }

    function shutdownReceived(one, data) {
        var after = isSeconds(data.reconnect_after) ? data.reconnect_after * 1000 : 0;
        var calledOff = holdUntil !== null && after <= 0;
        one.conn.sending = false;
        holdUntil = one.route.stayAway(after);
        suspendExpiry(holdUntil);
        complain("shutdown", calledOff ? "the server stays" : "the server is about to close");
        if (calledOff) { resume(); }
    }

    // The server that was to close is still there: send again what it did not acknowledge.
    function resume() {
        holdUntil = null;
        queue.awayUntil = -Infinity;
        if (isGreeted(link)) {
            if (!holding) { sendAgain(); }
            link.conn.sending = true;
        }
    }

    // ------------------------------------------------------------------ moves: make before break

    function migrationReceived(data) {
        var server = readServer({ host: data.new_host, port: data.new_port, tls: data.tls });
        var lasts, signed, after, at, earliest;
        if (server === null || !isText(data.new_host)) {
            complain("move", "a notice to move names no place: not followed");
            return;
        }
        lasts = isCount(data.expires) ? data.expires - Date.now() : 0;
        signed = lasts > 0 && isText(data.signature) && sameText(data.signature, sign(
            ["serverMigration", server.host, server.port, server.tls, data.expires].join("|")));
        if (!signed) {
            if ((config.TRUSTED_HOSTS || []).map(String).indexOf(server.host) < 0) {
                complain("move", "a notice to move is not signed, or has expired: not followed");
                return;
            }
            if (link.conn.server.tls) { server.tls = true; }
        }
        if (server.tls && server.host === link.conn.server.host) {
            server.pin = link.conn.server.pin;
        }
        configuredServers().forEach(function (known) {
            if (nameOf(known) === nameOf(server)) { server.pin = known.pin; }
        });
        after = isSeconds(data.migrate_after) ? clamp(data.migrate_after * 1000, 0, MAX_AWAY) : 0;
        earliest = move !== null ? move.earliest
            : now() + (link.route.backoff.isSettled() ? 0 : link.route.refusals.next());
        at = Math.max(now() + after, earliest);
        move = {
            server: server, at: at, earliest: earliest,
            until: signed ? Math.min(at + MOVE_TRIAL, now() + lasts) : at + MOVE_TRIAL
        };
        complain("moving", "moving to " + nameOf(server) + " in "
            + Math.round((at - now()) / 1000) + " s", "i");
    }

    function tryInParallel(server, until) {
        next = { route: link.route.parallel(server), conn: null, dueAt: now() };
        nextUntil = until;
    }

    function checkMoves() {
        var time = now();
        if (next !== null) {
            if (time >= nextUntil) { end(next); next = null; }
            return;
        }
        if (move !== null) {
            if (time >= move.until) {
                move = null;
            } else if (time >= move.at && link.conn !== null) {
                tryInParallel(move.server, move.until);
                move = null;
            }
        } else if (time >= returnAt) {
            returnAt = time + RETURN_AFTER * (0.5 + Math.random() / 2);
            if (isGreeted(link) && link.route.index > 0 && retiring === null
                    && link.route.freeAt(link.route.servers[0]) <= time) {
                tryInParallel(link.route.servers[0], time + RETURN_TRIAL);
            }
        }
    }

    // The link that was tried in parallel has been greeted: it takes over.
    function replace() {
        var old = link;
        if (retiring !== null) { retired(); }
        makeCurrent();
        if (old.conn !== null) {
            old.conn.sending = false;
            write(old.conn, frame("migrated",
                { new_host: link.conn.server.host, new_port: link.conn.server.port }));
            retiring = old;
            holding = true;
            settleAt = now() + SETTLE;
            retireAt = now() + LEAVE;
        } else {
            link.conn.sending = true;
        }
        info("moved to " + nameOf(link.conn.server));
    }

    function makeCurrent() {
        var old = link;
        link = next;
        next = null;
        move = null;
        link.route.add(old.route);
        returnAt = now() + RETURN_AFTER * (0.5 + Math.random() / 2);
        if (link.conn === null && link.dueAt === null) { schedule(link); }
    }

    function retired() {
        var old = retiring;
        retiring = null;
        end(old);
        sendAgain();
        releaseHeld();
    }

    function releaseHeld() {
        holding = false;
        if (isGreeted(link)) { link.conn.sending = true; }
    }

    function end(one) {
        var conn = one.conn;
        one.conn = null;
        one.dueAt = null;
        if (conn !== null) {
            conn.lost = true;
            ending.push(conn);
            finish(conn);
        }
    }

    var ending = [];  // connections that send what is written, and close

    // ------------------------------------------------------------------ the watchdog

    function tick() {
        var late = now() - tickAt > 3 * TICK, time;
        tickAt = time = now();
        if (handedOver()) { stopping.set(true); }
        expire();
        expireKept();
        [link, next, retiring].forEach(function (one) {
            if (one !== null && one.conn !== null) { watch(one.conn, late); }
        });
        ending = ending.filter(function (conn) {
            if (time < conn.closeAt && !conn.closed.get()) { return true; }
            abort(conn);
            return false;
        });
        if (holding && time >= settleAt) { releaseHeld(); }
        if (retiring !== null && time >= retireAt) { retired(); }
        if (holdUntil !== null && time >= holdUntil && isGreeted(link)) { resume(); }
        stopFetching(time);
        checkMoves();
    }

    function giveUp(conn, why) {
        conn.why = why;
        abort(conn);
        connectionLost(conn, why);
    }

    // late: we were held up ourselves, so that silence is nobody's fault.
    function watch(conn, late) {
        var time = now(), silent;
        if (late) {
            conn.heardAt.set(Math.floor(time));
            conn.answeredAt = time;
            conn.startedAt = time;
            if (conn.connectedAt !== null) { conn.connectedAt = time; }
            return;
        }
        silent = time - conn.heardAt.get();
        if (conn.greetedAt === null) {
            if (conn.connectedAt === null ? time - conn.startedAt >= 3 * CONNECT_TIMEOUT
                : time - conn.connectedAt >= GREETING_TIMEOUT) {
                giveUp(conn, conn.connectedAt === null ? "cannot be reached" : "handshake timeout");
            }
            return;
        }
        if (conn.granted.probe) {
            watchProbe(conn, time, silent);
        } else if (silent >= conn.timeout) {
            giveUp(conn, "nothing heard for " + Math.round(silent / 1000) + " s");
        }
        if (conn.unanswered === null || !conn.sending) {
            conn.answeredAt = time;
        } else if (time - conn.answeredAt >= session.ackTimeout + conn.longest / LEAST_SPEED) {
            // A server that is heard may be holding back: the next one has more time.
            if (conn.heardAt.get() > conn.answeredAt) {
                session.ackTimeout = Math.min(2 * session.ackTimeout, MAX_ACK_TIMEOUT);
            }
            giveUp(conn, "messages are not acknowledged");
        }
    }

    function watchProbe(conn, time, silent) {
        if (silent < Math.min(PROBE_AFTER, 0.75 * conn.interval)) {
            conn.probedAt = null;
        } else if (conn.probedAt === null) {
            conn.probedAt = time;
            write(conn, frame("probe", {}));
        } else if (time - conn.probedAt >= Math.max(PROBE_TIMEOUT, session.ackTimeout)) {
            giveUp(conn, "nothing heard for " + Math.round(silent / 1000) + " s");
        }
    }

    // ------------------------------------------------------------------ replies

    function replyReceived(conn, data, tail) {
        var number = data.message_id, result = null, room, type, pieces, content;
        if (conn.granted.ack && isCount(number)) {
            if (number <= conn.numbers.last) {
                conn.toAck = conn.numbers.last;
                return;
            }
            conn.numbers.last = conn.toAck = number;
            result = { epoch: conn.epoch, number: number };
        }
        room = isText(data.room) ? data.room : "";
        type = data.message_type;
        pieces = piecesOf(data.message_positions, tail);
        if (!room || pieces === null) {
            complain("reply", "dropped a reply without a room, a type or positions");
            report(result, false, "malformed");
        } else if (type === "text") {
            try {
                content = clean(textOf(data, pieces[0]));
            } catch (e) {
                complain("reply", "dropped a reply that cannot be decoded");
                report(result, false, "malformed");
                return;
            }
            if (content) {
                showText({ room: room, text: content, result: result, until: now() + MESSAGE_TTL });
            } else {
                report(result, false, "empty");
            }
        } else if (USUAL.hasOwnProperty(type)) {
            showMedia({
                room: room, channelId: digits(data.channel_id), type: type, pieces: pieces,
                format: text(data.message_format) || "", wait: data.media_wait_time, result: result
            });
        } else {
            complain("reply", "dropped a reply of an unknown type");
            report(result, false, "unknown type");
        }
    }

    function piecesOf(positions, tail) {
        var pieces = [], i;
        if (!Array.isArray(positions) || positions.length < 2
                || positions.length > MAX_MEDIA_PIECES + 1 || positions[0] !== 0) {
            return null;
        }
        for (i = 1; i < positions.length; i++) {
            if (!isCount(positions[i]) || positions[i] <= positions[i - 1]
                    || positions[i] > tail.length) {
                return null;
            }
            pieces.push(tail.substring(positions[i - 1], positions[i]));
        }
        return pieces;
    }

    function textOf(data, piece) {
        var encoding = data.content_encoding;
        if (encoding === "base64") { return fromUtf8(fromBase64(piece)); }
        if (encoding === "gzip+base64") {
            return fromUtf8(gunzipped(fromBase64(piece), 4 * MAX_TEXT_CHARS + 1024));
        }
        return fromUtf8(bytesOfLatin1(piece));
    }

    function digits(value) {
        var string = text(value);
        return string !== null && /^[0-9]{1,19}$/.test(string) ? string : null;
    }

    // Results go to the server whose message it was, or nowhere.
    var results = [];

    function report(result, ok, reason) {
        if (result === null) { return; }
        results.push({
            epoch: result.epoch, number: result.number, ok: ok, reason: reason, writtenAt: null
        });
        if (results.length > MAX_RESULTS) { results.shift(); }
    }

    // Nobody acknowledges results, so the last ones go once more over the next connection.
    function sendResultsAgain() {
        forgetResults();
        results.forEach(function (result) { result.writtenAt = null; });
    }

    function forgetResults() {
        var oldest = now() - RESULT_MEMORY;
        results = results.filter(function (result) {
            return result.writtenAt === null || result.writtenAt > oldest;
        });
    }

    function sendResults(conn) {
        results.forEach(function (result) {
            if (result.epoch === conn.epoch && result.writtenAt === null) {
                result.writtenAt = now();
                write(conn, frame("delivery",
                    { message_id: result.number, ok: result.ok, reason: result.reason }));
            }
        });
    }

    // ------------------------------------------------------------------ the app: texts

    var bot = null;
    try { bot = BotManager.getCurrentBot(); } catch (e) { /* the old interface */ }

    // How chat comes in, whichever was first: an app may call both.
    var way = null;
    var repliers = {}, replierRooms = [];
    var rooms = {}, roomCount = 0;
    var kept = [], keptChars = 0;

    function canReply(room) {
        try {
            if (way !== "response" && bot !== null && bot.canReply) {
                return yesOrNo(bot.canReply(room));
            }
            return yesOrNo(Api.canReply(room));
        } catch (e) {
            return null;
        }
    }

    function handToApp(room, message) {
        if (way !== "response" && bot !== null) { return yesOrNo(bot.send(room, message)); }
        if (repliers["r" + room]) { return yesOrNo(repliers["r" + room].reply(room, message)); }
        return yesOrNo(Api.replyRoom(room, message));
    }

    function showText(reply) {
        var waits = kept.some(function (one) { return one.room === reply.room; });
        if (waits || !tryText(reply)) { keep(reply); }
    }

    // Returns false if the app cannot answer in that room yet.
    function tryText(reply) {
        var can = canReply(reply.room), sent = null;
        if (can === false) { return false; }
        try {
            sent = handToApp(reply.room, reply.text);
        } catch (e) {
            complain("send", "the app failed to send a reply");
            report(reply.result, false, "the app failed");
            return true;
        }
        if (sent === false) {
            if (can === null || canReply(reply.room) === false) { return false; }
            report(reply.result, false, "the app refused");
        } else if (sent === true) {
            report(reply.result, true, "");
        }
        return true;
    }

    function keep(reply) {
        if (kept.length >= MAX_KEPT || keptChars + reply.text.length > MAX_KEPT_CHARS) {
            report(reply.result, false, "too many replies wait");
            return;
        }
        kept.push(reply);
        keptChars += reply.text.length;
        complain("kept", "a room cannot be answered before it speaks: its replies wait");
    }

    function tryKept(may) {
        var blocked = {};
        kept = kept.filter(function (reply) {
            var room = "r" + reply.room;
            if (!may(reply) || blocked[room]) { return true; }
            if (!tryText(reply)) { blocked[room] = true; return true; }
            keptChars -= reply.text.length;
            return false;
        });
    }

    function expireKept() {
        var time = now();
        if (kept.length === 0) { return; }
        kept = kept.filter(function (reply) {
            if (reply.until > time) { return true; }
            keptChars -= reply.text.length;
            report(reply.result, false, "no notification");
            return false;
        });
        tryKept(function (reply) { return canReply(reply.room) === true; });
    }

    function roomSpoke(room, replier) {
        if (!rooms["r" + room] && roomCount < 10000) { rooms["r" + room] = true; roomCount++; }
        if (replier) {
            if (!repliers["r" + room]) {
                replierRooms.push("r" + room);
                if (replierRooms.length > 500) { delete repliers[replierRooms.shift()]; }
            }
            repliers["r" + room] = replier;
        }
        if (kept.length > 0) { tryKept(function (reply) { return reply.room === room; }); }
    }

    // On the app's thread: nothing here may wait.
    function chatReceived(from, chat, replier) {
        if (way === null) { way = from; }
        if (way !== from || over.get()) { return; }
        chat.room = cleanName(chat.room || "");
        chat.sender = cleanName(chat.sender || "");
        chat.text = clean(chat.text || "");
        if (!chat.text || !/\S/.test(chat.room)) { return; }
        if (isTooLong(chat.text)) {
            complain("long", "a message is longer than " + MAX_TEXT_CHARS + " characters: dropped");
            return;
        }
        if (inboxChars.addAndGet(chat.text.length) > MAX_QUEUE_CHARS
                || !inbox.offer({ kind: "chat", chat: chat, replier: replier })) {
            inboxChars.addAndGet(-chat.text.length);
            complain("inbox", "messages come too fast: some are dropped");
        }
    }

    function onMessage(msg) {
        try {
            var author = msg.author || {};
            chatReceived("event", {
                room: text(msg.room), sender: text(author.name), text: text(msg.content),
                channelId: digits(msg.channelId), logId: digits(msg.logId),
                userHash: text(author.hash), isGroup: yesOrNo(msg.isGroupChat) === true,
                isMention: yesOrNo(msg.isMention) === true
            }, null);
        } catch (e) {
            complain("message", "a message of the app cannot be read");
        }
    }

    function onResponse(args) {
        try {
            chatReceived("response", {
                room: text(args[0]), text: text(args[1]), sender: text(args[2]),
                isGroup: yesOrNo(args[3]) === true, isMention: yesOrNo(args[7]) === true,
                logId: digits(args[8]), channelId: digits(args[9]), userHash: text(args[10])
            }, args[4]);
        } catch (e) {
            complain("message", "a message of the app cannot be read");
        }
    }

    // ------------------------------------------------------------------ the app: files
    // On a thread of their own, for each takes seconds in the chat app.

    var EXTENSIONS = {
        image: ["png", "jpg", "jpeg", "gif", "webp", "bmp", "heic"],
        audio: ["mp3", "m4a", "ogg", "wav", "aac", "flac", "amr"],
        video: ["mp4", "mov", "webm", "mkv", "avi", "3gp"]
    };
    var MIMES = {
        jpg: "image/jpeg", jpeg: "image/jpeg", mp3: "audio/mpeg", m4a: "audio/mp4",
        mov: "video/quicktime", mkv: "video/x-matroska", avi: "video/x-msvideo",
        "3gp": "video/3gpp", pdf: "application/pdf", txt: "text/plain", zip: "application/zip",
        docx: "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        xlsx: "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        pptx: "application/vnd.openxmlformats-officedocument.presentationml.presentation"
    };
    var USUAL = { image: "png", audio: "mp3", video: "mp4", document: "bin" };

    var mediaJobs = new LinkedBlockingQueue(MAX_MEDIA_JOBS);
    var mediaChars = new AtomicLong(0);
    var mediaThread = null, mediaFiles = [], mediaCount = 0;

    function showMedia(job) {
        job.chars = 0;
        job.pieces.forEach(function (piece) { job.chars += piece.length; });
        if (job.channelId === null) {
            complain("media", "files for a room without an id cannot be sent");
            report(job.result, false, "no channel id");
            return;
        }
        if (mediaChars.addAndGet(job.chars) > 2 * maxLineChars || !mediaJobs.offer(job)) {
            mediaChars.addAndGet(-job.chars);
            complain("media", "too many files wait: dropped");
            report(job.result, false, "too many files wait");
            return;
        }
        if (mediaThread === null) {
            mediaThread = spawn("media", runMedia, function () { mediaThread = null; });
        }
    }

    function runMedia() {
        var job, reason;
        guarded("media folder", removeOld);
        while (!stopping.get() && !over.get()) {
            try {
                job = mediaJobs.poll(mediaFiles.length > 0 ? TICK : MEDIA_KEEP, MILLISECONDS);
                if (job) {
                    reason = "";
                    try {
                        share(job);
                    } catch (e) {
                        // Java's messages name addresses, which may hold a token.
                        if (!job.shared) {
                            reason = NOT_SENT;
                            complain("media", reason + ": " + (e.javaException
                                ? text(e.javaException.getClass().getName()) : describe(e)));
                        }
                    }
                    mediaChars.addAndGet(-job.chars);
                    post({ kind: "media", result: job.result, ok: !reason, reason: reason });
                    job = null;
                }
                removeDue(false);
            } catch (interrupted) {
                break;
            }
        }
        removeDue(true);
    }

    function share(job) {
        var files = [], context = appContext(), Intent = android.content.Intent, intent, uris, wait;
        var bytes = 0, i;
        try {
            for (i = 0; i < job.pieces.length; i++) {
                files.push(save(job, job.pieces[i]));
                bytes += files[i].file.length();
                if (bytes > MAX_DOWNLOAD_BYTES) { throw new Error("the files are too large"); }
            }
            uris = new java.util.ArrayList();
            for (i = 0; i < files.length; i++) { uris.add(uriOf(context, files[i].file)); }
            intent = new Intent(
                files.length > 1 ? Intent.ACTION_SEND_MULTIPLE : Intent.ACTION_SEND);
            intent.setPackage(CHAT_APP);
            intent.setType(commonMime(files));
            if (files.length > 1) {
                intent.putParcelableArrayListExtra(Intent.EXTRA_STREAM, uris);
            } else {
                intent.putExtra(Intent.EXTRA_STREAM, uris.get(0));
            }
            intent.putExtra("key_id", new java.lang.Long(job.channelId));
            intent.putExtra("key_type", new java.lang.Integer(1));
            intent.putExtra("key_from_direct_share", java.lang.Boolean.TRUE);
            intent.addFlags(Intent.FLAG_ACTIVITY_NEW_TASK | Intent.FLAG_GRANT_READ_URI_PERMISSION
                | Intent.FLAG_ACTIVITY_CLEAR_TOP);
            context.startActivity(intent);
            job.shared = true;  // what interrupts the wait is an end of the script
            wait = isSeconds(job.wait) && job.wait > 0 ? Math.min(job.wait, MAX_MEDIA_WAIT)
                : clamp(2000 + 1000 * files.length + bytes / 1000, 3000, 15000);
            java.lang.Thread.sleep(Math.round(wait));
            comeBack(context);
            java.lang.Thread.sleep(MEDIA_SETTLE);
        } finally {
            files.forEach(function (saved) {
                mediaFiles.push({ file: saved.file, dueAt: now() + MEDIA_KEEP });
            });
        }
    }

    function comeBack(context) {
        try {
            var home = context.getPackageManager()
                .getLaunchIntentForPackage(context.getPackageName());
            home.addFlags(android.content.Intent.FLAG_ACTIVITY_NEW_TASK);
            context.startActivity(home);
        } catch (e) {
            complain("media", "cannot come back from the chat app");
        }
    }

    function mediaFolder() {
        var folder = new java.io.File(String(config.MEDIA_TEMP_DIR));
        if (!folder.isDirectory()) { folder.mkdirs(); }
        return folder;
    }

    function save(job, piece) {
        var isAddress = /^https?:\/\//.test(piece), bytes, extension, file, out, address;
        if (isAddress) {
            bytes = download(piece);
            address = /\.([A-Za-z0-9]{1,5})$/.exec(piece.replace(/[?#].*$/, ""));
            extension = extensionOf(job, bytes, address ? address[1] : "");
        } else {
            bytes = fromBase64(piece);
            extension = extensionOf(job, bytes, "");
        }
        file = new java.io.File(mediaFolder(),
            MEDIA_PREFIX + Date.now() + "_" + (++mediaCount) + "." + extension);
        out = new java.io.FileOutputStream(file);
        try { out.write(bytes, 0, bytes.length); } finally { out.close(); }
        return { file: file, mime: mimeOf(extension, job.type) };
    }

    // What a file is, by its first bytes.
    function sniffed(bytes) {
        var head = latin1(bytes, 0, Math.min(16, bytes.length));
        if (head.indexOf("\u0089PNG") === 0) { return "png"; }
        if (head.indexOf("\u00ff\u00d8\u00ff") === 0) { return "jpg"; }
        if (head.indexOf("GIF8") === 0) { return "gif"; }
        if (head.indexOf("RIFF") === 0) {
            return { "WEBP": "webp", "WAVE": "wav", "AVI ": "avi" }[head.substring(8, 12)] || "";
        }
        if (head.indexOf("ID3") === 0) { return "mp3"; }
        if (head.indexOf("OggS") === 0) { return "ogg"; }
        if (head.indexOf("fLaC") === 0) { return "flac"; }
        if (head.indexOf("%PDF") === 0) { return "pdf"; }
        if (head.substring(4, 8) === "ftyp") {
            return head.substring(8, 11) === "M4A" ? "m4a"
                : head.substring(8, 12) === "qt  " ? "mov"
                : head.substring(8, 11) === "3gp" ? "3gp"
                : head.substring(8, 12) === "heic" ? "heic" : "mp4";
        }
        return "";
    }

    function extensionOf(job, bytes, named) {
        var found = sniffed(bytes), given = job.format.toLowerCase().replace(/^\./, "");
        var known = EXTENSIONS[job.type];
        if (!/^[a-z0-9]{1,5}$/.test(given)) { given = named.toLowerCase(); }
        if (known === undefined) { return given || found || USUAL[job.type]; }
        if (known.indexOf(found) >= 0) { return found; }
        return known.indexOf(given) >= 0 ? given : USUAL[job.type];
    }

    function mimeOf(extension, type) {
        if (MIMES[extension]) { return MIMES[extension]; }
        return type === "document" ? "application/octet-stream" : type + "/" + extension;
    }

    function commonMime(files) {
        var mime = files[0].mime, kind = mime.split("/")[0], i;
        for (i = 1; i < files.length; i++) {
            if (files[i].mime !== mime) {
                mime = files[i].mime.split("/")[0] === kind ? kind + "/*" : "*/*";
                if (mime === "*/*") { return mime; }
            }
        }
        return mime;
    }

    var fetching = null;  // a connection that waits for its headers: the engine may break it

    function stopFetching(due) {
        var one = fetching;
        if (one !== null && due >= one.until) { one.connection.disconnect(); }
    }

    // Java itself follows no redirect from http to https, and takes its page for the file.
    function download(address) {
        var url = new java.net.URL(address), until = now() + 4 * DOWNLOAD_TIMEOUT, left, target;
        for (left = MAX_REDIRECTS; left >= 0; left--) {
            target = downloadFrom(url, until);
            if (target.bytes) { return target.bytes; }
            target = new java.net.URL(url, target.address);
            if (!/^https?$/.test(String(target.getProtocol()))
                    || (String(url.getProtocol()) === "https"
                        && String(target.getProtocol()) !== "https")) {
                throw new Error("a redirect leads out of the web");
            }
            url = target;
        }
        throw new Error("too many redirects");
    }

    // Returns the file, or the address to which it has moved.
    function downloadFrom(url, until) {
        var connection = url.openConnection(), status, address;
        connection.setInstanceFollowRedirects(false);
        connection.setConnectTimeout(DOWNLOAD_TIMEOUT);
        connection.setReadTimeout(DOWNLOAD_TIMEOUT);
        try {
            fetching = { connection: connection, until: until };
            if (now() > until || stopping.get()) { throw new Error("the download is too slow"); }
            try { status = connection.getResponseCode(); } finally { fetching = null; }
            address = text(connection.getHeaderField("Location"));
            if (status >= 300 && status < 400 && address) { return { address: address }; }
            if (status !== 200) { throw new Error("the answer to a download is " + status); }
            return { bytes: bodyOf(connection, until) };
        } finally {
            connection.disconnect();
        }
    }

    function bodyOf(connection, until) {
        var out = new java.io.ByteArrayOutputStream(), buffer = newBytes(16384), count;
        var most = Math.min(MAX_DOWNLOAD_BYTES, maxLineChars), input = connection.getInputStream();
        try {
            while ((count = input.read(buffer, 0, 16384)) >= 0) {
                if (out.size() + count > most) { throw new Error("the file is too large"); }
                if (now() > until || stopping.get()) {
                    throw new Error("the download is too slow");
                }
                out.write(buffer, 0, count);
            }
        } finally {
            input.close();
        }
        return out.toByteArray();
    }

    // The app's own file provider, or, where it has none, a plain address.
    function uriOf(context, file) {
        var name = String(context.getPackageName()), names = [name + ".fileprovider",
            name + ".provider"], i, os;
        for (i = 0; i < names.length; i++) {
            try {
                return Packages.androidx.core.content.FileProvider.getUriForFile(
                    context, names[i], file);
            } catch (e) { /* the next one */ }
        }
        os = android.os.StrictMode;
        os.setVmPolicy(new os.VmPolicy.Builder().build());
        return android.net.Uri.fromFile(file);
    }

    function removeDue(all) {
        var time = now();
        mediaFiles = mediaFiles.filter(function (entry) {
            if (!all && time < entry.dueAt) { return true; }
            entry.file["delete"]();
            return false;
        });
    }

    // Files that a killed app has left behind.
    function removeOld() {
        var list = mediaFolder().listFiles(), i;
        for (i = 0; list !== null && i < list.length; i++) {
            if (String(list[i].getName()).indexOf(MEDIA_PREFIX) === 0
                    && Date.now() - list[i].lastModified() > MEDIA_MAX_AGE) {
                list[i]["delete"]();
            }
        }
    }

    // ------------------------------------------------------------------ from start to end
    // A script that is compiled again leaves what waits to its successor, in the app's memory.

    var slot = "domaeka.bridge." + deviceId + "." + botName;
    var runId = randomHex(8);

    function handedOver() { return text(System.getProperty(slot + ".run")) !== runId; }

    // A clock that goes on in a phone's deep sleep.
    function bootTime() {
        try { return Number(android.os.SystemClock.elapsedRealtime()); } catch (e) { return now(); }
    }

    // The app outlives its scripts, and with it the notifications by which it answers.
    function appStartedAt() {
        var said = text(System.getProperty(slot + ".since"));
        if (said === null) {
            said = String(bootTime());
            System.setProperty(slot + ".since", said);
        }
        return Number(said);
    }

    function start() {
        var before = text(System.getProperty(slot + ".run")), until = now() + 5000, servers, left;
        appStartedAt();
        System.setProperty(slot + ".run", runId);
        while (before !== null && text(System.getProperty(slot + ".over")) !== before
                && now() < until && !stopping.get()) {
            java.lang.Thread.sleep(50);
        }
        left = text(System.getProperty(slot + ".left"));
        System.clearProperty(slot + ".left");
        if (left !== null) { guarded("handover", function () { takeOver(JSON.parse(left)); }); }
        servers = configuredServers();
        if (servers.length === 0 || !secretKey) {
            log("e", "BOT_CONFIG needs a SECRET_KEY and a SERVER_LIST");
            stopping.set(true);
            return false;
        }
        link.route = new Route(servers);
        link.dueAt = now() + (Number(config.INITIALIZATION_DELAY) || 0);
        tickAt = now();
        returnAt = now() + RETURN_AFTER * (0.5 + Math.random() / 2);
        info("bridge " + VERSION + " starts");
        return true;
    }

    function takeOver(left) {
        idPrefix = left.prefix;
        queue.count = left.count;
        queue.waiting = left.waiting;
        queue.waiting.forEach(function (entry) { queue.chars += entry.text.length; });
        session = left.session;
        lastSigned = left.lastSigned;
        results = left.results;
        left.kept.forEach(function (reply) {
            kept.push(reply);
            keptChars += reply.text.length;
        });
    }

    // The script ends: wait a little for acknowledgements, leave the rest to the successor.
    function finishEngine() {
        var until = now() + STOP_PATIENCE, media = mediaThread, event, job;
        info("bridge stops");
        if (media !== null) { media.interrupt(); }
        guarded("download", function () { stopFetching(Infinity); });
        if (media !== null) { media.join(500); }  // for its last report
        if (next !== null) { end(next); next = null; }
        while (now() < until && isGreeted(link) && queueLength() > 0 && !handedOver()) {
            event = inbox.poll(50, MILLISECONDS);
            if (event) { handleSafely(event); }
            flush();
        }
        over.set(true);
        java.lang.Thread.sleep(20);  // for who has just looked
        while ((event = inbox.poll())) { handleSafely(event); }
        while ((job = mediaJobs.poll())) { report(job.result, false, NOT_SENT); }
        if (isGreeted(link)) { link.conn.sending = false; }
        flush();
        sendAgain();
        if (session.token !== null && session.endsAt === null) {
            session.endsAt = now() + session.lifetime;
        }
        System.setProperty(slot + ".left", JSON.stringify({
            prefix: idPrefix, count: queue.count, waiting: queue.waiting, session: session,
            lastSigned: lastSigned, kept: kept, results: results
        }));
        [link, retiring].forEach(function (one) { if (one !== null) { end(one); } });
        until = now() + 500;
        while (now() < until && ending.some(function (conn) { return !conn.closed.get(); })) {
            java.lang.Thread.sleep(20);
        }
    }

    function engineEnded() {
        over.set(true);
        [link, next, retiring].forEach(function (one) {
            if (one !== null && one.conn !== null) { abort(one.conn); }
        });
        ending.forEach(abort);
        System.setProperty(slot + ".over", runId);
    }

    function stop() { stopping.set(true); inbox.offer({ kind: "stop" }); }

    if (bot !== null) {
        try {
            bot.addListener(Event.MESSAGE, onMessage);
            if (Event.START_COMPILE) { bot.addListener(Event.START_COMPILE, stop); }
        } catch (e) {
            bot = null;
        }
    }
    spawn("engine", runEngine, restartEngine);

    return { version: VERSION, stop: stop, onResponse: onResponse };
}());

// The app's old interface.

function response(room, msg, sender, isGroupChat, replier) {
    domaekaBridge.onResponse(arguments);
}

function onStartCompile() {
    domaekaBridge.stop();
}
