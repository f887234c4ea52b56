// A response with coloured tokens: by their probability or by their advantage.

const MODES = { none: "not", probability: "by probability", advantage: "by advantage" };

/**
 * Return the element of a response. `tokens` holds its pieces with log-probabilities and, if tokens have their own,
 * advantages; without it, or in the mode `none`, the text is plain. `scale` is the advantage with the strongest colour.
 */
function responseElement(text, tokens, mode, advantage, scale) {
  if (!tokens || mode === "none") return el("div", { class: "text response" }, text);
  const readout = el("p", { class: "readout", "aria-live": "polite" }, "Point at a token to read its numbers.");
  const body = el("div", { class: "text response tokens" });
  tokens.pieces.forEach((piece, i) => {
    if (piece === "") return; // part of a character that a later token shows
    body.append(
      el(
        "span",
        { "data-token": i, style: tokenStyle(mode, tokens.logprobs[i], advantageOf(tokens, i, advantage), scale) },
        piece,
      ),
    );
  });
  const showNumbers = (event) => {
    const i = event.target.dataset?.token;
    if (i !== undefined) readout.textContent = tokenText(tokens, Number(i), advantage);
  };
  body.addEventListener("pointerover", showNumbers);
  body.addEventListener("click", showNumbers);
  return el("div", {}, body, readout);
}

function advantageOf(tokens, i, advantage) {
  return tokens.advantages ? tokens.advantages[i] : advantage;
}

function tokenText(tokens, i, advantage) {
  const logprob = tokens.logprobs[i];
  const probability = logprob === null ? null : Math.exp(logprob);
  const piece = JSON.stringify(tokens.pieces[i]);
  const own = advantageOf(tokens, i, advantage);
  const numbers = [
    `probability ${number(probability)}`,
    `log-probability ${number(logprob)}`,
    `advantage ${number(own)}`,
  ];
  return `Token ${i} ${piece}: ${numbers.join(", ")}`;
}

/** Return a token's style: the colour is stronger for less probable tokens, or for larger advantages. */
function tokenStyle(mode, logprob, advantage, scale) {
  const value = mode === "probability" ? logprob : advantage;
  if (value === null || value === undefined) return "outline: 1px dashed var(--muted)";
  if (mode === "probability") return `background: rgb(var(--rare) / ${strength(1 - Math.exp(value))})`;
  const color = value < 0 ? "--worse" : "--better";
  return `background: rgb(var(${color}) / ${strength(scale > 0 ? Math.min(Math.abs(value) / scale, 1) : 0)})`;
}

function strength(share) {
  return (0.75 * share).toFixed(3);
}

function legend(mode, scale) {
  if (mode === "none") return el("span", { class: "legend" });
  const ends = mode === "probability" ? ["1", "0"] : [number(-scale), number(scale)];
  return el("span", { class: "legend" }, `${mode} ${ends[0]}`, el("span", { class: `ramp ${mode}` }), ends[1]);
}
