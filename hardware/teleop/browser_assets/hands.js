// What the person's hands do: pads, keys and gamepad become one dead-man switch and one twist.

const $ = (id) => document.getElementById(id);
const KNOB = 0.36; // of a pad's width: how far its knob goes
const GRIP_RATE = 1.2; // of the gripper's way a second, by key or gamepad
const DEAD = 0.12; // of a gamepad stick's way: they never rest at 0

const clip = (value) => Math.max(-1, Math.min(1, value));

// -- the dead-man switch ----------------------------------------------------------------------
// Several things may hold it. All are let go of when the page loses focus or sight, and each has
// to be let go of by the person before it can hold again.

const held = new Set();
let changed = () => {};

function hold(source, down) {
  const before = held.size > 0;
  if (down) held.add(source);
  else held.delete(source);
  if (before === held.size > 0) return;
  if (before) goal = null; // the gripper's slider follows the robot again
  $("deadman").setAttribute("aria-pressed", String(!before));
  $("deadman").querySelector("b").textContent = before ? "Hold to move" : "Let go to stop";
  document.body.classList.toggle("held", !before);
  changed();
}

let triggerFree = false; // the gamepad's trigger was seen let go of

function letGo() {
  keys.clear();
  triggerFree = false;
  for (const pad of pads) pad.rest();
  for (const source of [...held]) hold(source, false);
}

function watchSwitch() {
  const button = $("deadman");
  button.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    button.setPointerCapture(event.pointerId);
    event.preventDefault();
    hold(`pointer ${event.pointerId}`, true);
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
    button.addEventListener(end, (event) => hold(`pointer ${event.pointerId}`, false));
  }
  addEventListener("blur", letGo);
  addEventListener("pagehide", letGo);
  document.addEventListener("visibilitychange", () => { if (document.hidden) letGo(); });
}

// -- pads -------------------------------------------------------------------------------------

class Pad {
  constructor(id, alongX, alongY) {
    this.box = $(id);
    this.knob = this.box.querySelector("i");
    this.along = [alongX, alongY];
    this.pointer = null;
    this.rest();
    this.box.addEventListener("pointerdown", (event) => {
      if (this.pointer !== null || event.button !== 0) return;
      this.pointer = event.pointerId;
      this.box.setPointerCapture(event.pointerId);
      event.preventDefault();
      this.follow(event);
    });
    this.box.addEventListener("pointermove", (event) => {
      if (event.pointerId === this.pointer) this.follow(event);
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      this.box.addEventListener(end, (event) => { if (event.pointerId === this.pointer) this.rest(); });
    }
    this.box.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  follow(event) {
    const box = this.box.getBoundingClientRect();
    const reach = Math.max(box.width, box.height) * KNOB;
    let x = this.along[0] * (event.clientX - box.left - box.width / 2) / reach;
    let y = this.along[1] * (box.top + box.height / 2 - event.clientY) / reach;
    const length = Math.max(1, Math.hypot(x, y));
    this.place(x / length, y / length, reach);
  }

  place(x, y, reach) {
    [this.x, this.y] = [x, y]; // right and up, -1..1
    this.knob.style.transform = `translate(${x * reach}px, ${-y * reach}px)`;
  }

  rest() {
    this.pointer = null;
    this.place(0, 0, 0);
  }
}

const pads = [new Pad("plane", 1, 1), new Pad("lift", 0, 1), new Pad("tilt", 1, 1), new Pad("yaw", 1, 0)];
const [plane, lift, tilt, yaw] = pads;

// -- keys ---------------------------------------------------------------------------------------

const keys = new Set();
const MOVES = new Set(["KeyW", "KeyA", "KeyS", "KeyD", "KeyR", "KeyF", "KeyI", "KeyJ", "KeyK", "KeyL",
  "KeyU", "KeyO", "KeyC", "KeyV"]);
const axis = (plus, minus) => Number(keys.has(plus)) - Number(keys.has(minus));

function watchKeys(stop) {
  addEventListener("keydown", (event) => {
    if (event.code === "Escape") { event.preventDefault(); stop(); return; }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.code === "Space") {
      if (document.activeElement === $("stop")) return; // a press of STOP, not of the switch
      event.preventDefault();
      if (!event.repeat) hold("space", true);
    } else if (event.code === "Minus" || event.code === "Equal") {
      nudgeSpeed(event.code === "Equal" ? 1 : -1);
    } else if (MOVES.has(event.code)) {
      keys.add(event.code);
      event.preventDefault();
    }
  });
  addEventListener("keyup", (event) => {
    keys.delete(event.code);
    if (event.code !== "Space") return;
    if (document.activeElement !== $("stop")) event.preventDefault(); // it presses no focused button
    hold("space", false);
  });
  // A button that was clicked would keep the focus, and Space with it.
  addEventListener("click", (event) => { if (event.detail > 0) event.target.closest("button")?.blur(); });
}

// -- gamepad ------------------------------------------------------------------------------------

const still = { left: [0, 0], right: [0, 0], tilting: false, grip: 0 };
let pressed = {};

function readGamepad(stop) {
  const pad = [...(navigator.getGamepads?.() ?? [])].find((p) => p && p.mapping === "standard");
  const name = pad ? pad.id.split("(")[0].trim() || "gamepad" : "no gamepad";
  if ($("gamepad").textContent !== name) $("gamepad").textContent = name;
  if (!pad || document.hidden || !document.hasFocus()) {
    triggerFree = false;
    hold("trigger", false);
    return still;
  }
  const down = (i) => Boolean(pad.buttons[i]?.pressed);
  const once = (i, act) => { if (down(i) && !pressed[i]) act(); pressed[i] = down(i); };
  const trigger = (pad.buttons[6]?.value ?? 0) > 0.5;
  if (!trigger) triggerFree = true;
  hold("trigger", trigger && triggerFree);
  once(8, stop);
  once(12, () => nudgeSpeed(1));
  once(13, () => nudgeSpeed(-1));
  const stick = (i) => [i, i + 1].map((j) => {
    const value = pad.axes[j] ?? 0;
    return Math.abs(value) < DEAD ? 0 : Math.sign(value) * (Math.abs(value) - DEAD) / (1 - DEAD);
  });
  return { left: stick(0), right: stick(2), tilting: down(5), grip: Number(down(1)) - Number(down(0)) };
}

// -- gripper and speed --------------------------------------------------------------------------

let goal = null; // the wanted opening; null leaves it as it is
let asked = null; // what the robot's side says it asks for

function watchSliders() {
  $("gripper").addEventListener("input", () => { if (held.size) setGoal($("gripper").valueAsNumber); });
  $("speed").addEventListener("input", showSpeed);
  const kept = Number(localStorage.getItem("speed"));
  if (kept >= 0.1 && kept <= 1) $("speed").value = kept;
  showSpeed();
}

function setGoal(value) {
  goal = Math.max(0, Math.min(1, value));
  showOpening(goal);
}

function showOpening(value) {
  const text = value === null ? "–" : `${Math.round(value * 100)} %`;
  if ($("opening").textContent !== text) $("opening").textContent = text;
  if (value !== null) $("gripper").value = value;
}

function showSpeed() {
  $("share").textContent = `${Math.round($("speed").valueAsNumber * 100)} %`;
  localStorage.setItem("speed", $("speed").value);
}

function nudgeSpeed(way) {
  $("speed").value = $("speed").valueAsNumber + way * 0.1;
  showSpeed();
}

/** Take up the opening that the robot's side asks for; the slider shows it until it is moved. */
export function showGripper(opening, mine) {
  asked = opening;
  $("gripper").disabled = !(mine && held.size) || opening === null;
  if (goal === null) showOpening(opening);
}

// -- the view -----------------------------------------------------------------------------------

function watchChoices() {
  const facing = $("facing");
  const turn = (on) => {
    facing.setAttribute("aria-pressed", String(on));
    localStorage.setItem("facing", on ? "1" : "");
  };
  turn(Boolean(localStorage.getItem("facing")));
  facing.addEventListener("click", () => turn(facing.getAttribute("aria-pressed") !== "true"));
  for (const tab of $("tabs").children) {
    tab.addEventListener("click", () => {
      $("pads").dataset.tab = tab.dataset.tab;
      for (const other of $("tabs").children) other.setAttribute("aria-pressed", String(other === tab));
    });
  }
}

// -- all together -------------------------------------------------------------------------------

/** What the hands do now: {deadman, twist, gripper, speed}, as the robot's side takes it. */
export function readHands(seconds, stop) {
  const pad = readGamepad(stop);
  const grip = axis("KeyV", "KeyC") + pad.grip;
  if (grip && held.size && asked !== null) setGoal((goal ?? asked) + clip(grip) * GRIP_RATE * seconds);
  const [leftX, leftY] = pad.left;
  const sign = $("facing").getAttribute("aria-pressed") === "true" ? -1 : 1;
  // Right and up as the operator sees it.
  const right = plane.x + axis("KeyD", "KeyA") + (pad.tilting ? 0 : leftX);
  const away = plane.y + axis("KeyW", "KeyS") + (pad.tilting ? 0 : -leftY);
  const tipRight = tilt.x + axis("KeyL", "KeyJ") + (pad.tilting ? leftX : 0);
  const tipAway = tilt.y + axis("KeyI", "KeyK") + (pad.tilting ? -leftY : 0);
  const up = lift.y + axis("KeyR", "KeyF") - pad.right[1];
  const clockwise = yaw.x + axis("KeyO", "KeyU") + pad.right[0];
  // Base frame: x away from it, y left, z up. A tool that points down tips left about +x.
  const twist = [sign * away, -sign * right, up, -sign * tipRight, -sign * tipAway, -clockwise];
  return {
    deadman: held.size > 0,
    twist: twist.map((value) => Number(clip(value).toFixed(4)) || 0),
    gripper: goal === null ? null : Number(goal.toFixed(3)),
    speed: $("speed").valueAsNumber,
  };
}

export const isHeld = () => held.size > 0;
export { letGo };

/** Begin to watch; `onChange` is called at once when the dead-man switch changes. */
export function watchHands(onChange, stop) {
  changed = onChange;
  watchSwitch();
  watchKeys(stop);
  watchSliders();
  watchChoices();
}
