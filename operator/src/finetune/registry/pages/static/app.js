// What pages do beyond links and forms: renew themselves, and the keyboard. Everything else works without this file.
"use strict";

const POLL_MILLISECONDS = 10_000;
let source = null;
let polling = null;

/** Replace a part of the page by what it is now. Ticked boxes, the focus and open details stay. */
function renew(id) {
  if (!document.getElementById(id)) return;
  const target = "#" + id;
  htmx.ajax("GET", location.pathname + location.search, { target, select: target, swap: "outerMorph" });
}

function changed(id) {
  renew(id);
  document.dispatchEvent(new CustomEvent("finetune:reload"));
}

/** Listen to the page's events; in a tab that nobody sees, do not. */
function listen() {
  const part = document.querySelector("[data-events]");
  if (!part || !part.dataset.events || source || document.hidden) return;
  const id = part.id;
  source = new EventSource(part.dataset.events);
  let last = 0;
  source.addEventListener("list", () => renew(id));
  source.addEventListener("run", (event) => {
    const told = JSON.parse(event.data);
    document.dispatchEvent(new CustomEvent("finetune:points", { detail: told.points }));
    if (told.ended || Date.now() - last > 900) renew(id);
    last = Date.now();
    if (told.ended) quiet();
  });
  source.addEventListener("reload", () => changed(id));
  source.addEventListener("goodbye", () => { quiet(); location.reload(); });
  source.addEventListener("error", () => {
    // Closed for good: there are too many viewers, or the session has ended. Ask now and then instead.
    if (source && source.readyState === EventSource.CLOSED) {
      quiet();
      polling = setInterval(() => changed(id), POLL_MILLISECONDS);
    }
  });
}

function quiet() {
  if (source) source.close();
  if (polling) clearInterval(polling);
  source = polling = null;
}

let wasHidden = false;
document.addEventListener("visibilitychange", () => {
  if (document.hidden) { quiet(); wasHidden = true; return; }
  const part = document.querySelector("[data-events]");
  if (wasHidden && part && part.dataset.events) changed(part.id);
  wasHidden = false;
  listen();
});
addEventListener("pagehide", quiet);

/** j and k go through the rows, x ticks, Enter opens, c compares. */
let current = -1;
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input:not([type=checkbox]), select, textarea")) return;
  const rows = [...document.querySelectorAll("#list tr[data-row]")];
  if (!rows.length) return;
  if (event.key === "j" || event.key === "k") {
    current = Math.min(rows.length - 1, Math.max(0, current + (event.key === "j" ? 1 : -1)));
    rows.forEach((row, place) => row.classList.toggle("current", place === current));
    rows[current].querySelector("th a").focus();
  } else if (event.key === "x" && rows[current]) {
    rows[current].querySelector("input[type=checkbox]").click();
  } else if (event.key === "c") {
    document.querySelector("#list button[value=compare]").click();
  }
});

listen();
