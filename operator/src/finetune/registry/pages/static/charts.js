// Charts with a crosshair, over the pictures that the page brings. Points are fetched when a chart is seen.
"use strict";

const DASHES = [[], [6, 3], [2, 2], [8, 3, 2, 3]];
const charts = new Map();
const AXES = { step: "steps", seconds: "seconds", tokens: "tokens" };
const options = { x: "step", smooth: 0, log: false };

/** How charts are shown stands in the address, behind #: who is given it sees the same. */
function readOptions() {
  const said = new URLSearchParams(location.hash.slice(1));
  if (said.get("x") in AXES) options.x = said.get("x");
  const smooth = Number(said.get("smooth"));
  if (smooth > 0 && smooth <= 0.95) options.smooth = smooth;
  options.log = said.get("log") === "1";
}

function keepOptions() {
  const said = new URLSearchParams();
  if (options.x !== "step") said.set("x", options.x);
  if (options.smooth) said.set("smooth", options.smooth);
  if (options.log) said.set("log", "1");
  history.replaceState(history.state, "", location.pathname + location.search + (said.size ? `#${said}` : ""));
}

/** A place on the x axis, in words. */
function place(x) {
  if (options.x === "seconds") return duration(x);
  return options.x === "tokens" ? `${number(x)} tokens` : `step ${number(x)}`;
}

/** The value of a colour of the style sheet, as the canvas needs it: light or dark resolved. */
function colour(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** An exponential moving average whose start is not drawn towards 0. */
function smoothed(values, weight) {
  if (!weight) return values;
  let sum = 0, share = 0;
  return values.map((value) => {
    if (value == null) return value;
    sum = weight * sum + (1 - weight) * value;
    share = weight * share + (1 - weight);
    return sum / share;
  });
}

function number(value) {
  if (value == null) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) < 0.001 || Math.abs(value) >= 1e6 ? value.toExponential(2) : Number(value.toPrecision(4)).toString();
}

class Chart {
  constructor(figure) {
    this.figure = figure;
    this.plot = figure.querySelector(".plot");
    this.reading = figure.querySelector(".reading");
    this.base = figure.dataset.base === undefined ? null : Number(figure.dataset.base);
    this.marks = (figure.dataset.marks || "").split(",").filter(Boolean).map(Number);
    this.runs = figure.dataset.runs.split(",");
    this.metrics = figure.dataset.metrics.split(",");
    this.lines = null;
  }

  async load() {
    const query = new URLSearchParams({ runs: this.runs.join(","), metrics: this.metrics.join(",") });
    if (options.x === "tokens") query.set("x", "tokens");
    const answer = await fetch(`${this.figure.dataset.series}?${query}`, { headers: { Accept: "application/json" } });
    if (!answer.ok) return; // the picture of the page stays
    this.lines = (await answer.json()).lines;
    this.draw();
  }

  /** The lines in the order of the legend, on one axis. */
  data() {
    const ordered = [];
    for (const metric of this.metrics) for (const run of this.runs) {
      const line = this.lines.find((each) => each.run === run && each.metric === metric);
      if (line && line[AXES[options.x]]) ordered.push({ ...line, place: this.runs.length > 1 ? this.runs.indexOf(run) : this.metrics.indexOf(metric) });
    }
    const tables = ordered.map((line) => [line[AXES[options.x]], smoothed(line.values, options.smooth)]);
    return { ordered, table: tables.length > 1 ? uPlot.join(tables) : tables[0] };
  }

  draw() {
    if (!this.lines || !this.lines.length) return;
    const { ordered, table } = this.data();
    if (!ordered.length) return; // no run has told of its tokens yet
    const faint = colour("--faint"), grid = { stroke: colour("--line"), width: 1 };
    const values = ordered.flatMap((line) => line.values);
    const log = options.log && values.every((value) => value > 0);
    const many = this.runs.length > 1;
    const axis = { stroke: faint, grid, ticks: grid, font: "11px system-ui" };
    const settings = {
      width: this.plot.clientWidth,
      height: 220,
      legend: { show: false },
      cursor: { drag: { x: true, y: false }, sync: { key: "finetune" } },
      scales: { x: { time: false }, y: { distr: log ? 3 : 1, range: log ? undefined : (u, low, high) => this.range(low, high) } },
      axes: [
        { ...axis, values: (u, ticks) => ticks.map((tick) => options.x === "seconds" ? duration(tick) : short(tick)) },
        { ...axis, size: 60, values: (u, ticks) => ticks.map(number) },
      ],
      series: [{}, ...ordered.map((line) => ({
        label: many ? line.name : line.metric,
        stroke: colour(`--colour-${line.place % 8}`),
        dash: DASHES[line.place % 4],
        width: 1.5,
        spanGaps: true,
        points: { show: line.values.length < 40 },
      }))],
      hooks: { setCursor: [(u) => this.read(u)], draw: [(u) => this.drawLines(u, faint)] },
    };
    if (this.uplot) this.uplot.destroy();
    this.plot.replaceChildren();
    this.uplot = new uPlot(settings, table, this.plot);
    this.plot.setAttribute("role", "img");
    this.plot.setAttribute("aria-label", this.figure.querySelector("figcaption").textContent.trim() + " Left and right arrow read values.");
    this.plot.tabIndex = 0;
  }

  range(low, high) {
    if (low == null) return [0, 1];
    if (this.base !== null) { low = Math.min(low, this.base); high = Math.max(high, this.base); }
    const room = (high - low || Math.abs(high) || 1) * 0.05;
    return [low - room, high + room];
  }

  /** The base model's value, and the steps at which an attempt went on. */
  drawLines(u, stroke) {
    const { left, top, width, height } = u.bbox;
    u.ctx.save();
    u.ctx.strokeStyle = stroke;
    u.ctx.beginPath();
    if (this.base !== null) {
      const y = u.valToPos(this.base, "y", true);
      u.ctx.moveTo(left, y);
      u.ctx.lineTo(left + width, y);
    }
    for (const mark of options.x === "step" ? this.marks : []) {
      const x = u.valToPos(mark, "x", true);
      if (x < left || x > left + width) continue;
      u.ctx.moveTo(x, top);
      u.ctx.lineTo(x, top + height);
    }
    u.ctx.setLineDash([5, 4]);
    u.ctx.stroke();
    u.ctx.restore();
  }

  read(u) {
    const at = u.cursor.idx;
    if (at == null) { this.reading.textContent = ""; return; }
    const x = u.data[0][at];
    const said = u.series.slice(1).map((line, place) => [line.label, u.data[place + 1][at]]).filter(([, value]) => value != null);
    this.reading.textContent = `${place(x)}: ` + said.map(([label, value]) => `${label} ${number(value)}`).join(", ");
  }

  move(by) {
    const u = this.uplot;
    const at = Math.min(u.data[0].length - 1, Math.max(0, (u.cursor.idx ?? (by > 0 ? -1 : u.data[0].length)) + by));
    u.setCursor({ left: u.valToPos(u.data[0][at], "x"), top: u.over.clientHeight / 2 });
  }

  /** Newer points of the run, from the stream. */
  add(points) {
    if (!this.lines) return;
    if (options.x === "tokens") { this.load(); return; } // where the points are is the server's to say
    let more = false;
    for (const metric of this.metrics) {
      let line = this.lines.find((each) => each.metric === metric);
      if (points[metric] && !line) {
        line = { run: this.runs[0], name: metric, metric, steps: [], seconds: [], values: [] };
        this.lines.push(line);
      }
      for (const [step, seconds, value] of points[metric] || []) {
        if (line.steps.length && step <= line.steps[line.steps.length - 1]) continue;
        line.steps.push(step); line.seconds.push(seconds); line.values.push(value);
        more = true;
      }
    }
    if (!more) return;
    const { ordered, table } = this.data();
    if (this.uplot && this.uplot.series.length === ordered.length + 1) this.uplot.setData(table); else this.draw();
  }
}

/** Steps as they are; tokens by the million. */
function short(tick) {
  return tick >= 1e6 ? `${number(tick / 1e6)} M` : tick.toLocaleString("en");
}

function duration(seconds) {
  if (seconds >= 3600) return `${(seconds / 3600).toFixed(1)} h`;
  return seconds >= 60 ? `${Math.round(seconds / 60)} m` : `${Math.round(seconds)} s`;
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting || charts.has(entry.target)) continue;
    const chart = new Chart(entry.target);
    charts.set(entry.target, chart);
    chart.load();
  }
}, { rootMargin: "100px" });

/** Take over the charts of the page; some come later, with the first points of a run. */
function mount() {
  document.querySelectorAll("figure.chart").forEach((figure) => seen.observe(figure));
  const controls = document.querySelector("[data-chart-controls]");
  if (!controls || !controls.hidden) return;
  controls.hidden = false;
  const x = controls.querySelector("[name=x]");
  if (![...x.options].some((each) => each.value === options.x)) options.x = "step";
  x.value = options.x;
  controls.querySelector("[name=smooth]").value = options.smooth;
  controls.querySelector("[name=log]").checked = options.log;
}

readOptions();
mount();
const late = document.getElementById("charts");
if (late) for (const part of [late, late.parentNode]) new MutationObserver(mount).observe(part, { childList: true });
document.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const plot = by && event.target.closest("figure.chart .plot");
  const chart = plot && charts.get(plot.closest("figure"));
  if (chart && chart.uplot) { chart.move(by); event.preventDefault(); }
});
document.addEventListener("input", (event) => {
  const controls = event.target.closest("[data-chart-controls]");
  if (!controls) return;
  options.x = controls.querySelector("[name=x]").value;
  options.smooth = Number(controls.querySelector("[name=smooth]").value);
  options.log = controls.querySelector("[name=log]").checked;
  keepOptions();
  const isNew = event.target.name === "x" && options.x === "tokens";
  charts.forEach((chart) => isNew ? chart.load() : chart.draw());
});
document.addEventListener("finetune:points", (event) => charts.forEach((chart) => chart.figure.dataset.live && chart.add(event.detail)));
document.addEventListener("finetune:reload", () => charts.forEach((chart) => chart.figure.dataset.live && chart.load()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((chart) => chart.draw()));
let resizing = 0;
addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(() => charts.forEach((chart) => chart.draw()), 150); });
