"use strict";
// Chooses light or dark before anything is painted.

// Browsers may forbid storage to pages opened from a disk.
function remember(key, value) { try { localStorage.setItem(key, value); } catch { /* not stored */ } }
function recall(key) { try { return localStorage.getItem(key); } catch { return null; } }

const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const printing = matchMedia("print");
let theme = recall("rnn-search theme") ?? "auto";

function isDark() {
  if (printing.matches || root.dataset.printing) return false;
  return theme === "dark" || (theme === "auto" && system.matches);
}

root.dataset.theme = isDark() ? "dark" : "light";
root.classList.add("scripted");
if ("DecompressionStream" in window) root.classList.add("drawing");
