// The bare work of a message in Node, as benchmarks/native/bare_server.c does it in C.
//
//   node bare_server.js PORT SECRET SALT PING_INTERVAL
//
// It listens on 127.0.0.1 only, and ends when its standard input does.
'use strict';
const net = require('node:net');
const crypto = require('node:crypto');

const [port, secret, salt, pingSeconds] = process.argv.slice(2);
const NEWLINE = 10;
const BRACE = 125;
const MAX_AGE_MS = 300_000; // of a signature, either way: docs/protocol.md
const COMMAND = '# echo';

const frame = (event, data) => JSON.stringify({ event, data });
const now = () => new Date().toISOString();

function ping(botName) {
  return frame('ping', { bot_name: botName, server_timestamp: now(), message_positions: [0, 0] }) + '\n';
}

function isBelieved(auth) {
  if (!auth || Math.abs(Date.now() - auth.timestamp) > MAX_AGE_MS) return false;
  const signed = [auth.clientType, auth.botName, auth.deviceUUID, auth.macAddress, auth.ipAddress, auth.timestamp, salt];
  const want = crypto.createHmac('sha256', secret).update(signed.join('|')).digest();
  const got = Buffer.from(auth.signature, 'hex');
  return got.length === want.length && crypto.timingSafeEqual(want, got);
}

// What is answered to a line; line: a Buffer without its newline.
function answer(line, greeted) {
  const end = line.lastIndexOf(BRACE) + 1;
  const { event, data } = JSON.parse(line.toString('utf8', 0, end));
  if (event === 'handshake') {
    greeted(data.botName);
    return frame('handshakeComplete', {
      success: true, approved: true, message: 'ok', server_version: '1', timestamp: now(),
      timezone: 'Asia/Seoul', message_positions: [0, 0],
    }) + '\n' + ping(data.botName);
  }
  if (!isBelieved(data.auth) || event !== 'message') return '';
  const text = Buffer.from(line.toString('latin1', end), 'base64').toString('utf8');
  if (!text.startsWith(COMMAND)) return '';
  const tail = Buffer.from(text.slice(COMMAND.length).trim()).toString('base64');
  return frame('messageResponse', {
    room: data.room, channel_id: data.channel_id, bot_name: data.bot_name, message_type: 'text',
    content_encoding: 'base64', message_positions: [0, tail.length], timestamp: now(),
    timezone: 'Asia/Seoul',
  }) + tail + '\n';
}

net.createServer({ noDelay: true }, (socket) => {
  let pieces = []; // of the line that is not whole yet
  let timer = null;
  const greeted = (botName) => {
    clearTimeout(timer);
    const interval = pingSeconds * 1000;
    timer = setTimeout(() => {
      socket.write(ping(botName));
      timer = setInterval(() => socket.write(ping(botName)), interval);
    }, Math.random() * interval);
  };
  socket.on('data', (chunk) => {
    let out = '';
    let start = 0;
    for (let end; (end = chunk.indexOf(NEWLINE, start)) >= 0; start = end + 1) {
      let line = chunk.subarray(start, end);
      if (pieces.length) {
        line = Buffer.concat([...pieces, line]);
        pieces = [];
      }
      out += answer(line, greeted);
    }
    if (start < chunk.length) pieces.push(chunk.subarray(start));
    if (out) socket.write(out);
  });
  socket.on('error', () => {}); // 'close' follows
  socket.on('close', () => clearTimeout(timer)); // clears an interval, too
}).listen({ port: Number(port), host: '127.0.0.1', backlog: 4096 });

process.stdin.on('end', () => process.exit(0)).resume();
