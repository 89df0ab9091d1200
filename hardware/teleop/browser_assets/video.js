// The cameras: one large, the others small. Each picture is answered when it has been drawn, so a
// slow connection gets fewer of them and always the newest.

const $ = (id) => document.getElementById(id);
const RETRY_MS = 1000;

let socket = null;
let names = [];
let main = null;
const cards = new Map(); // camera -> {button, canvas}
const shown = { t: null };

/** The large picture: when it was captured, in the server's ms (null before the first). */
export const largePicture = () => shown.t;

function send(kind, values = {}) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ kind, ...values }));
}

function choose(name) {
  main = name;
  shown.t = null;
  $("camera").textContent = name ?? "";
  for (const [other, { button }] of cards) button.setAttribute("aria-pressed", String(other === name));
  if (name) send("main", { camera: name });
}

function build() {
  $("small").replaceChildren();
  cards.clear();
  for (const name of names) {
    const button = document.createElement("button");
    button.type = "button";
    const canvas = document.createElement("canvas");
    const label = document.createElement("span");
    label.textContent = name;
    button.append(canvas, label);
    button.addEventListener("click", () => choose(name));
    $("small").append(button);
    cards.set(name, { button, canvas });
  }
  $("small").hidden = names.length < 2;
  $("nothing").textContent = names.length ? "no picture yet" : "this station has no cameras";
  choose(names.includes(main) ? main : names[0] ?? null);
}

async function draw(buffer) {
  const bytes = new Uint8Array(buffer);
  const end = bytes.indexOf(10);
  const { camera, t, large } = JSON.parse(new TextDecoder().decode(bytes.subarray(0, end)));
  try {
    const image = await createImageBitmap(new Blob([bytes.subarray(end + 1)], { type: "image/jpeg" }));
    if (large && camera === main) {
      paint($("main"), image);
      shown.t = t;
      $("large").style.setProperty("--ratio", image.width / image.height);
      $("large").classList.add("has");
    }
    const card = cards.get(camera);
    if (card && (!large || !card.canvas.width || camera === main)) paint(card.canvas, image, 240);
    image.close();
  } finally {
    send("drawn");
  }
}

function paint(canvas, image, width = image.width) {
  const scale = Math.min(1, width / image.width);
  const [w, h] = [Math.round(image.width * scale), Math.round(image.height * scale)];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  canvas.getContext("2d").drawImage(image, 0, 0, w, h);
}

export function watchCameras() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/video`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => {
    if (data instanceof ArrayBuffer) return void draw(data);
    const message = JSON.parse(data);
    if (message.kind === "cameras") { names = message.names; build(); }
  };
  socket.onclose = () => setTimeout(watchCameras, RETRY_MS);
}
