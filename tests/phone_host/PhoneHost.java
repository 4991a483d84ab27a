/*
 * PhoneHost: runs MessengerBotR bridge scripts without a phone.
 *
 * One JVM, any number of "phones".  Each phone is a Rhino global scope of its own,
 * prepared by phone_host.js, into which an unmodified client script is evaluated.
 * Commands come in as JSON lines on stdin, events go out as JSON lines on stdout.
 *
 * usage: java -cp rhino.jar:classes PhoneHost --env phone_host.js
 *             [--wrap app|none|all] [--opt -1]
 */
import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.nio.file.StandardCopyOption;
import java.security.MessageDigest;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.ThreadFactory;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

import org.mozilla.javascript.Context;
import org.mozilla.javascript.ContextFactory;
import org.mozilla.javascript.Function;
import org.mozilla.javascript.RhinoException;
import org.mozilla.javascript.Scriptable;
import org.mozilla.javascript.ScriptableObject;
import org.mozilla.javascript.WrapFactory;
import org.mozilla.javascript.json.JsonParser;

public final class PhoneHost {

    /** set on threads that the app itself would own (timers, event delivery, script load) */
    static final ThreadLocal<Boolean> APP_THREAD = new ThreadLocal<>();
    static String wrapMode = "app";
    static int optLevel = -1;
    static String envSource;
    static String envPath;
    static PrintStream out;
    static final Map<String, Phone> phones = new ConcurrentHashMap<>();
    static final long T0 = System.nanoTime();

    /**
     * The app gives its own contexts a wrap factory that hands Java strings and numbers to
     * JavaScript as primitives; threads made by the script with java.lang.Thread get a plain
     * Rhino context, where a java.lang.String stays a Java object.  "--wrap" picks: app (that
     * mixture), none (primitives everywhere), all (Java objects everywhere).
     */
    static final class Factory extends ContextFactory {
        @Override protected Context makeContext() {
            Context cx = super.makeContext();
            cx.setLanguageVersion(Context.VERSION_ES6);
            cx.setOptimizationLevel(optLevel);
            boolean plain = wrapMode.equals("all")
                || (wrapMode.equals("app") && APP_THREAD.get() == null);
            if (!plain) {
                WrapFactory wf = new WrapFactory();
                wf.setJavaPrimitiveWrap(false);
                cx.setWrapFactory(wf);
            }
            return cx;
        }
    }

    static synchronized void print(String line) {
        out.print(line);
        out.print('\n');
        out.flush();
    }

    static String quote(String s) {
        StringBuilder b = new StringBuilder("\"");
        for (int i = 0; i < s.length(); i++) {
            char c = s.charAt(i);
            if (c == '"' || c == '\\') b.append('\\').append(c);
            else if (c < 0x20 || c == 0x2028 || c == 0x2029 || Character.isSurrogate(c))
                b.append(String.format("\\u%04x", (int) c));
            else b.append(c);
        }
        return b.append('"').toString();
    }

    static void hostEvent(String phone, String ev, String msg) {
        print("{\"phone\":" + quote(phone) + ",\"t\":" + millis() + ",\"ev\":" + quote(ev)
            + ",\"msg\":" + quote(msg) + "}");
    }

    static long millis() { return (System.nanoTime() - T0) / 1000000L; }

    static String describe(Throwable e) {
        if (e instanceof RhinoException)
            return ((RhinoException) e).details() + " @" + ((RhinoException) e).sourceName()
                + ":" + ((RhinoException) e).lineNumber();
        return e.toString();
    }

    /** what phone_host.js sees as `host` */
    public static final class Phone {
        public final String id;
        final ThreadGroup group;
        final ScheduledThreadPoolExecutor timers;
        final ExecutorService events;
        final ConcurrentHashMap<Integer, Future<?>> live = new ConcurrentHashMap<>();
        final AtomicInteger ids = new AtomicInteger();
        ScriptableObject scope;
        Scriptable control;

        Phone(String id) {
            this.id = id;
            this.group = new ThreadGroup("phone-" + id);
            ThreadFactory tf = r -> {
                Thread t = new Thread(group, () -> { APP_THREAD.set(true); r.run(); });
                t.setDaemon(true);
                return t;
            };
            timers = new ScheduledThreadPoolExecutor(3, tf);
            timers.setRemoveOnCancelPolicy(true);
            events = Executors.newSingleThreadExecutor(tf);
        }

        public void emit(String json) {
            // json is "{...}" made by JSON.stringify: put our own fields in front
            print("{\"phone\":" + quote(id) + ",\"t\":" + millis() + ","
                + json.substring(1));
        }

        /** a Java string, so that it crosses into JavaScript the way Android's own do */
        public String jstr(String s) { return s; }

        void call(Function fn, Object... args) {
            try {
                ContextFactory.getGlobal().call(cx -> fn.call(cx, scope, scope, args));
            } catch (Throwable e) {
                hostEvent(id, "uncaught", describe(e));
            }
        }

        public int timer(Function fn, double ms, boolean repeat) {
            int n = ids.incrementAndGet();
            long d = Math.max(0, (long) ms);
            Runnable r = () -> { if (!repeat) live.remove(n); call(fn); };
            live.put(n, repeat ? timers.scheduleWithFixedDelay(r, Math.max(1, d), Math.max(1, d),
                TimeUnit.MILLISECONDS) : timers.schedule(r, d, TimeUnit.MILLISECONDS));
            return n;
        }

        public void cancel(double n) {
            Future<?> f = live.remove((int) n);
            if (f != null) f.cancel(false);
        }

        /** android.util.Base64: skips what is not in the alphabet, wants sane padding */
        public byte[] b64decode(String s) {
            int[] acc = new int[1];
            int state = 0;
            ByteArrayOutputStream o = new ByteArrayOutputStream(s.length() * 3 / 4 + 3);
            for (int i = 0; i < s.length(); i++) {
                int c = s.charAt(i), v;
                if (c >= 'A' && c <= 'Z') v = c - 'A';
                else if (c >= 'a' && c <= 'z') v = c - 'a' + 26;
                else if (c >= '0' && c <= '9') v = c - '0' + 52;
                else if (c == '+') v = 62;
                else if (c == '/') v = 63;
                else if (c == '=') v = -2;
                else continue;
                if (v >= 0) {
                    if (state > 3) throw new IllegalArgumentException("bad base-64");
                    acc[0] = (acc[0] << 6) | v;
                    if (++state == 4) {
                        o.write(acc[0] >> 16); o.write(acc[0] >> 8); o.write(acc[0]);
                        state = 0; acc[0] = 0;
                    }
                } else if (state == 2) { o.write(acc[0] >> 4); state = 4; }
                else if (state == 3) { o.write(acc[0] >> 10); o.write(acc[0] >> 2); state = 5; }
                else if (state == 4) state = 5;
                else throw new IllegalArgumentException("bad base-64");
            }
            if (state == 1 || state == 4) throw new IllegalArgumentException("bad base-64");
            if (state == 2) o.write(acc[0] >> 4);
            if (state == 3) { o.write(acc[0] >> 10); o.write(acc[0] >> 2); }
            return o.toByteArray();
        }

        public String b64encode(byte[] b, boolean wrapLines) {
            if (!wrapLines) return java.util.Base64.getEncoder().encodeToString(b);
            return java.util.Base64.getMimeEncoder(76, new byte[] {'\n'}).encodeToString(b) + "\n";
        }

        public String fileInfo(String path, String keepDir) throws Exception {
            File f = new File(path);
            MessageDigest md = MessageDigest.getInstance("SHA-256");
            try (FileInputStream in = new FileInputStream(f)) {
                byte[] buf = new byte[65536];
                int n;
                while ((n = in.read(buf)) > 0) md.update(buf, 0, n);
            }
            StringBuilder hex = new StringBuilder();
            for (byte x : md.digest()) hex.append(String.format("%02x", x & 255));
            if (keepDir != null && !keepDir.isEmpty()) {
                new File(keepDir).mkdirs();
                Files.copy(f.toPath(), Paths.get(keepDir, f.getName()),
                    StandardCopyOption.REPLACE_EXISTING);
            }
            return "{\"name\":" + quote(f.getName()) + ",\"size\":" + f.length()
                + ",\"sha256\":\"" + hex + "\"}";
        }

        public String readText(String path) throws Exception {
            return new String(Files.readAllBytes(Paths.get(path)), StandardCharsets.UTF_8);
        }

        public void writeText(String path, String s, boolean append) throws Exception {
            File f = new File(path);
            if (f.getParentFile() != null) f.getParentFile().mkdirs();
            byte[] b = s.getBytes(StandardCharsets.UTF_8);
            if (append) Files.write(f.toPath(), b, java.nio.file.StandardOpenOption.CREATE,
                java.nio.file.StandardOpenOption.APPEND);
            else Files.write(f.toPath(), b);
        }

        void boot(String script, String optsJson) {
            try {
                ContextFactory.getGlobal().call(cx -> {
                    scope = cx.initStandardObjects();
                    Function env = (Function) cx.evaluateString(scope, envSource, envPath, 1, null);
                    control = (Scriptable) env.call(cx, scope, scope, new Object[] {
                        Context.javaToJS(this, scope), optsJson });
                    String text;
                    try { text = readText(script); }
                    catch (Exception e) { throw new RuntimeException(e); }
                    cx.evaluateString(scope, text, new File(script).getName(), 1, null);
                    ((Function) ScriptableObject.getProperty(control, "loaded"))
                        .call(cx, scope, scope, new Object[0]);
                    return null;
                });
            } catch (Throwable e) {
                hostEvent(id, "boot_failed", describe(e));
            }
        }

        void command(String json) {
            if (control == null) { hostEvent(id, "error", "not booted"); return; }
            call((Function) ScriptableObject.getProperty(control, "command"), json);
        }

        void stop() {
            timers.shutdownNow();
            events.shutdownNow();
            group.interrupt();
        }
    }

    static String str(Scriptable o, String k) {
        Object v = ScriptableObject.getProperty(o, k);
        return v == null || v == Scriptable.NOT_FOUND ? null : Context.toString(v);
    }

    public static void main(String[] args) throws Exception {
        out = new PrintStream(new java.io.FileOutputStream(java.io.FileDescriptor.out), false, "UTF-8");
        System.setOut(System.err);
        for (int i = 0; i + 1 < args.length; i += 2) {
            if (args[i].equals("--env")) envPath = args[i + 1];
            else if (args[i].equals("--wrap")) wrapMode = args[i + 1];
            else if (args[i].equals("--opt")) optLevel = Integer.parseInt(args[i + 1]);
            else throw new IllegalArgumentException(args[i]);
        }
        envSource = new String(Files.readAllBytes(Paths.get(envPath)), StandardCharsets.UTF_8);
        ContextFactory.initGlobal(new Factory());
        Thread.setDefaultUncaughtExceptionHandler((t, e) -> hostEvent(
            t.getThreadGroup() == null ? "?" : t.getThreadGroup().getName().replace("phone-", ""),
            "uncaught", describe(e)));
        Context cx = Context.enter();
        ScriptableObject ctl = cx.initStandardObjects();
        hostEvent("", "ready", "pid " + ProcessHandle.current().pid());
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        String line;
        while ((line = in.readLine()) != null) {
            if (line.isEmpty()) continue;
            try {
                Scriptable c = (Scriptable) new JsonParser(cx, ctl).parseValue(line);
                String cmd = str(c, "cmd"), id = str(c, "phone");
                if ("quit".equals(cmd)) break;
                if ("boot".equals(cmd)) {
                    Phone p = new Phone(id);
                    phones.put(id, p);
                    final String script = str(c, "script"), json = line;
                    p.events.execute(() -> p.boot(script, json));
                } else {
                    Phone p = phones.get(id);
                    if (p == null) { hostEvent(String.valueOf(id), "error", "no such phone"); continue; }
                    final String json = line;
                    if ("stop".equals(cmd)) { p.stop(); phones.remove(id); hostEvent(id, "stopped", ""); }
                    else if ("message".equals(cmd) || "messages".equals(cmd) || "event".equals(cmd))
                        p.events.execute(() -> p.command(json));
                    else p.timers.execute(() -> p.command(json));
                }
            } catch (Throwable e) {
                hostEvent("", "error", describe(e));
            }
        }
        System.exit(0);
    }
}
