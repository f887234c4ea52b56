// The opened card of one rollout, or of one group.

/** A run's rollouts as the page holds them. */
class RunRollouts {
  constructor(run, r, index) {
    this.r = r;
    this.name = run.name;
    this.index = index;
    this.count = run.rollouts.shown;
    this.names = run.rollouts.names;
    this.starts = run.rollouts.starts;
    const { groups, of } = this.count ? groupsOf(index) : { groups: [], of: [] };
    this.groups = groups;
    this.groupOf = of;
    this.scale = run.rollouts.largest_advantage; // shown in the strongest colour
  }

  prompts() {
    return load(`${this.r}-prompts`);
  }

  async prompt(row) {
    return (await this.prompts())[this.index.prompt[row]];
  }

  /** Return the response, reward parts and tokens of a row. */
  async text(row) {
    let chunk = this.starts.length - 1;
    while (this.starts[chunk] > row) chunk--;
    return (await load(`${this.r}-texts-${chunk}`))[row - this.starts[chunk]];
  }

  outcome(row) {
    return this.names.outcome[this.index.outcome[row]];
  }

  ended(row) {
    return this.names.ended[this.index.ended[row]];
  }
}

/** Return the card of one rollout with its prompt. */
async function rolloutCard(run, row, mode, showGroup) {
  const [prompt, body] = await Promise.all([run.prompt(row), responseBlock(run, row, mode)]);
  const button = el("button", { type: "button", onclick: () => showGroup(run.groupOf[row]) }, "Show its group");
  return el("div", { class: "card" }, promptBlock(prompt), body, button);
}

/** Return the card of a prompt and all its responses; those not in `chosen`, the filtered rows, are dimmed. */
async function groupCard(run, group, mode, chosen) {
  const { start, end } = run.groups[group];
  const rows = Array.from({ length: end - start }, (_, i) => start + i);
  const [prompt, ...bodies] = await Promise.all([
    run.prompt(start),
    ...rows.map((row) => responseBlock(run, row, mode)),
  ]);
  bodies.forEach((body, i) => body.classList.toggle("outside", !chosen.has(rows[i])));
  return el("div", { class: "card" }, promptBlock(prompt), ...bodies);
}

function promptBlock(prompt) {
  if (typeof prompt === "string") return labelled("Prompt", el("div", { class: "text" }, prompt));
  return el(
    "div",
    {},
    ...prompt.map(([role, text]) => labelled(`Prompt, ${role}`, el("div", { class: "text" }, text))),
  );
}

function labelled(label, element) {
  return el("div", { class: "block" }, el("div", { class: "label" }, label), element);
}

async function responseBlock(run, row, mode) {
  const text = await run.text(row);
  const { index } = run;
  const facts = [
    ["reward", number(index.reward[row]), rewardClass(index.reward[row])],
    ["advantage", number(index.advantage[row])],
    ["tokens", number(index.length[row])],
    ["outcome", run.outcome(row)],
    ["ended by", run.ended(row)],
    ["engine", number(index.engine[row])],
    ["policy version", number(index.version[row])],
    ["seconds", number(text.seconds)],
  ];
  const chips = facts.map(([label, value, kind]) =>
    el("span", { class: `chip ${kind ?? ""}` }, `${label} `, el("b", {}, value)),
  );
  const response = responseElement(text.response, text.tokens, mode, index.advantage[row], run.scale);
  const uncoloured =
    mode !== "none" && !text.tokens
      ? el("p", { class: "readout" }, "This response was written without its tokens.")
      : null;
  return el(
    "div",
    { class: "block answer", "data-row": row },
    el("div", { class: "chips" }, ...chips),
    response,
    uncoloured,
    partsTable(text),
  );
}

function rewardClass(reward) {
  return reward === null ? "bad" : "";
}

function partsTable(text) {
  const rows = (text.parts ?? []).map(([name, value, outcome, detail]) =>
    el(
      "tr",
      {},
      el("td", {}, name),
      el("td", { class: "num" }, number(value)),
      el("td", {}, outcome),
      el("td", {}, detail),
    ),
  );
  const extra = text.extra ? el("tr", {}, el("td", {}, "noted"), el("td", { colspan: 3 }, text.extra)) : null;
  if (!rows.length && !extra) return null;
  return el("table", { class: "parts" }, el("tbody", {}, ...rows, extra));
}
