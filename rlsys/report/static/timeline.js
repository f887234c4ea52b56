// Who did what when: a lane a worker, the last steps of each timeline file.

const LABEL_WIDTH = 34; // pixels of a step's number above the lanes
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
  const said = el("p", { class: "explained" });
  const element = el("div", { class: "plot", "data-timeline": r });
  const choice = el("select", { name: `timeline-${r}`, "aria-label": "File" });
  choice.append(...run.timelines.map((one, place) => option(place, one.file)));
  choice.value = run.timelines.length - 1;
  let data = null;
  const show = async () => {
    const place = Number(choice.value);
    said.textContent = timelineText(run.timelines[place]);
    data = await load(`${r}-timeline-${place}`);
    const legend = element.clientWidth < 600 ? 130 : 70;
    element.style.height = `${legend + 40 + 38 * data.lanes.length}px`;
    if (started.has(element)) await draw(element);
    else plot(element, () => timelinePlot(data, element.clientWidth));
  };
  choice.addEventListener("change", show);
  whenNear(element, show);
  const label = run.timelines.length > 1 ? [el("label", { class: "field" }, "File ", choice)] : [];
  return [...label, said, el("figure", { class: "wide" }, element)];
}

/** Call once, when an element comes near the window: the data of timelines is not small. */
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
  const part =
    one.shown < one.spans
      ? `The last ${number(one.shown)} of ${number(one.spans)} spans`
      : `All ${number(one.spans)} spans`;
  const how = `A dotted line is the end of the step above it. ${ZOOM}`;
  return `${part} of ${one.file}, ${which}. ${how}The whole file opens in ui.perfetto.dev.`;
}

function timelinePlot(data, width) {
  const colors = palette();
  const byName = data.names.map((name, n) => ({ name, spans: [], color: colors[n % colors.length] }));
  data.name.forEach((n, i) => byName[n].spans.push(i));
  const mean = (spans) => spans.reduce((sum, i) => sum + data.duration[i], 0) / spans.length;
  byName.sort((a, b) => mean(b.spans) - mean(a.spans)); // the short ones lie above those that contain them
  const traces = byName.map(({ name, spans, color }) => ({
    type: "bar",
    orientation: "h",
    name: plain(name),
    y: spans.map((i) => plain(data.lanes[data.lane[i]])),
    base: spans.map((i) => data.start[i]),
    x: spans.map((i) => data.duration[i]),
    customdata: spans.map((i) => [data.duration[i], data.start[i]]),
    hovertemplate: "%{y}: %{customdata[0]:.4~g} s, from %{customdata[1]:.3f} s<extra>%{fullData.name}</extra>",
    marker: { color, line: { width: 0 } },
  }));
  return { traces, layout: timelineLayout(data, width) };
}

function timelineLayout(data, width) {
  const color = cssColor("--muted");
  const every = Math.ceil((data.steps.length * LABEL_WIDTH) / width);
  const began = new Date(1000 * data.epoch_s).toLocaleTimeString("en-GB");
  return {
    barmode: "overlay",
    bargap: 0.25,
    hovermode: "closest",
    showlegend: true,
    margin: { l: 10, r: 12, t: 8, b: 36 },
    legend: { orientation: "h", x: 0, y: 1.06, yanchor: "bottom", font: { size: 11 } },
    xaxis: axis({ title: { text: `seconds from ${began}`, standoff: 4 }, zeroline: false }),
    yaxis: axis({
      automargin: true,
      categoryorder: "array",
      categoryarray: data.lanes.map(plain),
      autorange: "reversed",
      fixedrange: true,
    }),
    shapes: data.steps.map(([, end]) => ({
      type: "line",
      x0: end,
      x1: end,
      y0: 0,
      y1: 1,
      yref: "paper",
      line: { color, width: 1, dash: "dot" },
    })),
    annotations: data.steps
      .filter((_, place) => place % every === 0)
      .map(([step, end]) => ({
        x: end,
        y: 1,
        yref: "paper",
        yanchor: "bottom",
        text: String(step),
        showarrow: false,
        font: { size: 10, color },
      })),
  };
}
