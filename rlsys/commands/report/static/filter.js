// Filtering and ordering of rollouts, given and returned as row numbers.

const RANGES = ["step", "reward", "length"];
const ORDERS = {
  step: (a, b) => a - b,
  "reward-desc": (a, b) => b - a,
  "reward-asc": (a, b) => a - b,
  "advantage-desc": (a, b) => b - a,
  "advantage-asc": (a, b) => a - b,
  "length-desc": (a, b) => b - a,
  "length-asc": (a, b) => a - b,
};

/**
 * Return the rows that pass `filter`: `step`, `reward` and `length` are `[from, to]`, with null for an open end;
 * `outcome` and `ended` are positions in the lists of names, or null; `prompts` is a Set of positions of prompts, or
 * null. A row without a value is in no range.
 */
function matching(index, filter) {
  const ranges = RANGES.map((name) => [index[name], filter[name]]).filter(
    ([, [from, to]]) => from !== null || to !== null,
  );
  const names = ["outcome", "ended"].filter((name) => filter[name] !== null);
  const rows = [];
  for (let i = 0; i < index.step.length; i++) {
    if (!ranges.every(([column, range]) => within(column[i], range))) continue;
    if (!names.every((name) => index[name][i] === filter[name])) continue;
    if (filter.prompts !== null && !filter.prompts.has(index.prompt[i])) continue;
    rows.push(i);
  }
  return rows;
}

function within(value, [from, to]) {
  return value !== null && (from === null || value >= from) && (to === null || value <= to);
}

/** Return the items in one of ORDERS. Items without a value come last; equal ones keep the run's order. */
function ordered(items, order, valueOf) {
  const compare = ORDERS[order];
  return [...items].sort((a, b) => {
    const [x, y] = [valueOf(a), valueOf(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return compare(x, y);
  });
}

/** Return the groups of a run as row ranges `[start, end)`: a group's rows follow each other. */
function groupsOf(index) {
  const groups = [];
  const of = new Int32Array(index.step.length);
  for (let i = 0; i < of.length; i++) {
    const starts =
      i === 0 ||
      index.step[i] !== index.step[i - 1] ||
      index.group[i] !== index.group[i - 1] ||
      index.group[i] === null;
    if (starts) groups.push({ start: i, end: i });
    groups.at(-1).end = i + 1;
    of[i] = groups.length - 1;
  }
  return { groups, of };
}

/** Return mean and standard deviation of a column over a group's rows with a value. */
function moments(column, { start, end }) {
  const values = column.slice(start, end).filter((value) => value !== null);
  if (!values.length) return { mean: null, std: null };
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const square = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length;
  return { mean, std: Math.sqrt(square) };
}
