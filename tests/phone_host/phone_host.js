/*
 * phone_host.js: the world that a MessengerBotR bridge script expects, on a plain JVM.
 *
 * Evaluated once per phone, in that phone's own global scope, before the client script.
 * `host` is the Java side (PhoneHost.Phone); `bootJson` is the driver's boot command:
 *   config      values put into the script's BOT_CONFIG at the moment it is assigned
 *   device      {androidId, brand, model, release, sdk, mac}
 *   mediaKeep   folder to which shared media are copied ("" = keep only size and hash)
 *   logMax      longest log text passed on (the full length is reported beside it)
 *   oldInterface  no BotManager: only response(), as in old versions of the app
 *   inject      auto | event | response: how an incoming chat message reaches the script
 */
(function (host, bootJson) {
    "use strict";
    var GLOBAL = (function () { return (0, eval)("this"); })();
    var boot = JSON.parse(bootJson);
    var device = boot.device || {};
    var logMax = boot.logMax || 600;

    function emit(o) { host.emit(JSON.stringify(o)); }
    function text(v) { return v === null || v === undefined ? v : String(v); }
    function clip(s) { return s.length > logMax ? s.substring(0, logMax) : s; }

    // ---------------------------------------------------------------- logging
    function logger(level) {
        return function (m) {
            var s = String(m);
            var o = { ev: "log", level: level, msg: clip(s) };
            if (s.length > logMax) o.len = s.length;
            emit(o);
        };
    }
    GLOBAL.Log = { i: logger("i"), w: logger("w"), e: logger("e"), d: logger("d"),
                   info: logger("i"), warn: logger("w"), error: logger("e"), debug: logger("d"),
                   clear: function () {} };
    GLOBAL.console = { log: logger("i"), error: logger("e"), warn: logger("w") };

    // ----------------------------------------------------------------- timers
    GLOBAL.setTimeout = function (fn, ms) { return host.timer(fn, +ms || 0, false); };
    GLOBAL.setInterval = function (fn, ms) { return host.timer(fn, +ms || 0, true); };
    GLOBAL.clearTimeout = GLOBAL.clearInterval = function (n) {
        if (typeof n === "number") host.cancel(n);
    };

    // --------------------------------------------------- BOT_CONFIG interception
    // The script's own top-level assignment runs into this setter, so the values are in
    // place before any other line of the script can read them.  The file stays as it is.
    var configSeen = false, configValue;
    function merge(into, from) {
        for (var k in from) {
            var v = from[k];
            if (v && typeof v === "object" && !Array.isArray(v)
                    && into[k] && typeof into[k] === "object" && !Array.isArray(into[k]))
                merge(into[k], v);
            else into[k] = v;
        }
    }
    Object.defineProperty(GLOBAL, "BOT_CONFIG", {
        configurable: true, enumerable: true,
        get: function () { return configValue; },
        set: function (v) {
            if (v && typeof v === "object" && !configSeen) {
                configSeen = true;
                merge(v, boot.config || {});
            }
            configValue = v;
        }
    });

    // ---------------------------------------------------------------- android
    function Uri(scheme, path) { this.scheme = scheme; this.path = String(path); }
    Uri.prototype.toString = function () { return this.scheme + "://" + this.path; };
    Uri.prototype.getPath = function () { return this.path; };

    function Intent(action) {
        this.action = text(action); this.extras = {}; this.flags = 0;
        this.uris = []; this.pkg = null; this.mime = null;
    }
    Intent.prototype = {
        setAction: function (a) { this.action = text(a); return this; },
        setPackage: function (p) { this.pkg = text(p); return this; },
        setType: function (t) { this.mime = text(t); return this; },
        setData: function (u) { this.uris = [u]; return this; },
        setFlags: function (f) { this.flags = f; return this; },
        addFlags: function (f) { this.flags |= f; return this; },
        addCategory: function () { return this; },
        setClassName: function () { return this; },
        setComponent: function () { return this; },
        putExtra: function (k, v) {
            k = String(k);
            if (k === Intent.EXTRA_STREAM) this.uris = [v]; else this.extras[k] = String(v);
            return this;
        },
        putParcelableArrayListExtra: function (k, list) {
            this.uris = [];
            for (var i = 0; i < list.size(); i++) this.uris.push(list.get(i));
            return this;
        }
    };
    Intent.ACTION_SEND = "android.intent.action.SEND";
    Intent.ACTION_SEND_MULTIPLE = "android.intent.action.SEND_MULTIPLE";
    Intent.ACTION_MAIN = "android.intent.action.MAIN";
    Intent.ACTION_VIEW = "android.intent.action.VIEW";
    Intent.CATEGORY_HOME = "android.intent.category.HOME";
    Intent.EXTRA_STREAM = "android.intent.extra.STREAM";
    Intent.EXTRA_TEXT = "android.intent.extra.TEXT";
    Intent.FLAG_ACTIVITY_NEW_TASK = 0x10000000;
    Intent.FLAG_ACTIVITY_CLEAR_TOP = 0x04000000;
    Intent.FLAG_GRANT_READ_URI_PERMISSION = 1;

    var packageManager = {
        getLaunchIntentForPackage: function (p) {
            var i = new Intent(Intent.ACTION_MAIN); i.setPackage(p); return i;
        }
    };
    var context = {
        getContentResolver: function () { return {}; },
        getPackageManager: function () { return packageManager; },
        getPackageName: function () { return host.jstr("com.xfl.msgbot"); },
        getFilesDir: function () { return new java.io.File(boot.dataDir || "."); },
        getSystemService: function () {
            return { getConnectionInfo: function () {
                return { getMacAddress: function () { return host.jstr(device.mac || "02:00:00:00:00:00"); } };
            } };
        },
        startActivity: function (intent) {
            if (intent.action === Intent.ACTION_SEND || intent.action === Intent.ACTION_SEND_MULTIPLE) {
                var files = intent.uris.map(function (u) {
                    return JSON.parse(String(host.fileInfo(u.path, boot.mediaKeep || "")));
                });
                emit({ ev: "share", action: intent.action, pkg: intent.pkg, mime: intent.mime,
                       channel: intent.extras.key_id === undefined ? null : intent.extras.key_id,
                       extras: intent.extras, files: files });
            } else emit({ ev: "activity", action: intent.action, pkg: intent.pkg });
        }
    };

    var Secure = { ANDROID_ID: "android_id",
                   getString: function () { return host.jstr(device.androidId || "0123456789abcdef"); } };
    function policyOf() {
        function Policy() {}
        Policy.LAX = new Policy();
        Policy.Builder = function () {};
        Policy.Builder.prototype = { build: function () { return new Policy(); },
                                     permitAll: function () { return this; },
                                     detectAll: function () { return this; } };
        return Policy;
    }
    var android = {
        util: {
            Base64: {
                DEFAULT: 0, NO_PADDING: 1, NO_WRAP: 2, CRLF: 4, URL_SAFE: 8,
                encodeToString: function (bytes, flags) { return host.b64encode(bytes, (flags & 2) === 0); },
                decode: function (s) { return host.b64decode(String(s)); }
            },
            Log: { i: function (t, m) { Log.i(t + ": " + m); }, e: function (t, m) { Log.e(t + ": " + m); },
                   w: function (t, m) { Log.w(t + ": " + m); }, d: function (t, m) { Log.d(t + ": " + m); } }
        },
        provider: { Settings: { Secure: Secure } },
        app: { ActivityThread: { currentApplication: function () { return context; } } },
        os: {
            Build: {
                get MODEL() { return host.jstr(device.model || "SM-TEST1"); },
                get BRAND() { return host.jstr(device.brand || "harness"); },
                VERSION: { get RELEASE() { return host.jstr(device.release || "13"); },
                           SDK_INT: device.sdk || 33 }
            },
            StrictMode: { ThreadPolicy: policyOf(), VmPolicy: policyOf(),
                          setThreadPolicy: function () {}, setVmPolicy: function () {} },
            Handler: function () { this.post = function (r) { host.timer(r.run || r, 0, false); }; },
            Looper: { getMainLooper: function () { return {}; } },
            Environment: { getExternalStorageDirectory: function () { return new java.io.File(boot.dataDir || "."); } },
            Bundle: function () {}
        },
        net: { Uri: { fromFile: function (f) { return new Uri("file", f.getPath()); },
                      parse: function (s) { return new Uri("parsed", s); } } },
        content: { Intent: Intent, Context: { WIFI_SERVICE: "wifi" }, pm: { PackageManager: {} },
                   ComponentName: function () {} },
        media: { MediaScannerConnection: { scanFile: function (c, paths) {
            emit({ ev: "scan", paths: paths.map(String) });
        } } },
        security: { KeyChain: {} }
    };
    var androidx = { core: { content: { FileProvider: {
        getUriForFile: function (c, authority, file) { return new Uri("content://" + authority, file.getPath()); }
    } } } };
    GLOBAL.android = android;
    GLOBAL.androidx = androidx;
    var javaTop = GLOBAL.Packages;
    GLOBAL.Packages = { java: javaTop.java, javax: javaTop.javax, org: javaTop.org, com: javaTop.com,
                        android: android, androidx: androidx };

    // ------------------------------------------------------------ the app's API
    GLOBAL.App = { getContext: function () { return context; }, runOnUiThread: function (f) { f(null, null); } };
    GLOBAL.Api = { getContext: function () { return context; }, replyRoom: function (r, m) { return sendTo(r, m, "Api.replyRoom"); },
                   reload: function () {}, compile: function () {}, canReply: function () { return true; } };
    GLOBAL.Device = { getAndroidId: function () { return host.jstr(device.androidId || "0123456789abcdef"); },
                      getPhoneBrand: function () { return host.jstr(device.brand || "harness"); },
                      getPhoneModel: function () { return host.jstr(device.model || "SM-TEST1"); },
                      getBuild: function () { return android.os.Build; } };
    var CROCK = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    GLOBAL.Security = {
        ulid: function () {
            var t = Date.now(), s = "";
            for (var i = 0; i < 10; i++) { s = CROCK.charAt(t % 32) + s; t = Math.floor(t / 32); }
            for (i = 0; i < 16; i++) s += CROCK.charAt(Math.floor(Math.random() * 32));
            return s;
        }
    };
    GLOBAL.FileStream = {
        read: function (p) { try { return String(host.readText(String(p))); } catch (e) { return null; } },
        write: function (p, d) { host.writeText(String(p), String(d), false); return String(d); },
        append: function (p, d) { host.writeText(String(p), String(d), true); return String(d); },
        remove: function (p) { return new java.io.File(String(p))["delete"](); },
        save: function (p, d) { host.writeText(String(p), String(d), false); return true; }
    };
    GLOBAL.Event = {
        MESSAGE: "message", COMMAND: "command", NOTIFICATION_POSTED: "notificationPosted",
        NOTIFICATION_REMOVED: "notificationRemoved", START_COMPILE: "startCompile", TICK: "tick",
        DEBUG_MESSAGE: "debugMessage", ERROR: "error",
        Activity: { CREATE: "activityCreate", START: "activityStart", RESUME: "activityResume",
                    PAUSE: "activityPause", STOP: "activityStop", RESTART: "activityRestart",
                    DESTROY: "activityDestroy", BACK_PRESSED: "activityBackPressed" }
    };

    function sendTo(room, message, via) {
        emit({ ev: "send", room: text(room), text: text(message), via: via });
        return true;
    }
    var listeners = {};
    var bot = {
        addListener: function (name, fn) { (listeners[name] = listeners[name] || []).push(fn); },
        on: function (name, fn) { this.addListener(name, fn); },
        removeListener: function (name, fn) {
            listeners[name] = (listeners[name] || []).filter(function (f) { return f !== fn; });
        },
        removeAllListeners: function (name) { if (name) delete listeners[name]; else listeners = {}; },
        listeners: function (name) { return listeners[name] || []; },
        send: function (room, message) { return sendTo(room, message, "bot.send"); },
        reply: function (room, message) { return sendTo(room, message, "bot.reply"); },
        canReply: function () { return true; },
        markAsRead: function () { return true; },
        getName: function () { return host.jstr("bridge"); },
        getPower: function () { return true; }, setPower: function () {}
    };
    if (!boot.oldInterface) GLOBAL.BotManager = { getCurrentBot: function () { return bot; }, getBot: function () { return bot; },
                          getRooms: function () { return []; } };

    // ------------------------------------------------- incoming chat messages
    function fire(name, args) {
        var l = listeners[name] || [];
        for (var i = 0; i < l.length; i++) l[i].apply(null, args);
        return l.length;
    }
    function deliver(m) {
        var mode = boot.inject || "auto";
        if (mode === "event" || (mode === "auto" && (listeners[Event.MESSAGE] || []).length)) {
            fire(Event.MESSAGE, [{
                room: m.room, content: m.text, isGroupChat: m.isGroupChat !== false,
                isDebugRoom: false, isMention: !!m.isMention, packageName: "com.kakao.talk",
                channelId: m.channelId === null || m.channelId === undefined ? null : new java.lang.Long(String(m.channelId)),
                logId: m.logId === null || m.logId === undefined ? null : new java.lang.Long(String(m.logId)),
                author: { name: m.sender, hash: m.hash === undefined ? "h-" + m.sender : m.hash,
                          avatar: { getBase64: function () { return ""; } } },
                image: { getBase64: function () { return ""; } },
                reply: function (t) { return sendTo(m.room, t, "msg.reply"); },
                markAsRead: function () { return true; }
            }]);
        } else if (typeof GLOBAL.response === "function") {
            var imageDB = { getProfileBase64: function () { return ""; }, getProfileHash: function () { return "0"; } };
            GLOBAL.response(m.room, m.text, m.sender, m.isGroupChat !== false,
                { reply: function (a, b) { return b === undefined ? sendTo(m.room, a, "replier") : sendTo(a, b, "replier"); } },
                imageDB, "com.kakao.talk", !!m.isMention,
                m.logId ? new java.lang.Long(m.logId) : null,
                m.channelId ? new java.lang.Long(m.channelId) : null, "h-" + m.sender);
        } else emit({ ev: "error", msg: "the script has no way in for a message" });
    }

    return {
        loaded: function () {
            emit({ ev: "booted", configPatched: configSeen,
                   version: configValue ? text(configValue.VERSION) : null,
                   listeners: Object.keys(listeners), hasResponse: typeof GLOBAL.response === "function" });
        },
        command: function (json) {
            var c = JSON.parse(json);
            if (c.cmd === "message") deliver(c);
            else if (c.cmd === "messages") c.items.forEach(deliver);
            else if (c.cmd === "event") emit({ ev: "fired", name: c.name, listeners: fire(Event[c.name] || c.name, c.args || []) });
            else if (c.cmd === "call") {
                var r = GLOBAL[c.fn].apply(GLOBAL, c.args || []);
                emit({ ev: "called", fn: c.fn, result: text(r) });
            } else if (c.cmd === "eval") emit({ ev: "evaluated", id: c.id, result: text((0, eval)(c.code)) });
            else emit({ ev: "error", msg: "unknown command " + c.cmd });
        }
    };
})
