// The rollout browser: filters, a page of rows, and opened rows.

const PAGE_ROWS = 25;
const ORDER_LABELS = {
  step: "as the run wrote them",
  "reward-desc": "reward, highest first",
  "reward-asc": "reward, lowest first",
  "advantage-desc": "advantage, highest first",
  "advantage-asc": "advantage, lowest first",
  "length-desc": "length, longest first",
  "length-asc": "length, shortest first",
};

class RolloutBrowser {
  constructor(section, runs) {
    this.runs = runs;
    this.run = runs.find((run) => run.count) ?? runs[0];
    this.page = 0;
    this.changes = 0; // changes of the form
    this.turn = 0; // counts drawings: one that was overtaken is dropped
    this.form = this.makeForm();
    this.count = el("p", { class: "count", "aria-live": "polite" });
    this.table = el("table", { class: "rows" });
    this.pager = el("div", { class: "pager" });
    section.append(this.form, this.count, this.table, this.pager);
    this.fillNames();
  }

  makeForm() {
    const fields =
      this.runs.length > 1
        ? [field("Run", el("select", { name: "run" }, ...this.runs.map((run, r) => option(r, run.name))))]
        : [];
    fields.push(range("Step", "step"), range("Reward", "reward"), range("Tokens", "length"));
    fields.push(
      field("Outcome", el("select", { name: "outcome" })),
      field("Ended by", el("select", { name: "ended" })),
    );
    const orders = Object.entries(ORDER_LABELS).map(([value, label]) => option(value, label));
    const modes = Object.entries(MODES).map(([value, label]) => option(value, label));
    fields.push(field("Colour tokens", el("select", { name: "mode" }, ...modes)));
    fields.push(field("Prompt has", el("input", { type: "search", name: "search", autocomplete: "off" }), "grow"));
    fields.push(field("Order", el("select", { name: "order" }, ...orders), "order"));
    fields.push(el("label", { class: "check" }, el("input", { type: "checkbox", name: "groups" }), " Groups"));
    this.legend = el("span", { class: "legend" });
    const form = el("form", { class: "filters" }, ...fields, el("button", { type: "reset" }, "Reset"), this.legend);
    form.elements.mode.value = "probability";
    form.elements.mode.querySelector("[value=probability]").defaultSelected = true;
    if (this.runs.length > 1) {
      const first = form.elements.run.options[this.runs.indexOf(this.run)];
      first.selected = first.defaultSelected = true; // a reset restores it
    }
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => this.changed(event.target.name));
    form.addEventListener("reset", () => setTimeout(() => this.changed("run")));
    return form;
  }

  /** Fill the choices of outcomes with those of the run. */
  fillNames() {
    for (const name of ["outcome", "ended"]) {
      const names = this.run.names[name] ?? [];
      this.form.elements[name].replaceChildren(option("", "any"), ...names.map((label, index) => option(index, label)));
    }
  }

  async changed(name) {
    const change = ++this.changes;
    this.table.setAttribute("aria-busy", "true");
    if (name === "run") {
      this.run = this.runs[this.form.elements.run?.value ?? 0];
      this.fillNames();
    }
    if (name === "mode") await this.recolour();
    else {
      this.page = 0;
      await this.show();
    }
    if (change === this.changes) this.table.setAttribute("aria-busy", "false");
  }

  /** Return the filter that the form describes. Prompts are decompressed for the first search. */
  async filter() {
    const value = (name) => this.form.elements[name].value.trim();
    const limit = (name) => (value(name) === "" ? null : Number(value(name)));
    const position = (name) => (value(name) === "" ? null : Number(value(name)));
    const filter = { outcome: position("outcome"), ended: position("ended"), prompts: null };
    for (const name of RANGES) filter[name] = [limit(`${name}-from`), limit(`${name}-to`)];
    const sought = value("search").toLowerCase();
    if (sought) {
      const found = (await this.run.prompts()).map((prompt, p) =>
        promptText(prompt).toLowerCase().includes(sought) ? p : -1,
      );
      filter.prompts = new Set(found.filter((p) => p >= 0));
    }
    return filter;
  }

  async show() {
    const turn = ++this.turn;
    const { run } = this;
    const filter = await this.filter();
    if (turn !== this.turn) return;
    const rows = run.count ? matching(run.index, filter) : [];
    this.chosen = new Set(rows);
    this.grouped = this.form.elements.groups.checked;
    this.items = this.grouped ? this.orderedGroups(rows) : this.orderedRows(rows);
    const groups = this.grouped ? ` in ${number(this.items.length)} groups` : "";
    this.count.textContent = `${number(rows.length)} of ${number(run.count)} rollouts${groups}`;
    await this.showPage(turn);
  }

  orderedRows(rows) {
    const order = this.form.elements.order.value;
    return order === "step" ? rows : ordered(rows, order, (row) => this.run.index[order.split("-")[0]][row]);
  }

  orderedGroups(rows) {
    const order = this.form.elements.order.value;
    const { groups, groupOf, index } = this.run;
    const found = [...new Set(rows.map((row) => groupOf[row]))];
    if (order === "step") return found;
    const column = index[order.split("-")[0]];
    const means = new Map(found.map((group) => [group, moments(column, groups[group]).mean]));
    return ordered(found, order, (group) => means.get(group));
  }

  async showPage(turn = ++this.turn) {
    const { run } = this;
    const start = this.page * PAGE_ROWS;
    const items = this.items.slice(start, start + PAGE_ROWS);
    const rows = items.map((item) => (this.grouped ? this.groupRow(item) : this.rolloutRow(item)));
    const body = el("tbody", {}, ...rows);
    this.table.className = this.grouped ? "rows groups" : "rows";
    this.table.replaceChildren(this.grouped ? GROUP_HEAD() : ROW_HEAD(), body);
    this.showPager(start);
    this.legend.replaceWith((this.legend = legend(this.form.elements.mode.value, run.scale)));
    await Promise.all(items.map((item, i) => this.fillTexts(rows[i], item, turn)));
  }

  rolloutRow(row) {
    const { index } = this.run;
    const cells = [
      ["step", index.step[row]],
      ["group", index.group[row] ?? "–"],
      ["reward", number(index.reward[row])],
      ["advantage", number(index.advantage[row])],
      ["length", number(index.length[row])],
      ["outcome", `${this.run.outcome(row)}, ${this.run.ended(row)}`],
    ];
    return this.line("row", row, cells, ["prompt", "response"]);
  }

  groupRow(group) {
    const { index, groups } = this.run;
    const { start, end } = groups[group];
    const reward = moments(index.reward, groups[group]);
    const cells = [
      ["step", index.step[start]],
      ["group", index.group[start] ?? "–"],
      ["reward", number(reward.mean)],
      ["advantage", number(reward.std)],
      ["length", number(moments(index.length, groups[group]).mean)],
      ["outcome", `${this.countChosen(start, end)} of ${end - start}`],
    ];
    return this.line("group", group, cells, ["prompt"]);
  }

  countChosen(start, end) {
    let count = 0;
    for (let row = start; row < end; row++) count += this.chosen.has(row);
    return count;
  }

  line(kind, item, cells, texts) {
    const open = () => this.toggle(line, kind, item);
    const line = el("tr", { [`data-${kind}`]: item, tabindex: 0, "aria-expanded": "false", onclick: open });
    line.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      open();
    });
    line.append(
      ...cells.map(([name, text]) => el("td", { class: `${name} ${name === "outcome" ? "" : "num"}` }, text)),
    );
    line.append(...texts.map((name) => el("td", { class: `long ${name}` }, el("div"))));
    return line;
  }

  async fillTexts(line, item, turn) {
    const { run } = this;
    const row = this.grouped ? run.groups[item].start : item;
    const shown = { prompt: oneLine(promptText(await run.prompt(row))) };
    if (!this.grouped) shown.response = oneLine((await run.text(row)).response);
    if (turn !== this.turn) return;
    for (const [name, text] of Object.entries(shown)) line.querySelector(`.${name} div`).textContent = text;
  }

  async toggle(line, kind, item) {
    const isOpen = line.getAttribute("aria-expanded") === "true";
    line.setAttribute("aria-expanded", String(!isOpen));
    if (isOpen) line.nextElementSibling?.classList.contains("detail") && line.nextElementSibling.remove();
    else await this.open(line, kind, item);
  }

  async open(line, kind, item) {
    const mode = this.form.elements.mode.value;
    const showGroup = (group) => this.open(line, "group", group);
    const card =
      kind === "group"
        ? await groupCard(this.run, item, mode, this.chosen)
        : await rolloutCard(this.run, item, mode, showGroup);
    if (line.getAttribute("aria-expanded") !== "true" || !line.isConnected) return;
    const detail = el(
      "tr",
      { class: "detail", "data-kind": kind, "data-item": item },
      el("td", { colspan: line.cells.length }, card),
    );
    if (line.nextElementSibling?.classList.contains("detail")) line.nextElementSibling.replaceWith(detail);
    else line.after(detail);
  }

  /** Colour the opened rows in another way. */
  async recolour() {
    this.legend.replaceWith((this.legend = legend(this.form.elements.mode.value, this.run.scale)));
    const details = [...this.table.querySelectorAll("tr.detail")];
    await Promise.all(
      details.map((detail) =>
        this.open(detail.previousElementSibling, detail.dataset.kind, Number(detail.dataset.item)),
      ),
    );
  }

  showPager(start) {
    const total = this.items.length;
    const go = (by) => () => {
      this.page += by;
      this.showPage();
    };
    const last = Math.min(start + PAGE_ROWS, total);
    this.pager.replaceChildren(
      el("button", { type: "button", onclick: go(-1), disabled: this.page === 0 }, "Previous"),
      el("span", {}, total ? `${number(start + 1)} to ${number(last)} of ${number(total)}` : "Nothing matches."),
      el("button", { type: "button", onclick: go(1), disabled: last >= total }, "Next"),
    );
  }
}

function field(label, input, kind = "") {
  return el("label", { class: `field ${kind}` }, el("span", {}, label), input);
}

function range(label, name) {
  const end = (which, hint) =>
    el("input", {
      type: "number",
      step: "any",
      name: `${name}-${which}`,
      placeholder: hint,
      "aria-label": `${label} ${hint}`,
    });
  return el(
    "div",
    { class: "field range" },
    el("span", {}, label),
    el("div", {}, end("from", "from"), end("to", "to")),
  );
}

function tableHead(names) {
  return el("thead", {}, el("tr", {}, ...names.map(([name, kind]) => el("th", { scope: "col", class: kind }, name))));
}

const ROW_HEAD = () =>
  tableHead([
    ["Step", "num"],
    ["Group", "num"],
    ["Reward", "num"],
    ["Advantage", "num"],
    ["Tokens", "num"],
    ["Outcome", ""],
    ["Prompt", "long"],
    ["Response", "long"],
  ]);
const GROUP_HEAD = () =>
  tableHead([
    ["Step", "num"],
    ["Group", "num"],
    ["Mean reward", "num"],
    ["Std. dev.", "num"],
    ["Mean tokens", "num"],
    ["Matching", ""],
    ["Prompt", "long"],
  ]);
