"use strict";
// Draws charts when they are about to be seen, and handles the controls. All data are in the page;
// Plotly and the figures are compressed.

const themes = JSON.parse(document.getElementById("themes").textContent);
const NEAR = "800px";
const CONFIG = {
  displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "sendChartToCloud"],
};
// Browsers limit a page to about sixteen WebGL contexts, and a chart takes three.
const MAX_WEBGL_CHARTS = 4;

// ------------------------------------------------------------------ light and dark

const chosenTheme = document.getElementById("theme");

function cssVariable(name) {
  return getComputedStyle(root).getPropertyValue(name).trim();
}

function layoutOf(figure) {
  const theme = structuredClone(themes[isDark() ? "dark" : "light"]);
  Object.assign(theme.layout, {
    paper_bgcolor: "transparent", plot_bgcolor: "transparent",
    font: { family: "system-ui, sans-serif", color: cssVariable("--ink"), size: 13 },
  });
  // Plotly chooses the wrong text color on half-transparent cells.
  theme.data.heatmap[0].textfont = { color: cssVariable("--ink") };
  // Names at an axis need as much room as they take, numbers always the same.
  const l = figure.layout.yaxis?.automargin ? 5 : 60;
  const margin = { l, r: 20, t: 10, b: 60, ...figure.layout.margin };
  return { ...figure.layout, template: theme, margin, width: undefined, autosize: true };
}

// Plotly cuts off the title of an axis that is longer than the figure: its unit gets a second line.
function wrapAxisTitles(plot) {
  const { left, right, top, bottom } = plot.getBoundingClientRect(), layout = plot._fullLayout, changes = {};
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
    const { text } = layout[name].title, title = plot.querySelector(`.${layout[name]._id}title`);
    if (!title || !text.includes(" (") || text.includes("<br>")) continue;
    const box = title.getBoundingClientRect();
    if (box.left >= left && box.right <= right && box.top >= top && box.bottom <= bottom) continue;
    const side = name[0] === "x" ? "b" : "l";
    changes[`${name}.title.text`] = text.replace(" (", "<br>(");
    changes[`margin.${side}`] = layout.margin[side] + 18;
  }
  if (Object.keys(changes).length) Plotly.relayout(plot, changes);
}

function applyTheme() {
  root.dataset.theme = isDark() ? "dark" : "light";
  for (const plot of document.querySelectorAll(".plot.drawn")) {
    Plotly.relayout(plot, { template: layoutOf(figureOf(plot)).template });
  }
}

chosenTheme.value = theme;
chosenTheme.addEventListener("change", () => {
  theme = chosenTheme.value;
  remember("rnn-search theme", theme);
  applyTheme();
});
system.addEventListener("change", applyTheme);

// ------------------------------------------------------------------ drawing

let figures = [];
let withWebGL = [];

async function decompress(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

// Everything at once: printing draws all figures, and cannot wait for them.
async function startDrawing() {
  if (!root.classList.contains("drawing")) {
    for (const details of document.querySelectorAll(".alt-text")) details.open = true;
    return;
  }
  const [library, data] = await Promise.all(["plotly", "figures"].map(decompress));
  const script = document.createElement("script");
  script.textContent = library;
  document.head.append(script);
  figures = JSON.parse(data);
  for (const plot of document.querySelectorAll(".plot")) near.observe(plot);
  if (root.dataset.printing) drawAll();
}

function figureOf(plot) { return figures[plot.dataset.figure]; }

async function draw(plot) {
  if (plot.classList.contains("begun")) return;
  plot.classList.add("begun");
  if (plot.classList.contains("webgl")) {
    withWebGL.push(plot);
    while (withWebGL.length > MAX_WEBGL_CHARTS) undraw(withWebGL.shift());
  }
  const figure = figureOf(plot);
  const curves = plot.closest(".curves");
  if (curves) {
    await recolor(curves, plot);
    listenToCurves(curves, plot);
  } else {
    await Plotly.newPlot(plot, figure.data, layoutOf(figure), CONFIG);
  }
  wrapAxisTitles(plot);
  plot.on("plotly_afterplot", () => wrapAxisTitles(plot));
  plot.classList.add("drawn");
}

function undraw(plot) {
  if (plot.closest(".curves")) showAll(plot.closest(".curves"));
  Plotly.purge(plot);
  plot.classList.remove("begun", "drawn");
  near.observe(plot);
}

const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    near.unobserve(entry.target);
    draw(entry.target);
  }
}, { rootMargin: NEAR });

// All at once: the browser prints as soon as the event handler has returned.
function drawAll() {
  return Promise.all([...document.querySelectorAll(".plot:not(.begun)")].map(draw));
}

addEventListener("beforeprint", () => {
  root.dataset.printing = "yes";
  applyTheme();
  if (figures.length) drawAll();
  for (const plot of document.querySelectorAll(".plot.drawn")) Plotly.Plots.resize(plot);
});
addEventListener("afterprint", () => {
  delete root.dataset.printing;
  applyTheme();
});

// ------------------------------------------------------------------ contents

// A column next to the page where there is room, else a menu in a bar.
const contents = document.querySelector(".contents");
const wide = matchMedia("(min-width: 64rem)");
const links = [...contents.querySelectorAll("a")];
const targets = links.map((link) => document.getElementById(link.hash.slice(1)));

function markCurrent() {
  // The last target above this line is read; at the end of the page the last one.
  const line = 0.25 * innerHeight;
  const isAtEnd = scrollY + innerHeight >= root.scrollHeight - 2;
  let current = isAtEnd && scrollY > 0 ? targets.length - 1
    : targets.findLastIndex((target) => target.getBoundingClientRect().top <= line);
  // A study and its summary begin together.
  if (current < 1) current = Math.min(1, links.length - 1);
  const link = links[current];
  contents.querySelector("[aria-current]")?.removeAttribute("aria-current");
  link.setAttribute("aria-current", "true");
  for (const study of contents.querySelectorAll(".of-study")) study.classList.toggle("current", study.contains(link));
  contents.querySelector(".here").textContent = link.textContent;
  if (wide.matches) {
    const bar = contents.closest(".bar"), box = link.getBoundingClientRect();
    if (box.top < 0 || box.bottom > innerHeight) bar.scrollTop += box.top - innerHeight / 2;
  }
}

let isMarking = false;
addEventListener("scroll", () => {
  if (isMarking) return;
  isMarking = true;
  requestAnimationFrame(() => { isMarking = false; markCurrent(); });
}, { passive: true });

function arrangeContents() {
  contents.open = wide.matches;
  markCurrent();
}

wide.addEventListener("change", arrangeContents);
contents.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || wide.matches) return;
  contents.open = false;
  contents.querySelector("summary").focus();
});

// ------------------------------------------------------------------ curves

const KINDS = { f4: Float32Array, f8: Float64Array, i1: Int8Array, i2: Int16Array, i4: Int32Array };

function numbers(array) {
  if (Array.isArray(array)) return array;
  const bytes = Uint8Array.from(atob(array.bdata), (letter) => letter.charCodeAt(0));
  return new KINDS[array.dtype](bytes.buffer);
}

function stepsOf(curve, count) {
  return curve.x ? numbers(curve.x) : Float64Array.from({ length: count }, (_, i) => curve.x0 + i * curve.dx);
}

function selectedScheme(curves, figure) {
  return figure.schemes[curves.querySelector(".coloring").selectedIndex];
}

// One trace per color, its curves separated by gaps: the cost per trace is paid a dozen times only.
function bundleByColor(figure, { legend, of }) {
  const bundles = new Map();
  figure.data.forEach((curve, i) => {
    const isThick = curve.line.width > 1;
    const key = `${Number(isThick)} ${String(999 - of[i]).padStart(3, "0")}`;
    if (!bundles.has(key)) {
      bundles.set(key, {
        type: "scattergl", mode: "lines", x: [], y: [], text: [], customdata: [],
        marker: { size: 4 },
        line: { width: curve.line.width, color: legend[of[i]][1] }, opacity: curve.opacity,
        hovertemplate: curve.hovertemplate.replace("%{fullData.name}", "%{text}"),
        hoverlabel: curve.hoverlabel, showlegend: false,
      });
    }
    const bundle = bundles.get(key), y = numbers(curve.y), x = stepsOf(curve, y.length);
    // A value without neighbors needs a marker: a line would not show it.
    const isAlone = (j) => !Number.isNaN(y[j]) && !(y[j - 1] === y[j - 1] && j > 0) && !(y[j + 1] === y[j + 1] && j + 1 < y.length);
    if (Array.from(y.keys()).some(isAlone)) bundle.mode = "lines+markers";
    for (let j = 0; j <= y.length; j++) {
      bundle.x.push(j < y.length ? x[j] : null);
      bundle.y.push(j < y.length ? y[j] : null);
      bundle.text.push(curve.name);
      bundle.customdata.push(i);
    }
  });
  // Thick lines are drawn over thin ones, better ones over worse ones.
  return [...bundles.keys()].sort().map((key) => bundles.get(key));
}

function showLegend(curves, { legend }) {
  const isSequential = legend.length > 1 && !legend[1][0];
  const entries = legend.map(([label, color], i) => {
    const entry = document.createElement("span"), swatch = document.createElement("i");
    swatch.style.background = color;
    // Only the ends of a sequential scale have labels.
    entry.append(...(isSequential && i === 0 ? [`${label} `, swatch] : [swatch, label]));
    return entry;
  });
  const place = curves.querySelector(".legend");
  place.classList.toggle("ordered", isSequential);
  place.replaceChildren(...entries);
}

async function recolor(curves, plot) {
  const figure = figureOf(plot), scheme = selectedScheme(curves, figure);
  showLegend(curves, scheme);
  await Plotly.react(plot, bundleByColor(figure, scheme), layoutOf(figure), CONFIG);
}

function listenToCurves(curves, plot) {
  plot.on("plotly_click", ({ points: [point] }) => {
    plot.dataset.clicked = "yes";  // see the listener of clicks below
    isolate(curves, plot, point.customdata);
  });
  plot.on("plotly_afterplot", () => { if (curves.alone !== undefined) isolate(curves, plot, curves.alone); });
}

// The isolated curve is an SVG overlay; the others fade as one canvas, at no cost per curve.
function isolate(curves, plot, number) {
  showAll(curves);
  const curve = figureOf(plot).data[number], y = numbers(curve.y), x = stepsOf(curve, y.length);
  const { xaxis, yaxis } = plot._fullLayout;
  const points = Array.from(y, (loss, i) => `${xaxis.d2p(x[i]).toFixed(1)},${yaxis.d2p(loss).toFixed(1)}`);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "alone");
  svg.setAttribute("viewBox", `0 0 ${xaxis._length} ${yaxis._length}`);
  Object.assign(svg.style, {
    left: `${xaxis._offset}px`, top: `${yaxis._offset}px`,
    width: `${xaxis._length}px`, height: `${yaxis._length}px`,
  });
  const line = document.createElementNS(svg.namespaceURI, "polyline");
  line.setAttribute("points", points.filter((point) => !point.includes("NaN")).join(" "));
  svg.append(line);
  plot.append(svg);
  curves.alone = number;
  curves.classList.add("alone");
  curves.querySelector(".isolated").textContent = curve.name;
}

function showAll(curves) {
  delete curves.alone;
  curves.classList.remove("alone");
  curves.querySelector(".isolated").textContent = "";
  curves.querySelector("svg.alone")?.remove();
}

for (const curves of document.querySelectorAll(".curves")) {
  const plot = curves.querySelector(".plot");
  curves.querySelector(".coloring").addEventListener("change", () => {
    if (plot.classList.contains("drawn")) recolor(curves, plot);
  });
  plot.addEventListener("click", () => {
    if (plot.dataset.clicked) delete plot.dataset.clicked;
    else showAll(curves);
  });
  addEventListener("keydown", (event) => { if (event.key === "Escape") showAll(curves); });
}

// ------------------------------------------------------------------ tables

for (const table of document.querySelectorAll("table.sortable")) {
  for (const header of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.className = "sort";
    button.append(...header.childNodes);
    header.append(button);
  }
  const tools = document.createElement("div"), button = document.createElement("button");
  tools.className = "tools";
  button.className = "csv";
  button.textContent = "Download as CSV";
  tools.append(button);
  table.parentElement.after(tools);
}

function sortKey(cell) {
  const key = cell.dataset.sort ?? cell.textContent.trim();
  return key === "" || Number.isNaN(Number(key)) ? key : Number(key);
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sort(header) {
  const table = header.closest("table"), column = header.cellIndex;
  const upwards = header.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", upwards ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows].map((row) => [sortKey(row.cells[column]), row]);
  // Empty cells come last in either order.
  rows.sort(([a], [b]) => (a === "") - (b === "") || (upwards ? compare(a, b) : compare(b, a)));
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

function csv(table) {
  const quoted = (text) => /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const field = (cell) => {
    const text = (cell.dataset.sort ?? cell.textContent).replaceAll(/\s+/g, " ").trim();
    // Spreadsheets evaluate cells that start like this; numbers are safe.
    const runs = /^[=+\-@]/.test(text) && Number.isNaN(Number(text));
    return quoted(runs ? `'${text}` : text);
  };
  // An interval in a cell is two columns of the file, and what follows it another one.
  const fields = (cell) => [field(cell), ...cell.dataset.more?.split(",") ?? []];
  return [...table.rows].map((row) => [...row.cells].flatMap(fields).join(",")).join("\r\n") + "\r\n";
}

function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = `${name.replaceAll(/[^\p{L}\p{N}.-]+/gu, "-").replace(/[.-]+$/, "")}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (button?.matches(".sort")) sort(button.closest("th"));
  if (button?.matches(".csv")) {
    const table = button.closest(".tools").previousElementSibling.querySelector("table");
    download(table.caption.textContent, csv(table));
  }
  if (button?.matches(".copy")) {
    await navigator.clipboard.writeText(button.closest(".source").querySelector("code").textContent);
    button.textContent = "Copied";
  }
  const isOutside = !contents.contains(event.target) || event.target.closest("a");
  if (!wide.matches && isOutside) contents.open = false;
});

// ------------------------------------------------------------------ reload

const seconds = Number(document.body.dataset.refreshSeconds ?? 0);
if (seconds) {
  setInterval(() => { if (document.getElementById("reload").checked) location.reload(); }, 1000 * seconds);
}

arrangeContents();
startDrawing();
