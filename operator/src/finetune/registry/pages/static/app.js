// What pages do beyond links and forms: renew themselves, and the keyboard. Everything else works without this file.
"use strict";

const POLL_MILLISECONDS = 10_000;
const LEAST_MILLISECONDS = 900;
let source = null;
let polling = null;
let due = null;
let last = 0;
let hasPoints = false;

/** Replace a part of the page by what it is now. Ticked boxes, the focus and open details stay. */
function renew(id) {
  last = Date.now();
  if (!document.getElementById(id)) return;
  const target = "#" + id;
  const show = (part) => htmx.ajax("GET", location.pathname + location.search, { target: part, select: part, swap: "outerMorph" });
  show(target);
  // The charts of a page that was opened before the first point. Those that are there move by themselves.
  if (hasPoints && document.getElementById("charts") && !document.querySelector("figure.chart")) show("#charts");
}

/** Renew soon: all viewers together as often as the registry bears, which says how long each of them waits. */
function renewSoon(id, wait) {
  if (due) return;
  const left = Math.max(last + Math.max(wait, LEAST_MILLISECONDS) - Date.now(), Math.random() * wait);
  due = setTimeout(() => { due = null; renew(id); }, left);
}

function changed(id) {
  hasPoints = true; // there may be some
  renew(id);
  document.dispatchEvent(new CustomEvent("finetune:reload"));
}

/** What is no page of ours to take a part from, is not put in its place: the page that is there would be lost. */
document.addEventListener("htmx:before:swap", (event) => {
  const { sourceElement, response: { raw } } = event.detail.ctx;
  if (raw.ok && !raw.redirected) return;
  event.preventDefault();
  if (raw.status >= 500 && !sourceElement.matches("form")) return; // it was only to be renewed: later, then
  quiet();
  location.assign(raw.url); // says what is wrong, or asks to sign in
});

/** Listen to the page's events; in a tab that nobody sees, do not. */
function listen() {
  const part = document.querySelector("[data-events]");
  if (!part || !part.dataset.events || source || document.hidden) return;
  const id = part.id;
  let wasOpen = false;
  source = new EventSource(part.dataset.events);
  source.addEventListener("open", () => {
    if (wasOpen) changed(id); // what happened in between, nobody has told
    wasOpen = true;
  });
  source.addEventListener("list", (event) => renewSoon(id, JSON.parse(event.data).wait));
  source.addEventListener("run", (event) => {
    const told = JSON.parse(event.data);
    hasPoints ||= Object.keys(told.points).length > 0;
    document.dispatchEvent(new CustomEvent("finetune:points", { detail: told.points }));
    renewSoon(id, told.wait);
    if (told.ended) quiet();
  });
  source.addEventListener("reload", () => changed(id));
  source.addEventListener("goodbye", () => { quiet(); location.reload(); });
  source.addEventListener("error", () => {
    // Closed for good: there are too many viewers, or the session has ended. Ask now and then instead.
    if (source && source.readyState === EventSource.CLOSED) {
      quiet();
      polling = setInterval(() => document.querySelector("[data-events]") ? changed(id) : quiet(), POLL_MILLISECONDS);
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
