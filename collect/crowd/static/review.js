// The review page: cameras in step with one another and with the joints' plot, segments by keys.
// Everything that is drawn here is also in the page's form, which works without this file.

const LANE = 20;
const STRIP = 24;
const NAMES = 132;
const DRIFT_S = 0.12;
const SPEEDS = [0.25, 0.5, 1, 2, 4];
const ASK_AGAIN_MS = 1500;

const root = document.querySelector("[data-review]");
if (root) begin(root);

async function begin(root) {
  const texts = JSON.parse(root.dataset.texts);
  const status = root.querySelector("[data-status]");
  const ask = () => fetch(`/api/staff/review/${root.dataset.play}`);
  let answer = await ask();
  while (answer.status === 503) { // others are being read
    await new Promise((done) => setTimeout(done, ASK_AGAIN_MS));
    answer = await ask();
  }
  if (!answer.ok) {
    status.textContent = texts.unreadable;
    return;
  }
  const desk = new Desk(root, texts, await answer.json());
  desk.start();
  await desk.watchVideos();
}

class Desk {
  constructor(root, texts, view) {
    this.root = root;
    this.texts = texts;
    this.view = view;
    this.row = 0;
    this.speed = 1;
    this.playing = null; // {at: performance.now(), row} while it plays
    this.videos = [];
    this.video = { rate: view.rate_hz, step: 1 };
    this.form = root.querySelector("form[data-commit]");
    this.lines = root.querySelector("[data-lines]");
    this.segments = this.lines ? parse(this.lines.value) : [];
    this.editable = root.dataset.editable === "yes";
    this.plot = new Plot(root.querySelector("[data-plot]"), view);
    this.slider = root.querySelector("[data-slider]");
    this.status = root.querySelector("[data-status]");
  }

  get last() {
    return Math.max(0, this.view.rows - 1);
  }

  start() {
    for (const part of this.root.querySelectorAll("[data-scripted]")) part.hidden = false;
    if (this.lines) this.lines.closest(".field").hidden = true;
    this.slider.max = this.last;
    this.slider.addEventListener("input", () => this.seek(Number(this.slider.value)));
    const canvas = this.plot.canvas;
    const drag = (event) => this.seek(this.plot.rowAt(event));
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      drag(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (canvas.hasPointerCapture(event.pointerId)) drag(event);
    });
    this.root.addEventListener("click", (event) => {
      const button = event.target.closest("[data-act]");
      if (button) this.act(button.dataset.act, button);
    });
    const speed = this.root.querySelector("[data-speed]");
    speed.addEventListener("change", () => this.setSpeed(Number(speed.value)));
    this.listFlags();
    if (this.editable) this.prepareForm();
    this.showSegments();
    document.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.redraw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    this.seek(0);
    this.root.dataset.ready = "yes";
  }

  prepareForm() {
    this.from = this.root.querySelector("[data-from]");
    this.to = this.root.querySelector("[data-to]");
    this.label = this.root.querySelector("[data-label]");
    this.quality = this.root.querySelector("[data-quality]");
    for (const input of [this.from, this.to]) input.max = this.last;
    this.from.value = 0;
    this.to.value = this.last;
    this.label.addEventListener("change", () => this.allowQualities());
    this.allowQualities();
    this.form.addEventListener("keydown", (event) => {
      // Enter in a field of the builder adds the segment; it never sends the form.
      if (event.key === "Enter" && event.target.closest("[data-builder] input, [data-builder] select")) {
        event.preventDefault();
        this.add();
      }
    });
  }

  // ---- moving about

  seek(row) {
    this.row = Math.min(this.last, Math.max(0, Math.round(row)));
    if (this.playing) this.playing = { at: performance.now(), row: this.row };
    for (const video of this.videos) seekVideo(video, this.videoTime());
    this.show();
  }

  videoTime() {
    return (Math.floor(this.row / this.video.step) + 0.5) / this.video.rate;
  }

  play(on) {
    if (on === (this.playing !== null)) return;
    if (on && this.row >= this.last) this.seek(0);
    this.playing = on ? { at: performance.now(), row: this.row } : null;
    const button = this.root.querySelector('[data-act="play"]');
    button.textContent = on ? this.texts.pause : this.texts.play;
    for (const video of this.videos) {
      video.playbackRate = this.speed;
      if (on) video.play().catch(() => {});
      else video.pause();
    }
    if (on) requestAnimationFrame(() => this.tick());
    else this.seek(this.row);
  }

  tick() {
    if (!this.playing) return;
    const seconds = ((performance.now() - this.playing.at) / 1000) * this.speed;
    this.row = Math.min(this.last, Math.round(this.playing.row + seconds * this.view.rate_hz));
    if (this.row >= this.last) {
      this.play(false);
      return;
    }
    const wanted = this.videoTime();
    for (const video of this.videos) {
      if (Math.abs(video.currentTime - wanted) > DRIFT_S * Math.max(1, this.speed)) {
        seekVideo(video, wanted);
      }
    }
    this.show();
    requestAnimationFrame(() => this.tick());
  }

  setSpeed(speed) {
    this.speed = speed;
    this.root.querySelector("[data-speed]").value = String(speed);
    for (const video of this.videos) video.playbackRate = speed;
    if (this.playing) this.playing = { at: performance.now(), row: this.row };
  }

  flag(direction) {
    const rows = this.view.flags.map((flag) => flag.first_row);
    const next =
      direction > 0
        ? rows.find((row) => row > this.row)
        : rows.filter((row) => row < this.row).at(-1);
    if (next !== undefined) this.seek(next);
  }

  // ---- segments

  allowQualities() {
    const allowed = this.label.selectedOptions[0].dataset.qualities.split(" ");
    for (const option of this.quality.options) {
      option.disabled = !allowed.includes(option.value);
    }
    if (!allowed.includes(this.quality.value)) this.quality.value = allowed.at(-1);
  }

  setLabel(test) {
    const options = [...this.label.options];
    const now = this.label.selectedIndex;
    const matching = options.filter((option) => test(option.value));
    if (!matching.length) return;
    const after = matching.find((option) => option.index > now) ?? matching[0];
    this.label.value = after.value;
    this.allowQualities();
    this.say(`${this.texts.label}: ${after.text}`);
  }

  setQuality(value) {
    const option = [...this.quality.options].find((one) => one.value === value);
    if (!option || option.disabled) {
      this.say(this.texts.no_quality);
      return;
    }
    this.quality.value = value;
    this.say(`${this.texts.quality} ${value}`);
  }

  add() {
    const first = Number(this.from.value);
    const last = Number(this.to.value);
    const whole = Number.isInteger(first) && Number.isInteger(last);
    if (!whole || this.from.value === "" || first < 0 || last < first || last > this.last) {
      this.say(this.texts.bad_rows);
      return;
    }
    const added = { first, last, label: this.label.value, quality: Number(this.quality.value) };
    this.segments = cover(this.segments, added);
    this.from.value = Math.min(this.last, last + 1);
    this.to.value = this.last;
    this.showSegments();
    this.say(`${this.texts.added}: ${first}–${last} ${added.label} Q${added.quality}`);
  }

  remove(index) {
    const [gone] = this.segments.splice(index, 1);
    if (!gone) return;
    this.showSegments();
    this.say(`${this.texts.removed}: ${gone.first}–${gone.last} ${gone.label}`);
  }

  showSegments() {
    const list = this.root.querySelector("[data-segments]");
    if (this.lines) {
      const text = ({ first, last, label, quality }) => `${first} ${last} ${label} ${quality}`;
      this.lines.value = this.segments.map(text).join("\n");
    }
    list.replaceChildren(
      ...this.segments.map((segment, index) => {
        const item = document.createElement("li");
        const jump = button(`${segment.first}–${segment.last} ${segment.label} · Q${segment.quality}`);
        jump.addEventListener("click", () => this.seek(segment.first));
        item.append(jump);
        if (this.editable) {
          const remove = button("×");
          remove.setAttribute("aria-label", `${this.texts.remove} ${segment.first}–${segment.last}`);
          remove.addEventListener("click", () => this.remove(index));
          item.append(remove);
        }
        return item;
      }),
    );
    this.redraw();
  }

  listFlags() {
    const list = this.root.querySelector("[data-flags]");
    const rate = this.view.rate_hz;
    const unit = { jerk: "rad/s³", fault: "" };
    for (const flag of this.view.flags) {
      const item = document.createElement("li");
      const amount = unit[flag.kind] === "" ? "" : ` ${flag.value.toFixed(1)} ${unit[flag.kind] ?? "s"}`;
      const about = flag.about ? ` · ${flag.about}` : "";
      const where = `${(flag.first_row / rate).toFixed(1)} s`;
      const jump = button(`${where}  ${this.texts.flags[flag.kind]}${amount}${about}`);
      jump.addEventListener("click", () => this.seek(flag.first_row));
      item.append(jump);
      list.append(item);
    }
    this.root.querySelector("[data-no-flags]").hidden = this.view.flags.length > 0;
  }

  // ---- showing

  show() {
    this.slider.value = this.row;
    const seconds = (this.row / this.view.rate_hz).toFixed(2);
    const text = `${seconds} s · ${this.texts.row} ${this.row}`;
    this.slider.setAttribute("aria-valuetext", text);
    this.root.querySelector("[data-clock]").textContent = `${text} / ${this.last}`;
    this.plot.cursor(this.row);
  }

  redraw() {
    this.plot.draw(this.segments);
    this.plot.cursor(this.row);
  }

  say(text) {
    this.status.textContent = text;
  }

  // ---- videos

  async watchVideos() {
    const cameras = this.root.querySelector("[data-cameras]");
    const note = this.root.querySelector("[data-video-note]");
    for (;;) {
      const answer = await fetch(`/api/staff/review/${this.root.dataset.play}/video`);
      const state = answer.ok ? await answer.json() : { state: "making" };
      if (state.state === "failed" || (!answer.ok && answer.status !== 503)) {
        note.textContent = this.texts.no_video;
        return;
      }
      if (state.state === "ready") {
        this.video = { rate: state.rate_hz, step: state.step };
        note.hidden = true;
        for (const camera of state.cameras) cameras.append(this.figure(camera));
        cameras.dataset.count = state.cameras.length;
        this.seek(this.row);
        return;
      }
      note.textContent = this.texts.making;
      await new Promise((done) => setTimeout(done, ASK_AGAIN_MS));
    }
  }

  figure(camera) {
    const figure = document.createElement("figure");
    const video = document.createElement("video");
    video.muted = true;
    video.playsInline = true;
    video.preload = "auto";
    video.tabIndex = -1;
    video.src = `/staff/review/${this.root.dataset.play}/video/${encodeURIComponent(camera)}.mp4`;
    video.addEventListener("loadedmetadata", () => seekVideo(video, this.videoTime()));
    const caption = document.createElement("figcaption");
    caption.textContent = camera;
    video.setAttribute("aria-label", camera);
    figure.append(video, caption);
    this.videos.push(video);
    return figure;
  }

  // ---- keys

  act(name) {
    const frame = this.video.step;
    const second = Math.round(this.view.rate_hz);
    const acts = {
      play: () => this.play(this.playing === null),
      back: () => this.seek(this.row - frame),
      forward: () => this.seek(this.row + frame),
      "second-back": () => this.seek(this.row - second),
      "second-forward": () => this.seek(this.row + second),
      start: () => this.seek(0),
      end: () => this.seek(this.last),
      "flag-next": () => this.flag(1),
      "flag-back": () => this.flag(-1),
      slower: () => this.setSpeed(SPEEDS[Math.max(0, SPEEDS.indexOf(this.speed) - 1)]),
      faster: () => this.setSpeed(SPEEDS[Math.min(SPEEDS.length - 1, SPEEDS.indexOf(this.speed) + 1)]),
      keys: () => {
        const keys = this.root.querySelector("[data-keys]");
        keys.open = !keys.open;
      },
    };
    const edits = {
      from: () => {
        this.from.value = this.row;
        this.say(`${this.texts.from} ${this.row}`);
      },
      to: () => {
        this.to.value = this.row;
        this.say(`${this.texts.to} ${this.row}`);
      },
      "label-play": () => this.setLabel((value) => value === "play"),
      "label-tutorial": () => this.setLabel((value) => value === "tutorial"),
      "label-task": () => this.setLabel((value) => value === "task"),
      "label-subtask": () => this.setLabel((value) => value.startsWith("task:")),
      add: () => this.add(),
      remove: () =>
        this.remove(this.segments.findIndex(({ first, last }) => first <= this.row && this.row <= last)),
      commit: () => this.form.requestSubmit(),
    };
    const run = acts[name] ?? (this.editable ? edits[name] : undefined);
    run?.();
    return run !== undefined;
  }

  choose(name, value) {
    const input = this.form?.querySelector(`input[name="${name}"][value="${value}"]`);
    if (!this.editable || !input) return false;
    input.checked = true;
    this.say(input.closest("label").textContent.trim());
    return true;
  }

  key(event) {
    if (event.altKey || event.metaKey) return;
    if (event.ctrlKey) {
      if (event.key === "Enter" && this.act("commit")) event.preventDefault();
      return;
    }
    const at = event.target;
    const typing = at.matches("textarea, select, input:not([type=radio], [type=range], [type=checkbox])");
    if (typing || !this.root.querySelector("[data-shortcuts]").checked) return;
    const pressing = at.matches("button, a, summary, input[type=checkbox]");
    if (pressing && (event.key === " " || event.key === "Enter")) return;
    if (at.matches("input[type=radio]") && event.key.startsWith("Arrow")) return;
    if (this.shortcut(event)) event.preventDefault();
  }

  shortcut(event) {
    const digit = /^(?:Digit|Numpad)([0-3])$/.exec(event.code)?.[1];
    if (digit !== undefined && event.shiftKey) return this.choose("quality", digit);
    if (digit !== undefined && this.editable) {
      this.setQuality(digit);
      return true;
    }
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const decisions = { c: "confirm", r: "reverse", u: "unclear" };
    if (decisions[key]) return this.choose("decision", decisions[key]);
    const acts = {
      " ": "play",
      k: "play",
      ArrowLeft: event.shiftKey ? "second-back" : "back",
      ArrowRight: event.shiftKey ? "second-forward" : "forward",
      Home: "start",
      End: "end",
      n: "flag-next",
      b: "flag-back",
      "-": "slower",
      "+": "faster",
      "=": "faster",
      "?": "keys",
      i: "from",
      o: "to",
      p: "label-play",
      t: "label-tutorial",
      a: "label-task",
      s: "label-subtask",
      Enter: "add",
      Delete: "remove",
      Backspace: "remove",
    };
    return acts[key] !== undefined && this.act(acts[key]);
  }
}

// Flags, segments and joints over time, a lane each, with the cursor above them.
class Plot {
  constructor(canvas, view) {
    this.canvas = canvas;
    this.view = view;
    this.picture = document.createElement("canvas");
    this.height = 2 * STRIP + LANE * view.joints.length + 4;
    canvas.style.height = `${this.height}px`;
  }

  get wide() {
    return Math.max(1, this.canvas.clientWidth - NAMES - 8);
  }

  x(row) {
    return NAMES + (row / Math.max(1, this.view.rows - 1)) * this.wide;
  }

  rowAt(event) {
    const x = event.clientX - this.canvas.getBoundingClientRect().left;
    return ((x - NAMES) / this.wide) * (this.view.rows - 1);
  }

  draw(segments) {
    const scale = window.devicePixelRatio || 1;
    const style = getComputedStyle(this.canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    for (const canvas of [this.canvas, this.picture]) {
      canvas.width = Math.round(this.canvas.clientWidth * scale);
      canvas.height = Math.round(this.height * scale);
    }
    const ink = this.picture.getContext("2d");
    ink.setTransform(scale, 0, 0, scale, 0, 0);
    ink.font = `12px ${style.fontFamily}`;
    ink.textBaseline = "middle";
    this.bars(ink, 0, this.view.flags, colour("--bad"), colour("--on-stop"), (flag) => this.short(flag.kind));
    const named = segments.map((segment) => ({
      ...segment,
      first_row: segment.first,
      last_row: segment.last,
    }));
    this.bars(ink, STRIP, named, colour("--accent"), colour("--on-accent"), (one) => `${one.label} Q${one.quality}`);
    ink.lineWidth = 1;
    this.view.joints.forEach((joint, index) => {
      const top = 2 * STRIP + index * LANE;
      ink.strokeStyle = colour("--hair");
      ink.beginPath();
      ink.moveTo(0, top + 0.5);
      ink.lineTo(NAMES + this.wide, top + 0.5);
      ink.stroke();
      ink.fillStyle = colour("--quiet");
      ink.fillText(joint.name, 4, top + LANE / 2, NAMES - 12);
      ink.strokeStyle = colour("--ink");
      ink.beginPath();
      let pen = false;
      joint.values.forEach((value, step) => {
        if (value === null) {
          pen = false;
          return;
        }
        const y = top + LANE - 3 - value * (LANE - 6);
        if (pen) ink.lineTo(this.x(step * this.view.stride), y);
        else ink.moveTo(this.x(step * this.view.stride), y);
        pen = true;
      });
      ink.stroke();
    });
    this.mark = colour("--focus");
    this.scale = scale;
  }

  short(kind) {
    return this.canvas.dataset[kind] ?? kind;
  }

  bars(ink, top, things, fill, on, text) {
    for (const thing of things) {
      const left = this.x(thing.first_row);
      const width = Math.max(3, this.x(thing.last_row) - left);
      ink.fillStyle = fill;
      ink.fillRect(left, top + 2, width, STRIP - 5);
      const label = text(thing);
      if (ink.measureText(label).width + 8 < width) {
        ink.fillStyle = on;
        ink.fillText(label, left + 4, top + STRIP / 2);
      }
    }
    ink.fillStyle = this.canvas ? getComputedStyle(this.canvas).color : fill;
    ink.fillText(this.canvas.dataset[top ? "laneSegments" : "laneFlags"], 4, top + STRIP / 2, NAMES - 12);
  }

  cursor(row) {
    if (!this.scale) return;
    const ink = this.canvas.getContext("2d");
    ink.setTransform(1, 0, 0, 1, 0, 0);
    ink.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (this.picture.width) ink.drawImage(this.picture, 0, 0);
    ink.fillStyle = this.mark;
    ink.fillRect((this.x(row) - 1) * this.scale, 0, 2 * this.scale, this.canvas.height);
  }
}

// A video takes one seek at a time; of those that come meanwhile the last counts.
function seekVideo(video, seconds) {
  if (video.seeking) {
    const first = video.wanted === undefined;
    video.wanted = seconds;
    if (first) {
      video.addEventListener(
        "seeked",
        () => {
          const wanted = video.wanted;
          video.wanted = undefined;
          if (Math.abs(video.currentTime - wanted) > 1e-3) seekVideo(video, wanted);
        },
        { once: true },
      );
    }
    return;
  }
  video.currentTime = seconds;
}

function parse(text) {
  return text
    .split("\n")
    .map((line) => line.trim().split(/\s+/))
    .filter((words) => words.length === 4)
    .map(([first, last, label, quality]) => ({
      first: Number(first),
      last: Number(last),
      label,
      quality: Number(quality),
    }));
}

// `added` over what was there; in the order of the rows.
function cover(segments, added) {
  const kept = segments.flatMap((one) => {
    const before = { ...one, last: Math.min(one.last, added.first - 1) };
    const after = { ...one, first: Math.max(one.first, added.last + 1) };
    return [before, after].filter(({ first, last }) => first <= last);
  });
  return [...kept, added].sort((one, other) => one.first - other.first);
}

function button(text) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "second small";
  made.textContent = text;
  return made;
}
