// The teleoperation page: what hands do goes out, what the robots do comes in, over one socket.

import { isHeld, letGo, readHands, showGripper, watchHands } from "./hands.js";
import { largePicture, watchCameras } from "./video.js";

const $ = (id) => document.getElementById(id);
const CONTROL_MS = 25; // between packets of the page that controls
const WATCH_MS = 250; // and of one that watches: they measure the connection
const GONE_MS = 1500; // without a beat
const OLD_MS = 600; // a picture that is older is no picture of now
const SHOW_MS = 100; // a slow computer must not fall behind its messages by painting each
const PILED_BYTES = 1024; // packets that wait in this browser would arrive late: send none then

let socket = null;
let status = null;
let seq = 0;
let beat = { t: 0, at: -Infinity }; // the newest that was heard: server's ms, and when by our clock
let sentAt = -Infinity;
let saidUntil = -Infinity;
let stale = true; // what is shown
let shownAt = -Infinity;

// -- the connection ---------------------------------------------------------------------------

function send(kind, values = {}) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ kind, ...values }));
}

const mine = () => status?.control === "you";

function sendHands() {
  const now = performance.now();
  const hands = readHands(Math.min(0.1, (now - sentAt) / 1000), stop);
  if (socket?.readyState !== WebSocket.OPEN || beat.at === -Infinity) return;
  if (socket.bufferedAmount > PILED_BYTES && hands.deadman) return;
  sentAt = now;
  send("hands", { seq: seq++, echo: beat.t, since: Math.max(0, now - beat.at), ...hands });
}

function turn() {
  const now = performance.now();
  if (socket?.readyState === WebSocket.OPEN && now - Math.max(beat.at, opened) > GONE_MS) socket.close();
  if (now - shownAt >= (stale ? SHOW_MS : 2 * SHOW_MS)) show();
  if (now - sentAt >= (mine() ? CONTROL_MS : WATCH_MS) - 2) sendHands();
}

let opened = 0;
function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/control`);
  const own = socket;
  socket.onopen = () => { opened = performance.now(); beat = { t: 0, at: -Infinity }; seq = 0; };
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if ("t" in message) beat = { t: message.t, at: performance.now() };
    if (message.kind === "status") { status = message; stale = true; }
    if (message.kind === "error") say(message.message);
    if (message.kind === "stopped") told(message.groups);
  };
  socket.onclose = () => {
    if (own !== socket) return;
    letGo();
    status = null;
    show();
    setTimeout(connect, 1000);
  };
}

// -- STOP: by both ways at once, and never silently ------------------------------------------

async function stop() {
  letGo();
  send("stop");
  $("stop").classList.add("sent");
  setTimeout(() => $("stop").classList.remove("sent"), 600);
  try {
    const answer = await fetch("stop", { method: "POST", keepalive: true, signal: AbortSignal.timeout(3000) });
    if (!answer.ok) throw new Error(String(answer.status));
    told((await answer.json()).groups);
  } catch {
    if (socket?.readyState !== WebSocket.OPEN) say("STOP DID NOT ARRIVE: use the stop button of the robot", 20000);
  }
}

function told(groups) { // what was stopped shows in the status
  if (!groups.length) say("Nothing to stop: the station is not served, and moves nothing");
}

// -- what the robots say ----------------------------------------------------------------------

let said = "";
function say(text, ms = 4000) {
  said = text;
  saidUntil = performance.now() + ms;
  show();
}

/** What stands between the person and a moving robot, and how bad it is. */
function reason() {
  if (performance.now() < saidUntil) return [said, "warn"];
  if (!status) return ["The robot's computer does not answer; trying again", "bad"];
  if (status.stop) return [`Stopped (${status.stop}). To go on: press r and Enter where robot-stack teleop runs`, "bad"];
  if (status.trouble) return [status.trouble, "bad"];
  if (status.control === "other") return [status.refusal ?? "Another page has control; you may take it", "warn"];
  if (status.control === "none") return ["Take control to move the robot", "warn"];
  if (status.round_trip_ms > status.max_round_trip_ms) {
    return [`The connection is too slow to be safe: ${Math.round(status.round_trip_ms)} ms there and back, ${Math.round(status.max_round_trip_ms)} allowed`, "bad"];
  }
  if (!isHeld()) return ["Hold the dead-man switch, then push a pad", "ready"];
  if (status.waiting) return [status.waiting, "warn"];
  const limits = [...new Set(status.robots.flatMap((robot) => robot.limits))];
  if (limits.length) return [`Following, held back by: ${limits.join(", ")}`, "warn"];
  return ["Following your hands", "good"];
}

const TONES = { armed: "good", starting: "warn", disarmed: "warn" };

function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function show() {
  stale = false;
  shownAt = performance.now();
  const [text, tone] = reason();
  write($("reason"), text);
  $("state").dataset.tone = tone;
  const holder = { you: "You have control", other: "Another page has control", none: "Nobody has control" };
  write($("control"), holder[status?.control] ?? "Not connected");
  write($("station"), status?.station ?? "Teleoperation");
  write($("take"), mine() ? "Give it up" : "Take control");
  $("take").classList.toggle("main", !mine());
  $("take").disabled = !status || (status.control === "other" && Boolean(status.refusal));
  document.body.classList.toggle("mine", mine());
  showGripper(status?.gripper ?? null, mine());
  const robots = status?.robots ?? [];
  while ($("robots").children.length > robots.length) $("robots").lastChild.remove();
  robots.forEach((robot, i) => {
    const item = $("robots").children[i] ?? $("robots").appendChild(document.createElement("li"));
    write(item, `${robot.name}: ${robot.lifecycle}`);
    item.dataset.tone = TONES[robot.lifecycle] ?? "bad";
  });
  showTimes(robots);
}

function time(id, ms, warn, bad) {
  write($(id), ms === null ? "–" : ms < 9950 ? `${Math.round(ms)} ms` : `${Math.round(ms / 1000)} s`);
  $(id).dataset.tone = ms === null ? "" : ms >= bad ? "bad" : ms >= warn ? "warn" : "good";
}

function showTimes(robots) {
  const trip = status?.round_trip_ms ?? null;
  time("link", trip, (status?.max_round_trip_ms ?? 300) / 2, status?.max_round_trip_ms ?? 300);
  const captured = largePicture();
  const now = beat.t + performance.now() - beat.at + (trip ?? 0) / 2;
  const age = captured === null || !status ? null : Math.max(0, now - captured);
  time("picture", age, 250, OLD_MS);
  const old = age !== null && age > OLD_MS;
  $("old").hidden = !old;
  $("large").classList.toggle("old", old);
  if (old) write($("old"), `${(age / 1000).toFixed(1)} s old`);
  const moved = status?.following ? robots : []; // else the newest command is an old one
  const ages = moved.map((robot) => robot.command_age_ms).filter((ms) => ms !== null);
  time("command", ages.length ? Math.max(...ages) : null, 100, 200);
}

// -- begin --------------------------------------------------------------------------------------

watchHands(sendHands, stop);
$("stop").addEventListener("pointerdown", (event) => { if (event.button === 0) stop(); });
$("stop").addEventListener("click", (event) => { if (event.detail === 0) stop(); }); // by keyboard
$("take").addEventListener("click", () => { letGo(); send(mine() ? "leave" : "take"); });
setInterval(turn, CONTROL_MS);
connect();
watchCameras();
