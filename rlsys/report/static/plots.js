// Plots by Plotly, which is unpacked for the first of them. A plot is drawn when it comes near the window.

const LIGHT = [
  "#1f6fb2",
  "#cf5f17",
  "#2a8a5b",
  "#a8478f",
  "#a87d00",
  "#3a93b5",
  "#7a5ac2",
  "#77772f",
  "#c23b4b",
  "#5f6b78",
  "#1f9e9e",
  "#8c5a3c",
];
const DARK = [
  "#5aa9e6",
  "#f28c4a",
  "#57c08d",
  "#d981c2",
  "#e3bd4a",
  "#7fd0ea",
  "#a993ee",
  "#b9b96a",
  "#f07f8c",
  "#a5b1bd",
  "#52cfc9",
  "#c99a78",
];
const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
const isTouch = window.matchMedia("(pointer: coarse)").matches;
const figures = new Map(); // element -> function that gives its traces and layout
const started = new Map(); // element -> promise of its first drawing
let plotlyLoaded = null;
let redrawTimer = 0;

function palette() {
  return prefersDark.matches ? DARK : LIGHT;
}

function cssColor(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Names reach Plotly as text: it reads a little markup in them. */
function plain(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}

function loadPlotly() {
  plotlyLoaded ??= unpack("plotly").then((source) => document.head.append(el("script", {}, source)));
  return plotlyLoaded;
}

const nearWindow = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => drawOnce(entry.target)),
  { rootMargin: "400px" },
);

/** Let an element show `figure()`, an object of `traces` and `layout`, from when it comes near the window. */
function plot(element, figure) {
  figures.set(element, figure);
  nearWindow.observe(element);
}

function drawOnce(element) {
  if (!started.has(element)) started.set(element, draw(element));
  nearWindow.unobserve(element);
  return started.get(element);
}

async function draw(element) {
  await loadPlotly();
  const { traces, layout } = figures.get(element)();
  const options = { responsive: true, displayModeBar: false, doubleClick: "reset" };
  await Plotly.react(element, traces, { ...baseLayout(), ...layout }, options);
  element.dataset.drawn = "";
}

/** Draw again what is drawn, after a change of colours or of what the figures say; once for changes close in time. */
function redraw() {
  clearTimeout(redrawTimer);
  redrawTimer = setTimeout(() => [...started.keys()].forEach(draw), 50);
}

/** Draw what is in the window now. */
function drawVisible() {
  const visible = [...figures.keys()].filter((element) => {
    const box = element.getBoundingClientRect();
    return box.height > 0 && box.top < window.innerHeight;
  });
  return Promise.all(visible.map(drawOnce));
}

function axis(changes = {}) {
  return {
    gridcolor: cssColor("--grid"),
    linecolor: cssColor("--grid"),
    zerolinecolor: cssColor("--grid"),
    ...changes,
  };
}

function baseLayout() {
  const text = cssColor("--muted");
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 11, color: text },
    margin: { l: 50, r: 12, t: 8, b: 34 },
    hoverlabel: { bgcolor: cssColor("--card"), bordercolor: cssColor("--line"), font: { color: cssColor("--text") } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal", font: { size: 11 } },
    dragmode: isTouch ? false : "zoom",
  };
}

prefersDark.addEventListener("change", redraw);
