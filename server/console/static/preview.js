"use strict";
// One WebSocket brings all cameras: text is their status, binary is a frame (see preview.py).

const grid = document.getElementById("grid");
const template = document.getElementById("card");
const cards = new Map();
const LOST_MS = 2000; // the server sends a status five times a second
let lastStatus = performance.now();

function cardOf(name) {
  let card = cards.get(name);
  if (!card) {
    const element = template.content.firstElementChild.cloneNode(true);
    const part = (selector) => element.querySelector(selector);
    card = { element, part, canvas: part("canvas"), drawing: false };
    part(".name").textContent = name;
    element.setAttribute("aria-label", `${name}: enlarge`);
    element.addEventListener("click", () => enlarge(card));
    element.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        enlarge(card);
      }
    });
    cards.set(name, card);
    grid.append(element);
    const columns = Math.ceil(Math.sqrt(cards.size));
    grid.style.setProperty("--columns", columns);
    grid.style.setProperty("--rows", Math.ceil(cards.size / columns));
  }
  return card;
}

function enlarge(card) {
  for (const other of cards.values()) {
    if (other !== card) other.element.classList.remove("large");
  }
  if (card) card.element.classList.toggle("large");
}

const NOTICES = {
  live: () => "",
  stale: (camera) => `stale: ${duration(camera.age_s)} old`,
  ended: (camera) => `ended ${duration(camera.age_s)} ago`,
  waiting: () => "waiting for the camera",
};

function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  return `${Math.round(seconds / 60)} min`;
}

function showStatus(status) {
  lastStatus = performance.now();
  document.body.classList.remove("lost");
  document.getElementById("station").textContent = status.station;
  document.title = `Cameras of ${status.station}`;
  document.getElementById("empty").hidden = status.cameras.length > 0;
  let live = 0;
  for (const camera of status.cameras) {
    const { element, part } = cardOf(camera.name);
    const large = element.classList.contains("large");
    element.className = `card ${camera.state}${large ? " large" : ""}`;
    if (camera.state === "live") live += 1;
    part(".notice").textContent = NOTICES[camera.state](camera);
    part(".size").textContent = camera.width === null ? "" : `${camera.width}×${camera.height}`;
    part(".fps").textContent = camera.fps === null ? "–" : camera.fps.toFixed(1);
    part(".age").textContent = camera.age_s === null ? "–" : duration(camera.age_s);
    part(".seq").textContent = camera.seq === null ? "–" : camera.seq;
    part(".dropped").textContent = camera.dropped;
    part(".lost").classList.toggle("some", camera.dropped > 0);
  }
  document.getElementById("summary").textContent = `${live} of ${status.cameras.length} live`;
}

async function showFrame(buffer) {
  const length = new Uint8Array(buffer, 0, 1)[0];
  const name = new TextDecoder().decode(new Uint8Array(buffer, 1, length));
  const card = cardOf(name);
  if (card.drawing || document.hidden) return; // the next one is never far
  card.drawing = true;
  try {
    const jpeg = new Blob([new Uint8Array(buffer, 1 + length)], { type: "image/jpeg" });
    const bitmap = await createImageBitmap(jpeg);
    const { canvas } = card;
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
    }
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    bitmap.close();
  } finally {
    card.drawing = false;
  }
}

function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const socket = new WebSocket(`${scheme}://${location.host}/frames`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => {
    if (typeof data === "string") showStatus(JSON.parse(data));
    else showFrame(data);
  };
  socket.onclose = () => setTimeout(connect, 1000);
}

setInterval(() => {
  if (performance.now() - lastStatus > LOST_MS) {
    document.body.classList.add("lost");
    document.getElementById("summary").textContent = "no connection: these pictures are old";
  }
}, 500);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") enlarge(null);
});
connect();
