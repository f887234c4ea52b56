// Builds the page. `data-ready` on the root element is the time in milliseconds when the visible part was drawn.

function fail(error) {
  const failure = document.getElementById("failure");
  failure.hidden = false;
  failure.textContent = `This report could not be shown: ${error?.message ?? error}`;
}

async function main() {
  const head = await load("head");
  const numbers = head.runs.map((_, r) => r);
  const curves = await Promise.all(numbers.map((r) => load(`${r}-curves`)));
  const indexes = await Promise.all(numbers.map((r) => load(`${r}-index`)));
  showHeader(head);
  showCurves(head, curves);
  showTimelines(head.runs);
  const section = document.getElementById("rollouts");
  const rollouts = head.runs.map((run, r) => new RunRollouts(run, r, indexes[r]));
  if (rollouts.some((run) => run.count)) await new RolloutBrowser(section, rollouts).show();
  else section.append(el("p", { class: "note" }, "There are none to look at."));
  await drawVisible();
  document.documentElement.dataset.ready = performance.now().toFixed(0);
}

window.addEventListener("error", (event) => fail(event.error ?? event.message));
window.addEventListener("unhandledrejection", (event) => fail(event.reason));
main();
