// Keeps a leaderboard up to date: a live stream, or, where there is none, polling with ETags.
// The page is complete without this script.

const POLL_MS = 10_000;
const RETRY_STREAM_MS = 60_000;
const ANNOUNCE_APART_MS = 15_000; // a screen reader is not to be talked at

const board = document.querySelector("[data-board]");
if (board) follow(board);

function follow(board) {
  const scope = encodeURIComponent(board.dataset.board);
  const period = encodeURIComponent(board.dataset.period);
  const address = `/api/board/${scope}`;
  const query = `?period=${period}`;
  const signedIn = board.dataset.signedIn === "yes";
  let first = nameOf(board.querySelector("[data-top] tr"));
  let announced = 0;
  let etag = null;
  let poller = null;

  stream();

  function stream() {
    const source = new EventSource(`${address}/live${query}`);
    source.addEventListener("board", (event) => {
      stopPolling();
      show(JSON.parse(event.data));
    });
    source.addEventListener("error", () => {
      if (source.readyState !== EventSource.CLOSED) return; // the browser comes back by itself
      startPolling();
      setTimeout(stream, RETRY_STREAM_MS);
    });
    addEventListener("pagehide", () => source.close(), { once: true });
  }

  function startPolling() {
    if (poller === null) poller = setInterval(poll, POLL_MS);
  }

  function stopPolling() {
    clearInterval(poller);
    poller = null;
  }

  async function poll() {
    if (document.hidden) return;
    const headers = etag === null ? {} : { "If-None-Match": etag };
    try {
      const answer = await fetch(address + query, { headers, cache: "no-store" });
      if (!answer.ok) return; // 304: nothing new; else the next time
      etag = answer.headers.get("ETag");
      show(await answer.json());
    } catch {
      // Offline: the board stands as it was, and the next poll may do better.
    }
  }

  async function show(frame) {
    const mine = signedIn ? await myPlace() : null;
    const me = mine?.place;
    fill(
      board.querySelector("[data-top]"),
      frame.places.map((place) => ({ ...place, me: me?.name === place.name })),
    );
    board.querySelector("[data-count]").textContent = frame.count;
    board.querySelector("[data-empty]").hidden = frame.places.length > 0;
    const onTop = me && frame.places.some((place) => place.name === me.name);
    const around = board.querySelector("[data-around]");
    around.hidden = !me || onTop;
    fill(board.querySelector("[data-neighbours]"), around.hidden ? [] : mine.around);
    announce(frame.places[0]);
  }

  async function myPlace() {
    try {
      const answer = await fetch(`${address}/me${query}`, { cache: "no-store" });
      return answer.ok ? await answer.json() : null;
    } catch {
      return null;
    }
  }

  function announce(leader) {
    const now = Date.now();
    if (!leader || leader.name === first || now - announced < ANNOUNCE_APART_MS) return;
    first = leader.name;
    announced = now;
    board.querySelector("[data-news]").textContent = board.dataset.newFirst
      .replace("%name%", () => leader.name)
      .replace("%score%", () => leader.score);
  }
}

function nameOf(row) {
  return row ? row.querySelector("th").textContent : null;
}

function fill(body, places) {
  const before = new Map(
    [...body.rows].map((row) => [nameOf(row), row.querySelector(".board-score").textContent]),
  );
  body.replaceChildren(
    ...places.map((place) => {
      const row = document.createElement("tr");
      if (place.me) {
        row.className = "board-me";
        row.setAttribute("aria-current", "true");
      }
      if (before.size > 0 && before.get(place.name) !== String(place.score)) {
        row.classList.add("board-new"); // a short highlight; none with reduced motion
      }
      row.append(
        cell("td", "board-rank", place.rank),
        cell("th", "", place.name),
        cell("td", "board-score", place.score),
      );
      return row;
    }),
  );
}

function cell(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (tag === "th") element.scope = "row";
  element.textContent = text;
  return element;
}
