// On every page of an operator: how many calls for help wait, in the tab (where htmx asks for it),
// in the window's title and, when somebody calls, by a sound.

import { makeTone } from "./sound.js";

const badge = document.querySelector("[data-help]");
const said = document.querySelector("[data-help-said]");
const title = document.title;
const tone = makeTone();
let known = null;

badge.addEventListener("htmx:afterRequest", ({ detail }) => {
  if (!detail.successful) unknown();
  show(badge.textContent.trim(), detail.successful ? Number(badge.textContent) : null);
});

// Nobody is to believe that all is quiet.
function unknown() {
  const tag = document.createElement("span");
  tag.className = "tag bad";
  tag.title = badge.dataset.unknown;
  tag.textContent = "?";
  badge.replaceChildren(tag);
}

function show(text, waiting) {
  document.title = waiting === 0 ? title : `(${text}) ${title}`;
  if (waiting === null) return;
  if (known !== null && waiting > known) {
    said.textContent = badge.dataset.call;
    [660, 880, 660].forEach((frequency, i) => tone(frequency, 0.25, i * 0.2));
  } else if (waiting === 0) {
    said.textContent = "";
  }
  known = waiting;
}
