// The numbers of metrics.jsonl over steps.

const MISMATCH = "Engine against learner";
const REST = "All other numbers";
const FEW_POINTS = 40; // up to here each is marked
let smoothing = 0;

/** Panels into their sections; `curves` holds each run's steps and values. */
function showCurves(head, curves) {
  const places = new Map();
  for (const panel of head.panels) {
    if (!places.has(panel.section)) places.set(panel.section, sectionFor(panel.section));
    places.get(panel.section).append(...panelFigures(panel, head.runs, curves));
  }
  const mismatch = document.getElementById("mismatch");
  mismatch.querySelector("h2").after(el("p", { class: "explained" }, MISMATCH_TEXT));
  if (!places.has(MISMATCH)) mismatch.append(el("p", { class: "note" }, "Nothing of this kind was measured."));
  document.querySelector("input[name=smooth]").addEventListener("input", (event) => {
    smoothing = Number(event.target.value);
    redraw();
  });
}

const MISMATCH_TEXT =
  "Engine and learner compute the log-probabilities of the same tokens by different programs. The difference is " +
  "taken on tokens that the newest weights sampled, before they are trained on; the ratio, and the weight that a " +
  "correction makes of it, on every trained token.";

function sectionFor(section) {
  const grid = el("div", { class: "panels" });
  if (section === MISMATCH) document.getElementById("mismatch").append(grid);
  else if (section === REST)
    document.getElementById("curves").append(el("details", {}, el("summary", {}, section), grid));
  else document.getElementById("curves").append(el("h3", {}, section), grid);
  return grid;
}

function panelFigures(panel, runs, curves) {
  const figure = (title, which) => {
    const element = el("div", { class: "plot", "data-panel": title });
    plot(element, () => panelPlot(panel, runs, curves, which));
    const unit = panel.unit ? el("span", { class: "unit" }, panel.unit) : null;
    return el("figure", {}, el("figcaption", {}, title, unit), element);
  };
  const all = runs.map((_, r) => r);
  if (!panel.stacked || runs.length === 1) return [figure(panel.title, all)];
  return all.map((r) => figure(`${panel.title}: ${runs[r].name}`, [r]));
}

function panelPlot(panel, runs, curves, which) {
  const traces = [];
  panel.series.forEach((series, s) =>
    which.forEach((r) => {
      if (!curves[r].values[series.key]) return;
      const rows = panel.stacked ? stackedRows(panel, curves[r]) : [...curves[r].steps.keys()];
      const [steps, values] = [curves[r].steps, curves[r].values[series.key]].map((column) =>
        Array.from(rows, (i) => column[i]),
      );
      const style = lineStyle(panel, which.length, s, r);
      const name =
        which.length === 1
          ? series.label
          : panel.series.length === 1
            ? runs[r].name
            : `${series.label}, ${runs[r].name}`;
      traces.push(...lines(steps, values, plain(name), style, panel.stacked));
    }),
  );
  const showlegend = which.length > 1 || panel.legend;
  const y = axis({
    type: panel.log ? "log" : "linear",
    automargin: true,
    rangemode: panel.stacked ? "tozero" : "normal",
  });
  if (panel.log) Object.assign(y, { exponentformat: "power", dtick: logTick(traces) });
  return {
    traces,
    layout: {
      showlegend,
      hovermode: "x unified",
      xaxis: axis({ title: { text: "step", standoff: 4 }, zeroline: false }),
      yaxis: y,
    },
  };
}

/** Rows with a number in any curve: a stack takes what is missing for 0, and no number at all is not 0. */
function stackedRows(panel, { steps, values }) {
  const columns = panel.series.map((series) => values[series.key]).filter(Boolean);
  return [...steps.keys()].filter((i) => columns.some((column) => column[i] !== null));
}

/** Colours tell the curves of one run apart, and two runs where each has one curve; else the second run is dotted. */
function lineStyle(panel, numRuns, s, r) {
  const colors = palette();
  const byRun = numRuns > 1 && panel.series.length === 1;
  return { color: colors[(byRun ? r : s) % colors.length], dash: !byRun && numRuns > 1 && r > 0 ? "dot" : "solid" };
}

function lines(x, y, name, style, stacked) {
  const count = y.reduce((sum, value) => sum + (value !== null), 0);
  const few = count <= FEW_POINTS;
  const base = {
    x,
    name,
    type: "scatter",
    connectgaps: true,
    mode: few ? "lines+markers" : "lines",
    marker: { size: 4, color: style.color },
  };
  if (stacked)
    return [
      {
        ...base,
        y: y.map((value) => value ?? 0),
        mode: "lines",
        stackgroup: "one",
        line: { width: 0.5, color: style.color },
      },
    ];
  const smooth = smoothing > 0 && count > 2;
  const raw = { ...base, y, line: { width: 1.6, ...style } };
  if (!smooth) return [raw];
  const faint = { ...raw, opacity: 0.25, showlegend: false, hoverinfo: "skip", mode: "lines" };
  return [faint, { ...raw, y: smoothed(y, smoothing), mode: "lines", line: { width: 2, ...style } }];
}

/** Exponential moving average that starts unbiased (each value's weight over the sum of weights). */
function smoothed(values, decay) {
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = decay * sum + value;
    weight = decay * weight + 1;
    return Number((sum / weight).toPrecision(6)); // without the noise of the last bits a constant stays one
  });
}

/** Ticks at whole powers where the values span more than one, else Plotly's own. */
function logTick(traces) {
  const positive = traces.flatMap((trace) => trace.y.filter((value) => value > 0));
  const span = positive.length ? Math.log10(Math.max(...positive) / Math.min(...positive)) : 0;
  return span > 1 ? Math.ceil(span / 6) : undefined;
}
