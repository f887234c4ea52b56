// The timeline: one lane per worker, with the last steps of each timeline file.

const LABEL_WIDTH = 34; // pixels that a step's number above the lanes needs
const ZOOM = isTouch ? "" : "Drag to zoom, double-click to go back. ";

function showTimelines(runs) {
  const section = document.getElementById("timeline");
  const has = runs.map((run) => run.timelines.length > 0);
  if (!has.some(Boolean)) {
    section.append(el("p", { class: "note" }, "This run wrote no timeline. With logging.timeline=true it does."));
    return;
  }
  runs.forEach((run, r) => {
    if (runs.length > 1) section.append(el("h3", {}, runName(run.name, r)));
    if (has[r]) section.append(...timelineOf(run, r));
    else section.append(el("p", { class: "note" }, "No timeline was written."));
  });
}

function timelineOf(run, r) {
  const caption = el("p", { class: "explained" });
  const element = el("div", { class: "plot", "data-timeline": r });
  const choice = el("select", { name: `timeline-${r}`, "aria-label": "File" });
  choice.append(...run.timelines.map((one, index) => option(index, one.file)));
  choice.value = run.timelines.length - 1;
  let data = null;
  const show = async () => {
    const index = Number(choice.value);
    caption.textContent = timelineText(run.timelines[index]);
    data = await load(`${r}-timeline-${index}`);
    element.style.height = `${110 + 36 * data.lanes.length}px`;
    if (started.has(element)) await draw(element);
    else plot(element, () => timelinePlot(data, element.clientWidth));
  };
  choice.addEventListener("change", show);
  whenNear(element, show);
  const label = run.timelines.length > 1 ? [el("label", { class: "field" }, "File ", choice)] : [];
  return [...label, caption, el("figure", { class: "wide" }, element)];
}

/** Call a function once, when an element comes near the window: the data of timelines is not small. */
function whenNear(element, call) {
  const observer = new IntersectionObserver(
    (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      call();
    },
    { rootMargin: "600px" },
  );
  observer.observe(element);
}

function timelineText(one) {
  const { steps } = one;
  const which = steps.length ? `up to the end of step ${steps.at(-1)}` : "its end";
  const all = number(one.spans);
  const part = one.shown < one.spans ? `The last ${number(one.shown)} of ${all} spans` : `All ${all} spans`;
  const how = `A dotted line is the end of the step above it. ${ZOOM}`;
  return `${part} of ${one.file}, ${which}. ${how}The whole file opens in ui.perfetto.dev.`;
}

function timelinePlot(data, width) {
  const began = new Date(1000 * data.epoch_s).toLocaleTimeString("en-GB");
  const lanes = new Bokeh.FactorRange({ factors: [...data.lanes].reverse(), range_padding: 0.15 });
  const figure = emptyFigure({ name: "timeline", y_range: lanes, x_axis_label: `seconds from ${began}` });
  figure.ygrids.forEach((grid) => (grid.grid_line_color = null));
  addStepEnds(figure, data.steps, width);
  const colors = palette();
  const styles = new Map(data.names.map((name, n) => [name, { color: colors[n % colors.length], kind: "area" }]));
  const bars = byDuration(data).map(([name, spans]) => addSpans(figure, data, name, spans, styles.get(name)));
  const tooltips = [["", "@label"]];
  figure.add_tools(new Bokeh.HoverTool({ renderers: bars, tooltips, point_policy: "follow_mouse" }));
  return { figure, keys: [...styles] };
}

/** Return names with their spans, the longest first: short spans are drawn above those that contain them. */
function byDuration(data) {
  const spans = data.names.map((name) => [name, []]);
  data.name.forEach((n, i) => spans[n][1].push(i));
  const mean = (rows) => rows.reduce((sum, i) => sum + data.duration[i], 0) / rows.length;
  return spans.sort((a, b) => mean(b[1]) - mean(a[1]));
}

function addSpans(figure, data, name, spans, style) {
  const columns = {
    lane: spans.map((i) => data.lanes[data.lane[i]]),
    left: spans.map((i) => data.start[i]),
    right: spans.map((i) => data.start[i] + data.duration[i]),
    label: spans.map((i) => `${name}, ${number(data.duration[i])} s from ${data.start[i].toFixed(3)} s`),
  };
  const pen = {
    source: source(columns),
    height: 0.72,
    fill_color: style.color,
    line_color: style.color,
    line_width: 0.5,
  };
  return figure.hbar({ y: { field: "lane" }, left: { field: "left" }, right: { field: "right" }, ...pen, name });
}

/** Draw a line where each step ends, with the step's number above if there is room. */
function addStepEnds(figure, steps, width) {
  const ends = source({ x: steps.map(([, end]) => end) });
  const color = cssColor("--muted");
  figure.vspan({ field: "x" }, { source: ends, line_color: color, line_dash: "dotted", line_alpha: 0.7 });
  const every = Math.ceil((steps.length * LABEL_WIDTH) / width);
  const labelled = steps.filter((_, index) => index % every === 0);
  const axis = new Bokeh.LinearAxis({
    ticker: new Bokeh.FixedTicker({ ticks: labelled.map(([, end]) => end), minor_ticks: [] }),
    major_label_overrides: new Map(labelled.map(([step, end]) => [end, String(step)])),
    major_label_text_color: color,
    major_label_text_font_size: "10px",
    axis_line_color: null,
    major_tick_line_color: null,
  });
  figure.add_layout(axis, "above");
}
