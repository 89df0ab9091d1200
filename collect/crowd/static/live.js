// Beside htmx, which keeps parts of pages up to date (hx-get, hx-select): what has not changed is
// not swapped, and what cannot be asked for is told of.

const shown = new Map(); // a part's selector -> what it was
for (const asking of document.querySelectorAll("[hx-select]")) {
  const select = asking.getAttribute("hx-select");
  shown.set(select, document.querySelector(select).outerHTML);
}

document.body.addEventListener("htmx:beforeSwap", ({ detail }) => {
  const select = detail.requestConfig.elt.closest("[hx-select]")?.getAttribute("hx-select");
  if (!detail.shouldSwap || !select) return;
  const page = new DOMParser().parseFromString(detail.serverResponse, "text/html");
  const part = page.querySelector(select)?.outerHTML;
  if (part === undefined) location.assign(detail.xhr.responseURL); // sent elsewhere: a sign-in, a turn
  detail.shouldSwap = part !== undefined && part !== shown.get(select);
  shown.set(select, part);
});

// Whoever used what is gone now goes on from there, not from the top of the page.
document.body.addEventListener("htmx:afterSwap", ({ detail }) => {
  if (detail.requestConfig.verb === "post" && document.activeElement === document.body) {
    document.querySelector("#main").focus({ preventScroll: true });
  }
});

document.body.addEventListener("htmx:afterRequest", ({ detail }) => {
  const note = document.querySelector("[data-offline]");
  const away = detail.xhr.status === 0 || detail.xhr.status >= 500;
  if (note && detail.requestConfig.verb === "get") note.hidden = !away;
});

// Refused, or not reached: as without this script, the browser's own page says why.
for (const name of ["htmx:responseError", "htmx:sendError", "htmx:timeout"]) {
  document.body.addEventListener(name, ({ detail }) => {
    if (detail.requestConfig.verb === "post") detail.requestConfig.elt.submit();
  });
}
