// The world's page: pictures and status in, what the person's hands do out, over one WebSocket.

const $ = (id) => document.getElementById(id);
const JOINTS = [
  ["waist", -3.14, 3.14], ["shoulder", -1.84, 1.25], ["elbow", -1.75, 1.59],
  ["forearm roll", -3.14, 3.14], ["wrist angle", -1.74, 2.14], ["wrist rotate", -3.14, 3.14],
];
const SEND_MS = 50; // while something is held: the page's server lets go after 300 ms of silence

let socket = null;
let arm = "right";
let world = null;
let view = { name: "orbit", azimuth: 90, elevation: -30, distance: 1.55 };

// -- the connection ---------------------------------------------------------------------------

function send(kind, values = {}) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ kind, ...values }));
}

function link(text, tone) {
  $("link").textContent = text;
  $("link").className = `pill ${tone}`;
}

let errorUntil = 0;
function complain(message) {
  $("message").textContent = message;
  $("message").hidden = !message;
}

function connect() {
  socket = new WebSocket(`ws://${location.host}/session`);
  socket.binaryType = "blob";
  socket.onopen = () => { link("connected", "good"); send("view", view); };
  socket.onclose = () => {
    link("page server gone, trying again", "bad");
    world = null;
    setTimeout(connect, 1000);
  };
  socket.onmessage = ({ data }) => {
    if (data instanceof Blob) return show(data);
    const message = JSON.parse(data);
    if (message.kind === "status") update(message);
    if (message.kind === "absent") {
      world = null;
      link("no world", "bad");
      complain("The world is not running. Start it with: robot-stack virtual STATION.yaml");
    }
    if (message.kind === "error") {
      complain(message.message);
      errorUntil = performance.now() + 4000;
    }
  };
}

let shown = "";
function show(blob) {
  const url = URL.createObjectURL(blob);
  $("picture").src = url;
  $("picture").onload = () => { if (shown) URL.revokeObjectURL(shown); shown = url; };
}

// -- what the world says ----------------------------------------------------------------------

const leader = (side) =>
  world && Object.values(world.robots).find((r) => r.role === "leader" && r.side === side);

function update({ world: news, jog }) {
  world = news;
  if (performance.now() > errorUntil) complain("");
  $("station").textContent = world.station;
  const stages = [1, 2, 3, 4].map((stage) => world.reward >= stage).concat(world.success);
  [...$("stages").children].forEach((li, i) => li.classList.toggle("done", stages[i]));
  const script = world.script;
  const busy = !script.done;
  link(busy ? `operator: ${script.action || script.phase.replaceAll("_", " ")}` : "connected", "good");
  $("script").textContent = busy ? "Stop operator" : "Run operator";
  $("reach").hidden = !jog[arm].at_end;
  const limp = Object.values(world.robots).some((r) => r.role === "follower" && !r.torque.some(Boolean));
  $("note").textContent = "The followers are without torque: robot-stack serve, then robot-stack teleop, makes them follow.";
  $("note").hidden = !limp;
  const robot = leader(arm);
  if (!robot) return;
  const driven = robot.torque.slice(0, 6).some(Boolean);
  $("torque").textContent = busy ? "held by the operator"
    : driven ? "under torque: the station drives this leader" : "limp: yours to move";
  const free = !busy && !driven;
  sliders.forEach((slider, i) => {
    slider.input.disabled = i < 6 ? !free : busy || robot.torque[6];
    if (slider.input !== dragging) slider.set(i < 6 ? robot.joints[i] : robot.gripper);
  });
}

// -- sliders ----------------------------------------------------------------------------------

let dragging = null;
const sliders = [...JOINTS, ["gripper", 0, 1]].map(([name, min, max], joint) => {
  const row = document.createElement("label");
  row.className = "slider";
  const text = document.createElement("span");
  text.textContent = name;
  const input = Object.assign(document.createElement("input"), { type: "range", min, max, step: 0.005 });
  const output = document.createElement("output");
  row.append(text, input, output);
  $("sliders").append(row);
  const label = (value) => {
    output.textContent = joint < 6 ? `${((value * 180) / Math.PI).toFixed(0)}°` : `${Math.round(value * 100)} %`;
  };
  input.oninput = () => {
    label(input.valueAsNumber);
    if (joint < 6) send("joint", { arm, joint, value: input.valueAsNumber });
    else send("gripper", { arm, value: input.valueAsNumber });
  };
  input.onpointerdown = () => { dragging = input; };
  return { input, set: (value) => { input.value = value; label(value); } };
});
addEventListener("pointerup", () => { dragging = null; });

// -- sticks, buttons, keys and gamepad: all become one jog -----------------------------------

const sticks = {};
function stick(id, { thin = false } = {}) {
  const pad = $(id);
  const knob = pad.querySelector("i");
  const value = { x: 0, y: 0 };
  const place = (x, y) => {
    const length = Math.max(1, Math.hypot(x, y));
    value.x = thin ? 0 : x / length;
    value.y = y / length;
    knob.style.transform = `translate(${value.x * 48}px, ${-value.y * 48}px)`;
  };
  const follow = (event) => {
    const box = pad.getBoundingClientRect();
    place(
      (event.clientX - box.left - box.width / 2) / 50,
      -(event.clientY - box.top - box.height / 2) / 50,
    );
  };
  pad.onpointerdown = (event) => { pad.setPointerCapture(event.pointerId); follow(event); };
  pad.onpointermove = (event) => { if (pad.hasPointerCapture(event.pointerId)) follow(event); };
  pad.onpointerup = pad.onpointercancel = () => place(0, 0);
  sticks[id] = value;
}
stick("plane");
stick("lift", { thin: true });
stick("turn");

const heldButtons = new Set();
for (const id of ["close", "open"]) {
  $(id).onpointerdown = (event) => {
    $(id).setPointerCapture(event.pointerId);
    $(id).classList.add("held");
    heldButtons.add(id);
  };
  $(id).onpointerup = $(id).onpointercancel = () => {
    $(id).classList.remove("held");
    heldButtons.delete(id);
  };
}

const keys = new Set();
const KEYS = new Set(["KeyW", "KeyA", "KeyS", "KeyD", "KeyR", "KeyF", "KeyV", "Space",
  "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"]);
addEventListener("keydown", (event) => {
  if (event.target.matches("input[type=number]") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.code === "Digit1") choose("left");
  else if (event.code === "Digit2") choose("right");
  else if (event.code === "Enter" && !event.repeat && !event.target.matches("button, summary")) send("squeeze");
  else if (KEYS.has(event.code)) keys.add(event.code);
  else return;
  if (KEYS.has(event.code)) event.preventDefault();
});
addEventListener("keyup", (event) => {
  keys.delete(event.code);
  // Space must not press a focused button as well.
  if (event.code === "Space" && !event.target.matches("input[type=number]")) event.preventDefault();
});
addEventListener("blur", () => keys.clear());

const axis = (plus, minus) => Number(keys.has(plus)) - Number(keys.has(minus));
const clip = (value) => Math.max(-1, Math.min(1, value));
const dead = (value) => (Math.abs(value ?? 0) < 0.12 ? 0 : value);

let pressed = {};
function gamepad() {
  const pad = [...navigator.getGamepads()].find((p) => p && p.mapping === "standard");
  $("pad").textContent = pad ? pad.id.split("(")[0].trim() : "no gamepad";
  if (!pad) return { twist: [0, 0, 0, 0, 0], gripper: 0 };
  const down = (i) => pad.buttons[i]?.pressed;
  const once = (i, act) => { if (down(i) && !pressed[i]) act(); pressed[i] = down(i); };
  once(0, () => choose(arm === "left" ? "right" : "left"));
  once(9, () => send("squeeze"));
  return {
    twist: [dead(pad.axes[0]), -dead(pad.axes[1]), -dead(pad.axes[3]),
      Number(down(5)) - Number(down(4)), dead(pad.axes[2])],
    gripper: (pad.buttons[6]?.value ?? 0) - (pad.buttons[7]?.value ?? 0),
  };
}

let moving = false;
setInterval(() => {
  const pad = gamepad();
  const { plane, lift, turn } = sticks;
  const twist = [
    plane.x + axis("KeyD", "KeyA") + pad.twist[0],
    plane.y + axis("KeyW", "KeyS") + pad.twist[1],
    lift.y + axis("KeyR", "KeyF") + pad.twist[2],
    -turn.y + axis("ArrowDown", "ArrowUp") + pad.twist[3],
    turn.x + axis("ArrowRight", "ArrowLeft") + pad.twist[4],
  ].map(clip);
  const gripper = clip(axis("KeyV", "Space") + pad.gripper
    + Number(heldButtons.has("open")) - Number(heldButtons.has("close")));
  const active = gripper !== 0 || twist.some((value) => value !== 0);
  if (active || moving) send("jog", { arm, twist, gripper });
  moving = active;
}, SEND_MS);

// -- choices and orders -------------------------------------------------------------------------

function choose(side) {
  if (moving) send("jog", { arm, twist: [0, 0, 0, 0, 0], gripper: 0 });
  arm = side;
  for (const button of $("arms").children) button.classList.toggle("on", button.dataset.arm === side);
}
for (const button of $("arms").children) button.onclick = () => choose(button.dataset.arm);

function look(change) {
  view = { ...view, ...change };
  for (const button of $("views").children) button.classList.toggle("on", button.dataset.view === view.name);
  $("frame").classList.toggle("fixed", view.name !== "orbit");
  $("hint").hidden = view.name !== "orbit";
  send("view", view);
}
for (const button of $("views").children) button.onclick = () => look({ name: button.dataset.view });
$("frame").onpointerdown = (event) => $("frame").setPointerCapture(event.pointerId);
$("frame").onpointermove = (event) => {
  if (!$("frame").hasPointerCapture(event.pointerId) || view.name !== "orbit") return;
  look({
    azimuth: (view.azimuth - event.movementX * 0.4) % 360,
    elevation: Math.max(-88, Math.min(8, view.elevation - event.movementY * 0.3)),
  });
};
$("frame").addEventListener("wheel", (event) => {
  if (view.name !== "orbit") return;
  event.preventDefault();
  look({ distance: Math.max(0.4, Math.min(2.8, view.distance * Math.exp(event.deltaY * 0.001))) });
}, { passive: false });

$("squeeze").onclick = () => send("squeeze");
$("reset").onclick = () => {
  const seed = $("seed").valueAsNumber;
  if ($("seed").checkValidity() && Number.isInteger(seed)) send("reset", { seed });
  else $("seed").reportValidity();
};
$("release").onclick = () => send("release");
$("script").onclick = () => {
  if (world && !world.script.done) send("release");
  else send("script", { seed: world?.seed ?? 0, ritual: false });
};

connect();
