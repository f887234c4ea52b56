// Plots by BokehJS, which is loaded for the first plot. A plot is drawn when it comes near the window.

const LIGHT = [
  ...["#1f6fb2", "#cf5f17", "#2a8a5b", "#a8478f", "#a87d00", "#3a93b5"],
  ...["#7a5ac2", "#77772f", "#c23b4b", "#5f6b78", "#1f9e9e", "#8c5a3c"],
];
const DARK = [
  ...["#5aa9e6", "#f28c4a", "#57c08d", "#d981c2", "#e3bd4a", "#7fd0ea"],
  ...["#a993ee", "#b9b96a", "#f07f8c", "#a5b1bd", "#52cfc9", "#c99a78"],
];
const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
const isTouch = window.matchMedia("(pointer: coarse)").matches;
const builders = new Map(); // element -> function that makes its figure
const started = new Map(); // element -> promise of its first drawing
const drawn = new Map(); // element -> what its builder returned, and its view
let queue = Promise.resolve();
let bokehLoaded = null;

function palette() {
  return prefersDark.matches ? DARK : LIGHT;
}

function cssColor(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function loadBokeh() {
  bokehLoaded ??= unpack("bokeh").then((source) => document.head.append(el("script", {}, source)));
  return bokehLoaded;
}

const nearWindow = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => drawOnce(entry.target)),
  { rootMargin: "400px" },
);

/**
 * Draw a plot in an element when it comes near the window. `build()` returns a `figure`, its `keys` as names with
 * styles and, if it depends on the smoothing, `smooth()`, which is called when that changes.
 */
function plot(element, build) {
  builders.set(element, build);
  nearWindow.observe(element);
}

/** Draw one plot after the other, so that the page stays responsive in between. */
function drawOnce(element) {
  nearWindow.unobserve(element);
  if (!started.has(element)) {
    queue = queue.then(() => draw(element)).then(() => new Promise((resolve) => setTimeout(resolve)));
    started.set(element, queue);
  }
  return started.get(element);
}

async function draw(element) {
  await loadBokeh();
  drawn.get(element)?.view.remove();
  const made = builders.get(element)();
  const holder = el("div", { class: "canvas" });
  element.replaceChildren(...(made.keys.length ? [keyList(made.keys)] : []), holder);
  const view = await Bokeh.Plotting.show(made.figure, holder);
  made.figure.on_event("doubletap", () => view.reset());
  drawn.set(element, { ...made, view });
  element.dataset.drawn = "";
}

/** Draw every plot again that was drawn. */
function redraw() {
  return Promise.all([...started.keys()].map(draw));
}

/** Draw the plots that are in the window now. */
function drawVisible() {
  const visible = [...builders.keys()].filter((element) => {
    const box = element.getBoundingClientRect();
    return box.height > 0 && box.top < window.innerHeight;
  });
  return Promise.all(visible.map(drawOnce));
}

function keyList(keys) {
  const swatch = (style) => el("span", { class: `swatch ${style.kind}`, style: `--key: ${style.color}` });
  return el("div", { class: "keys" }, ...keys.map(([name, style]) => el("span", {}, swatch(style), name)));
}

/** Make an empty figure in the page's colours. Dragging zooms in x, a double click resets it. */
function emptyFigure(options) {
  const figure = Bokeh.Plotting.figure({
    tools: [],
    toolbar_location: null,
    sizing_mode: "stretch_both",
    min_border: 3,
    background_fill_color: null,
    border_fill_color: null,
    outline_line_color: null,
    ...options,
  });
  figure.add_tools(new Bokeh.BoxZoomTool({ dimensions: "width" }));
  if (isTouch) figure.toolbar.active_drag = null;
  const muted = cssColor("--muted");
  const font = {
    major_label_text_color: muted,
    major_label_text_font_size: "11px",
    major_label_text_font: "system-ui",
  };
  const title = { axis_label_text_color: muted, axis_label_text_font_size: "11px", axis_label_text_font: "system-ui" };
  const lines = { axis_line_color: null, major_tick_line_color: null, minor_tick_line_color: null };
  const label = { axis_label_text_font_style: "normal", axis_label_standoff: 2 };
  for (const axis of [...figure.xaxes, ...figure.yaxes]) axis.setv({ ...font, ...title, ...lines, ...label });
  for (const grid of [...figure.xgrids, ...figure.ygrids]) grid.grid_line_color = cssColor("--grid");
  return figure;
}

prefersDark.addEventListener("change", redraw);
