// Elements and numbers. A run's texts enter the page only as text nodes, never as markup.

/** Make an element with properties (`class`, `data-…`, `on…`, attributes) and children: elements or texts. */
function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Return a number as text with four significant digits, or a dash. */
function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-4) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

/** Return the start of a text without its line breaks. */
function oneLine(text, limit = 160) {
  return text
    .slice(0, 4 * limit)
    .replace(/\s+/g, " ")
    .trim()
    .slice(0, limit);
}

/** Return a prompt as text, which is searched and shown in one line. */
function promptText(prompt) {
  return typeof prompt === "string" ? prompt : prompt.map(([role, text]) => `${role}: ${text}`).join("\n");
}

function option(value, label = value) {
  return el("option", { value }, label);
}
