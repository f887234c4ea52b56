// The header: what was run and how far it got; two runs side by side.

function showHeader(head) {
  const { runs } = head;
  const about = document.getElementById("about");
  if (runs.length === 1) about.append(tiles(runs[0].figures), factList(runs[0].facts), wholeConfig(runs[0].config));
  else {
    document
      .querySelector("h1")
      .replaceChildren(...runs.flatMap((run, r) => [r ? " against " : "", runName(run.name, r)]));
    about.append(
      sideBySide(runs, (run) => [...run.figures, ...run.facts]),
      configDifferences(runs),
    );
  }
  for (const [r, run] of runs.entries())
    about.append(...run.notes.map((note) => noteLine(note, runs.length > 1 ? runName(run.name, r) : null)));
  document.querySelector("footer").append(`Written by rlsys ${head.version} on ${head.written}.`);
}

function runName(name, r) {
  return el("span", { class: `run run-${r}` }, name);
}

function noteLine(note, name) {
  const sentence = `${note[0].toUpperCase()}${note.slice(1)}.`;
  return el("p", { class: "note" }, name, name ? ": " : null, sentence);
}

function tiles(figures) {
  const tile = ([label, value, detail]) =>
    el("div", { class: "tile" }, el("dt", {}, label), el("dd", {}, value), el("dd", { class: "qualifier" }, detail));
  return el("dl", { class: "tiles" }, ...figures.map(tile));
}

function factList(facts) {
  return el(
    "dl",
    { class: "facts" },
    ...facts.map(([label, text]) => el("div", {}, el("dt", {}, label), el("dd", {}, text))),
  );
}

function wholeConfig(config) {
  const lines = Object.entries(config).map(([key, value]) => `${key}: ${value}`);
  return el("details", {}, el("summary", {}, "Configuration"), el("pre", {}, lines.join("\n")));
}

function sideBySide(runs, rowsOf) {
  const columns = runs.map(
    (run) => new Map(rowsOf(run).map(([label, value, detail]) => [label, detail ? `${value} ${detail}` : value])),
  );
  const labels = [...new Set(columns.flatMap((column) => [...column.keys()]))];
  const head = el("tr", {}, el("th"), ...runs.map((run, r) => el("th", {}, runName(run.name, r))));
  const body = labels.map((label) => {
    const cells = columns.map((column) => el("td", {}, column.get(label) ?? "–"));
    return el("tr", {}, el("th", { scope: "row" }, label), ...cells);
  });
  return el(
    "div",
    { class: "scroll" },
    el("table", { class: "sides" }, el("thead", {}, head), el("tbody", {}, ...body)),
  );
}

function configDifferences(runs) {
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.config)))];
  const differing = keys.filter((key) => runs[0].config[key] !== runs[1].config[key]);
  const table = sideBySide(runs, (run) => differing.map((key) => [key, run.config[key] ?? "–"]));
  return el("details", {}, el("summary", {}, `Configuration: ${differing.length} differences`), table);
}
