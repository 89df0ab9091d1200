// Pages beside the robot: what it does now, the alarm, countdowns, the queue.

import { post } from "./post.js";
import { makeTone } from "./sound.js";

const POLL_MS = 1000;
const ALIVE_MS = 20_000;
const SOON_S = 10;
const SOUND = "robot-sound";

const robot = document.querySelector("[data-robot]");
const alarm = document.querySelector("[data-alarm]");
const sound = makeSound();

if (robot) watchRobot(robot.dataset.robot === "live");
else if (alarm && document.body.dataset.kiosk !== undefined) watchRobot(true); // a phone drives

for (const form of document.querySelectorAll("form[data-count]")) countBefore(form);
for (const form of document.querySelectorAll("form[data-quietly]")) sendQuietly(form);
callWhenItIsTime();
if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
  document.querySelector("video[data-autoplay]")?.play().catch(() => {});
}

// What the robot does

function watchRobot(live) {
  let over = false;
  let seen = 0; // when the last news came
  let elapsed = null;

  function show(state) {
    seen = performance.now();
    if (state.elapsed_s !== null) elapsed = seen - state.elapsed_s * 1000;
    showAlarm(state);
    if (!robot) return;
    setOffline(!state.online);
    showSteps(state.tutorial);
    showPhase(state);
    if (!state.running && !over) {
      over = true;
      location.replace(robot.dataset.whenOver);
    }
  }

  function setOffline(offline) {
    const note = robot?.querySelector("[data-offline]");
    if (note) note.hidden = !offline;
  }

  if (live) {
    const source = new EventSource("/api/kiosk/live");
    source.addEventListener("station", (event) => show(JSON.parse(event.data)));
    source.addEventListener("error", () => setOffline(true));
    addEventListener("pagehide", () => source.close(), { once: true });
  } else {
    setInterval(async () => {
      try {
        const answer = await fetch("/api/play/state", { cache: "no-store" });
        if (answer.ok) show(await answer.json());
        else if (answer.status === 401) location.replace("/");
      } catch {
        setOffline(true);
      }
    }, POLL_MS);
  }
  if (!robot) return;

  const limit = Number(robot.dataset.limit);
  const left = robot.querySelector("[data-left]");
  if (left) {
    const bar = robot.querySelector("[data-left-bar]");
    setInterval(() => {
      if (elapsed === null) return; // it begins when the robot follows
      const rest = Math.max(0, Math.ceil(limit - (performance.now() - elapsed) / 1000));
      left.textContent = rest;
      left.classList.toggle("soon", rest <= SOON_S);
      bar.value = rest;
    }, 250);
  }
  // Whatever becomes of the stream: while a play runs nobody is asked whether they are there.
  setInterval(async () => {
    const answer = await post("/play/alive").catch(() => null);
    if (answer?.status === 204) dispatchEvent(new Event("robot-moves"));
  }, ALIVE_MS);
}

function showPhase(state) {
  const said = robot.querySelector("[data-phase-said]");
  if (!said) return;
  const key = { playing: "go", lowering: "lowering" }[state.phase] ?? "ready";
  if (said.textContent !== robot.dataset[key]) said.textContent = robot.dataset[key];
}

function showSteps(tutorial) {
  const list = robot.querySelector(".tutorial-steps");
  if (!list || !tutorial.step) return;
  for (const item of list.querySelectorAll("[data-step]")) {
    const name = item.dataset.step;
    const done = tutorial.done.includes(name) || tutorial.step === "done";
    const state = done ? "done" : name === tutorial.step ? "now" : "later";
    if (item.classList.contains(state)) continue;
    item.className = state;
    const tag = item.querySelector("[data-step-state]");
    tag.className = `tag ${{ done: "good", now: "accent", later: "quiet" }[state]}`;
    tag.textContent = list.dataset[`step${state[0].toUpperCase()}${state.slice(1)}`];
    if (state === "now") {
      item.setAttribute("aria-current", "step");
      item.scrollIntoView({ block: "nearest" });
      const title = item.querySelector("h2 span").textContent;
      robot.querySelector("[data-step-said]").textContent = title;
    } else {
      item.removeAttribute("aria-current");
    }
    if (state === "done") sound.chime();
  }
}

// Seen and heard: neither alone

function showAlarm(state) {
  if (!alarm) return;
  const level = state.running ? state.warning.level : 0;
  sound.warn(level);
  alarm.hidden = level === 0;
  alarm.classList.toggle("near-stop", level === 2);
  if (level === 0) return;
  const side = alarm.dataset[state.warning.arm ?? ""];
  const text = alarm.dataset[level === 2 ? "stop" : "near"];
  const said = side ? `${text} · ${side}` : text;
  const line = alarm.querySelector("[data-alarm-text]");
  if (line.textContent !== said) line.textContent = said;
}

function makeSound() {
  const play = makeTone();
  let level = 0;
  let timer = null;
  let on = read() !== "off";
  const button = document.querySelector("[data-sound]");

  function read() {
    try {
      return sessionStorage.getItem(SOUND);
    } catch {
      return null;
    }
  }

  function label() {
    if (button) button.textContent = on ? button.dataset.off : button.dataset.on;
  }

  if (button) {
    button.hidden = false;
    label();
    button.addEventListener("click", () => {
      on = !on;
      try {
        sessionStorage.setItem(SOUND, on ? "on" : "off");
      } catch {
        // Not kept, then.
      }
      label();
    });
  }

  function tone(frequency, seconds, after = 0) {
    if (on) play(frequency, seconds, after);
  }

  return {
    tick: () => tone(520, 0.09),
    chime: () => [660, 880].forEach((frequency, i) => tone(frequency, 0.22, i * 0.14)),
    warn(now) {
      if (now === level) return;
      level = now;
      clearInterval(timer);
      if (level === 0) return;
      const beep = () => tone(level === 2 ? 980 : 740, level === 2 ? 0.22 : 0.12);
      beep();
      timer = setInterval(beep, level === 2 ? 400 : 900);
    },
  };
}

// Three, two, one

function countBefore(form) {
  const dialog = document.querySelector("[data-count-dialog]");
  const left = dialog.querySelector("[data-count-left]");
  let timer = null;

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    let rest = Number(form.dataset.count);
    left.textContent = rest;
    dialog.showModal();
    sound.tick();
    timer = setInterval(() => {
      rest -= 1;
      left.textContent = Math.max(0, rest);
      sound.tick();
      if (rest > 0) return;
      clearInterval(timer);
      form.submit();
    }, 1000);
  });
  dialog.querySelector("[data-count-cancel]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => clearInterval(timer));
}

// Calling staff does not take the eyes off the robot

function sendQuietly(form) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const answer = await post(form.action).catch(() => null);
    if (answer === null || (!answer.ok && answer.type !== "opaqueredirect")) {
      form.submit();
      return;
    }
    const said = document.createElement("p");
    said.className = "tag good";
    said.setAttribute("role", "status");
    form.replaceWith(said);
    said.textContent = form.dataset.quietly;
  });
}

// htmx keeps the place in the queue up to date.
function callWhenItIsTime() {
  let called = document.querySelector(".called") !== null;
  document.body.addEventListener("htmx:afterSwap", () => {
    const before = called;
    called = document.querySelector(".called") !== null;
    if (called && !before) sound.chime();
  });
}
