// On every page: idle log-out with a countdown, cards that are tapped, nothing kept for the next
// visitor. Pages work without it: a refresh in the head does the log-out then.

import { post } from "./post.js";

const WARN_S = 20; // the countdown is seen for so long
const BETWEEN_KEYS_MS = 80; // a reader types faster than anybody
const CARD_LENGTH = 6;

// A page from the back-forward cache is the last visitor's.
addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});

const idle = Number(document.body.dataset.idle);
if (idle > 0) watchIdle(idle);

const next = document.querySelector("[data-then]");
if (next) setTimeout(() => location.replace(next.dataset.then), Number(next.dataset.after) * 1000);

const card = document.querySelector("form[data-card]");
if (card) watchCard(card);

function watchIdle(seconds) {
  const dialog = document.querySelector("[data-idle-dialog]");
  const left = dialog.querySelector("[data-idle-left]");
  let last = performance.now();
  let told = performance.now(); // when the server last heard of somebody
  let leaving = false;

  function active() {
    if (dialog.open) return; // asked a question: it takes an answer
    last = performance.now();
    // Reading and scrolling is being there, too: the server is told now and then.
    if (last - told > (seconds * 1000) / 3) stay();
  }

  async function stay() {
    told = performance.now();
    try {
      const answer = await post("/still-here");
      if (answer.status === 401 || answer.status === 403) leave();
    } catch {
      // Offline: the server signs out by itself.
    }
  }

  async function leave() {
    if (leaving) return;
    leaving = true;
    document.querySelectorAll("form").forEach((form) => form.reset());
    try {
      await post("/logout", new URLSearchParams({ why: "idle" }));
    } catch {
      // Offline, or signed out already: what is shown goes all the same.
    }
    location.replace("/?left=idle");
  }

  for (const name of ["pointerdown", "keydown", "scroll", "input"]) {
    addEventListener(name, active, { passive: true, capture: true });
  }
  // Hands on the robot are not idle: pages of a running play say so.
  addEventListener("robot-moves", active);

  dialog.querySelector("[data-idle-stay]").addEventListener("click", () => {
    dialog.close();
    last = performance.now();
    stay();
  });
  dialog.querySelector("[data-idle-leave]").addEventListener("submit", (event) => {
    event.preventDefault();
    leave();
  });
  dialog.addEventListener("cancel", () => {
    last = performance.now();
    stay();
  });

  setInterval(() => {
    const rest = Math.ceil(seconds - (performance.now() - last) / 1000);
    left.textContent = Math.max(0, rest);
    if (rest <= 0) leave();
    else if (rest <= Math.min(WARN_S, seconds / 2) && !dialog.open) dialog.showModal();
    else if (rest > WARN_S && dialog.open) dialog.close();
  }, 250);
}

// A reader is a keyboard: it types the card and presses Enter, wherever the focus is.
function watchCard(form) {
  const field = form.querySelector("[name=card]");
  let typed = "";
  let last = 0;

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target === field) return;
    // When the key was pressed, not when a busy tablet came to look at it.
    if (event.timeStamp - last > BETWEEN_KEYS_MS) typed = "";
    last = event.timeStamp;
    if (event.key === "Enter") {
      if (typed.length < CARD_LENGTH) return;
      event.preventDefault();
      field.disabled = false;
      field.value = typed;
      typed = "";
      form.submit();
      field.value = "";
    } else if (event.key.length === 1) {
      typed += event.key;
    }
  });
}
