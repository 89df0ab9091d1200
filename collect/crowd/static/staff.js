// On every page of an operator: how many calls for help wait, in the tab, in the window's title
// and, when somebody calls, by a sound. Without scripts the overview says so when it is loaded.

import { makeTone } from "./sound.js";

const POLL_MS = 5000;

const badge = document.querySelector("[data-help]");
const said = document.querySelector("[data-help-said]");
const title = document.title;
const tone = makeTone();
let known = null;

look();
setInterval(look, POLL_MS);

async function look() {
  try {
    const answer = await fetch("/api/staff/help", { cache: "no-store" });
    show(answer.ok ? (await answer.json()).waiting : null);
    if (answer.status === 401 && listed() !== null) location.reload(); // to the sign-in
  } catch {
    show(null);
  }
}

// Null: nobody knows, and nobody is to believe that all is quiet.
function show(waiting) {
  const text = waiting === null ? "?" : String(waiting);
  badge.textContent = text;
  badge.title = waiting === null ? badge.dataset.unknown : "";
  badge.hidden = waiting === 0;
  document.title = waiting === 0 ? title : `(${text}) ${title}`;
  if (waiting === null) return;
  if (known !== null && waiting > known) {
    said.textContent = badge.dataset.call;
    [660, 880, 660].forEach((frequency, i) => tone(frequency, 0.25, i * 0.2));
  } else if (waiting === 0) {
    said.textContent = "";
  }
  known = waiting;
  if (listed() !== null && listed() !== text) refill();
}

// What the page itself says of how many wait; null on pages that don't.
function listed() {
  return document.querySelector("[data-help-list]")?.dataset.helpList ?? null;
}

async function refill() {
  const answer = await fetch(location.href, { cache: "no-store" });
  if (!answer.ok || answer.redirected) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  document.querySelector("main").replaceChildren(...page.querySelector("main").childNodes);
}
