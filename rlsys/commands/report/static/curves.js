// Plots of metrics over steps.

const MISMATCH = "Engine against learner";
const REST = "All other numbers";
const FEW_POINTS = 40; // curves of at most so many points have a mark on each
const SMALL = 1e-3; // axes whose values are all smaller use exponents
let smoothing = 0;

/** Add the panels to their sections; `curves` holds each run's steps and values. */
function showCurves(head, curves) {
  const sections = new Map();
  for (const panel of head.panels) {
    if (!sections.has(panel.section)) sections.set(panel.section, sectionFor(panel.section));
    sections.get(panel.section).append(...panelFigures(panel, head.runs, curves));
  }
  const mismatch = document.getElementById("mismatch");
  mismatch.querySelector("h2").after(el("p", { class: "explained" }, MISMATCH_TEXT));
  if (!sections.has(MISMATCH)) mismatch.append(el("p", { class: "note" }, "The run has no such measurements."));
  document.querySelector("input[name=smooth]").addEventListener("input", (event) => {
    smoothing = Number(event.target.value);
    for (const { smooth } of drawn.values()) smooth?.();
  });
}

const MISMATCH_TEXT =
  "Engine and learner compute the log-probabilities of the same tokens by different programs. The difference is " +
  "taken on tokens that the newest weights sampled, before they are trained on; the ratio, and the weight that a " +
  "correction makes of it, on every trained token.";

function sectionFor(section) {
  const grid = el("div", { class: "panels" });
  const curves = document.getElementById("curves");
  if (section === MISMATCH) document.getElementById("mismatch").append(grid);
  else if (section === REST) curves.append(el("details", {}, el("summary", {}, section), grid));
  else curves.append(el("h3", {}, section), grid);
  return grid;
}

function panelFigures(panel, runs, curves) {
  const figure = (title, which) => {
    const element = el("div", { class: "plot", "data-panel": title });
    plot(element, () => panelPlot(panel, title, curvesOf(panel, runs, curves, which)));
    const unit = panel.unit ? el("span", { class: "unit" }, panel.unit) : null;
    return el("figure", {}, el("figcaption", {}, title, unit), element);
  };
  const all = runs.map((_, r) => r);
  if (!panel.stacked || runs.length === 1) return [figure(panel.title, all)];
  return all.map((r) => figure(`${panel.title}: ${runs[r].name}`, [r]));
}

/** Return a panel's curves (names, styles, x and y), without steps that have no value. */
function curvesOf(panel, runs, curves, which) {
  const found = [];
  panel.series.forEach((series, s) =>
    which.forEach((r) => {
      const values = curves[r].values[series.key];
      if (!values) return;
      const rows = panel.stacked ? stackedRows(panel, curves[r]) : [...values.keys()].filter((i) => values[i] !== null);
      const [x, y] = [[], []];
      for (const i of rows) {
        x.push(curves[r].steps[i]);
        y.push(values[i] ?? 0);
      }
      found.push({ name: curveName(panel, series, runs, which, r), style: lineStyle(panel, which.length, s, r), x, y });
    }),
  );
  return found;
}

function curveName(panel, series, runs, which, r) {
  if (which.length === 1) return series.label;
  return panel.series.length === 1 ? runs[r].name : `${series.label}, ${runs[r].name}`;
}

/** Return the rows with a value in any curve. In a stack a missing value is 0, but a row without any is left out. */
function stackedRows(panel, { steps, values }) {
  const columns = panel.series.map((series) => values[series.key]).filter(Boolean);
  return [...steps.keys()].filter((i) => columns.some((column) => column[i] !== null));
}

/** Colours distinguish curves, or runs if each has one curve; else the curves of the second run are dotted. */
function lineStyle(panel, numRuns, s, r) {
  const colors = palette();
  const byRun = numRuns > 1 && panel.series.length === 1;
  const dotted = !byRun && numRuns > 1 && r > 0;
  const kind = panel.stacked ? "area" : dotted ? "dotted" : "solid";
  return { color: colors[(byRun ? r : s) % colors.length], kind };
}

function panelPlot(panel, title, curves) {
  const figure = emptyFigure({ name: title, x_axis_label: "step", y_axis_type: panel.log ? "log" : "linear" });
  figure.xaxes.forEach((axis) => (axis.ticker.min_interval = 1));
  const largest = curves.flatMap(({ y }) => y).reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  if (!panel.log) figure.y_range.default_span = largest || 1; // the height of the axis if the values never change
  if (panel.log && largest < SMALL) {
    figure.yaxes.forEach((axis) => (axis.formatter = new Bokeh.PrintfTickFormatter({ format: "%.1e" })));
  }
  const smoothers = panel.stacked ? stack(figure, curves) : curves.map((curve) => line(figure, curve));
  addReading(figure, panel, curves);
  const keys = panel.legend || curves.length > 1 ? curves.map(({ name, style }) => [name, style]) : [];
  return { figure, keys, smooth: () => smoothers.forEach((smooth) => smooth()) };
}

/** Draw a curve and, above it, the smoothed one. Return a function to call when the smoothing changes. */
function line(figure, { name, style, x, y }) {
  const pen = { line_color: style.color, line_dash: style.kind, name };
  const raw = figure.line({ field: "x" }, { field: "y" }, { ...pen, source: source({ x, y }), line_width: 1.6 });
  const marks = { source: raw.data_source, size: 4, fill_color: style.color, line_color: null };
  const points = y.length <= FEW_POINTS ? figure.scatter({ field: "x" }, { field: "y" }, marks) : null;
  const above = source({ x: [], y: [] });
  figure.line({ field: "x" }, { field: "y" }, { ...pen, source: above, line_width: 2, name: `${name}, smoothed` });
  const smooth = () => {
    raw.glyph.line_alpha = smoothing > 0 ? 0.25 : 1;
    if (points) points.glyph.fill_alpha = smoothing > 0 ? 0.25 : 1;
    above.data = smoothing > 0 ? { x, y: smoothed(y, smoothing) } : { x: [], y: [] };
  };
  smooth();
  return smooth;
}

/** Draw areas on top of each other, the first lowest. They are not smoothed. */
function stack(figure, curves) {
  let below = (curves[0]?.x ?? []).map(() => 0);
  for (const { name, style, x, y } of curves) {
    const above = y.map((value, i) => below[i] + value);
    const area = { source: source({ x, y1: below, y2: above }), fill_color: style.color, fill_alpha: 0.65, name };
    figure.varea({ field: "x" }, { field: "y1" }, { field: "y2" }, area);
    below = above;
  }
  return [];
}

/** Show every curve's value at the step nearest to the pointer. */
function addReading(figure, panel, curves) {
  const steps = [...new Set(curves.flatMap(({ x }) => x))].sort((a, b) => a - b);
  if (!steps.length) return;
  const columns = { step: steps };
  curves.forEach(({ x, y }, c) => {
    const at = new Map(x.map((step, i) => [step, y[i]]));
    columns[`curve${c}`] = steps.map((step) => number(at.get(step)));
  });
  const height = panel.stacked ? 0 : (curves.flatMap(({ y }) => y).find((value) => !panel.log || value > 0) ?? 1);
  const unseen = figure.line({ field: "step" }, { value: height }, { source: source(columns), line_alpha: 0 });
  const tooltips = [["step", "@step"], ...curves.map(({ name }, c) => [name, `@curve${c}`])];
  figure.add_tools(new Bokeh.HoverTool({ mode: "vline", line_policy: "nearest", renderers: [unseen], tooltips }));
}

function source(data) {
  return new Bokeh.ColumnDataSource({ data });
}

/** Return the exponential moving average, unbiased at the start: weighted values divided by the sum of weights. */
function smoothed(values, decay) {
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    sum = decay * sum + value;
    weight = decay * weight + 1;
    return Number((sum / weight).toPrecision(6)); // rounded, so that a constant stays constant
  });
}
