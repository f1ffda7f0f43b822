"use strict";
// Draws figures when they are about to be seen, and handles tables and contents. All data are in
// the page; Plotly and the figures are compressed.

const root = document.documentElement;
const NEAR = "800px";
const CONFIG = {
  displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "sendChartToCloud"],
};

// ------------------------------------------------------------------ figures

async function decompress(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

async function startDrawing() {
  const [library, data] = await Promise.all(["plotly", "figures"].map(decompress));
  const script = document.createElement("script");
  script.textContent = library;
  document.head.append(script);
  const figures = JSON.parse(data);
  const observer = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      observer.unobserve(target);
      draw(target, figures[target.dataset.figure]);
    }
  }, { rootMargin: NEAR });
  for (const plot of document.querySelectorAll(".plot")) observer.observe(plot);
}

async function draw(plot, figure) {
  await Plotly.newPlot(plot, figure.data, figure.layout, CONFIG);
  plot.classList.add("drawn");
}

root.classList.add("scripted");
if ("DecompressionStream" in window) {
  root.classList.add("drawing");
  startDrawing();
}

// ------------------------------------------------------------------ contents

// A column next to the page where there is room, else a menu in a bar.
const contents = document.querySelector(".contents");
const wide = matchMedia("(min-width: 64rem)");

function arrangeContents() {
  contents.open = wide.matches;
}

wide.addEventListener("change", arrangeContents);
arrangeContents();

// ------------------------------------------------------------------ tables

for (const table of document.querySelectorAll("table.sortable")) {
  for (const header of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.className = "sort";
    button.append(...header.childNodes);
    header.append(button);
  }
  const tools = document.createElement("div");
  tools.className = "tools";
  tools.innerHTML = '<button class="csv">Download as CSV</button>';
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
  const table = header.closest("table");
  const upwards = header.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", upwards ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows].map((row) => [sortKey(row.cells[header.cellIndex]), row]);
  // Empty cells come last in either order.
  rows.sort(([a], [b]) => (a === "") - (b === "") || (upwards ? compare(a, b) : compare(b, a)));
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

function csvField(cell) {
  const text = (cell.dataset.sort ?? cell.textContent).replaceAll(/\s+/g, " ").trim();
  // Spreadsheets evaluate cells that start like this; numbers are safe.
  const safe = /^[=+\-@]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
  return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function download(table) {
  // An interval in a cell is two columns of the file, and what follows it another one.
  const fields = (cell) => [csvField(cell), ...cell.dataset.more?.split(",") ?? []];
  const lines = [...table.rows].map((row) => [...row.cells].flatMap(fields).join(",") + "\r\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "text/csv" }));
  link.download = `${table.caption.textContent.replaceAll(/[^\p{L}\p{N}.-]+/gu, "-").replace(/[.-]+$/, "")}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

document.addEventListener("click", async ({ target }) => {
  const button = target.closest("button");
  if (button?.matches(".sort")) sort(button.closest("th"));
  if (button?.matches(".csv")) download(button.closest(".tools").previousElementSibling.querySelector("table"));
  if (button?.matches(".copy")) {
    await navigator.clipboard.writeText(button.closest(".source").querySelector("code").textContent);
    button.textContent = "Copied";
  }
  const isOutside = !contents.contains(target) || target.closest("a");
  if (!wide.matches && isOutside) contents.open = false;
});

